"""A safetensors file's header, checked before anything loads the file.

The format: 8 bytes of header length (little-endian), a JSON header of names to dtype, shape and data_offsets, data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
"""Maps of one layer, each with a weight and a bias."""


def check_weights(file: Path, layers: int) -> None:
    """Raise ConfigError unless the file is whole and holds the weights of a BERT encoder with that many layers.

    transformers fills a missing tensor with random numbers and only logs it, so absence must be found here.
    """
    names = _read_names(file)
    wanted = [f"embeddings.{part}.weight" for part in _EMBEDDINGS]
    wanted += [f"encoder.layer.{layer}.{part}.weight" for layer in range(layers) for part in LAYER]
    for name in wanted:
        if name not in names and f"bert.{name}" not in names:
            raise ConfigError(f"{file}: holds no tensor {name!r}; it is not a BERT encoder of {layers} layers")


def _read_names(file: Path) -> set[str]:
    """Return the names of the tensors, having compared the file's size with what its header promises."""
    advice = "install the model again"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ConfigError(f"{file}: not a whole safetensors file; {advice}")
            header = msgspec.json.decode(stream.read(length), type=dict[str, Any])
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); {advice}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError) as exc:
        raise ConfigError(f"{file}: its safetensors header cannot be read; {advice}") from exc
    if size != 8 + length + end:
        raise ConfigError(f"{file}: holds {size} bytes where its header promises {8 + length + end}; {advice}")
    return set(header)
