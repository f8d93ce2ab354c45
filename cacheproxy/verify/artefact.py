"""A verifier on disk: one folder with a manifest that every load is checked against. No pickle, nothing executed.

`manifest.json` (sizes, digests, what it was trained on), `cross.safetensors` (the cross-encoder's layers as int8) and
`cheap.safetensors` (the trees).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cacheproxy.errors import ConfigError
from cacheproxy.verify import features
from cacheproxy.verify.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA = 1
MANIFEST, CROSS, CHEAP = "manifest.json", "cross.safetensors", "cheap.safetensors"
_MOST_BYTES = 256 << 20
_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
_Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file that was trained on: its name, digest, pairs, and what its licence allows, as far as that is known."""

    name: str
    sha256: str
    pairs: int
    licence: str = ""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured on pairs kept back from training, at the default probability."""

    pairs: int
    precision: float | None
    recall: float | None
    average_precision: float | None


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How log-odds add up: `cheap` of the trees alone; `both` weighs trees, cross-encoder and cosine."""

    cheap: tuple[_Finite, _Finite]
    """Bias, and weight of the trees."""
    both: tuple[_Finite, _Finite, _Finite]
    """Bias, and weights of the trees and of the cross-encoder."""
    hopeless: _Finite
    """Log-odds of the trees below which the cross-encoder is not asked."""
    sure: _Finite | None = None
    """Log-odds of the trees from which on it is not asked either; None, as in artefacts of before: it always is."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a folder holds and what it was made from."""

    schema: int
    name: str
    description: str
    encoder: str
    """The base encoder's name."""
    weights_sha256: str
    """Of the base encoder's weights: the word embeddings are read from there."""
    layers: _Size
    heads: _Size
    dim: _Size
    """Of the cross-encoder."""
    features: int
    feature_names: tuple[str, ...]
    files: dict[str, str]
    weights: Weights
    caution: float = 0.0
    """Log-odds by which its probabilities were lowered after calibrating, see `training.course.Order`."""
    sources: tuple[Source, ...]
    held_back: dict[str, Figures]
    seed: int
    visits: int
    """Pairs that the cross-encoder saw in training, repeats counted."""
    parent: str
    """The fingerprint of the verifier it grew from, "" for none."""
    tools: dict[str, str]
    sha256: str = ""
    """Of all of the above, so that a damaged manifest is told from a whole one; "" before it is saved."""

    @property
    def fingerprint(self) -> str:
        """A readable prefix and a digest of everything that a probability depends on."""
        parts = msgspec.json.encode([self.schema, self.weights_sha256, self.features, self.files, self.weights])
        return f"{self.name}/{self.features}-{hashlib.sha256(parts).hexdigest()[:12]}"


def load(folder: Path) -> tuple[Manifest, Trees, Mapping[str, NDArray[Any]]]:
    """Read a folder and check all of it; the last are the cross-encoder's weights.

    Raises ConfigError that says what is wrong and what to do.
    """
    manifest = read_manifest(folder)
    if manifest.schema != SCHEMA or manifest.features != features.VERSION or manifest.feature_names != features.NAMES:
        raise ConfigError(f"{folder}: was made by another version of cacheproxy; train it again")
    if set(manifest.files) != {CROSS, CHEAP}:
        raise ConfigError(f"{folder / MANIFEST}: lists other files than {CROSS} and {CHEAP}; train it again")
    if manifest.sha256 and manifest.sha256 != _own_digest(manifest):
        raise ConfigError(f"{folder / MANIFEST}: does not have the sha256 that it states; train or install it again")
    for name, digest in manifest.files.items():
        if _sha256(folder / name) != digest:
            raise ConfigError(f"{folder / name}: does not have the sha256 of its manifest; train or install it again")
    trees = Trees.from_arrays(_arrays(folder / CHEAP), len(manifest.feature_names))
    return manifest, trees, _arrays(folder / CROSS)


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest alone. Raises ConfigError where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as exc:
        raise ConfigError(f"{folder}: holds no {MANIFEST}; make a verifier with `cacheproxy verifier train`") from exc
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{folder / MANIFEST}: cannot be read ({exc}); train or install the verifier again") from exc


def save(folder: Path, manifest: Manifest, trees: Trees, cross: Mapping[str, NDArray[Any]]) -> Manifest:
    """Write all files into an existing directory; return the manifest with their digests."""
    for name, arrays in ((CHEAP, trees.arrays()), (CROSS, cross)):
        # In rows: the library writes the bytes of a transposed array as if it were none.
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / name)
    files = {name: _sha256(folder / name) for name in (CROSS, CHEAP)}
    manifest = msgspec.structs.replace(manifest, files=files)
    manifest = msgspec.structs.replace(manifest, sha256=_own_digest(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def _own_digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, sha256=""))).hexdigest()


def _arrays(file: Path) -> Mapping[str, NDArray[Any]]:
    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as exc:
        raise ConfigError(f"{file}: cannot be read ({exc}); train or install the verifier again") from exc


def _sha256(file: Path) -> str:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{file}: is larger than any verifier")
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); train or install the verifier again") from exc


def refuse_base(folder: Path, manifest: Manifest) -> None:
    """Raise ConfigError: the verifier belongs to another encoder than the one in use."""
    raise ConfigError(f"{folder}: was made for {manifest.encoder} and no other encoder; train one for yours")
