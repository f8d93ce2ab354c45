"""The encoder by itself: the limit that a semantic lookup is measured against."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from cacheproxy.configure import load
from cacheproxy.embed.open import open_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cacheproxy.embed.encoder import Encoder


def measure(texts: Sequence[str], encoders: Path, precision: str = "fp32") -> dict[str, Any]:
    """Return milliseconds a text alone on one thread, and texts a second in batches of 32 on every core."""
    encoder = _opened(encoders, precision)
    encoder.encode(texts[:8])
    batches = [texts[start : start + 32] for start in range(0, min(len(texts), 3200), 32)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        began = time.perf_counter()
        list(pool.map(encoder.encode, batches))
        elapsed_s = time.perf_counter() - began
    return {
        "fingerprint": encoder.fingerprint,
        "alone_ms": round(alone_ms(texts[:200], encoders, precision), 3),
        "batched_per_s": round(sum(map(len, batches)) / elapsed_s, 1),
        "batched_ms_cpu_per_text": round(elapsed_s * (os.cpu_count() or 1) * 1000 / sum(map(len, batches)), 3),
    }


def alone_ms(texts: Sequence[str], encoders: Path, precision: str = "fp32") -> float:
    """Return the median of milliseconds a text, one after the other in this thread."""
    encoder, times_ms = _opened(encoders, precision), []
    for text in texts:
        began_s = time.perf_counter()
        encoder.encode([text])
        times_ms.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(times_ms)


@cache
def _opened(encoders: Path, precision: str) -> Encoder:
    asked = {"encoder": {"cache_dir": str(encoders), "precision": precision}}
    return open_encoder(load(environ={}, flags=asked).encoder, encoders)
