"""cachellm-proxy with the same encoder graph as ours: run by the Python of its own environment, which has not ours.

`python peers_cachellm.py ENCODER_DIR PORT`. Its own encoder is the same model, fetched from a hub; this one is on disk.
"""

import sys

import fastembed
from fastembed.common.model_description import ModelSource, PoolingType

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def main(encoder: str, port: int) -> None:
    """Serve."""
    own = fastembed.TextEmbedding
    local = f"{MODEL}-local"
    own.add_custom_model(
        local,
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf=local),
        dim=384,
        model_file="model.onnx",
    )

    def from_disk(model_name: str, **more: object) -> object:
        assert model_name == MODEL
        return own(model_name=local, specific_model_path=encoder, **more)

    fastembed.TextEmbedding = from_disk
    from cachellm.cli import app  # after the change

    sys.argv = ["cachellm", "serve", "--port", str(port)]
    app()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
