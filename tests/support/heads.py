"""Similarity heads for tests, and what is written of them."""

from __future__ import annotations

import numpy as np

from cacheproxy.embed.head import Head
from cacheproxy.embed.headfile import ANY, SCHEMA, Manifest


def manifest_of(base: str = "base/1", **fields: object) -> Manifest:
    """Return a manifest to be completed by `headfile.pack`; `fields` replace what it says."""
    told = {
        "schema": SCHEMA,
        "base": base,
        "dim_in": 2,
        "dim": 2,
        "int8": False,
        "sha256": "",
        "parent": base,
        "round": 3,
        "thresholds": {ANY: 0.8},
    }
    return Manifest(**(told | fields))  # type: ignore[arg-type]  # a test may tell what no manifest may


def rotation(dim: int, seed: int = 0, k: int | None = None) -> Head:
    """Return a head that turns vectors and, with all `k` components kept, changes no cosine."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return Head(matrix=np.ascontiguousarray(turned[: k or dim], dtype=np.float32))
