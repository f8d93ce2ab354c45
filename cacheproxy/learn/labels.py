"""Labels: what is known of pairs of question and entry: same answer or not. In memory; the last word on a pair counts.

Callers volunteer them, and operators promote what looks right: they are no random sample, and callers complain more
readily than they praise. Shares made of them are rather too high than too low.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from cacheproxy.policy.sweep import Label

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.learn.traces import Trace

HALF = 16
"""As much of a question's fingerprint as tells questions apart, and as the ids of answers hold."""

_MOST = 10_000
_MOST_COMPLAINTS = 1000


class Source(StrEnum):
    """Whose word a label is."""

    FEEDBACK = "feedback"
    PROMOTED = "promoted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One word on one pair."""

    trace: Trace
    similarity: float
    good: bool
    source: Source
    probability: float | None = None


class Labels:
    """Those of one category, bounded in number."""

    def __init__(self, most: int = _MOST) -> None:
        self.complaint_ages_s: deque[float] = deque(maxlen=_MOST_COMPLAINTS)
        """How old answers were of which their own askers said that they are wrong."""
        self._most = most
        self._kept: OrderedDict[tuple[str, str, bytes], Labelled] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def say(self, labelled: Labelled) -> None:
        """Let a word replace the one before it on its pair."""
        trace = labelled.trace
        pair = trace.tenant, trace.entry_id, trace.question[:HALF]
        self._kept.pop(pair, None)
        self._kept[pair] = labelled
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def all(self) -> list[Label]:
        """Return every label."""
        return [
            Label(similarity=said.similarity, good=said.good, probability=said.probability)
            for said in self._kept.values()
        ]

    def forget(self, meant: Callable[[Trace], bool]) -> int:
        """Keep no longer what is meant; return how many there were."""
        gone = [pair for pair, said in self._kept.items() if meant(said.trace)]
        for pair in gone:
            del self._kept[pair]
        return len(gone)
