"""Adopting: another similarity head takes the place of the one that serves, while requests go on.

Examined first, then everything kept is projected into a space beside the one that serves; between two requests that
space takes its place, and the one before answers what was planned until then. No request fails for it, and none is
answered from two spaces. Going back is the same way, without being examined.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from cacheproxy.embed.headfile import ANY, told
from cacheproxy.embed.headshelf import State
from cacheproxy.errors import CacheProxyError, ConfigError, InvalidRequest, NotFound, VersionConflict
from cacheproxy.examining import Seen
from cacheproxy.policy.learnt import Learnt
from cacheproxy.policy.watch import Watch
from cacheproxy.ports import Change, HeadTold, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.headshelf import HeadShelf
    from cacheproxy.examining import Examining
    from cacheproxy.index.restore import Row
    from cacheproxy.index.spaces import Space, Spaces
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.bound import Share

log = structlog.get_logger()


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
    examining: Examining
    store: Rows
    policy: Callable[[], Policy]
    lookups: LookupLog
    heard: Callable[[], Share]
    """How many labelled hits were wrong since `lookups` began anew."""
    spawn: Callable[[Coroutine[object, object, None]], object]
    grace_s: float
    """How long plans made before a change are still answered; as long as a lookup may take."""


class Adopting:
    """`ports.Heads`."""

    def __init__(self, means: Means, state: State) -> None:
        self._means = means
        self._state = State(serving=state.serving, before=state.before)
        self._wanted = state.adopting
        self._watch = Watch()
        self.progress = Progress()

    @property
    def before(self) -> Sequence[str]:
        """Epochs of what served before, the latest last."""
        return self._state.before

    @property
    def busy(self) -> bool:
        """Whether a head is on its way."""
        return self.progress.step == "filling"

    def known(self) -> list[str]:
        """Return the epochs of all heads that can serve here. Blocks."""
        return [artefact.epoch for artefact in self._means.shelf.all()]

    def serving(self) -> HeadTold | None:
        """Return the head that serves, None for the encoder alone. Blocks. Raises ConfigError for a damaged one."""
        if not self._state.serving:
            return None
        artefact = self._means.shelf.find(self._state.serving)
        manifest = artefact.manifest
        return HeadTold(
            epoch=artefact.epoch,
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
        """Go on with what the last stop cut short: it was examined then."""
        if self._wanted is not None:
            self._begin(self._wanted)

    async def promote(self, manifest: Mapping[str, Any], weights: bytes, *, force: bool, dry_run: bool) -> Change:
        """Examine a head and, where it passes or `force` says so, begin to adopt it.

        Raises as `ports.Heads` says.
        """
        means = self._means
        try:
            artefact = means.shelf.checked(told(manifest, "the head"), weights, "the head")
        except ConfigError as exc:
            raise InvalidRequest(exc.message) from exc
        epoch = artefact.epoch
        if epoch == means.spaces.epoch:
            raise VersionConflict(f"{epoch} serves already")
        self._refuse_two()
        means.learnt.setdefault(epoch, learnt_of(artefact))
        serving = means.spaces.serving
        verdict = await means.examining.examine(
            Seen(epoch=serving.epoch, head=serving.head), Seen(epoch=epoch, head=artefact.head), means.policy()
        )
        self._refuse_two()
        if dry_run or not (verdict.passed or force):
            return Change(epoch=epoch, began=False, verdict=verdict)
        await asyncio.to_thread(means.shelf.put, artefact, weights)
        self._refuse_two()
        self._begin(epoch)
        return Change(epoch=epoch, began=True, verdict=verdict)

    async def rollback(self, *, dry_run: bool = False) -> Change:
        """Begin to go back to what served before. Raises NotFound where nothing did, VersionConflict as `promote`."""
        self._refuse_two()
        if not self._state.before:
            raise NotFound("nothing served before: there is nothing to go back to")
        epoch = self._state.before[-1]
        if not dry_run:
            if epoch:
                artefact = await asyncio.to_thread(self._means.shelf.find, epoch)
                self._means.learnt.setdefault(epoch, learnt_of(artefact))
            self._refuse_two()
            self._begin(epoch)
        return Change(epoch=epoch or self._means.spaces.base, began=not dry_run)

    async def tend(self) -> None:
        """Go back where hits have become wrong more often since a head was adopted."""
        if not self._watch.watching or self.busy or not self._state.before:
            return
        found = self._watch.worse(self._means.heard())
        if found:
            log.error("head_rolled_back", epoch=self._means.spaces.epoch, what=found)
            self._watch.stop()
            await self.rollback()

    def _refuse_two(self) -> None:
        if self.busy:
            raise VersionConflict(f"{self.progress.epoch} is on its way; wait until it serves")

    def _begin(self, epoch: str) -> None:
        self.progress = Progress(step="filling", epoch=epoch or self._means.spaces.base, total=len(self._means.spaces))
        self._means.spawn(self._adopt(epoch))

    async def _adopt(self, wanted: str) -> None:
        progress, state = self.progress, self._state
        adopting = State(serving=state.serving, before=state.before, adopting=wanted)
        try:
            await asyncio.to_thread(self._means.shelf.note, adopting)
            await self._filled(wanted, progress)
        except CacheProxyError as exc:
            self.progress = replace(progress, step="failed", problem=exc.message)
            log.error("head_not_adopted", epoch=progress.epoch, reason=exc.message)  # noqa: TRY400 - it says it all
            await asyncio.to_thread(self._means.shelf.note, self._state)
        finally:
            if self.progress is progress:  # a bug, or the end of the proxy: the next start goes on
                self.progress = replace(progress, step="failed", problem="it was cut short; see the log")

    async def _filled(self, wanted: str, progress: Progress) -> None:
        """Fill a space, let it serve, and close the one before. Raises CacheProxyError."""
        means, spaces = self._means, self._means.spaces
        head = None
        if wanted:
            artefact = await asyncio.to_thread(means.shelf.find, wanted)
            means.learnt.setdefault(wanted, learnt_of(artefact))
            head = artefact.head

        def advance(rows: int) -> None:
            progress.done += rows

        held = spaces.held(progress.epoch)
        if held is not None:  # it served a moment ago: nothing has to be filled
            before = self._serve(held, wanted)
        else:
            async with spaces.beside(progress.epoch, head) as space:
                await spaces.fill(space, means.store.scan(spaces.base), advance)
                before = self._serve(space, wanted)
        log.info("head_adopted", epoch=spaces.epoch, before=before.epoch, entries=len(spaces))
        await asyncio.to_thread(means.shelf.note, self._state)
        self.progress = Progress()
        await asyncio.sleep(means.grace_s)
        await spaces.retire(before)

    def _serve(self, space: Space, wanted: str) -> Space:
        """Let a space serve; return the one before. Nothing waits here: a plan is made before all of it, or after."""
        means, state = self._means, self._state
        wrong = means.heard()
        before = means.spaces.serve(space)
        means.lookups.restart()
        back = bool(state.before) and state.before[-1] == wanted
        self._state = State(serving=wanted, before=state.before[:-1] if back else (*state.before, state.serving))
        if back:
            self._watch.stop()
        else:
            self._watch.start(wrong)
        return before


def learnt_of(artefact: Artefact) -> Learnt:
    """Return what policies must know of a head."""
    manifest = artefact.manifest
    return Learnt(
        base=manifest.base,
        thresholds={name: value for name, value in manifest.thresholds.items() if name != ANY},
        rest=manifest.thresholds[ANY],
        verify_from=manifest.verify_from,
    )
