"""Texts that were read lately: a kept question is a candidate again and again, and reading it is most of the work."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from cacheproxy.verify.features import prepare
from cacheproxy.verify.planted import parts_of

if TYPE_CHECKING:
    from cacheproxy.verify.cross import Words
    from cacheproxy.verify.features import Text
    from cacheproxy.verify.planted import Parts

MOST_TEXTS = 1_000
LONGEST = 300
"""Characters of a text that is remembered; with `MOST_TEXTS` this bounds the memory taken: 23 KB a text, rarely 150."""


class Memory:
    """What was read of the latest texts. Several threads may ask at once."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._text = lru_cache(MOST_TEXTS)(partial(prepare, words=words))
        self._parts = lru_cache(MOST_TEXTS)(parts_of)

    def text(self, text: str) -> Text:
        """Return what `prepare` does, of a text of any length."""
        return self._text(text) if len(text) <= LONGEST else prepare(text, self._words)

    def parts(self, text: str) -> Parts:
        """Return what `parts_of` does, of a text of any length."""
        return self._parts(text) if len(text) <= LONGEST else parts_of(text)

    def __len__(self) -> int:
        return self._text.cache_info().currsize
