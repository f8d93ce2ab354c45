"""What each step of the assembly hands to the next: `opening.py` has most of them, `app.py` takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.replaying import Traffic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from cacheproxy.access.keeper import Keeper
    from cacheproxy.access.names import Names
    from cacheproxy.embed.batcher import MicroBatcher
    from cacheproxy.flight import Flights
    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.heads import Heads
    from cacheproxy.house import Readiness
    from cacheproxy.http.edge import Edge
    from cacheproxy.index.spaces import Spaces
    from cacheproxy.install import Claim
    from cacheproxy.learn.budget import Budget
    from cacheproxy.learn.feedback import Feedback
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.learn.pairlog import PairLog
    from cacheproxy.learn.verdicts import Verdicts
    from cacheproxy.model import Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.policy.adapt import LoadWatch
    from cacheproxy.ports import Clock, SmallModel, Upstream
    from cacheproxy.pressure import Pressure
    from cacheproxy.privacy.gate import PresidioGate
    from cacheproxy.recoding import Layered
    from cacheproxy.replica import Replica
    from cacheproxy.replicated import Findable
    from cacheproxy.settings import Settings
    from cacheproxy.sharing import Sharing
    from cacheproxy.small import Small
    from cacheproxy.store.memory import MemoryStore
    from cacheproxy.store.redis.store import RedisStore
    from cacheproxy.store.sqlite import SqliteStore
    from cacheproxy.supervise import Supervisor
    from cacheproxy.telemetry import Telemetry
    from cacheproxy.upstream.backend import State
    from cacheproxy.upstream.local.process import LocalModel
    from cacheproxy.upstream.pool import UpstreamPool
    from cacheproxy.upstream.small import SmallUpstream
    from cacheproxy.verify.verifier import ThreadedVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What everything else stands on: where it lives, who asks, and who writes down what was done."""

    settings: Settings
    clock: Clock
    telemetry: Telemetry
    data_dir: Path
    claim: Claim
    secret: bytes = field(repr=False)
    keeper: Keeper | None
    identify: Callable[[list[tuple[bytes, bytes]]], Scope]
    names: Names
    audit: AuditLog
    pressure: Pressure
    replica: Replica | None = None
    """This proxy's end of what replicas share; None where it shares nothing."""

    @property
    def snapshots_dir(self) -> Path:
        """Where the index is saved to be restored."""
        return self.data_dir / "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept, how it is found, and by which policy."""

    store: SqliteStore | MemoryStore | RedisStore
    embedder: MicroBatcher
    heads: Heads
    layered: Layered
    index: Spaces
    verifier: ThreadedVerifier | None
    book: PolicyBook
    findable: Findable | None = None
    """What makes entries of other replicas findable; None where nothing is shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Who answers what is not kept."""

    model: LocalModel | None
    """The embedded model where it is the default backend: only then the proxy is not ready without it."""
    pool: UpstreamPool
    load: LoadWatch
    upstream: Upstream
    """The pool, counting tokens where callers need a virtual key."""
    small: SmallModel | None = None
    beside: SmallUpstream | None = None
    """The backend of the small model, which is not in the pool: no request is routed to it."""

    def states(self) -> list[State]:
        """Return how every backend is, the small model's last."""
        return [*self.pool.states(), *self.states_beside()]

    def traffic(self, model: str) -> Traffic:
        """Return how busy those are that may be asked for a model, all together; loaded as the most loaded one."""
        names, readings = self.pool.backends(model), self.load.readings
        states = [state for state in self.pool.states() if state.name in names]
        return Traffic(
            load=max((readings[name].held for name in names if name in readings), default=0.0),
            running=sum(state.running for state in states),
            waiting=sum(state.waiting for state in states),
            limit=sum(state.limit for state in states),
        )

    def states_beside(self) -> list[State]:
        """Return how the backend beside the pool is, where there is one."""
        return [self.beside.state()] if self.beside else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a request walks, and the tasks beside it."""

    budget: Budget
    gate: PresidioGate
    threads: Executor
    """Understands large bodies."""
    supervisor: Supervisor
    flights: Flights
    lookups: LookupLog
    pairs: PairLog | None
    """Training pairs; None where none are collected, nor ever were."""
    feedback: Feedback
    verdicts: Verdicts
    sharing: Sharing
    crowded: asyncio.Event
    small: Small | None
    """What lets the small model answer; None without one."""
    pipeline: Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What callers meet."""

    edge: Edge
    ready: Readiness
