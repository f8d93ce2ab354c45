"""Which replies may take part in a round. Nothing of a node is believed before it was looked at here."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from flwr.app import ConfigRecord
from flwr.common.constant import ErrorCode

from cacheproxy_federated import wire
from cacheproxy_federated.noisy import bounded
from cacheproxy_federated.thresholds import ALL, sound
from cacheproxy_federated.wire import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.app import Message, RecordDict
    from numpy.typing import NDArray

    from cacheproxy_federated.course import Course
    from cacheproxy_federated.thresholds import Counts

_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
"""What Flower itself answers for a node that is gone."""
_LONGEST = 3.0
"""How many times the round's median norm an update may have."""
_TALLIES = 1.0
"""How many times the median node's held-back pairs one node counts for in thresholds: two in twenty that lie then are
a tenth of what is counted, and hardly move where F-beta is best."""
_NAMED = 20
"""Fewest pairs under which any node names a category."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What all nodes were sent in a round."""

    base: str
    number: int
    """Of the round."""
    parent: str
    """Digest of the head they were sent."""
    matrix: NDArray[np.float32]

    @property
    def echo(self) -> dict[str, str | int]:
        """What every reply must say it is an answer to."""
        return {wire.BASE: self.base, wire.ROUND: self.number, wire.PARENT: self.parent}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """A matrix that may be averaged, float64 of the shape that was sent, and how much it counts for."""

    matrix: NDArray[np.float64]
    examples: int
    norm: float
    clipped: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """Held-back counts that may be summed."""

    counts: Counts

    @property
    def pairs(self) -> int:
        """How many pairs they are of."""
        return sum(map(_size, self.counts.values()))

    def shrunk(self, factor: float) -> Tally:
        """Return the same shares of fewer pairs."""
        return Tally(counts={name: np.rint(table * factor).astype(np.int64) for name, table in self.counts.items()})

    def levelled(self, most: dict[str, int]) -> Tally:
        """Return the same counts, of which what a category has above its bound counts without a name."""
        made: Counts = {}
        for name, table in self.counts.items():
            size = _size(table)
            kept = np.rint(table * (most[name] / size)).astype(np.int64) if size > most.get(name, size) else table
            made[name] = made[name] + kept if name in made else kept
            if kept is not table:
                made[ALL] = made.get(ALL, 0) + table - kept
        return Tally(counts=made)


