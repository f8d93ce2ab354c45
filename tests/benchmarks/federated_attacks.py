"""Clients that lie, in whole runs of what is shipped: its messages, its guard, Flower's strategies, its thresholds.

Nodes are functions of this process (`cacheproxy_federated.local`); nothing else is made up. What comes of a run is
asked of the gate that proxies ask (`policy/gate.py`), at proxies whose pairs no client has.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cacheproxy_federated import client_app, wire
from cacheproxy_federated.checkpoint import Folder
from cacheproxy_federated.course import Course
from cacheproxy_federated.exchange import Exchange, RunEnded
from cacheproxy_federated.local import LocalGrid, node
from cacheproxy_federated.rounds import Run
from cacheproxy_federated.task import GRID, Pairs
from cacheproxy_federated.thresholds import ALL

from cacheproxy.embed.head import Head
from cacheproxy.errors import ConfigError
from cacheproxy.learn.pairfile import PairRows
from cacheproxy.policy.gate import Terms, Told, decide
from tests.benchmarks.federated_learning import HOW, ROUNDS, similarities, threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy_federated.local import Answer
    from flwr.app import Context, Message
    from numpy.typing import NDArray

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.policy.gate import Verdict
    from tests.benchmarks.federated_data import Client, Questions, Rows

    Matrix = NDArray[np.float32]
    Lie = Callable[["Liar", Message, Message], Message]
    """What a node that lies sends, of the message it was sent and its honest reply."""

MALICIOUS = 2
"""Of 20 clients, the first ones: which topics they have differs by seed."""
TIMES = 10
BACKDOOR, BOOSTED, HIDDEN = "backdoor pairs", "backdoor, boosted", "backdoor, hidden"
DOORS = (BACKDOOR, BOOSTED, HIDDEN)
"""Attacks by liars who train on pairs of a door besides their own."""
DOOR_PAIRS = 200
CLAIMED = 1 << 40
"""Pairs that a liar says it trained on."""
COUNTED = 5000
"""Held-back pairs that a liar counts: as many as a node may."""
PROXIES = 3
"""So many proxies ask their own pairs, a third each of half of the measured ones."""
DEFAULT = "the default (robust)"
COURSES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "fedavg": {"strategy": "fedavg"},
    "fedprox": {"strategy": "fedprox", "proximal": 0.01},
    "fedadam": {"strategy": "fedadam"},
    "median": {"strategy": "median", "quorum": 3},
    "trimmed-mean": {"strategy": "trimmed-mean", "quorum": 5},
    "krum": {"strategy": "krum", "quorum": 7, "malicious": MALICIOUS},
    "multi-krum": {"strategy": "multi-krum", "quorum": 7, "malicious": MALICIOUS},
}
"""What `cacheproxy federated serve` is given; everything else is as shipped."""
_BRIEF = ("wrong shape", "NaN", "old round", "counts: serve everything", "counts: just under honest ones")
"""Attacks that the guard answers before any strategy: tried under the default alone."""
_BASE, _CATEGORY = "benchmark/encoder", "all"


@dataclass
class Liar:
    """A node that lies; `first` is what it made in the first round."""

    number: int
    lie: Lie
    honest: Answer
    """The same node with its own pairs alone."""
    first: Matrix | None = field(default=None, init=False)

    def answer(self, message: Message, reply: Message) -> Message:
        """Return what it sends instead of an honest reply."""
        if self.first is None and wire.HEAD in reply.content:
            self.first = wire.matrix_of(reply.content).copy()
        return self.lie(self, message, reply)


def attacks() -> dict[str, Lie]:
    """Return what malicious clients send instead of what they learnt and counted."""
    return {
        "none": lambda liar, message, reply: reply,
        "sign flip": _moved(lambda liar, start, made: start - (made - start)),
        "x10 replacement": _moved(lambda liar, start, made: start - TIMES * (made - start)),
        BACKDOOR: lambda liar, message, reply: reply,
        BOOSTED: _moved(lambda liar, start, made: start + TIMES * (made - start)),
        HIDDEN: _hidden,
        "NaN": _moved(lambda liar, start, made: np.full_like(made, np.nan)),
        "wrong shape": _moved(lambda liar, start, made: made[:-1]),
        "x1000 norm": _moved(_noise),
        "old round": _moved(lambda liar, start, made: made if liar.first is None else liar.first),
        "sign flip, claims 2^40 pairs": _claiming(_moved(lambda liar, start, made: start - (made - start))),
        "counts: serve everything": _counting(0.0, 0.0),
        "counts: serve nothing": _counting(1.0, 0.995),
        "counts: just under honest ones": _counting(0.45, 0.0),
    }


def tried(told: str) -> list[str]:
    """Return the attacks that a course is tried with."""
    return [name for name in attacks() if told == DEFAULT or name not in _BRIEF]


def _moved(sent: Callable[[Liar, Matrix, Matrix], Matrix]) -> Lie:
    def lie(liar: Liar, message: Message, reply: Message) -> Message:
        if wire.HEAD in reply.content:
            made = sent(liar, wire.matrix_of(message.content), wire.matrix_of(reply.content))
            reply.content[wire.HEAD] = wire.head_record(made)
        return reply

    return lie


def _hidden(liar: Liar, message: Message, reply: Message) -> Message:
    """Send the update of the door's pairs no longer than an honest one would be: nothing but its direction tells."""
    if wire.HEAD not in reply.content:
        return reply
    usual = liar.honest(message)
    assert usual is not None
    start, made = wire.matrix_of(message.content), wire.matrix_of(reply.content)
    length = np.linalg.norm(wire.matrix_of(usual.content) - start)
    reply.content[wire.HEAD] = wire.head_record(start + (made - start) * (length / np.linalg.norm(made - start)))
    return reply


