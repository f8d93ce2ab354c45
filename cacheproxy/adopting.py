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

from cacheproxy.embed.headfile import ANY, told
from cacheproxy.embed.headshelf import State
from cacheproxy.errors import CacheProxyError, ConfigError, IndexUnavailable, InvalidRequest, NotFound, VersionConflict
from cacheproxy.examining import Seen
from cacheproxy.policy.bound import share
from cacheproxy.policy.learnt import Learnt
from cacheproxy.policy.watch import Watch
from cacheproxy.ports import Change, HeadTold, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.headshelf import HeadShelf
    from cacheproxy.embed.slow import Slow
    from cacheproxy.examining import Examining
    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.index.restore import Row
    from cacheproxy.index.space import Space
    from cacheproxy.index.spaces import Spaces
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.bound import Share
    from cacheproxy.recoding import Recoding

log = structlog.get_logger()

_MOST_ATTEMPTS = 2
_MOST_RECODINGS = 20
"""The same where texts are encoded: what was made before a stop is kept."""


class Rows(Protocol):
    """The store, as a space is filled from it."""

    def scan(self, epoch: str) -> AsyncIterator[Row]:
        """Yield every live entry with a vector of this epoch."""
        ...


class Opens(Protocol):
    """What opens encoders with changed layers (`recoding.Layered`)."""

    async def slow(self, artefact: Artefact) -> Slow:
        """Return what encodes texts that nobody waits for; close it. Raises ConfigError."""
        ...

    async def open(self, artefact: Artefact) -> Recoding:
        """Return what makes a space's vectors; close it, or the space. Raises ConfigError."""
        ...

    async def only(self, epochs: Collection[str]) -> None:
        """Forget the vectors of all epochs but these. Raises ConfigError and IndexUnavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What adopting takes."""

    spaces: Spaces
    shelf: HeadShelf
    learnt: dict[str, Learnt]
    """What policies know of every head; it gets those that are adopted."""
    examining: Examining
    store: Rows
    policy: Callable[[], Policy]
    lookups: LookupLog
    heard: Callable[[], Share]
    """How many labelled hits were wrong since `lookups` began anew."""
    spawn: Callable[[Coroutine[object, object, None]], object]
    audit: AuditLog
    layered: Opens
    grace_s: float
    """How long plans made before a change are still answered; as long as a lookup may take."""


