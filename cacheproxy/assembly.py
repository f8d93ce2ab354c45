"""What each step of the assembly hands to the next: `opening.py` has most of them, `app.py` takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    from cacheproxy.house import Readiness
    from cacheproxy.http.edge import Edge
    from cacheproxy.index.partitioned import PartitionedIndex
    from cacheproxy.install import Claim
    from cacheproxy.learn.budget import Budget
    from cacheproxy.learn.feedback import Feedback
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.model import Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.policy.adapt import LoadWatch
    from cacheproxy.ports import Clock, Upstream
    from cacheproxy.privacy.gate import PresidioGate
    from cacheproxy.settings import Settings
    from cacheproxy.sharing import Sharing
    from cacheproxy.store.memory import MemoryStore
    from cacheproxy.store.sqlite import SqliteStore
    from cacheproxy.supervise import Supervisor
    from cacheproxy.telemetry import Telemetry
    from cacheproxy.upstream.local.process import LocalModel
    from cacheproxy.upstream.pool import UpstreamPool
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

    @property
    def snapshots_dir(self) -> Path:
        """Where the index is saved to be restored."""
        return self.data_dir / "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept, how it is found, and by which policy."""

    store: SqliteStore | MemoryStore
    embedder: MicroBatcher
    index: PartitionedIndex
    verifier: ThreadedVerifier | None
    book: PolicyBook


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Who answers what is not kept."""

    model: LocalModel | None
    pool: UpstreamPool
    load: LoadWatch
    upstream: Upstream
    """The pool, counting tokens where callers need a virtual key."""


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
    feedback: Feedback
    sharing: Sharing
    crowded: asyncio.Event
    pipeline: Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What callers meet."""

    edge: Edge
    ready: Readiness
