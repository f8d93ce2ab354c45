"""What was trained, on disk or on the wire: a manifest and the weights it vouches for. Refused when anything disagrees.

Two files in a folder: `manifest.json` and `head.safetensors`, which holds a head, or a change of the encoder's layers.
Nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cacheproxy.embed.head import Head
from cacheproxy.embed.layers import MOST_DEPTH, MOST_DIM, MOST_INNER, MOST_RANK, Form, Layers, Mode
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

SCHEMA = 1
MANIFEST, WEIGHTS = "manifest.json", "head.safetensors"
MOST_BYTES = 32 << 20
"""Of either file; a head of 1,024 x 1,024 takes 4 MiB, two layers of the default encoder 14."""
ANY = "*"
"""Stands for every category that has no threshold of its own."""
_TENSOR = "head"
_PRECISE = "/onnx-fp32/"
"""In the fingerprint of an encoder that is exported at fp32 and runs on a CPU."""
_WORDS = {"head": "head", "top-layers": "change of layers", "lora": "set of adapters"}
_DIGITS = 32
_Cosine = Annotated[float, msgspec.Meta(ge=-1.0, le=1.0)]
_Size = Annotated[int, msgspec.Meta(ge=2, le=MOST_DIM)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]*$", max_length=128)]
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class Changed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which layers of the encoder changed, as `layers.Form`, and the tensors that say how."""

    mode: Mode
    inner: Annotated[int, msgspec.Meta(ge=1, le=MOST_INNER)]
    depth: Annotated[int, msgspec.Meta(ge=1, le=MOST_DEPTH)]
    layers: Annotated[int, msgspec.Meta(ge=1, le=MOST_DEPTH)]
    rank: Annotated[int, msgspec.Meta(ge=0, le=MOST_RANK)]
    tensors: dict[str, list[int]]
    """Names and shapes."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a head is, what it was made from, and what is known of it."""

    schema: int
    base: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    """Fingerprint of the encoder below it, and of no other."""
    dim_in: _Size
    dim: _Size
    int8: bool
    sha256: _Hex
    """Of the weights' file."""
    parent: _Short
    """Epoch that training went on from; the base's fingerprint for a first head."""
    round: Annotated[int, msgspec.Meta(ge=0)]
    thresholds: dict[str, _Cosine]
    """By category, and for any other one as `*`: where its F-beta is best, of the counts that all clients sent."""
    verify_from: _Cosine | None = None
    """Cosine from which on a verifier is asked, beside what the pack asks of the encoder's own; None asks no more."""
    metrics: dict[str, float] = {}
    """What was measured when it was made."""
    made_by: dict[str, str] = {}
    """Versions, strategy and settings."""
    changed: Changed | msgspec.UnsetType = msgspec.UNSET
    """Of layers; a head has none, so that its signature is of what it always was."""
    key: _Hex = ""
    """Public half of the key that signed it, "" for none."""
    signature: _Hex = ""
    """Ed25519, of all of the above."""

    @property
    def mode(self) -> str:
        """What was trained: `head`, `top-layers` or `lora`."""
        return "head" if isinstance(self.changed, msgspec.UnsetType) else self.changed.mode

    @property
    def signed(self) -> bytes:
        """What a signature is of."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=""), order="deterministic")


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A head with its manifest; checked against each other. Where layers changed, the head changes nothing."""

    manifest: Manifest
    head: Head
    layers: Layers | None = None

    @property
    def projection(self) -> Head | None:
        """What is made of the encoder's vectors; None where layers changed, and vectors are another encoder's."""
        return None if self.layers else self.head

    @property
    def epoch(self) -> str:
        """Name of the vectors that this makes, and of the thresholds that they are measured by."""
        manifest, weights = self.manifest, self.layers or self.head
        terms = msgspec.json.encode([manifest.thresholds, manifest.verify_from], order="deterministic")
        digest = hashlib.sha256(weights.digest.encode() + terms).hexdigest()
        return f"{manifest.base}+{digest[:_DIGITS]}"


def pack(made: Head | Layers, manifest: Manifest, key: Ed25519PrivateKey | None = None) -> tuple[Manifest, bytes]:
    """Return the manifest, completed and signed if there is a key, and the weights it vouches for."""
    changed: Changed | msgspec.UnsetType
    if isinstance(made, Layers):
        dim_in, dim, int8, changed, tensors = made.form.dim, made.form.dim, False, _changed(made.form), made.tensors
    else:
        dim_in, dim, int8, changed, tensors = made.dim_in, made.dim, made.int8, msgspec.UNSET, {_TENSOR: made.matrix}
    weights = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    manifest = msgspec.structs.replace(
        manifest,
        dim_in=dim_in,
        dim=dim,
        int8=int8,
        changed=changed,
        sha256=hashlib.sha256(weights).hexdigest(),
        key=key.public_key().public_bytes_raw().hex() if key else "",
        signature="",
    )
    if key is not None:
        manifest = msgspec.structs.replace(manifest, signature=key.sign(manifest.signed).hex())
    return manifest, weights


