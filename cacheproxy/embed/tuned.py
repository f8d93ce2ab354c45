"""The tuned encoder: the one in use with changed layers, exported beside it and opened like it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import structlog
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cacheproxy.embed.artefact import (
    ARITHMETIC,
    MANIFEST,
    Manifest,
    ensure,
    export_in_child,
    exported_as,
    folder_of,
)
from cacheproxy.embed.batch import Flaw, run
from cacheproxy.embed.device import choose_device
from cacheproxy.embed.layers import MODES
from cacheproxy.embed.locate import locate
from cacheproxy.embed.onnx import OnnxEncoder
from cacheproxy.embed.source import WEIGHTS, read_source
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.layers import Form, Layers
    from cacheproxy.embed.source import Source

_PRECISION = "fp32"
"""What changed layers are trained and measured with."""
_FOLDER = "encoders"
"""In the data directory, which is one proxy's own: in `encoder.cache_dir` they might be another one's."""
_PREFIX = "bert."
"""What some savers put before every name."""

_log = structlog.get_logger()


def open_tuned(encoder: settings.Encoder, data_dir: Path, artefact: Artefact) -> Encoder:
    """Return the encoder of an artefact of changed layers, loaded and tried; its fingerprint is the artefact's epoch.

    Blocks: about a second, and 10-30 s more when its export has to be made first. Raises ConfigError as
    `open.open_encoder`, where the layers are not of the encoder that is configured, at int8 and on a GPU.
    """
    layers, source = artefact.layers, locate(encoder.name)
    if layers is None:
        raise ConfigError(f"{artefact.epoch}: is a head and changes no layer of the encoder")
    refuse_form(layers.form, source)
    if encoder.precision != _PRECISION or choose_device(encoder.device) != "cpu":
        raise ConfigError(
            "changed layers are served at fp32 on a CPU only: set encoder.precision to 'fp32' and encoder.device to "
            "'cpu', or promote a similarity head"
        )
    named, export = _named(source, layers), _Export(source, layers)
    folder, manifest = ensure(named, _PRECISION, data_dir / _FOLDER, export)
    opened = OnnxEncoder(
        folder, fingerprint=artefact.epoch, dim=manifest.dim, window=manifest.window, precision=manifest.precision
    )
    [outcome] = run(opened, ["ready"])
    if isinstance(outcome, Flaw):
        raise ConfigError(f"{artefact.epoch}: its first embedding failed ({outcome}); train it again")
    return opened


def prune_exports(encoder: settings.Encoder, data_dir: Path, kept: Collection[Artefact]) -> None:
    """Remove all exports of changed layers but those of `kept`; each is made again where it is wanted. Blocks.

    Also what an export left that was killed: none may be under way. Raises ConfigError where the encoder is missing.
    """
    folder = data_dir / _FOLDER
    found = [one for mode in MODES for one in folder.glob(f"*+{mode}_onnx-*") if one.is_dir()]
    if not found:
        return
    source = locate(encoder.name)
    wanted = {folder_of(_named(source, one.layers), _PRECISION, folder) for one in kept if one.layers}
    for one in found:
        if one not in wanted:
            shutil.rmtree(one, ignore_errors=True)
            one.with_name(f"{one.name}.lock").unlink(missing_ok=True)
            _log.info("encoder_export_dropped", folder=str(one))


def form_of(source: Source) -> dict[str, int]:
    """Return what `layers.Form` must know of an encoder."""
    told = source.architecture
    return {"dim": told.hidden_size, "inner": told.intermediate_size, "depth": told.num_hidden_layers}


def fingerprints(source: Source) -> set[str]:
    """Return the names that vectors of a model may have, by all the ways that it is run in."""
    found = {exported_as(source, name) for name in ARITHMETIC}
    return found | {
        source.fingerprint(f"torch-{name}", told) for name, told in (("fp16", "float16"), ("fp32", "float32"))
    }


def refuse_form(form: Form, source: Source) -> None:
    """Raise ConfigError where layers are of another encoder than a model."""
    if {"dim": form.dim, "inner": form.inner, "depth": form.depth} != form_of(source):
        raise ConfigError(
            f"the changed layers are of an encoder of {form.depth} layers of {form.dim} x {form.inner}, which "
            f"{source.name} is not; train them on the encoder in use"
        )


@contextmanager
def changed(source: Source, layers: Layers, out: Path) -> Iterator[Source]:
    """Make a model directory with the changed weights beside `out`, for as long as it is needed. Blocks.

    Its name begins as that of `out` does, so that whoever removes what a killed export left removes both. Raises
    ConfigError and OSError.
    """
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as told:
        folder = Path(told)
        for file in source.directory.rglob("*.json"):
            copy = folder / file.relative_to(source.directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        try:
            save_file(changed_weights(source, layers), folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as exc:
            raise ConfigError(f"{folder}: cannot be written ({exc}); is there room for 300 MB?") from exc
        yield read_source(folder, {})


def changed_weights(source: Source, layers: Layers) -> dict[str, NDArray[Any]]:
    """Return all weights of a model, float32 where they changed. Raises ConfigError where its files cannot be used."""
    try:
        weights = dict(load_file(source.directory / WEIGHTS))
    except (OSError, SafetensorError, TypeError) as exc:
        raise ConfigError(f"{source.directory / WEIGHTS}: cannot be read ({exc}); install the model again") from exc
    for name, more in layers.added().items():
        own = name if name in weights else f"{_PREFIX}{name}"
        if own not in weights or weights[own].shape != more.shape:
            raise ConfigError(
                f"{source.directory / WEIGHTS}: has no {name} of shape {more.shape}; is it a BERT encoder?"
            )
        weights[own] = weights[own].astype(np.float32) + more
    return weights


def _named(source: Source, layers: Layers) -> Source:
    """Return the source that changed weights are, named by what they are made of: nothing has to be made for that."""
    digest = hashlib.sha256(f"{source.weights_sha256}+{layers.digest}".encode()).hexdigest()
    return replace(source, name=f"{source.name}+{layers.form.mode}", weights_sha256=digest)


class _Export:
    """Exports changed weights, under the name of what they are made of."""

    def __init__(self, source: Source, layers: Layers) -> None:
        self._source = source
        self._layers = layers

    def __call__(self, named: Source, precision: str, out: Path) -> None:
        with changed(self._source, self._layers, out) as made:
            export_in_child(made, precision, out)
        manifest = msgspec.json.decode((out / MANIFEST).read_bytes(), type=Manifest)
        told = msgspec.structs.replace(
            manifest,
            fingerprint=exported_as(named, precision),
            weights_sha256=named.weights_sha256,
        )
        (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(told)))
