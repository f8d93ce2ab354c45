"""The exported encoder on disk: one folder per fingerprint, with a manifest that every load is checked against.

Folders are made in a child process (`python -m cacheproxy.embed.export`), so that the proxy itself never imports torch,
under a file lock, and appear by one rename: a reader finds a whole folder or none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.embed.source import TOKENIZER, Source, file_sha256
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Exporter = Callable[[Source, str, Path], None]

GRAPH = "encoder.onnx"
MANIFEST = "manifest.json"

ARITHMETIC = {
    "fp32": "float32",
    # Seven-bit weights: with eight, processors without VNNI saturate and give other vectors under the same name.
    # One text a run: dynamic quantisation takes one scale per tensor, so a vector would depend on its neighbours.
    "int8": "dynamic activations, int8 weights per channel, reduced range, one text a run",
}
"""How each precision computes; part of the fingerprint."""

DEVIATION_LIMITS = {"fp32": 1e-4, "int8": 0.1}
"""Largest cosine deviation from sentence-transformers at which an export is accepted; beyond it the graph is wrong."""

_EXPORT_TIMEOUT_S = 600.0

_log = structlog.get_logger()


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far the export is from sentence-transformers on a fixed set of texts, each alone and all as one padded batch.

    `max_cosine_deviation` is the largest absolute difference over the cosines of all pairs, and over one minus the
    cosine of each vector with its reference.
    """

    texts: int
    max_cosine_deviation: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an exported folder holds and what it was made from; `files` maps names to sha256, `tools` to versions."""

    fingerprint: str
    precision: str
    arithmetic: str
    dim: int
    window: int
    rule: int
    opset: int
    weights_sha256: str
    tokenizer_sha256: str
    files: dict[str, str]
    check: Check
    tools: dict[str, str]


def ensure(source: Source, precision: str, cache_dir: Path, export: Exporter | None = None) -> tuple[Path, Manifest]:
    """Return the checked folder of a source's export, making it first (10-30 s) when it is missing or damaged.

    Blocks. Safe when several processes do it at once: one exports, the others wait and use its folder. Raises
    ConfigError when the directory cannot be written or the export fails or deviates.

    `export` fills an empty directory with graph, tokenizer and manifest; by default a child process does.
    """
    fingerprint, folder = exported_as(source, precision), folder_of(source, precision, cache_dir)
    manifest = read_manifest(folder, fingerprint)
    if isinstance(manifest, Manifest):
        return folder, manifest
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / f"{folder.name}.lock"):
            manifest = read_manifest(folder, fingerprint)
            if isinstance(manifest, str):
                _replace(source, precision, folder, export or export_in_child, reason=manifest)
                manifest = read_manifest(folder, fingerprint)
    except OSError as exc:
        raise ConfigError(
            f"{cache_dir}: the exported encoder cannot be kept there ({exc.strerror}); "
            "set encoder.cache_dir to a writable directory with 300 MB free"
        ) from exc
    if isinstance(manifest, str):
        raise ConfigError(
            f"{folder}: the exported encoder is damaged right after its export ({manifest}); check the disk"
        )
    return folder, manifest


def exported_as(source: Source, precision: str) -> str:
    """Return the fingerprint of a source's export."""
    return source.fingerprint(f"onnx-{precision}", ARITHMETIC[precision])


def folder_of(source: Source, precision: str, cache_dir: Path) -> Path:
    """Return where a source's export is kept, or will be."""
    return cache_dir / exported_as(source, precision).replace("/", "_")


def read_manifest(folder: Path, fingerprint: str) -> Manifest | str:
    """Return the manifest of a whole and unharmed folder, else what is wrong with it."""
    if not folder.is_dir():
        return "missing"
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        if manifest.fingerprint != fingerprint:
            return f"{MANIFEST} is of {manifest.fingerprint}"
        if set(manifest.files) != {GRAPH, TOKENIZER}:
            return f"{MANIFEST} lists other files than expected"
        for name, sha256 in manifest.files.items():
            if file_sha256(folder / name) != sha256:
                return f"{name} does not have the sha256 of its manifest"
    except (OSError, ConfigError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        return f"unreadable ({type(exc).__name__})"
    return manifest


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold an advisory lock; the kernel frees it when its holder dies."""
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _replace(source: Source, precision: str, folder: Path, export: Exporter, *, reason: str) -> None:
    """Export into a temporary sibling and put it in the folder's place. Called under the folder's lock."""
    _log.info("encoder_export_started", folder=str(folder), precision=precision, reason=reason)
    started = time.monotonic()
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)  # left by an exporter that was killed
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        export(source, precision, fresh)
        if folder.exists():
            folder.rename(folder.parent / f".{folder.name}.damaged")
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(folder.parent / f".{folder.name}.damaged", ignore_errors=True)
    _log.info(
        "encoder_export_finished", folder=str(folder), precision=precision, took_s=round(time.monotonic() - started, 1)
    )


def export_in_child(source: Source, precision: str, out: Path) -> None:
    """Run `cacheproxy.embed.export` in a process of its own. Raises ConfigError with its last words when it fails."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "cacheproxy.embed.export",
        str(source.directory.resolve()),
        precision,
        str(out.resolve()),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **offline},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_EXPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(f"the encoder's export took longer than {_EXPORT_TIMEOUT_S:.0f} s and was stopped") from exc
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise ConfigError(f"the encoder's export failed (exit {done.returncode}): {last.strip()}")