def unpack(manifest: Manifest, weights: bytes, where: str, trusted: Collection[str] = ()) -> Artefact:
    """Return the head that a manifest vouches for. `trusted` are public keys, one of which must have signed it, if any.

    Raises ConfigError that says what disagrees; `where` names the artefact. No more memory is taken than the largest
    head needs, whatever the manifest claims.
    """
    if manifest.schema != SCHEMA:
        raise ConfigError(f"{where}: was made by another version of cacheproxy; train it again")
    if 4 * manifest.dim * manifest.dim_in > MOST_BYTES:
        raise ConfigError(f"{where}: claims {manifest.dim} x {manifest.dim_in} components, more than any head may have")
    _check_signature(manifest, where, trusted)
    if len(weights) > MOST_BYTES or hashlib.sha256(weights).hexdigest() != manifest.sha256:
        raise ConfigError(f"{where}: {WEIGHTS} does not have the sha256 of its manifest; fetch or train it again")
    try:
        head, layers = _made(manifest, weights)
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{where}: {WEIGHTS} is no {_WORDS[manifest.mode]}: {exc}") from exc
    if (head.dim, head.dim_in) != (manifest.dim, manifest.dim_in):
        raise ConfigError(f"{where}: the manifest states another shape than {WEIGHTS} has; train it again")
    if ANY not in manifest.thresholds:
        raise ConfigError(f"{where}: has no threshold for `{ANY}`; train it again")
    if not all(math.isfinite(value) for value in manifest.metrics.values()):
        raise ConfigError(f"{where}: a metric is not finite; train it again")
    return Artefact(manifest=manifest, head=head, layers=layers)


def write(folder: Path, made: Head | Layers, manifest: Manifest, key: Ed25519PrivateKey | None = None) -> Artefact:
    """Write both files into a folder, made if it is not there; the manifest last, whole or not at all."""
    manifest, weights = pack(made, manifest, key)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((WEIGHTS, weights), (MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))):
        draft = folder / f".{name}"
        draft.write_bytes(content)
        draft.replace(folder / name)
    if isinstance(made, Layers):
        return Artefact(manifest=manifest, head=Head.identity(made.form.dim), layers=made)
    return Artefact(manifest=manifest, head=made)


def read(folder: Path, trusted: Collection[str] = ()) -> Artefact:
    """Read a folder and check all of it. Raises ConfigError that says what is wrong and what to do."""
    return unpack(read_manifest(folder), _content(folder / WEIGHTS), str(folder), trusted)


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest alone. Raises ConfigError."""
    return parsed(_content(folder / MANIFEST), str(folder / MANIFEST))


def parsed(content: bytes, where: str) -> Manifest:
    """Return a manifest. Raises ConfigError that names the field."""
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{where}: is no manifest of a head: {exc}") from exc


def told(tree: Mapping[str, Any], where: str) -> Manifest:
    """Return the manifest that decoded JSON is. Raises ConfigError that names the field."""
    try:
        return msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: its manifest is none: {exc}") from exc


def refuse_base(manifest: Manifest, base: str, where: str) -> None:
    """Raise ConfigError where a head was made for another encoder than `base`."""
    if manifest.base != base:
        raise ConfigError(
            f"{where}: was made for the encoder {manifest.base}, the one in use is {base}; train one for it"
        )


def refuse_dim(manifest: Manifest, dim: int, where: str) -> None:
    """Raise ConfigError where a head takes vectors of another length than `dim`."""
    if manifest.dim_in != dim:
        raise ConfigError(
            f"{where}: takes vectors of {manifest.dim_in} components, the encoder makes {dim}; train one for it"
        )


def refuse_precision(mode: str, base: str, where: str) -> None:
    """Raise ConfigError for changed layers of any encoder but one at fp32 on a CPU.

    What they are trained and measured with is float32: another precision would serve other cosines under their
    thresholds.
    """
    if mode != "head" and _PRECISE not in base:
        raise ConfigError(
            f"{where}: changed layers are served at fp32 on a CPU only, the encoder is {base}; "
            "set encoder.precision to 'fp32' and encoder.device to 'cpu', or take a similarity head"
        )


def _changed(form: Form) -> Changed:
    tensors = {name: list(shape) for name, shape in form.shapes.items()}
    return Changed(
        mode=form.mode, inner=form.inner, depth=form.depth, layers=form.layers, rank=form.rank, tensors=tensors
    )


def _made(manifest: Manifest, weights: bytes) -> tuple[Head, Layers | None]:
    """Return the head, and the layers where it is those that changed. Raises what says that they are none."""
    told = manifest.changed
    if isinstance(told, msgspec.UnsetType):
        (matrix,) = (tensor for name, tensor in load(weights).items() if name == _TENSOR)
        return Head(matrix=matrix, int8=manifest.int8), None
    if manifest.int8:
        raise ValueError("changed layers have no int8 codes")
    form = Form(
        mode=told.mode, dim=manifest.dim_in, inner=told.inner, depth=told.depth, layers=told.layers, rank=told.rank
    )
    if {name: tuple(shape) for name, shape in told.tensors.items()} != form.shapes:
        raise ValueError("the manifest names other tensors than such layers have")
    layers = Layers.of(form, load(weights))
    return Head.identity(form.dim), layers


def _check_signature(manifest: Manifest, where: str, trusted: Collection[str]) -> None:
    if trusted and manifest.key not in trusted:
        raise ConfigError(f"{where}: is not signed by a trusted key (encoder.head_keys); ask who made it for theirs")
    if not manifest.key and not manifest.signature:
        return
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest.key))
        public.verify(bytes.fromhex(manifest.signature), manifest.signed)
    except (InvalidSignature, ValueError) as exc:
        raise ConfigError(f"{where}: its signature does not fit; it was changed after it was made") from exc


def _content(file: Path) -> bytes:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{file}: is larger than any head")
        return file.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); give the folder of a trained head") from exc
