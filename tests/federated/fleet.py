"""Nodes with made-up pairs around an in-process grid, a clock that only sleep moves, and what passed between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from cacheproxy_federated import client_app, local
from cacheproxy_federated.checkpoint import Folder
from cacheproxy_federated.course import Course
from cacheproxy_federated.exchange import Exchange
from cacheproxy_federated.rounds import Run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from cacheproxy.learn.pairfile import PairRows
from tests.federated.topics import DIM, pairs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.app import Context, Message

    from cacheproxy.embed.headfile import Artefact

BASE = "test/encoder"
LABELS = tuple(range(1, 4))
"""Node ids of a small fleet."""


class SleepClock:
    """Time passes where somebody sleeps."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    def sleep_s(self, seconds: float) -> None:
        self.at_s += seconds


def rows(seed: int, n: int = 300, *, category: str = "faq") -> PairRows:
    """Return rows, every fifth of which is held back."""
    made = pairs(n, seed, category=category)
    return PairRows(
        a=made.a,
        b=made.b,
        right=made.right,
        category=made.category,
        group=made.group,
        held=np.arange(n) % 5 < 1 if n % 2 else (np.arange(n) // 2) % 5 < 1,
        texts=None,
    )


def course(**settings: Any) -> Course:
    """Return a course for the toy: few, fast rounds."""
    told: dict[str, Any] = {"base": BASE, "dim": DIM, "rounds": 3, "quorum": 2, "epochs": 2, "batch": 32, "lr": 0.02}
    return Course(**{**told, **settings})


@dataclass
class Fleet:
    """Nodes by id; a node in `instead` is played by a function of the honest reply, None for one that is silent."""

    seeds: tuple[int, ...] = LABELS
    instead: dict[int, Callable[[Message, Message], Message | None]] = field(default_factory=dict)
    moments: bool = True
    kept: dict[int, PairRows] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    clock: SleepClock = field(default_factory=SleepClock)
    passed: list[Message] = field(default_factory=list)
    """Every message, there and back."""

    def grid(self) -> local.LocalGrid:
        """Return the grid that these nodes are at."""
        found = {seed: self.kept.get(seed) or rows(seed) for seed in self.seeds}

        def rows_of(context: Context, base: str) -> PairRows:
            whole = found[context.node_id]
            return whole if base == BASE else _none(whole)

        app = client_app.made(rows_of, moments=self.moments)
        return local.LocalGrid({seed: self._node(local.node(app, seed, self.config), seed) for seed in self.seeds})

    def run(
        self,
        folder: Path,
        told: Course | None = None,
        *,
        start: Artefact | None = None,
        resume: bool = False,
        key: Ed25519PrivateKey | None = None,
    ) -> Artefact:
        """Run a course over the fleet."""
        told = told or course()
        exchange = Exchange(self.grid(), self.clock, told.poll_s)
        return Run(told, exchange, Folder(folder, key)).run(start, resume=resume)

    def _node(self, honest: local.Answer, seed: int) -> local.Answer:
        def answer(message: Message) -> Message | None:
            reply = honest(message)
            assert reply is not None
            given = self.instead[seed](message, reply) if seed in self.instead else reply
            self.passed += [message] if given is None else [message, given]
            return given

        return answer


def on_the_wire(message: Message) -> bytes:
    """Return all bytes of a message as Flower sends them."""
    return b"".join(one.deflate() for one in get_all_nested_objects(message).values())


def _none(whole: PairRows) -> PairRows:
    at = np.zeros(len(whole.right), dtype=np.bool_)
    return PairRows(
        a=whole.a[at], b=whole.b[at], right=at[at], category=(), group=whole.group[at], held=at[at], texts=None
    )
