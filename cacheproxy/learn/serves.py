"""Serves: which entry lately answered which question, so that a caller can say that it was a good or a bad answer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

_MOST = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """One answer that went out from, or into, an entry.

    `question` is the exact fingerprint of the request (32 bytes); `text` its last user text, "" where the caller
    forbade storing it. `similarity` is None for an exact hit and for the live answer that made the entry.
    """

    tenant: str
    entry_id: str
    question: bytes
    text: str = field(repr=False)
    category: str
    similarity: float | None = None
    threshold: float | None = None


class Serves:
    """The latest serves, by response id and by entry id; bounded, in memory only, each tenant's own."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._by_id: OrderedDict[tuple[str, str], Serve] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def remember(self, response_id: str, serve: Serve) -> None:
        """Keep a serve under the id its answer carried, and as the latest one of its entry."""
        for name in (response_id, serve.entry_id):
            if name:
                self._by_id[serve.tenant, name] = serve
                self._by_id.move_to_end((serve.tenant, name))
        while len(self._by_id) > self._most:
            self._by_id.popitem(last=False)

    def find(self, tenant: str, given_id: str) -> Serve | None:
        """Return the serve behind a response id, or the latest one of an entry id; None when none is remembered."""
        return self._by_id.get((tenant, given_id))
