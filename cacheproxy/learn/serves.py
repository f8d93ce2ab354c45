"""Serves: which entry lately answered which question, so that a caller can say that it was a good or a bad answer."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 20_000
_MOST_BYTES = 32 * 1024 * 1024
_MOST_TEXT_BYTES = 8 * 1024
_MOST_ID_CHARS = 256  # the longest that feedback takes
_OVERHEAD_BYTES = 1024  # of one serve under one name, beyond the strings counted (measured: about 700)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """One answer that went out from, or into, an entry.

    `question` is the exact fingerprint of the request (32 bytes); `text` its last user text, "" where the caller
    forbade storing it and where no labelled pair can come of it. `similarity` is None for an exact hit and for the
    live answer that made the entry.
    """

    tenant: str
    entry_id: str
    question: bytes
    text: str = field(repr=False)
    category: str
    similarity: float | None = None
    threshold: float | None = None
    probability: float | None = None
    """What the verifier said of it; None where it was not asked."""
    user: str = ""
    """`Query.user` of the request, for erasure."""
    untaught: str = "unknown"
    """Why no model may be trained on the question, as `Looked.untaught`."""
    epoch: str = ""
    """Whose similarity it is, as `Looked.epoch`."""
    since_s: float | None = None
    """When it was served; None where that is not known."""


class Serves:
    """The latest serves, by response id and by entry id; bounded in number and bytes, in memory only, by tenant."""

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self.held_bytes = 0
        self._most = most
        self._most_bytes = most_bytes
        self._by_id: OrderedDict[tuple[str, str], Serve] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def remember(self, response_id: str, serve: Serve) -> None:
        """Keep a serve under the id its answer carried, and as the latest one of its entry.

        An id longer than 256 characters is no name: feedback takes none.
        """
        for name in (response_id, serve.entry_id):
            if 0 < len(name) <= _MOST_ID_CHARS:
                self._drop((serve.tenant, name))
                self._by_id[serve.tenant, name] = serve
                self.held_bytes += _footprint_bytes(name, serve)
        while len(self._by_id) > self._most or self.held_bytes > self._most_bytes:
            self._drop(next(iter(self._by_id)))

    def forget_latest(self, tenant: str, entry_id: str) -> None:
        """Note that an entry was served to its very own question: the entry says all there is to know of that."""
        self._drop((tenant, entry_id))

    def find(self, tenant: str, given_id: str) -> Serve | None:
        """Return the serve behind a response id, or the latest one of an entry id; None when none is remembered."""
        return self._by_id.get((tenant, given_id))

    def forget(self, meant: Callable[[Serve], bool]) -> int:
        """Keep no longer what is meant; return how many names there were for it."""
        gone = [key for key, serve in self._by_id.items() if meant(serve)]
        for key in gone:
            self._drop(key)
        return len(gone)

    def _drop(self, key: tuple[str, str]) -> None:
        serve = self._by_id.pop(key, None)
        if serve is not None:
            self.held_bytes -= _footprint_bytes(key[1], serve)


def short(text: str) -> str:
    """Return a text that may be kept with a verdict: itself up to 8 KiB, "" beyond."""
    if len(text) > _MOST_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > _MOST_TEXT_BYTES:
        return ""
    return text


def _footprint_bytes(name: str, serve: Serve) -> int:
    """Return what a serve takes under one name; under two it counts twice: rather too much than too little."""
    return _OVERHEAD_BYTES + sys.getsizeof(name) + sys.getsizeof(serve.text) + sys.getsizeof(serve.category)
