from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import pytest

ENCODERS = ("torch", "sentence_transformers", "transformers", "sklearn", "scipy")


@lru_cache
def loaded_by(module: str) -> frozenset[str]:
    """Return the top-level modules of a fresh interpreter that imported one module."""
    told = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return frozenset(told.stdout.split())


@pytest.mark.parametrize("heavy", [*ENCODERS, "onnxruntime", "onnx", "litestar", "aiohttp", "numpy", "hnswlib"])
def test_the_package_alone_loads_nothing_heavy(heavy: str) -> None:
    assert heavy not in loaded_by("cacheproxy")


@pytest.mark.parametrize("heavy", [*ENCODERS, "openai"])
def test_the_application_loads_no_framework_before_an_encoder_is_opened(heavy: str) -> None:
    assert heavy not in loaded_by("cacheproxy.app")


@pytest.mark.parametrize("room", ["cacheproxy.query.chat", "cacheproxy.policy.plan", "cacheproxy.policy.decide"])
@pytest.mark.parametrize("heavy", [*ENCODERS, "onnxruntime", "litestar", "aiohttp", "sqlite3", "asyncio", "hnswlib"])
def test_the_pure_rooms_load_no_machinery(room: str, heavy: str) -> None:
    assert heavy not in loaded_by(room)
