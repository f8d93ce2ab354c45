"""An example: a past question of the caller's own scope with its answer, and what is known of both. Pure.

Cosines are in [-1, 1]; `quality` is in [0, 1]; times are seconds. No repr shows a text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Source = Literal["large", "small", "operator", "replayed"]
"""Whose answer an example holds: the large model's, the small one's, an operator's, or the best of several that the
large model gave while replaying."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A past question and its answer, seen from one question that is asked now.

    Whoever makes one answers for its scope: nothing in this room asks again whose it is.
    """

    entry_id: str
    question: str = field(repr=False)
    answer: str = field(repr=False)
    question_cosine: float
    """Of the question asked now to the example's question."""
    answer_cosine: float
    """Of the question asked now to the example's answer."""
    vector: NDArray[np.float32] = field(repr=False)
    """The example's question as a unit vector of shape (dim,)."""
    tokens: int
    """What question and answer take in the small model's prompt, with what is written around them."""
    age_s: float
    quality: float
    """Moving average of what is known of how good the answer is; 0.5 where nothing is."""
    source: Source
    offloads: float
    """Questions that it helped to answer without the large model, faded by the hour; 1.0 of a new one (`worth.py`)."""
    same_category: bool
    user: str = ""
    """Whose question it was (a digest), so that it can be erased."""
