"""Adopting: another similarity head takes the place of the one that serves, while requests go on.

Examined first, then everything kept is projected into a space beside the one that serves; between two requests that
space takes its place, and the one before answers what was planned until then. No request fails for it, and none is
answered from two spaces. Going back is the same way, without being examined.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from msgspec.structs import replace as replaced

from cacheproxy.embed.headshelf import State, earlier
from cacheproxy.errors import (
    CacheProxyError,
    ConfigError,
    NotChanged,
    NotFound,
    Stopped,
    StoreUnavailable,
    VersionConflict,
)
from cacheproxy.policy.bound import share
from cacheproxy.policy.watch import Watch
from cacheproxy.ports import Change, HeadTold, Progress
from cacheproxy.proving import learnt_of
from cacheproxy.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.headshelf import HeadShelf
    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.index.restore import Row
    from cacheproxy.index.space import Space
    from cacheproxy.index.spaces import Spaces
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.policy.bound import Share
    from cacheproxy.policy.learnt import Learnt
    from cacheproxy.proving import Opens, Proving

log = structlog.get_logger()

_MOST_ATTEMPTS = 2
_MOST_RECODINGS = 20
"""The same where texts are encoded: what was made before a stop is kept."""
_AWAY_S = (1.0, 5.0, 20.0, 60.0)


class Rows(Protocol):
    """The store, as a space is filled from it."""

    def scan(self, epoch: str) -> AsyncIterator[Row]:
        """Yield every live entry with a vector of this epoch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What adopting takes."""

    spaces: Spaces
    shelf: HeadShelf
    learnt: dict[str, Learnt]
    """What policies know of every head; it gets those that are adopted."""
    proving: Proving
    store: Rows
    lookups: LookupLog
    heard: Callable[[], Share]
    """How many labelled hits were wrong since `lookups` began anew."""
    spawn: Callable[[Coroutine[object, object, None]], object]
    audit: AuditLog
    layered: Opens
    grace_s: float
    """How long plans made before a change are still answered; as long as a lookup may take."""
    away_s: Sequence[float] = _AWAY_S
    """How long to wait, time after time, until a store that failed while a space was filled from it is read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A head that is to be promoted, by whom, and what served when it was asked for."""

    artefact: Artefact
    weights: bytes
    serving: Space
    actor: str
    force: bool
    dry_run: bool


class Adopting:
    """`ports.Heads`. What a start finds on its way goes on, and what served then is watched on."""

    def __init__(self, means: Means, state: State, serving: Artefact | None = None) -> None:
        self._means = means
        self._state = replaced(state, adopting=None, back=False, attempts=0, why="")
        self._cut_short = state
        self._artefact = serving
        self._examined: Artefact | None = None
        self._watch = Watch()
        self._stop = Stop()
        self.progress = Progress()
        self.last: Change | None = None
        if state.watched is not None:
            self._watch.start(share(*state.watched))

    @property
    def before(self) -> Sequence[str]:
        """Epochs of what served before, the latest last."""
        return self._state.before

    @property
    def busy(self) -> bool:
        """Whether a head is on its way."""
        return self.progress.step == "filling"

    def known(self) -> list[str]:
        """Return the epochs of all heads that this proxy has been given, and still has. Blocks."""
        return self._means.shelf.epochs()

    def serving(self) -> HeadTold | None:
        """Return the head that serves, None for the encoder alone."""
        artefact = self._artefact
        if artefact is None:
            return None
        manifest = artefact.manifest
        return HeadTold(
            epoch=artefact.epoch,
            mode=manifest.mode,
            dim=manifest.dim,
            int8=manifest.int8,
            vector_bytes=artefact.head.vector_bytes,
            parent=manifest.parent,
            round=manifest.round,
            signed_by=manifest.key,
            thresholds=manifest.thresholds,
            metrics=manifest.metrics,
        )

    def resume(self) -> None:
        """Go on with what the last stop cut short: it was examined then. What was cut short twice is given up."""
        state = self._cut_short
        if state.adopting is None:
            self._means.spawn(self._tidy())
            return
        if state.attempts < (_MOST_RECODINGS if self._means.shelf.recodes(state.adopting) else _MOST_ATTEMPTS):
            self._begin(state)
            return
        problem = f"it was cut short {state.attempts} times; promote it again when there is memory for two indexes"
        self.progress = Progress(step="failed", epoch=state.adopting or self._means.spaces.base, problem=problem)
        self._means.spawn(self._tidy())

    async def promote(
        self, manifest: Mapping[str, Any], weights: bytes, *, actor: str, force: bool, dry_run: bool
    ) -> Change:
        """Examine a head and, where it passes or `force` says so, begin to adopt it.

        Raises as `ports.Heads` says.
        """
        artefact, serving = await self._means.proving.checked(manifest, weights), self._means.spaces.serving
        self._refuse(serving, artefact.epoch)
        if self.progress.step == "examining":
            raise VersionConflict(f"{self.progress.epoch} is being examined; wait until that is told")
        self._stop = Stop()
        wanted = _Wanted(artefact=artefact, weights=weights, serving=serving, actor=actor, force=force, dry_run=dry_run)
        if artefact.layers is None:
            return await self._promote(wanted, Progress())
        self.progress, self.last = Progress(step="examining", epoch=artefact.epoch), None
        self._means.spawn(self._examine(wanted, self.progress))
        return Change(epoch=artefact.epoch, began=False, dry_run=dry_run, examining=True)

    async def rollback(self, *, dry_run: bool = False) -> Change:
        """Begin to go back to what served before, past heads that cannot be read or opened any more.

        Raises NotFound where nothing did, VersionConflict as `promote`.
        """
        return await self._go_back("", dry_run=dry_run)

    def cancel(self, *, dry_run: bool = False) -> Change:
        """End what is examined or on its way, there or back; what serves goes on. Raises NotFound where nothing is.

        `progress` tells that it ended, and why.
        """
        if self.progress.step not in {"examining", "filling"} or not self._stop.possible:
            raise NotFound("nothing is on its way: what serves already can be rolled back")
        if not dry_run:
            self._stop.ask()
        return Change(epoch=self.progress.epoch, began=False, dry_run=dry_run)

    async def tend(self) -> None:
        """Go back where hits have become wrong more often since a head was adopted."""
        if not self._watch.watching or self.busy or not self._state.serving:
            return
        if found := self._watch.worse(self._means.heard()):
            await self._go_back(found)

    # Examined

    async def _examine(self, wanted: _Wanted, progress: Progress) -> None:
        """Promote an encoder with changed layers: its texts are encoded while nobody waits."""
        self._examined = wanted.artefact
        try:
            self.last = await self._promote(wanted, progress)
            if self.progress is progress:
                self.progress = Progress()
        except CacheProxyError as exc:
            if self.progress is progress:
                self._failed(progress, exc.message)
        finally:
            self._examined = None
            if self.progress is progress:  # a bug, or the end of the proxy
                self.progress = replace(progress, step="failed", problem="it was cut short; see the log")
        if not self.busy:
            await self._tidy()

    async def _promote(self, wanted: _Wanted, progress: Progress) -> Change:
        means, artefact, serving = self._means, wanted.artefact, wanted.serving
        verdict = await self._stop.unless_asked(means.proving.verdict(artefact, serving, progress))
        self._refuse(serving, artefact.epoch)
        began = not wanted.dry_run and (verdict.passed or wanted.force)
        change = Change(epoch=artefact.epoch, began=began, dry_run=wanted.dry_run, verdict=verdict)
        if began:
            await asyncio.to_thread(means.shelf.put, artefact, wanted.weights)
            was, now = {"serving": serving.epoch}, {"serving": artefact.epoch, "forced": not verdict.passed}
            await means.audit.record(wanted.actor, "encoders.promote", artefact.epoch, before=was, after=now)
            self._refuse(serving, artefact.epoch)
            self._begin(replaced(self._state, adopting=artefact.epoch))
        return change

    def _refuse(self, serving: Space, epoch: str = "") -> None:
        """Raise VersionConflict where one is on its way, another one serves than did, or this one serves already."""
        if self.busy:
            raise VersionConflict(f"{self.progress.epoch} is on its way; wait until it serves")
        if self._means.spaces.serving is not serving:
            raise VersionConflict("another head serves since you asked; look at it, and ask again")
        if epoch == serving.epoch:
            raise VersionConflict(f"{epoch} serves already")

    # Back

    async def _go_back(self, why: str, *, dry_run: bool = False) -> Change:
        serving = self._means.spaces.serving
        self._refuse(serving)
        epoch = await asyncio.to_thread(self._back_to, self._state)
        self._refuse(serving)
        if epoch is None:
            raise NotFound("nothing served before: there is nothing to go back to")
        if not dry_run:
            self._stop = Stop()
            self._begin(replaced(self._state, adopting=epoch, back=True, why=why))
        return Change(epoch=epoch or self._means.spaces.base, began=not dry_run, dry_run=dry_run)

    def _back_to(self, state: State) -> str | None:
        """Return the latest of those before that can still be read, at last the encoder alone. Blocks."""
        for epoch in reversed(state.before):
            try:
                if epoch:
                    self._means.shelf.find(epoch)
            except ConfigError as exc:
                log.warning("head_left_out", epoch=epoch, reason=exc.message)
            else:
                return epoch
        return "" if state.serving else None

    async def _next_back(self, way: State, failure: CacheProxyError) -> State | None:
        """Return the way back past what cannot be opened; None where that would be no help."""
        if not way.back or not way.adopting or isinstance(failure, Stopped | StoreUnavailable):
            return None
        log.warning("head_left_out", epoch=way.adopting, reason=failure.message)
        older = replaced(way, before=earlier(way.before, way.adopting))
        epoch = await asyncio.to_thread(self._back_to, older)
        return None if epoch is None else replaced(way, adopting=epoch, attempts=1)

    # On its way

    def _begin(self, way: State) -> None:
        self.progress = self._filling(way)
        self._means.spawn(self._adopt(replaced(way, attempts=way.attempts + 1)))

    def _filling(self, way: State) -> Progress:
        spaces = self._means.spaces
        return Progress(step="filling", epoch=way.adopting or spaces.base, total=len(spaces))

    async def _adopt(self, way: State) -> None:
        """Go a way to its end, or leave everything as it was; then tidy up."""
        progress = self.progress
        try:
            while True:
                try:
                    await asyncio.to_thread(self._means.shelf.note, way)
                    before = await self._filled(way, progress)
                    break
                except CacheProxyError as exc:
                    after = await self._next_back(way, exc)
                    if after is None:
                        raise
                    way, progress = after, self._filling(after)
                    self.progress = progress
            await self._settled(way, before, progress)
        except CacheProxyError as exc:
            # Noted before it is told: the note of whoever promotes again then must come after this one.
            with contextlib.suppress(ConfigError):  # the disk refuses: the next start tries it once more
                await asyncio.to_thread(self._means.shelf.note, self._state)
            self._failed(progress, exc.message)
        finally:
            if self.progress is progress:  # a bug, or the end of the proxy: the next start goes on
                self.progress = replace(progress, step="failed", problem="it was cut short; see the log")
        await self._tidy()

    async def _filled(self, way: State, progress: Progress) -> Space:
        """Fill a space and let it serve; return the one before. Raises CacheProxyError."""
        means, spaces, artefact = self._means, self._means.spaces, None
        if way.adopting:
            artefact = await asyncio.to_thread(means.shelf.find, way.adopting)
            means.learnt[artefact.epoch] = learnt_of(artefact)
        held = spaces.held(progress.epoch)
        if held is not None:  # it served a moment ago: nothing has to be filled
            return self._serve(held, artefact, way)
        own = await means.layered.open(artefact) if artefact and artefact.layers else None
        projection = artefact.projection if artefact else None
        async with spaces.beside(progress.epoch, projection, own) as space:
            await self._stop.unless_asked(self._fill(space, progress))
            return self._serve(space, artefact, way)

    async def _fill(self, space: Space, progress: Progress) -> None:
        """Put what is kept into a space; a store that fails meanwhile is read again, unless that gets no further.

        Raises CacheProxyError.
        """
        means, furthest, waits = self._means, 0, iter(self._means.away_s)

        def advance(rows: int) -> None:
            progress.done += rows

        while True:
            progress.done = 0
            try:
                return await means.spaces.fill(space, means.store.scan(means.spaces.base), advance)
            except StoreUnavailable as exc:
                if progress.done > furthest:
                    furthest, waits = progress.done, iter(means.away_s)
                wait_s = next(waits, None)
                if wait_s is None:
                    raise
                log.warning("store_read_again", epoch=space.epoch, wait_s=wait_s, reason=exc.message)
                await asyncio.sleep(wait_s)

    def _serve(self, space: Space, artefact: Artefact | None, way: State) -> Space:
        """Let a space serve; return the one before. Nothing waits here: a plan is made before all of it, or after.

        Raises Stopped.
        """
        means = self._means
        self._stop.late()
        wrong = means.heard()
        before = means.spaces.serve(space)
        self._artefact = artefact
        means.lookups.restart(space.epoch)
        self._state = way.adopted((wrong.events, wrong.trials))
        if way.back:
            self._watch.stop()
        else:
            self._watch.start(wrong)
        return before

    async def _settled(self, way: State, before: Space, progress: Progress) -> None:
        """Write down what serves, and close what did once its last plan is answered."""
        means = self._means
        log.info("head_adopted", epoch=means.spaces.epoch, before=before.epoch, entries=len(means.spaces))
        try:
            await asyncio.to_thread(means.shelf.note, self._state)
            self.progress = Progress()
        except ConfigError as exc:
            self._failed(progress, f"it serves, but the next start will not know: {exc.message}")
        if way.why:
            log.error("head_rolled_back", epoch=before.epoch, serving=means.spaces.epoch, what=way.why)
            was, now = {"serving": before.epoch}, {"serving": means.spaces.epoch, "why": way.why}
            try:
                await means.audit.record("proxy", "encoders.rollback", before.epoch, before=was, after=now)
            except NotChanged as exc:  # it must not serve on for that
                log.warning("rollback_not_recorded", epoch=before.epoch, reason=exc.message)
        await asyncio.sleep(means.grace_s)
        await means.spaces.retire(before)

    def _failed(self, progress: Progress, problem: str) -> None:
        self.progress = replace(progress, step="failed", problem=problem)
        log.error("head_not_adopted", epoch=progress.epoch, reason=problem)

    # Left on disk

    async def _tidy(self) -> None:
        """Leave on disk what serves, what can be gone back to, and what is on its way; nothing of texts for others."""
        means = self._means
        try:
            exports = await asyncio.to_thread(self._exported)
            await means.layered.only([means.spaces.epoch, self.progress.epoch if self.busy else ""])
            await means.layered.prune(exports)
            await asyncio.to_thread(means.shelf.prune)
        except CacheProxyError as exc:
            log.warning("heads_not_tidied", reason=exc.message)

    def _exported(self) -> list[Artefact]:
        """Return the encoders whose exports are wanted: they serve, served just before, or come next. Blocks."""
        shelf, found = self._means.shelf, [one for one in (self._artefact, self._examined) if one is not None]
        for epoch in (*self._state.before[-1:], self.progress.epoch if self.busy else ""):
            if shelf.recodes(epoch):
                with contextlib.suppress(ConfigError):  # whoever wants it will be told
                    found.append(shelf.find(epoch))
        return found
