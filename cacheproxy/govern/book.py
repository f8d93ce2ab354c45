"""The policy book: which policy is in force, which were, and how another one comes into force.

Who wins after a restart: the newest version in the book, which may be one that an operator made, unless the pack on
disk is another one than it was while that version came into force. Then the file wins, as a version of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

from cacheproxy.errors import (
    CacheProxyError,
    EmbedderUnavailable,
    NotChanged,
    NotFound,
    PackError,
    PolicyRefused,
    VersionConflict,
)
from cacheproxy.govern.condition import matches
from cacheproxy.govern.versions import Version
from cacheproxy.policy.edit import Difference, differences, digest, no_longer_kept
from cacheproxy.policy.loader import find_pack, load_pack, pack_tree, problems_of
from cacheproxy.policy.pack import Category, Pack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from cacheproxy.govern.audit import AuditLog
    from cacheproxy.govern.maker import PolicyMaker
    from cacheproxy.govern.versions import VersionFile
    from cacheproxy.model import Embedding
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Clock

    Tree = Mapping[str, Any]
    Listener = Callable[[Policy, Policy], Awaitable[None]]

log = structlog.get_logger()

_FILE_TIMEOUT_S = 5.0
_RETRY_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who wants a change, and on what condition: `if_match` is the header of that name, None for any version."""

    actor: str
    action: str = "policies.replace"
    target: str = ""
    reason: str = ""
    if_match: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an order did, or with `dry_run` would do. `dropped` are the categories whose entries go."""

    policy: Policy
    differences: tuple[Difference, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """Where a book writes."""

    versions: VersionFile
    audit: AuditLog


class PolicyBook:
    """The policy in force and its versions. Each call of it returns one immutable snapshot; changes come one by one."""

    def __init__(self, source: str, records: Records, maker: PolicyMaker, clock: Clock) -> None:
        """Take the pack's name or directory. `open` must follow before anything is asked."""
        self.source = source
        self.epoch = maker.epoch
        self.verifier = maker.verifier
        self._versions, self._audit = records.versions, records.audit
        self._maker = maker
        self._clock = clock
        self._changing, self._telling, self._wake = asyncio.Lock(), asyncio.Lock(), asyncio.Event()
        self._listeners: list[Listener] = []
        self._policy: Policy | None = None
        self._told: Policy | None = None  # the last policy that all listeners have acted on
        self._disk = ""
        self._reread = self._unfitted = False

    def __call__(self) -> Policy:
        """Return the policy in force."""
        if self._policy is None:
            raise RuntimeError("the policy book is not open")
        return self._policy

    current = __call__

    def health(self) -> str:
        """Return "" when the policy in force is whole, else what is wrong."""
        return "the examples of the categories could not be embedded yet" if self._unfitted else ""

    def on_change(self, listener: Listener) -> None:
        """Have a listener told the last policy that it acted on and the new one, again until it does not fail.

        What it has not acted on before a crash, or where the pack changed while the proxy was down, it is told by the
        first `tend`.
        """
        self._listeners.append(listener)

    async def open(self) -> None:
        """Put a policy in force. Raises PackError for a pack with problems, and NotChanged where a file fails.

        An encoder that fails does not hold up the start: until the examples are embedded, every query counts as one
        of which nothing is known.
        """
        on_disk = await asyncio.to_thread(self._read_disk)
        self._disk = digest(on_disk)
        newest = await self._filed(self._versions.newest)
        told = await self._filed(lambda: self._versions.newest(settled=True))
        stored, why = _winner(newest, self._disk)
        n = newest.n if newest else 0
        pack, n = (stored, n) if stored else (on_disk, n + 1)
        try:
            policy = await self._maker.make(pack, n)
        except EmbedderUnavailable as exc:
            log.error("examples_not_embedded", reason=exc.message)  # noqa: TRY400 - the encoder's word, no bug
            policy, self._unfitted = self._maker.unknowing(pack, n), True
            self._wake.set()
        if stored is None:
            before = newest.readable() if newest else None
            found = differences(pack_tree(before), pack_tree(pack)) if before else []
            await self._write(policy, Order(actor="start", action="policies.load", reason=why), found)
        self._policy = policy
        known = told.readable() if told else None
        if known and told:
            self._told = self._maker.unknowing(known, told.n)
            self._wake.set()
        else:
            await self._filed(lambda: self._versions.settle(n))
            self._told = policy
        log.info("policy_in_force", pack=pack.name, version=n, because=why)

    async def versions(self) -> list[Version]:
        """Return the versions, newest first, without their packs. Raises NotChanged when they cannot be read."""
        return await self._filed(self._versions.listed)

    async def propose(self, tree: Tree) -> tuple[list[tuple[str, str]], Policy | None]:
        """Return what is wrong with a whole pack and, where that is nothing, the policy that it would make.

        Raises NotChanged when the encoder fails.
        """
        if problems := problems_of(tree):
            return problems, None
        return [], await self._made(msgspec.convert(tree, Pack))

    async def embed(self, texts: Sequence[str]) -> dict[str, Embedding]:
        """Return the embedding of each of the operator's own texts. Raises NotChanged when the encoder fails."""
        try:
            return await self._maker.embed(texts)
        except EmbedderUnavailable as exc:
            raise _encoder_failed(exc) from exc

    async def activate(self, tree: Tree, order: Order) -> Change:
        """Put a whole pack in force. Raises as `change`."""
        return await self.change(lambda _: tree, order)

    async def rollback(self, n: int, order: Order) -> Change:
        """Put the pack of an earlier version in force again, as a new version. Raises NotFound, and as `change`."""
        found = await self._filed(lambda: self._versions.find(n))
        if found is None:
            raise NotFound(f"there is no version {n}, or not any more; /admin/v1/policies/versions lists them")
        return await self._again(found, order)

    async def change(self, edit: Callable[[Pack], Tree], order: Order) -> Change:
        """Put in force what `edit` makes of the pack in force; return once it is on disk and listeners were told.

        Nothing else changes the policy meanwhile. What changes nothing makes no version. Raises VersionConflict,
        PolicyRefused with every problem, what `edit` raises, and NotChanged; then all is as it was.
        """
        async with self._changing:
            before = self()
            if not matches(order.if_match, before.etag):
                raise VersionConflict(f"version {before.version} is in force, not what If-Match names; read it again")
            tree = edit(before.pack)
            if problems := problems_of(tree):
                raise PolicyRefused(problems)
            pack = msgspec.convert(tree, Pack)
            found = tuple(differences(pack_tree(before.pack), pack_tree(pack)))
            policy = await self._made(pack) if found else before
            if found and not order.dry_run:
                await self._write(policy, order, found)
                self._policy, self._unfitted = policy, False
                self._wake.set()
                log.info("policy_in_force", pack=pack.name, version=policy.version, because=order.action)
        await self._tell()
        return Change(policy=policy, differences=found, dropped=no_longer_kept(before.pack, pack))

    async def reload(self, actor: str = "signal") -> Change | None:
        """Read the pack on disk again and put it in force where it is another one than it was, else return None.

        Raises PackError, and as `change`.
        """
        pack = await asyncio.to_thread(self._read_disk)
        was, found = self._disk, digest(pack)
        if found == was:
            return None
        self._disk = found
        try:
            order = Order(actor=actor, action="policies.load", reason="the pack on disk changed")
            return await self.activate(pack_tree(pack), order)
        except BaseException:
            self._disk = was
            raise

    def ask_reload(self) -> None:
        """Have `tend` read the pack on disk again."""
        self._reread = True
        self._wake.set()

    async def tend(self) -> None:
        """Wait until something is to be done, and do it: read again, embed again, tell listeners again."""
        await self._wake.wait()
        self._wake.clear()
        if self._reread:
            self._reread = False
            await self._reload_logged()
        if self._unfitted:
            await self._fit_again()
        await self._tell()
        if self._unfitted or self._told is not self._policy:
            await asyncio.sleep(_RETRY_S)
            self._wake.set()

    async def _reload_logged(self) -> None:
        try:
            change = await self.reload()
        except CacheProxyError as exc:
            log.error("pack_refused", reason=exc.message)  # noqa: TRY400 - its message says it all
        else:
            log.info("pack_reloaded", pack=self().pack.name, version=self().version, changed=change is not None)

    async def _fit_again(self) -> None:
        async with self._changing:
            if self._unfitted:
                try:
                    self._policy = await self._maker.make(self().pack, self().version)
                except EmbedderUnavailable:
                    return
                self._unfitted = False
                log.info("examples_embedded", version=self().version)

    async def _tell(self) -> None:
        """Tell listeners of the policy in force, unless all have acted on it; a failure is logged, `tend` goes on."""
        async with self._telling:
            old, new = self._told, self()
            if old is None or old is new:
                return
            try:
                for listener in self._listeners if old.version != new.version else ():
                    await listener(old, new)
                await self._filed(lambda: self._versions.settle(new.version))
            except CacheProxyError as exc:
                log.error("policy_not_settled", version=new.version, reason=exc.message)  # noqa: TRY400 - tried again
                return
            self._told = new

    async def _made(self, pack: Pack) -> Policy:
        try:
            return await self._maker.make(pack, self().version + 1)
        except EmbedderUnavailable as exc:
            raise _encoder_failed(exc) from exc

    async def _write(self, policy: Policy, order: Order, found: Sequence[Difference]) -> None:
        n, target = policy.version, order.target or policy.pack.name
        version = Version(
            n=n,
            at_s=self._clock.now(),
            actor=order.actor,
            action=order.action,
            reason=order.reason,
            source=self._disk,
            settled=False,
            pack_json=msgspec.json.encode(policy.pack).decode(),
        )
        before = {"version": n - 1, "keys": {one.key: one.before for one in found}}
        after = {"version": n, "reason": order.reason, "keys": {one.key: one.after for one in found}}
        await self._audit.record(order.actor, order.action, target, before=before, after=after)
        try:
            await self._append(version, order)
        except (NotChanged, VersionConflict):
            await self._audit.record(order.actor, order.action, target, after={"version": n}, outcome="failed")
            raise

    async def _append(self, version: Version, order: Order) -> None:
        """Keep a version that was ordered. Raises NotChanged."""
        await self._filed(lambda: self._versions.append(version))

    async def _again(self, found: Version, order: Order) -> Change:
        """Put the pack of an earlier version in force. Raises as `change`."""
        try:
            tree = pack_tree(found.pack())
        except PackError as exc:
            refused = f"{found.n} cannot be read by this cacheproxy: {exc.message}"
            raise PolicyRefused([("version", refused)]) from exc
        return await self.activate(tree, order)

    async def _filed(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(_FILE_TIMEOUT_S):
                return await asyncio.to_thread(call)
        except (sqlite3.Error, TimeoutError) as exc:
            raise NotChanged("the file of policies cannot be used, so nothing was changed; check the disk") from exc

    def _read_disk(self) -> Pack:
        return load_pack(find_pack(self.source))


def _winner(newest: Version | None, disk: str) -> tuple[Pack | None, str]:
    """Return the stored pack that stays in force, or None where the pack on disk comes into force; and why."""
    if newest is None:
        return None, "the first start with this data directory"
    if newest.source != disk:
        return None, f"the pack on disk is not the one of version {newest.n}; roll back to have that one again"
    try:
        return newest.pack(), f"as before the restart ({newest.action} by {newest.actor})"
    except PackError as exc:
        log.warning("version_unreadable", version=newest.n, reason=exc.message)
        return None, f"version {newest.n} cannot be read by this cacheproxy"


def _encoder_failed(exc: EmbedderUnavailable) -> NotChanged:
    return NotChanged(f"the examples could not be embedded, so nothing was changed: {exc.message}")


def _bare(pack: Pack) -> Pack:
    """Return a pack that knows only its default category, and keeps everything."""
    return Pack(
        schema=pack.schema,
        name=pack.name,
        description="",
        default_category=pack.default_category,
        categories={pack.default_category: Category()},
    )
