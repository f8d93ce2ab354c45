"""Training pairs for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.learn.pairwriter import PairRow

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BASE = "encoder-1"
DIM = 8


def question(name: str) -> bytes:
    """Return the half of a fingerprint that stands for a question."""
    return name.encode().ljust(16, b".")


def vector_of(name: str) -> NDArray[np.float32]:
    """Return the unit vector of a question."""
    made = np.random.default_rng(list(name.encode())).standard_normal(DIM).astype(np.float32)
    unit: NDArray[np.float32] = made / np.float32(np.linalg.norm(made))
    return unit


def row(kept: str, asked: str, **fields: Any) -> PairRow:
    """Return a pair of two questions, each told by a name."""
    told: dict[str, Any] = {
        "at_s": 200.0, "tenant": "t", "entry_id": question(kept).hex(), "question": question(asked), "category": "c",
        "user": "", "kept": question(kept), "kept_at_s": 100.0, "kept_category": "c", "kept_second": "",
        "kept_user": "", "right": True, "source": "feedback", "base": BASE, "a": vector_of(kept).tobytes(),
        "b": vector_of(asked).tobytes(),
    }  # fmt: skip
    return PairRow(**{**told, **fields})


def held_in(folder: Path) -> bytes:
    """Return every byte of a folder's files."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