class Guard:
    """Checks the replies of one round, and counts what it refuses by reason.

    Reasons are `silent` (did not answer in time), `error` (said that it could not), `form`, `fingerprint`, `old_round`,
    `shape`, `not_finite`, `over_norm`, `numbers` and `counts`.
    """

    def __init__(self, course: Course, asked: Asked) -> None:
        self._course = course
        self.asked = asked
        self.refused: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        """What nodes that could not answer gave as the reason; one of the words that this app's nodes use."""

    def updates(self, replies: Iterable[Message]) -> list[Update]:
        """Return the updates that may be averaged, in an order that does not depend on who sent them."""
        made = [update for reply in replies if (update := self._checked(reply, self._update)) is not None]
        most = self._most([update.examples for update in made])
        # An update far longer than the others' takes over a mean, however few pairs it counts for.
        longest = _LONGEST * float(np.median([update.norm for update in made])) if made else 0.0
        made = [replace(self._shortened(update, longest), examples=min(update.examples, most)) for update in made]
        # Node ids are drawn anew each run: floating-point sums must not depend on them.
        return sorted(made, key=lambda one: (one.examples, one.matrix.tobytes()))

    def tallies(self, replies: Iterable[Message]) -> list[Tally]:
        """Return the counts that may be summed: nobody's are many more than the median node's, nor in any category."""
        made = [tally for reply in replies if (tally := self._checked(reply, self._tally)) is not None]
        times = min(_TALLIES, self._course.most_times)
        most = _most([tally.pairs for tally in made], times)
        made = [tally if tally.pairs <= most else tally.shrunk(most / tally.pairs) for tally in made]
        names = {name for tally in made for name in tally.counts if name != ALL}
        sizes = {name: [_size(tally.counts[name]) for tally in made if name in tally.counts] for name in names}
        mosts = {name: _most(many, times) for name, many in sizes.items()}
        return [tally.levelled(mosts) for tally in made]

    def noisy(self, replies: Iterable[Message]) -> list[NDArray[np.float64]]:
        """Return noisy counts that may be summed, shape (2, BINS) each: no bin is further off than noise can be."""
        return [counts for reply in replies if (counts := self._checked(reply, self._noisy)) is not None]

    def moments(self, replies: Iterable[Message]) -> list[NDArray[np.float64]]:
        """Return second moments, (k, k) each, that may be summed: symmetric, with no negative variance.

        In an order that does not depend on who sent them, and none of many more vectors than the median node's.
        """
        made = [moment for reply in replies if (moment := self._checked(reply, self._moment)) is not None]
        # Their traces are how many vectors they are of.
        most = self._most([round(float(np.trace(moment))) for moment in made])
        made = [moment * min(1.0, most / float(np.trace(moment))) for moment in made]
        return sorted(made, key=lambda moment: moment.tobytes())

    def silent(self, nodes: int) -> None:
        """Note how many nodes were asked and did not answer in time."""
        if nodes:
            self.refused["silent"] += nodes

    def _most(self, sizes: list[int]) -> int:
        """Return how many pairs one node may count for among such others."""
        return _most(sizes, self._course.most_times)

    def _shortened(self, update: Update, longest: float) -> Update:
        if update.norm <= longest:
            return update
        start = self.asked.matrix.astype(np.float64)
        matrix = start + (update.matrix - start) * (longest / update.norm)
        return replace(update, matrix=matrix, norm=longest, clipped=True)

    @property
    def _most_norm(self) -> float:
        """Longest update: under differential privacy an honest one is mostly noise."""
        course = self._course
        return course.most_norm + course.dp_noise * course.dp_clip * math.sqrt(self.asked.matrix.size)

    def _checked(self, reply: Message, read: Any) -> Any:
        try:
            return self._read(reply, read)
        except Unreadable as exc:
            self.refused[str(exc)] += 1
        except Exception as exc:  # the border to strangers: whatever one of them sends, the run goes on with the others
            self.refused["form"] += 1
            _log.warning("reply_unreadable", error=type(exc).__name__)
        return None

    def _read(self, reply: Message, read: Any) -> Any:
        if reply.has_error() and reply.error.code in _LOST:
            self.refused["silent"] += 1
            return None
        if reply.has_error():
            self.refused["error"] += 1
            self.said[_word(reply.error.reason)] += 1
            return None
        self._same_round(reply.content)
        return read(reply.content)

    def _same_round(self, content: RecordDict) -> None:
        told = content.get(wire.ECHO)
        if not isinstance(told, ConfigRecord):
            raise Unreadable("form")
        if told.get(wire.BASE) != self.asked.base:
            raise Unreadable("fingerprint")
        if dict(told) != self.asked.echo:
            raise Unreadable("old_round")

    def _update(self, content: RecordDict) -> Update:
        matrix = wire.matrix_of(content)
        examples = min(wire.examples_of(content), self._course.most_pairs)
        if matrix.shape != self.asked.matrix.shape or matrix.dtype not in (np.float32, np.float64):
            raise Unreadable("shape")
        if not np.isfinite(matrix).all():
            raise Unreadable("not_finite")
        start = self.asked.matrix.astype(np.float64)
        change = matrix.astype(np.float64) - start
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(change))
        if not np.isfinite(norm):
            raise Unreadable("not_finite")
        over = norm > self._most_norm
        if over and self._course.over_norm == "refuse":
            raise Unreadable("over_norm")
        if over:
            change *= self._most_norm / norm
        return Update(matrix=start + change, examples=examples, norm=min(norm, self._most_norm), clipped=over)

    def _tally(self, content: RecordDict) -> Tally:
        counts = wire.counts_of(content)
        if not sound(counts, self._course.most_pairs):
            raise Unreadable("counts")
        # No node sends others, and a category that hardly any pairs are of would still count as one more node's.
        if not counts or any(_size(table) < (1 if name == ALL else _NAMED) for name, table in counts.items()):
            raise Unreadable("counts")
        return Tally(counts=counts)

    def _noisy(self, content: RecordDict) -> NDArray[np.float64]:
        course = self._course
        return bounded(wire.noisy_of(content), course.dp_counts, course.dp_noise * course.dp_counts)

    def _moment(self, content: RecordDict) -> NDArray[np.float64]:
        sent = wire.matrix_of(content, wire.MOMENT)
        rows = wire.examples_of(content)
        dim = len(self.asked.matrix)
        if sent.shape != (dim, dim) or sent.dtype not in (np.float32, np.float64):
            raise Unreadable("shape")
        moment = sent.astype(np.float64)
        if not np.isfinite(moment).all():
            raise Unreadable("not_finite")
        trace = float(np.trace(moment))
        # Every projected vector has unit length: as many vectors, as much variance in all.
        if not np.allclose(moment, moment.T, atol=1e-3 * max(trace, 1.0)) or abs(trace - rows) > 1e-2 * rows:
            raise Unreadable("numbers")
        if float(np.linalg.eigvalsh(moment).min()) < -1e-3 * trace:
            raise Unreadable("numbers")
        return moment * (min(rows, self._course.most_pairs) / rows)


def _most(sizes: list[int], times: float) -> int:
    return max(1, int(times * float(np.median(sizes)))) if sizes else 1


def _size(table: NDArray[np.int64]) -> int:
    """Return how many pairs a category's counts are of."""
    return int(table[0].sum())


def _word(reason: str | None) -> str:
    """Return the word that a node gave; what Flower or a stranger wrote is not passed on."""
    return reason if reason in wire.TROUBLES else "other"
