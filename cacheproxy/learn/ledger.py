"""The ledger: the last word on each pair of an entry and a question, in memory; no tenant can push out another's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

Pair = tuple[str, str, bytes]
"""Tenant, entry id, and the exact fingerprint of the question (32 bytes)."""

_MOST = 200_000
_MOST_OF_A_TENANT = 20_000


@dataclass(slots=True)
class _Page:
    """One tenant's words, the oldest first: good or bad, and when. `standing` is by entry, without zeros."""

    words: OrderedDict[tuple[str, bytes], tuple[bool, float]] = field(default_factory=OrderedDict)
    standing: dict[str, int] = field(default_factory=dict)

    def count(self, entry_id: str, change: int) -> None:
        """Change the standing of an entry."""
        standing = self.standing.get(entry_id, 0) + change
        if standing:
            self.standing[entry_id] = standing
        else:
            self.standing.pop(entry_id, None)


class Ledger:
    """Keeps the newest `most_of_a_tenant` words of each tenant, and `most` of all; the largest tenant gives way."""

    def __init__(self, *, most: int = _MOST, most_of_a_tenant: int = _MOST_OF_A_TENANT) -> None:
        self._most = most
        self._most_of_a_tenant = most_of_a_tenant
        self._pages: dict[str, _Page] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def write(self, pair: Pair, *, good: bool, at_s: float) -> list[Pair]:
        """Let a word replace the one before it on its pair; return the pairs that were dropped to make room."""
        tenant, entry_id, question = pair
        page = self._pages.setdefault(tenant, _Page())
        self._remove(tenant, (entry_id, question))
        page.words[entry_id, question] = good, at_s
        page.count(entry_id, _worth(good))
        self._count += 1
        dropped: list[Pair] = []
        if len(page.words) > self._most_of_a_tenant:
            dropped.append(self._drop_oldest(tenant))
        if self._count > self._most:
            dropped.append(self._drop_oldest(max(self._pages, key=lambda name: len(self._pages[name].words))))
        return dropped

    def quarantined_s(self, pair: Pair) -> float | None:
        """Return when a pair was called bad, or None when the last word on it was good, or none was said."""
        tenant, entry_id, question = pair
        page = self._pages.get(tenant)
        good, at_s = page.words.get((entry_id, question), (True, 0.0)) if page is not None else (True, 0.0)
        return None if good else at_s

    def said(self, pair: Pair) -> tuple[bool, float] | None:
        """Return the last word on a pair, whether it was good, and when; None where none was said."""
        tenant, entry_id, question = pair
        page = self._pages.get(tenant)
        return page.words.get((entry_id, question)) if page is not None else None

    def standing(self, tenant: str, entry_id: str) -> int:
        """Return for how many questions an entry was last called good, minus for how many bad."""
        page = self._pages.get(tenant)
        return page.standing.get(entry_id, 0) if page is not None else 0

    def forget(self, pair: Pair) -> None:
        """Take back the word on a pair, if there is one."""
        tenant, entry_id, question = pair
        page = self._pages.get(tenant)
        if page is not None:
            self._remove(tenant, (entry_id, question))
            if not page.words:
                del self._pages[tenant]

    def _drop_oldest(self, tenant: str) -> Pair:
        page = self._pages[tenant]
        entry_id, question = next(iter(page.words))
        self._remove(tenant, (entry_id, question))
        if not page.words:
            del self._pages[tenant]
        return tenant, entry_id, question

    def _remove(self, tenant: str, said: tuple[str, bytes]) -> None:
        page = self._pages[tenant]
        word = page.words.pop(said, None)
        if word is not None:
            page.count(said[0], -_worth(word[0]))
            self._count -= 1


def _worth(good: bool) -> int:
    return 1 if good else -1
