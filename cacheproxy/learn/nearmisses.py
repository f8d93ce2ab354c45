"""Near misses: questions that a stored answer nearly served, kept so that an operator can look at them and say yes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from cacheproxy.learn.labels import HALF
from cacheproxy.learn.serves import short
from cacheproxy.learn.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.model import Looked

_MOST = 1000
_MOST_BYTES = 4 * 1024 * 1024
_OVERHEAD_BYTES = 2048  # of one, beyond text and vector (measured: about 1,300)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearMiss:
    """A question, and the entry that was nearest to it. `serial` grows with each time that it was asked."""

    id: str
    serial: int
    times: int
    looked: Looked


class NearMisses:
    """Those of one category, the latest; bounded in number and bytes. A pair of question and entry is one of them.

    What could not be promoted is not kept: a question that its caller forbade storing, or longer than 8 KiB.
    """

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self.held_bytes = 0
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, NearMiss] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, looked: Looked, serial: int) -> None:
        """Keep a near miss as the latest one."""
        if looked.embedding is None or not looked.entry_id or not short(looked.text):
            return
        near_miss_id = _id(looked)
        known = self._drop(near_miss_id)
        times = known.times + 1 if known else 1
        self._kept[near_miss_id] = NearMiss(id=near_miss_id, serial=serial, times=times, looked=looked)
        self.held_bytes += _footprint_bytes(looked)
        while len(self._kept) > self._most or self.held_bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def get(self, near_miss_id: str) -> NearMiss | None:
        """Return one, or None."""
        return self._kept.get(near_miss_id)

    def drop(self, near_miss_id: str) -> None:
        """Keep one no longer."""
        self._drop(near_miss_id)

    def latest(self) -> list[NearMiss]:
        """Return all, the latest first."""
        return list(reversed(self._kept.values()))

    def forget(self, meant: Callable[[Trace], bool]) -> int:
        """Keep no longer what is meant; return how many there were."""
        gone = [near_miss.id for near_miss in self._kept.values() if meant(trace_of(near_miss.looked))]
        for near_miss_id in gone:
            self._drop(near_miss_id)
        return len(gone)

    def _drop(self, near_miss_id: str) -> NearMiss | None:
        dropped = self._kept.pop(near_miss_id, None)
        if dropped is not None:
            self.held_bytes -= _footprint_bytes(dropped.looked)
        return dropped


def trace_of(looked: Looked) -> Trace:
    """Return what an erasure asks of a decision."""
    return Trace(
        at_s=looked.at_s,
        tenant=sys.intern(looked.tenant),
        entry_id=sys.intern(looked.entry_id),
        question=looked.question[:HALF],
        category=looked.category,
        user=sys.intern(looked.user),
    )


def _id(looked: Looked) -> str:
    """Return what names a pair of question and entry: opaque, since both are keyed by the install."""
    return blake2b(looked.question + looked.entry_id.encode(), digest_size=12).hexdigest()


def _footprint_bytes(looked: Looked) -> int:
    vector = looked.embedding.vector.nbytes if looked.embedding is not None else 0
    names = sum(map(sys.getsizeof, (looked.namespace, looked.model)))
    return _OVERHEAD_BYTES + vector + sys.getsizeof(looked.text) + sum(map(sys.getsizeof, looked.chain)) + names
