"""A run from its first round to its artefact: ask, check, average, measure, keep; then thresholds from all counts."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import flwr
import msgspec
import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from cacheproxy import __version__
from cacheproxy.embed import headfile
from cacheproxy.embed.head import Head
from cacheproxy.embed.layers import Layers
from cacheproxy_federated import wire
from cacheproxy_federated.checkpoint import COUNTED, RELEASE, Folder
from cacheproxy_federated.compress import principal
from cacheproxy_federated.exchange import RunEnded
from cacheproxy_federated.guard import Asked, Guard
from cacheproxy_federated.noisy import found
from cacheproxy_federated.privacy import composed
from cacheproxy_federated.strategy import Averaging
from cacheproxy_federated.thresholds import ALL, chosen, scored, shared, verified_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from cacheproxy.embed.headfile import Artefact, Manifest
    from cacheproxy_federated.course import Course
    from cacheproxy_federated.exchange import Exchange

Read = TypeVar("Read")
_SEEDS = 1 << 31
_LEAST_NODES = 3
"""Fewest nodes whose counts make a category's own threshold: one that lies must not make one alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a head's held-back pairs say of it, of all nodes that answered.

    `thresholds` are by category, and `*`; `metrics` are precision, recall and F-scores at the threshold of all, and of
    how many pairs and nodes they are.
    """

    thresholds: dict[str, float]
    metrics: dict[str, float]
    verify_from: float | None


_UNCOUNTED = Measured(thresholds={ALL: 1.0}, metrics={}, verify_from=None)
"""Under differential privacy only the last head is counted: under the others nothing would be served."""


class Run:
    """One run over the nodes of a grid. Raises RunEnded where it cannot go on; what was kept of it stays."""

    def __init__(self, course: Course, exchange: Exchange, folder: Folder) -> None:
        self._course = course
        self._exchange = exchange
        self._folder = folder
        self._averaging = Averaging(course)
        self._refused: Counter[str] = Counter()

    def run(self, start: Artefact | None = None, *, resume: bool = False) -> Artefact:
        """Train all rounds, from a head or from none, and return the last artefact."""
        course = self._course
        self._folder.begin(course, start.epoch if start else "", resume=resume)
        parent = start.epoch if start else course.base
        head, done = _begun(course, start), 0
        if resume and (left := self._folder.last(course.base)) is not None:
            head, done, parent = _trained(left.artefact), left.artefact.manifest.round, left.artefact.manifest.parent
            self._averaging.remember(left.memory)
            self._folder.say("resumed", round=done)
        self._exchange.nodes(max(course.first, course.quorum), course.wait_s)
        before = self._measured(head, done) if not course.dp_noise else _UNCOUNTED
        self._folder.say("begun", round=done, of=course.rounds, **_rounded(before.metrics))
        measured = before
        for number in range(done + 1, course.rounds + 1):
            head = self._made(self._trained(_matrix(head), number))
            measured = self._measured(head, number) if not course.dp_noise else _UNCOUNTED
            manifest = self._manifest(measured, number, parent)
            self._folder.kept(number, head, manifest, self._averaging.memory)
            told = {"refused": dict(self._refused), **_rounded(measured.metrics)}
            self._folder.say("round", round=number, of=course.rounds, **told)
        last = max(done, course.rounds)
        if isinstance(head, Head) and (course.dim_out or course.int8):
            head = self._compressed(head, last)
        if course.dp_noise:
            measured = self._counted(head, last)
        elif course.dim_out or course.int8:
            measured = self._measured(head, last)
        artefact = self._folder.finish(head, self._manifest(measured, last, parent))
        self._folder.say("finished", epoch=artefact.epoch, **_rounded(measured.metrics))
        return artefact

    def _trained(self, matrix: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        """Return the matrix after a round."""
        asked = self._asked(matrix, number)

        def messages(nodes: list[int]) -> list[Message]:
            self._folder.say(RELEASE, round=number)
            return self._averaging.messages(number, matrix, self._config(asked), nodes)

        guard, updates = self._quorum(asked, messages, Guard.updates)
        if clipped := sum(update.clipped for update in updates):
            guard.refused["clipped"] += clipped
        self._refused = guard.refused
        return self._averaging.average(number, matrix, updates)

    def _made(self, matrix: NDArray[np.float32]) -> Head | Layers:
        """Return what a matrix is of: a head, or in one row the layers that change."""
        form = self._course.form
        return Head(matrix=matrix) if form is None else Layers(form=form, flat=matrix[0])

    def _measured(self, head: Head | Layers, number: int) -> Measured:
        asked = self._asked(_matrix(head), number)
        record = self._to_count(head, asked)

        def messages(nodes: list[int]) -> list[Message]:
            return [Message(record, node, MessageType.EVALUATE) for node in nodes]

        guard, tallies = self._quorum(asked, messages, Guard.tallies)
        self._tell(guard, "counts")
        many = [one.counts for one in tallies]
        counts = shared(many, max(self._course.quorum, _LEAST_NODES))
        thresholds, pairs = chosen(counts), sum(int(table[0].sum()) for table in counts.values())
        metrics = {**scored(counts, thresholds[ALL]), "held_pairs": float(pairs), "nodes": float(len(many))}
        return Measured(thresholds=thresholds, metrics=metrics, verify_from=verified_from(many))

    def _counted(self, head: Head | Layers, number: int) -> Measured:
        """Return what noisy counts say of the last head: one threshold for all, 1.0 in doubt."""
        asked = self._asked(_matrix(head), number)
        record = self._to_count(head, asked)

        def messages(nodes: list[int]) -> list[Message]:
            self._folder.say(COUNTED, round=number)
            return [Message(record, node, MessageType.EVALUATE) for node in nodes]

        guard, many = self._quorum(asked, messages, Guard.noisy)
        self._tell(guard, "counts")
        told = found(many, self._course.dp_noise * self._course.dp_counts)
        metrics = {**told.metrics, "nodes": float(len(many))}
        return Measured(thresholds={ALL: told.threshold}, metrics=metrics, verify_from=None)

    def _to_count(self, head: Head | Layers, asked: Asked) -> RecordDict:
        config = self._config(asked)
        config["int8"] = isinstance(head, Head) and head.int8
        return RecordDict({wire.HEAD: wire.head_record(asked.matrix), wire.CONFIG: config})

    def _compressed(self, head: Head, number: int) -> Head:
        """Return the head followed by its principal components over all nodes, where they are asked for."""
        if not self._course.dim_out:
            return Head(matrix=head.matrix, int8=self._course.int8)
        asked = self._asked(head.matrix, number)
        record = RecordDict({wire.HEAD: wire.head_record(head.matrix), wire.CONFIG: self._config(asked)})

        def messages(nodes: list[int]) -> list[Message]:
            return [Message(record, node, wire.MOMENTS) for node in nodes]

        guard, moments = self._quorum(asked, messages, Guard.moments)
        self._tell(guard, "moments")
        return principal(head, np.sum(moments, axis=0), self._course.dim_out, int8=self._course.int8)

    def _quorum(
        self,
        asked: Asked,
        messages: Callable[[list[int]], list[Message]],
        read: Callable[[Guard, Iterable[Message]], list[Read]],
    ) -> tuple[Guard, list[Read]]:
        """Ask until enough sound replies came, a bounded number of times. Raises RunEnded when they never did."""
        course = self._course
        for attempt in range(course.retries + 1):
            nodes = self._drawn(self._exchange.nodes(course.quorum, course.wait_s), (asked.number, attempt))
            sent = messages(nodes)
            replies = self._exchange.ask(sent, course.deadline_s)
            guard = Guard(course, asked)
            guard.silent(len(sent) - len(replies))
            sound = read(guard, replies)
            if len(sound) >= course.quorum:
                return guard, sound
            self._folder.say(
                "no_quorum", round=asked.number, sound=len(sound), refused=dict(guard.refused), said=dict(guard.said)
            )
        raise RunEnded(_no_quorum(asked.number, len(sound), course.quorum, guard))

    def _tell(self, guard: Guard, what: str) -> None:
        """Note what was refused where it is no update; those are told with their round."""
        if guard.refused:
            told = {"refused": dict(guard.refused), "said": dict(guard.said)}
            self._folder.say("refused", round=guard.asked.number, of=what, **told)

    def _drawn(self, present: list[int], turn: tuple[int, int]) -> list[int]:
        """Return the nodes that are asked: a seeded share of those present, at least the quorum."""
        many = max(self._course.quorum, round(len(present) * self._course.fraction))
        draw = random.Random(f"{self._course.seed}:{turn}")
        return present if many >= len(present) else sorted(draw.sample(present, many))

    def _asked(self, matrix: NDArray[np.float32], number: int) -> Asked:
        parent = hashlib.sha256(np.ascontiguousarray(matrix, dtype="<f4").tobytes()).hexdigest()[:16]
        return Asked(base=self._course.base, number=number, parent=parent, matrix=matrix)

    def _config(self, asked: Asked) -> ConfigRecord:
        """Return what every node is told in a round; the seed is the round's own."""
        course = self._course
        digest = hashlib.sha256(f"{course.seed}:{asked.number}".encode()).digest()
        told: dict[str, int | float | str] = {
            "seed": int.from_bytes(digest[:8], "big") % _SEEDS,
            "epochs": course.epochs,
            "batch": course.batch,
            "lr": course.lr,
            "margin": course.margin,
            "scale": course.scale,
            "most-pairs": course.most_pairs,
            "least-category": course.least_category,
            "dp-clip": course.dp_clip,
            "dp-noise": course.dp_noise,
            "dp-counts": course.dp_counts,
        }
        if (form := course.form) is not None:
            told |= {"mode": form.mode, "dim": form.dim, "inner": form.inner, "depth": form.depth}
            told |= {"layers": form.layers, "rank": form.rank}
        return ConfigRecord({**asked.echo, **told})

    def _manifest(self, measured: Measured, number: int, parent: str) -> Manifest:
        course = self._course
        metrics = dict(measured.metrics)
        if course.dp_clip:
            updates, counts = (self._folder.releases(event) for event in (RELEASE, COUNTED))
            metrics["dp_epsilon"] = composed(course.dp_noise, updates, counts, course.dp_delta)
            metrics["dp_delta"] = course.dp_delta
        metrics |= {f"refused_{name}": float(many) for name, many in sorted(self._refused.items())}
        return headfile.Manifest(
            schema=headfile.SCHEMA,
            base=course.base,
            dim_in=course.dim,
            dim=course.dim,
            int8=False,
            sha256="",
            parent=parent,
            round=number,
            thresholds=measured.thresholds,
            verify_from=measured.verify_from,
            metrics=metrics,
            made_by={
                "cacheproxy": __version__,
                "flwr": flwr.__version__,
                "strategy": course.strategy,
                "course": _digest(course),
            },
        )


def _begun(course: Course, start: Artefact | None) -> Head | Layers:
    """Return what a run begins with: what it goes on from, else what changes nothing."""
    if start is not None:
        return _trained(start)
    form = course.form
    return Head.identity(course.dim) if form is None else Layers(form=form, flat=form.start(course.seed))


def _trained(artefact: Artefact) -> Head | Layers:
    return artefact.layers or artefact.head


def _matrix(made: Head | Layers) -> NDArray[np.float32]:
    return made.flat[None] if isinstance(made, Layers) else made.matrix


def _no_quorum(number: int, sound: int, quorum: int, guard: Guard) -> str:
    why = [f"{many} {name}" for name, many in sorted(guard.refused.items())]
    said = [f"{many} node(s): {wire.TROUBLES[word]}" for word, many in guard.said.most_common()]
    told = f"round {number}: {sound} sound replies, {quorum} needed ({', '.join(why) or 'no more nodes'})"
    return "; ".join([told, *said, "what was trained so far is kept: go on with --resume"])


def _digest(course: Course) -> str:
    return hashlib.sha256(msgspec.json.encode(course, order="sorted")).hexdigest()[:12]


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items()}
