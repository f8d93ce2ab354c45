"""An embedding's two written forms, and the way from one to the other without losing a bit of float32.

Base64 holds little-endian float32 (OpenAI's `encoding_format`). A float32 is written as its shortest decimal, as OpenAI
writes it: what a direct caller would have got as numbers.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT32_BYTES = 4


def length_of(embedding: list[float] | str) -> int:
    """Return the dimensions of a sound embedding in either form."""
    if isinstance(embedding, list):
        return len(embedding)
    return (len(embedding) * 3 // 4 - embedding.count("=", -2)) // _FLOAT32_BYTES


def floats_of(encoded: str) -> NDArray[np.float32] | None:
    """Return the vector in a base64 string, or None for one that is empty, broken or not finite."""
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    if not data or len(data) % _FLOAT32_BYTES:
        return None
    vector = np.frombuffer(data, dtype="<f4")
    return vector if np.isfinite(vector).all() else None


def to_numbers(encoded: str) -> bytes | None:
    """Return a base64 embedding as a JSON list: of each float32 the shortest decimal. None when it is not sound."""
    vector = floats_of(encoded)
    return None if vector is None else b"[" + ",".join(vector.astype("U").tolist()).encode() + b"]"


def to_base64(numbers: list[float]) -> str | None:
    """Return numbers as base64 of float32, rounded to nearest; None when one is out of float32's range."""
    with np.errstate(over="ignore"):
        vector = np.array(numbers, dtype=np.float64).astype("<f4")
    if not np.isfinite(vector).all():
        return None
    return binascii.b2a_base64(vector.tobytes(), newline=False).decode("ascii")
