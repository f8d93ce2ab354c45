"""Proving: a head that came from outside is checked, and looked at beside the one that serves, before it may serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from cacheproxy.embed.headfile import ANY, told
from cacheproxy.errors import ConfigError, InvalidRequest
from cacheproxy.examining import Counted, Seen
from cacheproxy.policy.learnt import Learnt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.headshelf import HeadShelf
    from cacheproxy.embed.slow import Slow
    from cacheproxy.examining import Examining
    from cacheproxy.index.space import Space
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.gate import Verdict
    from cacheproxy.ports import Progress
    from cacheproxy.recoding import Recoding


class Opens(Protocol):
    """What opens encoders with changed layers (`recoding.Layered`)."""

    @property
    def lost(self) -> bool:
        """Whether the vectors that were made before were damaged, and all have to be made again."""
        ...

    async def slow(self, artefact: Artefact) -> Slow:
        """Return what encodes texts that nobody waits for; close it. Raises ConfigError."""
        ...

    async def open(self, artefact: Artefact) -> Recoding:
        """Return what makes a space's vectors; close it, or the space. Raises ConfigError."""
        ...

    async def only(self, epochs: Collection[str]) -> None:
        """Forget the vectors of all epochs but these. Raises ConfigError and IndexUnavailable."""
        ...

    async def prune(self, kept: Collection[Artefact]) -> None:
        """Remove the exports of all encoders with changed layers but these. Raises ConfigError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving:
    """What examines a head, by what it trusts and by this proxy's own pairs."""

    shelf: HeadShelf
    layered: Opens
    examining: Examining
    policy: Callable[[], Policy]

    async def checked(self, manifest: Mapping[str, Any], weights: bytes) -> Artefact:
        """Return a head that came from outside. Raises InvalidRequest where it cannot serve here."""
        try:
            read = told(manifest, "the head")
            return await asyncio.to_thread(self.shelf.checked, read, weights, "the head")
        except ConfigError as exc:
            raise InvalidRequest(exc.message) from exc

    async def verdict(self, artefact: Artefact, serving: Space, progress: Progress) -> Verdict:
        """Return what this proxy's pairs say of a head beside the one that serves; `progress` counts encoded texts.

        Raises ConfigError where its encoder cannot be opened, and EmbedderUnavailable.
        """
        policy = self.policy()
        policy = replace(policy, learnt={**policy.learnt, artefact.epoch: learnt_of(artefact)})
        before = Seen(epoch=serving.epoch, head=serving.head, own=serving.own)
        if artefact.layers is None:
            after = Seen(epoch=artefact.epoch, head=artefact.head)
            return await self.examining.examine(before, after, policy)
        own = await self.layered.slow(artefact)
        try:
            after = Seen(epoch=artefact.epoch, head=None, own=Counted(own, progress))
            return await self.examining.examine(before, after, policy)
        finally:
            own.close()


def learnt_of(artefact: Artefact) -> Learnt:
    """Return what policies must know of a head."""
    manifest = artefact.manifest
    return Learnt(
        base=manifest.base,
        thresholds={name: value for name, value in manifest.thresholds.items() if name != ANY},
        rest=manifest.thresholds[ANY],
        verify_from=0.0 if manifest.verify_from is None else manifest.verify_from,
    )
