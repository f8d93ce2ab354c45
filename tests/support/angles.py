"""An encoder whose cosines a test can write down: it stands behind the evaluation's own Protocol."""

from __future__ import annotations

import math
import re
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class AngleEncoder:
    """Text that ends in a number has that cosine to every text that does not; what follows a `|` is not seen."""

    def __init__(self, fingerprint: str = "angles/plane/1-0") -> None:
        self.fingerprint = fingerprint
        self.max_batch = 2
        self.encoded: list[str] = []
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        with self._lock:
            self.encoded += texts
        angles = [self._angle(text.partition("|")[0]) for text in texts]
        vectors = np.array([(math.cos(angle), math.sin(angle)) for angle in angles], dtype=np.float32)
        return vectors, [text.partition("|")[2].encode() for text in texts]

    @staticmethod
    def _angle(text: str) -> float:
        number = re.search(r"-?\d+(\.\d+)?$", text)
        return math.acos(float(number.group())) if number else 0.0
