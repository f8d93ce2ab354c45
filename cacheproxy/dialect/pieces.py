"""A text in the pieces that a replayed stream tells it in: a few words each, every character kept."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\s*\S{1,64}(?:\s+\S+){0,5}|\s+", re.DOTALL)


def pieces(text: str) -> list[str]:
    """Return the text cut after every few words; none for an empty text."""
    return _PIECE.findall(text)
