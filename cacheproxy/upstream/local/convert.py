"""The weights in a form that loads fast: converted once from GGUF, kept in the data directory with checksums.

Parsing the GGUF and its vocabulary in Python takes some 20 s; the copy loads in 2 to 4 s. It holds float16: the error
of that rounding is far below the one of the int8 the engine computes with, and it halves the file (260 MB).
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.errors import ConfigError
from cacheproxy.upstream.local.weights import SHA256, check_gguf, digest, find_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger()

_MANIFEST = "manifest.json"
_NAME = f"smollm2-135m-instruct-{SHA256[:12]}-fp16"


def ensure_converted(data_dir: Path) -> Path:
    """Return a directory that transformers can load, converting the weights first when there is no sound copy.

    Safe against a crash at any point and against other processes with the same data directory. Raises ConfigError when
    the weights are missing or corrupt, or the data directory cannot be written.
    """
    copy = copy_in(data_dir)
    home = copy.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / ".lock"):
            if is_sound(copy):
                return copy
            if copy.exists():
                log.warning("local_model_copy_corrupt", path=str(copy))
                shutil.rmtree(copy)
            _convert(home, copy)
            return copy
    except OSError as exc:
        raise ConfigError(f"{home}: the small model's weights cannot be kept there ({exc.strerror or exc})") from exc


def copy_in(data_dir: Path) -> Path:
    """Return where the copy is kept, whether it is there or not: it appears whole, once it was converted."""
    return data_dir / "local" / _NAME


def is_sound(copy: Path) -> bool:
    """Return whether every file of the copy is there with its recorded checksum."""
    try:
        files = msgspec.json.decode((copy / _MANIFEST).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return bool(files) and all((copy / name).is_file() and digest(copy / name) == sha for name, sha in files.items())


def seal(copy: Path) -> None:
    """Write the manifest: from now on `is_sound` holds until a byte changes."""
    files = {path.name: digest(path) for path in sorted(copy.iterdir()) if path.is_file()}
    (copy / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(files), indent=2))


def _convert(home: Path, copy: Path) -> None:
    for leftover in home.glob(".converting-*"):  # of a process that was killed: the lock says none is at work
        shutil.rmtree(leftover)
    gguf = find_gguf()
    check_gguf(gguf)
    log.info("local_model_converting", source=gguf.name)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=home))
    try:
        _write_model(gguf, work)
        seal(work)
        work.rename(copy)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float16)
    # transformers refuses to save a model that came from a GGUF, though its tensors are plain by now.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    (folder / "config.json").write_bytes(msgspec.json.encode(config))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel when this process dies
        yield
