"""Examples of in-context augmentation, with every number at its ordinary value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.augment.example import Example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def unit(*numbers: float) -> NDArray[np.float32]:
    """Return these numbers as a unit vector."""
    vector = np.array(numbers, dtype=np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def example(entry_id: str = "e", *, vector: Sequence[float] = (1.0, 0.0), **fields: Any) -> Example:
    """Return an example like any other, but for `fields`."""
    ordinary: dict[str, Any] = {
        "question": f"What is {entry_id}?",
        "answer": f"It is {entry_id}.",
        "question_cosine": 0.7,
        "answer_cosine": 0.5,
        "tokens": 40,
        "age_s": 0.0,
        "quality": 0.5,
        "source": "large",
        "offloads": 1.0,
        "same_category": True,
    }
    return Example(entry_id=entry_id, vector=unit(*vector), **(ordinary | fields))
