"""Recent questions: whether one was asked a moment ago with other settings, so that a miss can say so."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from cacheproxy.query.canonical import canonical

if TYPE_CHECKING:
    from cacheproxy.model import Query

CAPACITY = 16_384


class RecentQuestions:
    """The settings that each of the last questions was asked with, by a digest of scope and text; no text is held."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._asked: OrderedDict[bytes, bytes] = OrderedDict()

    def asked_otherwise(self, query: Query, *, remember: bool) -> bool:
        """Whether this scope asked this very text last with another model, parameters or history.

        With `remember`, the query is the last one from now on; the one remembered the longest ago may be forgotten.
        """
        scope = query.scope
        told = canonical([query.dialect, scope.tenant, scope.namespace, query.text_digest.hex()])
        key = hashlib.sha256(told).digest()[:16]
        asked, last = _settings(query), self._asked.get(key)
        if remember:
            self._asked[key] = asked
            self._asked.move_to_end(key)
            if len(self._asked) > self._capacity:
                self._asked.popitem(last=False)
        return last is not None and last != asked

    def clear(self) -> int:
        """Forget all of them: whose they are cannot be told. Return how many there were."""
        count = len(self._asked)
        self._asked.clear()
        return count

    def __len__(self) -> int:
        return len(self._asked)


def _settings(query: Query) -> bytes:
    """Return what stands for everything that a question was asked with, what was said before it included."""
    return hashlib.sha256(query.compatibility + canonical(query.chain)).digest() if query.chain else query.compatibility
