"""The policy book of a replica: the newest version that replicas share is in force at each of them.

Whose pack on disk counts: an operator's version stays until a pack comes that is news, and such a pack is loaded once.
It is news to the replicas where none of them ever loaded it, or where this one had another on disk when it last looked;
and never where it is the pack that the version in force was made over. So replicas with different packs on disk, as
during an upgrade, do not take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.errors import CacheProxyError, EmbedderUnavailable, NotChanged, NotFound, PackError, VersionConflict
from cacheproxy.govern.book import Change, Order, PolicyBook
from cacheproxy.govern.condition import matches
from cacheproxy.govern.versions import Version
from cacheproxy.policy.edit import digest
from cacheproxy.policy.loader import pack_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.govern.book import Records, Tree
    from cacheproxy.govern.fleet import Fleet
    from cacheproxy.govern.maker import PolicyMaker
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Clock

log = structlog.get_logger()

_MOST_TRIES = 4


class FleetBook(PolicyBook):
    """The book of one replica; its own file is a copy, for starts without the engine.

    `catch_up` is to be called whenever a version was told of, and every few seconds.
    """

    def __init__(
        self, source: str, records: Records, maker: PolicyMaker, clock: Clock, *, fleet: Fleet, seen: Path
    ) -> None:
        """`seen` is the file that tells, by its digest, which pack was on disk when it was last looked at."""
        super().__init__(source, records, maker, clock)
        self._fleet = fleet
        self._seen_file = seen
        self._over = ""  # the pack on disk that the version in force was made over
        self._looked = False  # whether this replica's own pack on disk has been dealt with
        self._applied = (0, "")  # number and pack of the version in force, as the replicas have it

    async def open(self) -> None:
        """Put a policy in force: what the replicas have, or without the engine what this one had last.

        Raises as `PolicyBook.open`.
        """
        on_disk = await asyncio.to_thread(self._read_disk)
        self._disk = digest(on_disk)
        newest = await self._filed(self._versions.newest)
        told = await self._filed(lambda: self._versions.newest(settled=True))
        stored = newest.readable() if newest else None
        pack, n = (stored, newest.n) if stored and newest else (on_disk, 0)
        self._policy = await self._fit(pack, n)
        self._over = newest.source if stored and newest else self._disk
        self._applied = (newest.n, newest.pack_json) if stored and newest else (0, "")
        known = told.readable() if told else None
        self._told = self._maker.unknowing(known, told.n) if known and told else self._policy
        self._wake.set()
        try:
            await self.catch_up()
        except NotChanged as exc:
            log.warning("policies_alone", version=self().version, reason=exc.message)
        log.info("policy_in_force", pack=self().pack.name, version=self().version, because="as the replicas have it")

    async def catch_up(self) -> None:
        """Put in force what the replicas have. Raises NotChanged: the policy in force stays."""
        async with self._changing:
            newest = await self._fleet.newest()
            if newest is None or (newest.n < self().version and newest.n > 0):
                await self._publish(newest.n if newest else 0)
            else:
                await self._follow(newest)
        if not self._looked:
            await self._look()

    async def tend_quietly(self) -> None:
        """Catch up; without the engine the policy in force stays."""
        with contextlib.suppress(NotChanged):
            await self.catch_up()

    async def change(self, edit: Callable[[Pack], Tree], order: Order) -> Change:
        """Put in force at every replica what `edit` makes of the policy that they have. Raises as `PolicyBook.change`.

        Where another replica was first, an order that names a version fails, and any other is made of what that one
        put in force.
        """
        for _ in range(_MOST_TRIES):
            await self.catch_up()
            try:
                return await super().change(edit, order)
            except _Outrun as exc:
                if not matches(order.if_match, ""):
                    raise VersionConflict(exc.message) from exc
        raise NotChanged("other replicas change the policy all the time, so nothing was changed; try again")

    async def versions(self) -> list[Version]:
        """Return the versions, newest first, without their packs: without the engine those this replica knows."""
        try:
            return await self._fleet.listed()
        except NotChanged:
            return await super().versions()

    async def rollback(self, n: int, order: Order) -> Change:
        """Put the pack of an earlier version in force again, whichever replica made it. Raises as the book does."""
        found = await self._fleet.find(n)
        if found is None:
            raise NotFound(f"there is no version {n}, or not any more; /admin/v1/policies/versions lists them")
        return await self._again(found, order)

    async def reload(self, actor: str = "signal") -> Change | None:
        """Load the pack on disk where it changed and the replicas do not have it already. Raises as the book does."""
        await self.catch_up()
        pack = await asyncio.to_thread(self._read_disk)
        was, self._disk = self._disk, digest(pack)
        if self._disk == self._over:
            await self._note_seen()
            return None
        try:
            order = Order(actor=actor, action="policies.load", reason="the pack on disk changed")
            change = await self.activate(pack_tree(pack), order)
        except BaseException:
            self._disk = was
            raise
        await self._note_seen()
        return change

    # Within

    async def _append(self, version: Version, order: Order) -> None:
        """Keep a version: for all replicas first. Raises VersionConflict and NotChanged."""
        loads = order.action == "policies.load"
        version = replace(version, source=self._disk if loads else self._over)
        try:
            await self._fleet.append(version, after=version.n - 1)
        except VersionConflict as exc:
            raise _Outrun(exc.message) from exc
        self._over, self._applied = version.source, (version.n, version.pack_json)
        await self._copy(version)

    async def _publish(self, after: int) -> None:
        """Let replicas that have no version, or lost the newest one, have this one's."""
        policy = self()
        own = await self._filed(lambda: self._versions.find(policy.version)) if policy.version else None
        first = own or Version(
            n=1,
            at_s=self._clock.now(),
            actor="start",
            action="policies.load",
            reason="the first replica of this install",
            source=self._disk,
            settled=False,
            pack_json=msgspec.json.encode(policy.pack).decode(),
        )
        try:
            await self._fleet.append(first, after=after)
        except VersionConflict:
            return  # another one's: it is told to all, and followed
        log.info("policy_published", version=first.n, pack=policy.pack.name)
        self._over, self._applied = first.source, (first.n, first.pack_json)
        if not policy.version:
            await self._copy(first)
            self._policy = replace(policy, version=first.n)
            self._wake.set()

    async def _follow(self, newest: Version) -> None:
        """Put a version of the replicas in force here, unless it is."""
        self._over = newest.source
        if (newest.n, newest.pack_json) == self._applied:
            return
        try:
            policy = await self._fit(newest.pack(), newest.n)
        except PackError as exc:  # of a newer cacheproxy: its replicas go by it, this one by what it can read
            log.error("policy_not_followed", version=newest.n, reason=exc.message)  # noqa: TRY400 - its message says all
            return
        before, after = {"version": self().version}, {"version": newest.n, "reason": newest.reason}
        with contextlib.suppress(NotChanged):  # told by the log already; what all others do is done here, too
            await self._audit.record(newest.actor, "policies.follow", newest.action, before=before, after=after)
        await self._copy(newest)
        self._policy, self._applied = policy, (newest.n, newest.pack_json)
        self._wake.set()
        log.info("policy_in_force", pack=policy.pack.name, version=newest.n, because=f"{newest.action} elsewhere")

    async def _look(self) -> None:
        """Deal with the pack on this replica's disk, once."""
        if self._disk != self._over:
            last = await asyncio.to_thread(self._last_seen)
            news = not await self._fleet.known(self._disk) or last not in ("", self._disk)
            if news:
                order = Order(actor="start", action="policies.load", reason="a pack on disk that is news")
                self._looked = True
                try:
                    tree = pack_tree(await asyncio.to_thread(self._read_disk))
                    await self.activate(tree, order)
                except BaseException:
                    self._looked = False
                    raise
            else:
                hint = "the replicas had it before: put it in force with a reload, or roll back"
                log.warning("pack_on_disk_not_in_force", version=self().version, hint=hint)
        self._looked = True
        await self._note_seen()

    async def _fit(self, pack: Pack, n: int) -> Policy:
        try:
            policy = await self._maker.make(pack, n)
        except EmbedderUnavailable as exc:
            log.error("examples_not_embedded", reason=exc.message)  # noqa: TRY400 - the encoder's word, no bug
            self._unfitted = True
            self._wake.set()
            return self._maker.unknowing(pack, n)
        self._unfitted = False
        return policy

    async def _copy(self, version: Version) -> None:
        try:
            await self._filed(lambda: self._versions.append(version))
        except CacheProxyError as exc:  # the replicas have it: this one reads it again at its next start
            log.warning("policy_not_copied", version=version.n, reason=exc.message)

    def _last_seen(self) -> str:
        with contextlib.suppress(OSError):
            return self._seen_file.read_text().strip()
        return ""

    async def _note_seen(self) -> None:
        with contextlib.suppress(OSError):  # without it a pack counts as never looked at
            await asyncio.to_thread(self._seen_file.write_text, self._disk)


class _Outrun(VersionConflict):
    """Another replica made the next version."""
