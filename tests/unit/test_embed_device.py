"""Choosing a device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cacheproxy.embed import device
from cacheproxy.embed.device import choose_device, gpu_plausible
from cacheproxy.errors import ConfigError


def test_cpu_means_cpu() -> None:
    assert choose_device("cpu") == "cpu"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda, mps"):
        choose_device("tpu")


def test_without_a_driver_no_gpu_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "_GPU_NODES", ("/dev/cacheproxy-no-such-node",))
    assert not gpu_plausible()


def test_a_driver_makes_a_gpu_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "_GPU_NODES", ("/dev/null",))
    assert gpu_plausible()


def test_auto_does_not_import_torch_where_no_gpu_can_be() -> None:
    probe = (
        "import sys; from cacheproxy.embed import device; device._GPU_NODES = (); sys.platform = 'linux'; "
        "print(device.choose_device('auto'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["cuda", "mps"])
def test_a_device_that_torch_cannot_use_is_refused_and_auto_goes_on(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "gpu_plausible", lambda: True)
    with pytest.raises(ConfigError, match="cannot use it"):
        choose_device(setting)
    assert choose_device("auto") == "cpu"
