"""Upkeep: what one proxy does by itself, beside its requests, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from cacheproxy.errors import IndexUnavailable, PartUnavailable, PiiUnavailable, StoreUnavailable
from cacheproxy.policy.adapt import Sample
from cacheproxy.policy.kinds import PII_KINDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
    from pathlib import Path

    from cacheproxy.erasure import Erased
    from cacheproxy.model import Selector
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.adapt import LoadWatch
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Clock, EntryStore, VectorIndex
    from cacheproxy.stats.reader import BackendState
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()

_SWEEP_INTERVAL_S = 1.0
_KEYS_INTERVAL_S = 0.5
_ERASURE_INTERVAL_S = 30.0
_LOAD_INTERVAL_S = 0.5
_BEHIND_S = 5.0


class Tasks(Protocol):
    """Who owns tasks (`supervise.Supervisor`)."""

    def spawn(self, work: Coroutine[object, object, None]) -> object:
        """Start a task."""
        ...

    def every(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Repeat `work` with pauses of `interval_s`, whatever it raises."""
        ...


class Tended(Protocol):
    """A part that must be looked after often."""

    async def tend(self) -> None:
        """Do what is due."""
        ...


class Book(Tended, Protocol):
    """The policy in force, to be tended."""

    def __call__(self) -> Policy:
        """Return it."""
        ...


class Encoded(Protocol):
    """An index that may have to encode texts (`index.spaces.Spaces`)."""

    async def catch_up(self) -> None:
        """Make the vectors that it lacks. Raises PartUnavailable."""
        ...


class Erases(Protocol):
    """Removes from every part that remembers."""

    async def erase(self, selector: Selector, *, told: bool = True) -> Erased:
        """Remove what is meant, at other replicas, too, if `told`; what fails is left pending."""
        ...

    async def retry(self) -> None:
        """Try again what is pending."""
        ...


class Prepared(Protocol):
    """A gate that takes long to be ready."""

    async def prepare(self, kinds: Collection[str]) -> None:
        """Load what these kinds take. Raises PiiUnavailable."""
        ...


class Saved(Protocol):
    """An index that can be written to a directory."""

    async def save(self, directory: Path) -> None:
        """Write it. Raises IndexUnavailable."""
        ...

    async def scrub(self, directory: Path) -> None:
        """Rid the directory of what the index no longer holds. Raises IndexUnavailable."""
        ...


class Snapshots:
    """The snapshots of an index in their directory."""

    def __init__(self, index: Saved, directory: Path) -> None:
        self._index = index
        self._directory = directory

    async def save(self) -> None:
        """Write one. Raises IndexUnavailable."""
        await self._index.save(self._directory)

    async def save_last(self) -> None:
        """Write one at the end; where that fails, the next start rebuilds from the store."""
        try:
            await self.save()
        except IndexUnavailable as exc:
            log.warning("snapshot_failed", reason=exc.message)

    async def scrub(self) -> int:
        """Rid them of what the index no longer holds; return 1. Raises IndexUnavailable."""
        await self._index.scrub(self._directory)
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """Everything that is done again and again. Each part is named by what is asked of it here."""

    store: EntryStore
    index: VectorIndex
    crowded: asyncio.Event
    """Set by whoever finds the store over its caps."""
    snapshots: Snapshots
    snapshot_interval_s: float
    book: Book
    erasure: Erases
    backends: Callable[[], Iterable[BackendState]]
    load: LoadWatch
    gate: Prepared
    keeper: Tended | None
    """Of the virtual keys, where callers need one."""
    telemetry: Telemetry
    clock: Clock
    gone: Callable[[Collection[str]], None] | None = None
    """Told of the entries that are removed."""

    def start(self, tasks: Tasks) -> None:
        """Begin all of it."""
        tasks.every(0, self.sweep, "sweep")
        tasks.every(0, self.book.tend, "policies")
        tasks.spawn(self.erasure.retry())  # what a stop cut short
        tasks.every(_ERASURE_INTERVAL_S, self.erasure.retry, "erasure")
        tasks.every(_LOAD_INTERVAL_S, self.watch_load, "load")
        tasks.every(self.snapshot_interval_s, self.snapshots.save, "snapshot")
        tasks.spawn(self.prepare(self.book().pack))
        if self.keeper is not None:
            tasks.every(_KEYS_INTERVAL_S, self.keeper.tend, "keys")

    async def sweep(self) -> None:
        """Wait until the store is crowded, a second at most; then remove all that must go from it and from the index.

        Raises StoreUnavailable.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.crowded.wait(), _SWEEP_INTERVAL_S)
        self.crowded.clear()
        while removed := await self.store.sweep():
            self.index.remove(removed)
            if self.gone is not None:
                self.gone(removed)
            self.telemetry.removed.inc(len(removed))

    async def watch_load(self) -> None:
        """Take a sample of every backend."""
        now = self.clock.monotonic()
        for state in self.backends():
            in_flight = state.running + state.waiting
            self.load.observe(
                state.name, Sample(in_flight=in_flight, limit=state.limit, p95_s=state.p95_ms / 1000), now
            )

    async def erase(self, selector: Selector) -> int:
        """Remove what is meant from every part; return how many entries that were. Other replicas do it themselves.

        Raises StoreUnavailable while a part is pending.
        """
        erased = await self.erasure.erase(selector, told=False)
        if erased.pending:
            raise StoreUnavailable(f"erasing is not finished in: {', '.join(erased.pending)}")
        return len(erased.ids)

    async def policy_changed(self, _: Policy, after: Policy) -> None:
        """Be ready for what a new policy asks for before its answers come: a listener of the policy book."""
        await self.prepare(after.pack)

    async def prepare(self, pack: Pack) -> None:
        """Load the recognisers that a pack asks for; without the library nothing is kept where one is asked for."""
        kinds = {kind for category in pack.categories.values() for kind in category.pii}
        if any(category.share == "agreed" for category in pack.categories.values()):
            kinds.update(PII_KINDS)
        if kinds:
            try:
                await self.gate.prepare(kinds)
            except PiiUnavailable as exc:
                log.error("pii_gate_missing", reason=exc.message)  # noqa: TRY400 - its message says it all


async def catch_up(index: Encoded) -> None:
    """Let an index make the vectors that it lacks; where a part fails, try again a little later."""
    try:
        await index.catch_up()
    except PartUnavailable as exc:
        log.warning("side_vectors_behind", part=exc.part, reason=exc.message)
        await asyncio.sleep(_BEHIND_S)