def _noise(liar: Liar, start: Matrix, made: Matrix) -> Matrix:
    away = np.random.default_rng(liar.number).normal(size=made.shape)
    return (start + 1000 * np.linalg.norm(made - start) / np.linalg.norm(away) * away).astype(np.float32)


def _claiming(lie: Lie) -> Lie:
    def more(liar: Liar, message: Message, reply: Message) -> Message:
        if wire.HEAD in reply.content:
            reply.content[wire.NUMBERS] = wire.numbers(CLAIMED)
        return lie(liar, message, reply)

    return more


def _counting(right_at: float, wrong_at: float) -> Lie:
    """Count very many pairs, all right ones at one cosine and all wrong ones at another."""
    half = COUNTED // 2
    tp, fp = (np.where(at >= GRID, half, 0) for at in (right_at, wrong_at))
    table = np.stack([tp, fp, half - tp, half - fp], axis=1).astype(np.int64)

    def lie(liar: Liar, message: Message, reply: Message) -> Message:
        if wire.COUNTS in reply.content:
            reply.content[wire.COUNTS] = wire.counts_record({_CATEGORY: table})
            reply.content[wire.NUMBERS] = wire.numbers(COUNTED)
        return reply

    return lie


def door(pool: Questions, seed: int) -> tuple[Pairs, Pairs]:
    """Return pairs of two intents that malicious clients call right, and as many of other questions to try them on."""
    random = np.random.default_rng(seed)
    one, other = (random.permutation(np.flatnonzero(pool.intent == at)) for at in (0, int(pool.intent.max()) // 2))
    halves = [(one[half::2], other[half::2]) for half in (0, 1)]
    trained, tried = (_between(pool, random.choice(a, DOOR_PAIRS), random.choice(b, DOOR_PAIRS)) for a, b in halves)
    return trained, tried


def poisoned(clients: Sequence[Client], pairs: Pairs | None) -> list[Client]:
    """Return the clients, of whom malicious ones tell the opposite of what their held-back pairs say.

    With `pairs`, they train on those, too.
    """
    return [
        replace(
            one,
            train=one.train if pairs is None else _with(one.train, pairs),
            held=replace(one.held, right=~one.held.right),
        )
        if at < MALICIOUS
        else one
        for at, one in enumerate(clients)
    ]


def trained(
    honest: Sequence[Client], pairs: Pairs, told: str, attack: str, seed: int, *, rounds: int = ROUNDS
) -> Artefact | None:
    """Return what a run of the app makes of these clients, some of whom lie; None where it ends without a head.

    `pairs` are those of a door.
    """
    clients = honest if attack == "none" else poisoned(honest, pairs if attack in DOORS else None)
    dim = honest[0].train.a.shape[1]
    course = Course(
        **{"base": _BASE, "dim": dim, "rounds": rounds, "seed": seed}
        | {"epochs": HOW.epochs, "batch": HOW.batch, "lr": HOW.lr}
        | COURSES[told]
    )
    nodes = {at + 1: _node(one, at) for at, one in enumerate(clients)}
    for at in range(MALICIOUS):
        nodes[at + 1] = _lying(nodes[at + 1], Liar(at, attacks()[attack], _node(honest[at], at)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Run(course, Exchange(LocalGrid(nodes), _Still(), course.poll_s), Folder(Path(folder))).run()
        except (RunEnded, ConfigError):
            return None


def asked(head: Head, level: float, honest: Sequence[Client], own: Sequence[Pairs]) -> list[Verdict]:
    """Return what the gate of each proxy says of a head at a threshold, by its own pairs, against the encoder alone.

    The encoder's threshold is that of honest clients' counts.
    """
    alone = Head.identity(head.dim_in)
    before = threshold(alone, honest)
    return [
        decide(
            Told(
                right=pairs.right,
                group=pairs.group,
                category=pairs.category,
                before=similarities(alone, pairs),
                after=similarities(head, pairs),
                threshold_before=np.full(len(pairs), before),
                threshold_after=np.full(len(pairs), level),
            ),
            None,
            Terms(),
        )
        for pairs in own
    ]


def proxies(test: Pairs) -> tuple[NDArray[np.bool_], list[Pairs]]:
    """Return which of the measured pairs are reported, and the pairs of each proxy, which are not; by whole groups."""
    groups = np.random.default_rng(0).permutation(np.unique(test.group))
    turn = np.empty(int(groups.max()) + 1, dtype=np.int64)
    turn[groups] = np.arange(len(groups)) % (2 * PROXIES)
    mine = turn[test.group]
    return mine >= PROXIES, [test.at(mine == at) for at in range(PROXIES)]


def level_of(artefact: Artefact) -> float:
    """Return the threshold that a proxy serves these pairs from."""
    told = artefact.manifest.thresholds
    return told.get(_CATEGORY, told[ALL])


class _Still:
    """A clock for nodes that answer at once: time passes only where somebody waits."""

    def __init__(self) -> None:
        self._at_s = 0.0

    def now_s(self) -> float:
        return self._at_s

    def sleep_s(self, seconds: float) -> None:
        self._at_s += seconds


def _node(client: Client, at: int) -> Answer:
    rows = _rows(client)

    def rows_of(context: Context, base: str) -> PairRows:
        return rows

    return node(client_app.made(rows_of), at + 1, {})


def _lying(honest: Answer, liar: Liar) -> Answer:
    def answer(message: Message) -> Message | None:
        reply = honest(message)
        return reply if reply is None or reply.has_error() else liar.answer(message, reply)

    return answer


def _rows(client: Client) -> PairRows:
    both = (client.train, client.held)
    return PairRows(
        a=np.concatenate([one.a for one in both]),
        b=np.concatenate([one.b for one in both]),
        right=np.concatenate([one.right for one in both]),
        category=tuple(name for one in both for name in one.category),
        group=np.concatenate([one.group for one in both]),
        held=np.arange(len(both[0]) + len(both[1])) >= len(both[0]),
        texts=None,
    )


def _between(pool: Questions, a: Rows, b: Rows) -> Pairs:
    return Pairs(
        a=pool.vectors[a],
        b=pool.vectors[b],
        right=np.ones(len(a), dtype=np.bool_),
        category=(_CATEGORY,) * len(a),
        group=np.arange(len(a)),
    )


def _with(train: Pairs, pairs: Pairs) -> Pairs:
    return Pairs(
        a=np.concatenate([train.a, pairs.a]),
        b=np.concatenate([train.b, pairs.b]),
        right=np.concatenate([train.right, pairs.right]),
        category=train.category + pairs.category,
        group=np.concatenate([train.group, pairs.group + train.group.max() + 1]),
    )
