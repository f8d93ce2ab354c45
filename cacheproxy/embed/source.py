"""A sentence-transformers model directory, read and checked before anything heavy touches it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from cacheproxy.embed.text import RULE
from cacheproxy.embed.weights import check_weights
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MODULES = ("Transformer", "Pooling", "Normalize")
_Size = Annotated[int, msgspec.Meta(ge=1)]
_T = TypeVar("_T")


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `config.json` that decide what the weights compute."""

    model_type: str
    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    intermediate_size: _Size
    max_position_embeddings: _Size
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12


class _SentenceConfig(msgspec.Struct, frozen=True):
    max_seq_length: _Size


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A usable model: BERT layers, mean pooling, safetensors weights. `window` counts tokens, special ones included."""

    directory: Path
    name: str
    architecture: Architecture
    window: int
    weights_sha256: str
    tokenizer_sha256: str

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.architecture.hidden_size

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.directory / TOKENIZER

    def fingerprint(self, variant: str, arithmetic: str) -> str:
        """Name an encoder made from this model, such as `all-MiniLM-L6-v2/onnx-fp32/1-0123456789ab`.

        The digest covers weights, tokenizer, architecture, pooling, window, the long-input rule's version and the
        arithmetic, and no byte that could differ between two machines.
        """
        parts = (
            self.weights_sha256,
            self.tokenizer_sha256,
            msgspec.json.encode(self.architecture).decode(),
            "mean+l2",
            str(self.window),
            str(RULE),
            variant,
            arithmetic,
        )
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        return f"{self.name}/{variant}/{RULE}-{digest}"


def read_source(directory: Path, known: dict[str, str]) -> Source:
    """Read a model directory; `known` maps sha256 of weights to the name they are known by.

    Raises ConfigError when a file is missing or unreadable, when the only weights are pickled, when the safetensors
    file is cut short, or when the model is not of the kind this project can run.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; encoder.name takes a known name or a model directory")
    architecture = _decode(directory / "config.json", Architecture)
    if architecture.model_type != "bert":
        raise ConfigError(f"{directory}: model_type is {architecture.model_type!r}; only 'bert' encoders can be run")
    weights = _find_weights(directory, architecture)
    _check_modules(directory)
    window = _decode(directory / "sentence_bert_config.json", _SentenceConfig).max_seq_length
    if window > architecture.max_position_embeddings:
        raise ConfigError(
            f"{directory / 'sentence_bert_config.json'}: max_seq_length {window} exceeds the model's "
            f"{architecture.max_position_embeddings} positions"
        )
    weights_sha256 = file_sha256(weights)
    return Source(
        directory=directory,
        # The name comes from the content, so that two machines agree on it wherever the files lie.
        name=known.get(weights_sha256, f"{architecture.model_type}-{architecture.hidden_size}"),
        architecture=architecture,
        window=window,
        weights_sha256=weights_sha256,
        tokenizer_sha256=file_sha256(directory / TOKENIZER),
    )


def file_sha256(file: Path) -> str:
    """Return the hex sha256 of a file's content. Raises ConfigError when it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); install the model again") from exc


def _find_weights(directory: Path, architecture: Architecture) -> Path:
    weights = directory / WEIGHTS
    if weights.is_file():
        check_weights(weights, architecture.num_hidden_layers)
        return weights
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        raise ConfigError(
            f"{directory}: only pickled weights ({', '.join(pickles)}); loading them could run code, "
            f"so they are refused: convert them to {WEIGHTS}"
        )
    raise ConfigError(f"{directory}: no {WEIGHTS}; give a sentence-transformers model saved as one safetensors file")


def _check_modules(directory: Path) -> None:
    modules = _decode(directory / "modules.json", list[_Module])
    for module in modules:
        if module.type.rpartition(".")[2] not in _MODULES:
            raise ConfigError(f"{directory / 'modules.json'}: module {module.type!r} cannot be run; use {_MODULES}")
    pooling = next((module.path for module in modules if module.type.endswith(".Pooling")), None)
    if pooling is None:
        raise ConfigError(f"{directory / 'modules.json'}: no Pooling module; a sentence-transformers model is needed")
    config = _decode(directory / pooling / "config.json", dict[str, Any])
    modes = {key.removeprefix("pooling_mode_") for key, on in config.items() if on is True and "pooling_mode_" in key}
    if modes != {"mean_tokens"} and config.get("pooling_mode") != "mean":
        raise ConfigError(f"{directory / pooling / 'config.json'}: only mean pooling can be run, got {sorted(modes)}")


def _decode(file: Path, type_: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=type_)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); the model directory is not complete") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: {exc}; the model directory is damaged") from exc
