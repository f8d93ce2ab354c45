"""The Flower app that comes with cacheproxy: where it is, and the environment in which Flower calls nobody."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGE = Path(__file__).resolve().parents[1]
_SHELVES = (_PACKAGE / "_federated", _PACKAGE.parent / "federated")
"""Where the app stands: in the installed wheel, else in the checkout."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
"""All of Flower's and Ray's calls to the outside are on unless this is set."""


def app_folder() -> Path:
    """Return the folder of the app. Raises ConfigError where this installation has none."""
    for shelf in _SHELVES:
        if (shelf / "pyproject.toml").is_file():
            return shelf
    raise ConfigError("this installation lacks the federated app; install cacheproxy again, from its wheel")


def need_flower(*, simulation: bool = False) -> None:
    """Raise ConfigError, with what to install, where Flower (or Ray, for simulations) is not there."""
    if importlib.util.find_spec("flwr") is None:
        raise ConfigError("federated training needs Flower: pip install 'cacheproxy[federated]'")
    if simulation and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "simulating by Ray needs: pip install 'cacheproxy[simulate]'; or run all clients in turn with --in-process"
        )


def need_course(course: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of a run that contradict each other, before anything is started for it."""
    if (shelf := str(app_folder())) not in sys.path:
        sys.path.append(shelf)
    importlib.import_module("cacheproxy_federated.course").course_from(course)


def need_folder(path: Path) -> None:
    """Make a folder for a run. Raises ConfigError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be a folder ({exc.strerror}); name another one") from exc


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of Flower's processes: `home` is where they keep files, nowhere else."""
    programs = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    # Flower starts its own programs by name: those of this interpreter, whatever else is installed.
    path = os.pathsep.join(dict.fromkeys([*programs, *os.environ.get("PATH", os.defpath).split(os.pathsep)]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CACHEPROXY_FEDERATED_")}
    modules = os.pathsep.join(filter(None, [str(app_folder()), os.environ.get("PYTHONPATH", "")]))
    return {**kept, **QUIET, "PATH": path, "PYTHONPATH": modules, "FLWR_HOME": str(home), **(extra or {})}