class Adopting:
    """`ports.Heads`. What a start finds on its way goes on, and what served then is watched on."""

    def __init__(self, means: Means, state: State, serving: Artefact | None = None) -> None:
        self._means = means
        self._state = replaced(state, adopting=None, back=False, attempts=0)
        self._cut_short = state
        self._artefact = serving
        self._watch = Watch()
        self.progress = Progress()
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
        """Return the epochs of all heads that this proxy has been given. Blocks."""
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
            return
        if state.attempts < (_MOST_RECODINGS if self._means.shelf.recodes(state.adopting) else _MOST_ATTEMPTS):
            self._begin(state.adopting, back=state.back, attempts=state.attempts)
            return
        problem = f"it was cut short {state.attempts} times; promote it again when there is memory for two indexes"
        self.progress = Progress(step="failed", epoch=state.adopting or self._means.spaces.base, problem=problem)

    async def promote(self, manifest: Mapping[str, Any], weights: bytes, *, force: bool, dry_run: bool) -> Change:
        """Examine a head and, where it passes or `force` says so, begin to adopt it.

        Raises as `ports.Heads` says.
        """
        means = self._means
        try:
            read = told(manifest, "the head")
            artefact = await asyncio.to_thread(means.shelf.checked, read, weights, "the head")
        except ConfigError as exc:
            raise InvalidRequest(exc.message) from exc
        serving, epoch = means.spaces.serving, artefact.epoch
        self._refuse(serving, epoch)
        policy = means.policy()
        policy = replace(policy, learnt={**policy.learnt, epoch: learnt_of(artefact)})
        own = await self._slow(artefact)
        try:
            verdict = await means.examining.examine(
                Seen(epoch=serving.epoch, head=serving.head, own=serving.own),
                Seen(epoch=epoch, head=artefact.projection, own=own),
                policy,
            )
        finally:
            if own is not None:
                own.close()
        self._refuse(serving, epoch)
        if dry_run or not (verdict.passed or force):
            return Change(epoch=epoch, began=False, verdict=verdict)
        await asyncio.to_thread(means.shelf.put, artefact, weights)
        self._refuse(serving, epoch)
        self._begin(epoch, back=False)
        return Change(epoch=epoch, began=True, verdict=verdict)

    async def rollback(self, *, dry_run: bool = False) -> Change:
        """Begin to go back to what served before, past heads that cannot be read any more.

        Raises NotFound where nothing did, VersionConflict as `promote`.
        """
        serving = self._means.spaces.serving
        self._refuse(serving)
        epoch = await asyncio.to_thread(self._back_to)
        self._refuse(serving)
        if epoch is None:
            raise NotFound("nothing served before: there is nothing to go back to")
        if not dry_run:
            self._begin(epoch, back=True)
        return Change(epoch=epoch or self._means.spaces.base, began=not dry_run)

    async def tend(self) -> None:
        """Go back where hits have become wrong more often since a head was adopted."""
        if not self._watch.watching or self.busy or not self._state.before:
            return
        found, epoch = self._watch.worse(self._means.heard()), self._means.spaces.epoch
        if found:
            log.error("head_rolled_back", epoch=epoch, what=found)
            change = await self.rollback()
            after = {"serving": change.epoch, "why": found}
            await self._means.audit.record("proxy", "encoders.rollback", epoch, before={"serving": epoch}, after=after)

    async def _slow(self, artefact: Artefact) -> Slow | None:
        """Return what encodes texts with changed layers, None for a head. Raises InvalidRequest."""
        try:
            return await self._means.layered.slow(artefact) if artefact.layers else None
        except ConfigError as exc:
            raise InvalidRequest(exc.message) from exc

    def _refuse(self, serving: Space, epoch: str = "") -> None:
        """Raise VersionConflict where one is on its way, another one serves than did, or this one serves already."""
        if self.busy:
            raise VersionConflict(f"{self.progress.epoch} is on its way; wait until it serves")
        if self._means.spaces.serving is not serving:
            raise VersionConflict("another head serves since you asked; look at it, and ask again")
        if epoch == serving.epoch:
            raise VersionConflict(f"{epoch} serves already")

    def _back_to(self) -> str | None:
        """Return the latest of those before that can still be read. Blocks."""
        for epoch in reversed(self._state.before):
            try:
                if epoch:
                    self._means.shelf.find(epoch)
            except ConfigError as exc:
                log.warning("head_left_out", reason=exc.message)
            else:
                return epoch
        return None

    def _begin(self, epoch: str, *, back: bool, attempts: int = 0) -> None:
        self.progress = Progress(step="filling", epoch=epoch or self._means.spaces.base, total=len(self._means.spaces))
        self._means.spawn(self._adopt(replaced(self._state, adopting=epoch, back=back, attempts=attempts + 1)))

    async def _adopt(self, way: State) -> None:
        progress = self.progress
        try:
            await asyncio.to_thread(self._means.shelf.note, way)
            await self._filled(way, progress)
        except CacheProxyError as exc:
            self._failed(progress, exc.message)
            await asyncio.to_thread(self._means.shelf.note, self._state)
            with contextlib.suppress(IndexUnavailable):  # what was made of texts for a head that does not serve
                await self._means.layered.only([self._means.spaces.epoch])
        finally:
            if self.progress is progress:  # a bug, or the end of the proxy: the next start goes on
                self.progress = replace(progress, step="failed", problem="it was cut short; see the log")

    async def _filled(self, way: State, progress: Progress) -> None:
        """Fill a space, let it serve, and close the one before. Raises CacheProxyError."""
        means, spaces, artefact = self._means, self._means.spaces, None
        if way.adopting:
            artefact = await asyncio.to_thread(means.shelf.find, way.adopting)
            means.learnt[artefact.epoch] = learnt_of(artefact)

        def advance(rows: int) -> None:
            progress.done += rows

        held = spaces.held(progress.epoch)
        if held is not None:  # it served a moment ago: nothing has to be filled
            before = self._serve(held, artefact, way)
        else:
            own = await means.layered.open(artefact) if artefact and artefact.layers else None
            projection = artefact.projection if artefact else None
            async with spaces.beside(progress.epoch, projection, own) as space:
                await spaces.fill(space, means.store.scan(spaces.base), advance)
                before = self._serve(space, artefact, way)
        log.info("head_adopted", epoch=spaces.epoch, before=before.epoch, entries=len(spaces))
        try:
            await asyncio.to_thread(means.shelf.note, self._state)
            self.progress = Progress()
        except ConfigError as exc:
            self._failed(progress, f"it serves, but the next start will not know: {exc.message}")
        await asyncio.sleep(means.grace_s)
        await spaces.retire(before)
        if before.own is not None:
            await means.layered.only([spaces.epoch, self.progress.epoch])

    def _serve(self, space: Space, artefact: Artefact | None, way: State) -> Space:
        """Let a space serve; return the one before. Nothing waits here: a plan is made before all of it, or after."""
        means, state, wanted = self._means, self._state, way.adopting or ""
        wrong = means.heard()
        before = means.spaces.serve(space)
        self._artefact = artefact
        means.lookups.restart(space.epoch)
        if way.back:
            later = [*reversed(state.before)].index(wanted) + 1  # those passed over, and it itself
            self._state = State(serving=wanted, before=state.before[:-later])
            self._watch.stop()
        else:
            watched = (wrong.events, wrong.trials)
            self._state = State(serving=wanted, before=(*state.before, state.serving), watched=watched)
            self._watch.start(wrong)
        return before

    def _failed(self, progress: Progress, problem: str) -> None:
        self.progress = replace(progress, step="failed", problem=problem)
        log.error("head_not_adopted", epoch=progress.epoch, reason=problem)


def learnt_of(artefact: Artefact) -> Learnt:
    """Return what policies must know of a head."""
    manifest = artefact.manifest
    return Learnt(
        base=manifest.base,
        thresholds={name: value for name, value in manifest.thresholds.items() if name != ANY},
        rest=manifest.thresholds[ANY],
        verify_from=0.0 if manifest.verify_from is None else manifest.verify_from,
    )
