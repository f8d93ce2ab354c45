"""Which device runs the encoder, decided without importing torch where no GPU can be."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Literal

from cacheproxy.errors import ConfigError

Device = Literal["cpu", "cuda", "mps"]

_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""What the drivers create: NVIDIA, NVIDIA under WSL, AMD (which torch also calls cuda)."""


def choose_device(setting: str) -> Device:
    """Turn `encoder.device` into a device that works here.

    `auto` takes a GPU when there is one, and asks torch (seconds, hundreds of megabytes) only if a driver's device
    node, or an Apple processor, makes one plausible. Raises ConfigError when torch cannot use the device demanded.
    """
    if setting == "cpu":
        return "cpu"
    if setting in ("cuda", "mps"):
        if setting not in _usable():
            raise ConfigError(
                f"encoder.device is {setting!r}, but the installed torch cannot use it; "
                "install a torch build for it, or set encoder.device to 'cpu'"
            )
        return "cuda" if setting == "cuda" else "mps"
    if setting != "auto":
        raise ConfigError(f"encoder.device must be one of auto, cpu, cuda, mps, got {setting!r}")
    return next(iter(_usable()), "cpu") if gpu_plausible() else "cpu"


def gpu_plausible() -> bool:
    """Return whether a GPU that torch could use may exist; False is certain, True is a guess."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(Path(node).exists() for node in _GPU_NODES)


def _usable() -> list[Device]:
    import torch

    found: list[Device] = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
