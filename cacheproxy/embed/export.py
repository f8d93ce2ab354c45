"""Export a sentence-transformers encoder to one ONNX graph: transformer, mean pooling and L2 normalisation.

Runs as `python -m cacheproxy.embed.export MODEL_DIR fp32|int8 OUT_DIR` in a process of its own, started by `artefact`,
for it imports torch. Writes the graph, the tokenizer and the manifest, after checking the vectors against
sentence-transformers itself. Exits 1 with one line on stderr when the export must not be used.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer

from cacheproxy.embed.artefact import ARITHMETIC, DEVIATION_LIMITS, GRAPH, MANIFEST, Check, Manifest, exported_as
from cacheproxy.embed.locate import locate
from cacheproxy.embed.onnx import OnnxEncoder
from cacheproxy.embed.source import TOKENIZER, Source, file_sha256
from cacheproxy.embed.text import RULE
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_OPSET = 17
_TOOLS = ("onnx", "onnxruntime", "sentence-transformers", "tokenizers", "torch", "transformers")

CHECK_TEXTS = (
    "hi",
    "What is the capital of France?",
    "what's the capital city of france",
    "How do I reverse a list in Python?",
    "How do I reverse a string in Python?",
    "Is it safe to take 200 mg of ibuprofen with 500 mg of paracetamol?",
    "Is it safe to take 400 mg of ibuprofen with 500 mg of paracetamol?",
    "Translate 'good morning' into Portuguese, and into Fran\u00e7ais as well.",
    "\u041a\u0430\u043a \u0434\u0435\u043b\u0430? \u00bfQu\u00e9 tal? \u65e5\u672c",
    "def area(r):\n    return 3.14159 * r ** 2  # what does this compute?",
    "My order #48213 has not arrived; it was shipped on 3 May and the tracking page shows nothing.",
    " ".join(["The quick brown fox jumps over the lazy dog, then sleeps."] * 4),
    " ".join(["Summarise: rivers carry sediment to the sea and build deltas."] * 9),
    " ".join(["Each item in the list must be checked, counted and written down."] * 16),
)
"""Texts of 3 to about 230 tokens: each is encoded alone and all of them as one padded batch."""


class _Graph(torch.nn.Module):
    """BERT with an additive mask made here (the model's own mask code cannot be traced), pooled and normalised."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.embeddings = bert.embeddings
        self.encoder = bert.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map ids and mask of shape (batch, tokens) to unit vectors of shape (batch, dim)."""
        mask = attention_mask.to(torch.float32)
        additive = (1.0 - mask)[:, None, None, :] * torch.finfo(torch.float32).min
        hidden = self.encoder(self.embeddings(input_ids=input_ids), attention_mask=additive).last_hidden_state
        weights = mask.unsqueeze(-1)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def export(source: Source, precision: str, out: Path) -> Manifest:
    """Write the export of a source into an existing, empty directory and return its manifest.

    Raises ConfigError when the vectors deviate from sentence-transformers by more than the precision's limit.
    """
    model = SentenceTransformer(
        str(source.directory),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True, "attn_implementation": "eager"},
    )
    _trace(model, out / GRAPH)
    if precision == "int8":
        _quantise(out / GRAPH)
    shutil.copyfile(source.tokenizer, out / TOKENIZER)
    fingerprint = exported_as(source, precision)
    encoder = OnnxEncoder(out, fingerprint=fingerprint, dim=source.dim, window=source.window, precision=precision)
    manifest = Manifest(
        fingerprint=fingerprint,
        precision=precision,
        arithmetic=ARITHMETIC[precision],
        dim=source.dim,
        window=source.window,
        rule=RULE,
        opset=_OPSET,
        weights_sha256=source.weights_sha256,
        tokenizer_sha256=source.tokenizer_sha256,
        files={name: file_sha256(out / name) for name in (GRAPH, TOKENIZER)},
        check=_check(encoder, model, DEVIATION_LIMITS[precision]),
        tools={name: version(name) for name in _TOOLS},
    )
    (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def _trace(model: SentenceTransformer, file: Path) -> None:
    ids = torch.ones((2, 8), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: "batch", 1: "tokens"}
    with torch.inference_mode(), warnings.catch_warnings():
        # The TorchScript exporter is deprecated but complete for this graph; its successor needs one more dependency.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Graph(model[0].model).eval(),
            (ids, mask),
            str(file),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
        )


def _quantise(file: Path) -> None:
    full = file.with_suffix(".fp32")
    file.rename(full)
    quantize_dynamic(full, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    full.unlink()


def _check(encoder: OnnxEncoder, model: SentenceTransformer, limit: float) -> Check:
    batch, unseen = encoder.encode(CHECK_TEXTS)
    # sentence-transformers cuts at the window without saying so: only texts that fit can be compared.
    fitting = [index for index, digest in enumerate(unseen) if not digest]
    if len(fitting) < 2:
        raise ConfigError("the model's window is too small to check the export against sentence-transformers")
    texts = [CHECK_TEXTS[index] for index in fitting]
    reference = model.encode(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
    alone = np.concatenate([encoder.encode([text])[0] for text in texts])
    deviation = max(_deviation(batch[fitting], reference), _deviation(alone, reference))
    if not deviation < limit:
        raise ConfigError(
            f"the export deviates from sentence-transformers by {deviation:.2g} in cosine, limit {limit:.2g}"
        )
    return Check(texts=len(texts), max_cosine_deviation=deviation)


def _deviation(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    pairs = np.abs(vectors @ vectors.T - reference @ reference.T).max()
    own = np.abs(1.0 - np.einsum("ij,ij->i", vectors, reference)).max()
    return float(max(pairs, own))


def main(arguments: Sequence[str]) -> None:
    """Run one export from command line arguments: model directory, precision, output directory."""
    directory, precision, out = arguments
    try:
        export(locate(directory), precision, Path(out))
    except ConfigError as exc:
        raise SystemExit(exc.message) from exc


if __name__ == "__main__":
    main(sys.argv[1:])
