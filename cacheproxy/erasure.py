"""Erasure: what was asked to go is removed everywhere, part by part, and a part that fails is tried again.

An erasure that was begun is written down before anything else, without any text, so that a restart finishes it.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
import structlog

from cacheproxy.errors import EmbedderUnavailable, InvalidRequest, PartUnavailable, StoreUnavailable
from cacheproxy.model import PRINCIPAL_TAG, Selector
from cacheproxy.owing import Owed, Owing, new_token
from cacheproxy.policy.share import principal
from cacheproxy.ports import EntryCatalogue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from pathlib import Path

    from cacheproxy.ports import Clock, Embedder, EntryStore

ENTRIES = "entries"
"""The part that goes first, since it tells the others which entries there were: the store, and the index with it."""

_PART_TIMEOUT_S = 120.0
_ROWS_AT_ONCE = 512
_MOST_OWED = 1000
_PARENTS_AT_ONCE = 10_000

log = structlog.get_logger()


def _none(_: Selector, __: Collection[str]) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that remembers. `forget` is told the selector and the ids of the entries that went, and counts."""

    name: str
    forget: Callable[[Selector, Collection[str]], Awaitable[int] | int] = field(default=_none, repr=False)
    purged: bool = False
    """Whether it is told of purges in place of erasures."""
    tell: Callable[[Owed, Collection[str]], Awaitable[None]] | None = field(default=None, repr=False)
    """In place of `forget`, what tells other replicas, who do not tell it again. Called again with the same `token`."""

    @property
    def elsewhere(self) -> bool:
        """Whether it tells other replicas."""
        return self.tell is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What one part removed; `failed` says why it is not done yet, "" when it is."""

    part: str
    removed: int
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What came of an erasure. `pending` parts are tried again until they are done."""

    ids: tuple[str, ...]
    parts: tuple[Removed, ...] = ()

    @property
    def pending(self) -> tuple[str, ...]:
        """Parts that are not done."""
        return tuple(done.part for done in self.parts if done.failed)


class Erasable(EntryCatalogue, Protocol):
    """A store that operators remove from."""

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries, as `EntryStore.purge`: fills of all others are not touched. Raises StoreUnavailable."""
        ...


class Unindex(Protocol):
    """Makes entries impossible to find. `scrub`: their vectors go, too, by and by."""

    def __call__(self, entry_ids: Collection[str], *, scrub: bool) -> object:
        """Forget these; unknown ids are ignored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """An erasure, or a purge, that another replica began and calls `token`: it removed the entries `ids`."""

    token: str
    selector: Selector
    ids: tuple[str, ...]
    asked_s: float
    purges: bool


class Erasure:
    """Removes entries, or all that is remembered of somebody. One at a time."""

    def __init__(
        self,
        catalogue: Erasable,
        unindex: Unindex,
        parts: Sequence[Part],
        clock: Clock,
        journal: Path,
        answers: Callable[[str], Awaitable[tuple[int, tuple[str, ...]]]] | None = None,
    ) -> None:
        """`parts` go after the entries, in this order. The `journal` is read, and what it owes is done by `retry`.

        `answers` waits for other replicas, by the token: how many have done it, and the names of those that have not.
        """
        self._catalogue = catalogue
        self._unindex = unindex
        self._parts = {part.name: part for part in parts}
        self._clock = clock
        self._answers = answers
        self._lock = asyncio.Lock()
        self._owed = Owing(journal)

    @property
    def owed(self) -> int:
        """Erasures that are not finished."""
        return len(self._owed)

    async def preview(self, selector: Selector, *, descendants: bool = False) -> list[str]:
        """Return the entries that are meant, and what was made of them; nothing changes. Raises StoreUnavailable."""
        found = await self._catalogue.erase(selector, dry_run=True)
        return [*found, *await self._descendants(selector, found)] if descendants else found

    async def purge(self, selector: Selector, *, descendants: bool = False) -> Erased:
        """Remove the entries that are meant: none is served any more. An empty selector removes nothing.

        With `descendants` everything that was made of them goes, too: promoted and shared entries, and what was made
        of these. Without, and by ids alone, it costs little, waits for no erasure, and no fill of another entry is
        refused. Raises as `erase`.
        """
        parts = tuple(part.name for part in self._parts.values() if part.purged)
        token = new_token()
        if selector and not descendants and selector == Selector(ids=selector.ids):
            try:
                purged = await self._purge(selector, parts, token)
            except StoreUnavailable as exc:
                log.warning("purge_failed", reason=exc.message)  # so it is owed
            else:
                if not purged.pending:
                    return purged
        return await self._begin(selector, parts, token, descendants=descendants)

    async def erase(self, selector: Selector, *, told: bool = True) -> Erased:
        """Remove the entries that are meant, what was made of them, and all else that is remembered of them.

        Other replicas are told unless each of them does it by itself. Raises InvalidRequest for a selector with `text`,
        which is never written down, and PartUnavailable, having done nothing, while a thousand erasures are not
        finished.
        """
        meant = [part for part in self._parts.values() if not part.purged and (told or not part.elsewhere)]
        token = new_token()
        erased = await self._begin(selector, tuple(part.name for part in meant), token, descendants=True)
        elsewhere = {part.name for part in meant if part.elsewhere}
        if self._answers is None or not any(done.part in elsewhere and not done.failed for done in erased.parts):
            return erased
        count, missing = await self._answers(token)
        failed = f"not done yet: {', '.join(missing)}" if missing else ""
        parts = (replace(one, removed=count, failed=failed) if one.part in elsewhere else one for one in erased.parts)
        return replace(erased, parts=tuple(parts))

    async def owe(self, began: Collection[Began]) -> None:
        """Write down what was begun at other replicas, to be done by `retry`; while it is owed, `owes(token)`.

        A purge has only the parts that are told of purges: where there are none, nothing is owed.
        """
        for one in began:
            names = [part.name for part in self._parts.values() if part.purged == one.purges and not part.elsewhere]
            if names and one.token not in self._owed:
                self._owed.put(_owed(one.selector, tuple(names), one.ids, asked_s=one.asked_s, token=one.token))
            if not one.purges:
                self._unindex(one.ids, scrub=True)
        await self._owed.save()

    def owes(self, token: str) -> bool:
        """Whether something of it is left to do."""
        return token in self._owed

    async def retry(self) -> None:
        """Try again what failed, or what a restart cut short."""
        for owed in self._owed:
            async with self._lock:
                if self._owed.get(owed.token) is not owed:  # done meanwhile, or some of it
                    continue
                erased = await self._run(owed, owed.selector())
                await self._settle(owed, erased)
            if not erased.pending:
                log.info("erasure_finished", parts=owed.parts, asked_s=owed.asked_s)

    async def _purge(self, selector: Selector, parts: tuple[str, ...], token: str) -> Erased:
        found: list[str] = []
        try:
            found = await self.preview(selector)
        finally:  # what cannot be listed can be purged
            try:
                await self._catalogue.purge(selector.ids)
            finally:
                self._unindex(selector.ids, scrub=False)
        owed = _owed(selector, parts, selector.ids, asked_s=self._clock.now(), token=token)
        beside = [await self._do(self._parts[name], owed, selector, selector.ids) for name in parts]
        return Erased(ids=tuple(found), parts=(Removed(part=ENTRIES, removed=len(found)), *beside))

    async def _begin(self, selector: Selector, parts: tuple[str, ...], token: str, *, descendants: bool) -> Erased:
        if not selector:
            return Erased(ids=())
        if selector.text:
            raise InvalidRequest(
                "words choose nothing to erase: look up the entries with these words, and give their ids"
            )
        async with self._lock:
            if len(self._owed) >= _MOST_OWED:
                count = len(self._owed)
                raise PartUnavailable(
                    f"{count} erasures are not finished, none is begun: see erasure_part_failed in the log"
                )
            asked_s, names = self._clock.now(), (ENTRIES, *parts)
            owed = _owed(selector, names, selector.ids, asked_s=asked_s, descendants=descendants, token=token)
            self._owed.put(owed)
            await self._owed.save()
            erased = await self._run(msgspec.structs.replace(owed, ids=()), selector)
            await self._settle(owed, erased)
            return erased

    async def _run(self, owed: Owed, selector: Selector) -> Erased:
        """Do its parts. What is done is not done again, unless the entries were not: the others go by their ids."""
        parts, ids, done = owed.parts, list(owed.ids), list[Removed]()
        if ENTRIES in parts:
            scrub = any(not part.purged for name, part in self._parts.items() if name in parts)
            found, failed = await self._remove(selector, scrub=scrub, descendants=owed.descendants)
            ids = list(dict.fromkeys((*ids, *found)))
            done.append(Removed(part=ENTRIES, removed=len(found), failed=failed))
        failed = done[0].failed if done else ""
        for part in (self._parts[name] for name in parts if name in self._parts):
            if failed and part.elsewhere:  # the engine is away: who waits for it once more waits in vain
                done.append(Removed(part=part.name, removed=0))
            else:
                done.append(await self._do(part, owed, selector, ids))
        if failed:
            why = "the entries come first"
            done[1:] = [replace(one, failed=one.failed or why) for one in done[1:]]
        return Erased(ids=tuple(ids), parts=tuple(done))

    async def _remove(self, selector: Selector, *, scrub: bool, descendants: bool) -> tuple[list[str], str]:
        found: list[str] = []
        try:
            if scrub or descendants:  # should it fail half-way, the other parts still go by these
                found = await self.preview(selector)
            if descendants and (made := await self._descendants(selector, found)):
                # Before their parents, by which alone they are found again after a crash.
                found += made
                await self._catalogue.erase(Selector(ids=tuple(made)), scrub=scrub)
            found = list(dict.fromkeys((*found, *await self._catalogue.erase(selector, scrub=scrub))))
        except StoreUnavailable as exc:
            log.warning("erasure_part_failed", part=ENTRIES, reason=exc.message)
            return found, exc.message
        finally:
            self._unindex(found, scrub=scrub)
        return found, ""

    async def _descendants(self, selector: Selector, entry_ids: Sequence[str]) -> list[str]:
        """Return what was made of entries, and of what was made of them. Raises StoreUnavailable.

        Of a tenant also the shared entries that it took part in whose parents are gone already.
        """
        known, made = set(entry_ids), list[str]()
        ahead = list(entry_ids)
        if selector.tenant and not (selector.ids or selector.tag or selector.user):
            tag = f"{PRINCIPAL_TAG}{principal(selector.tenant)}"
            shared = await self._catalogue.erase(replace(selector, tenant="", tag=tag), dry_run=True)
            made = [one for one in shared if one not in known]
            known.update(made)
            ahead += made
        while ahead:
            some, ahead = ahead[:_PARENTS_AT_ONCE], ahead[_PARENTS_AT_ONCE:]
            found = await self._catalogue.erase(Selector(parents=tuple(some)), dry_run=True)
            new = [one for one in dict.fromkeys(found) if one not in known]
            known.update(new)
            made += new
            ahead += new
        return made

    async def _do(self, part: Part, owed: Owed, selector: Selector, ids: Collection[str]) -> Removed:
        try:
            async with asyncio.timeout(_PART_TIMEOUT_S):
                if part.tell is not None:
                    await part.tell(owed, ids)
                    return Removed(part=part.name, removed=0)
                count = part.forget(selector, ids)
                removed = await count if inspect.isawaitable(count) else count
        except (PartUnavailable, TimeoutError) as exc:
            failed = exc.message if isinstance(exc, PartUnavailable) else "it took too long"
            log.warning("erasure_part_failed", part=part.name, reason=failed)
            return Removed(part=part.name, removed=0, failed=failed)
        return Removed(part=part.name, removed=removed)

    async def _settle(self, owed: Owed, erased: Erased) -> None:
        if erased.pending:
            self._owed.put(msgspec.structs.replace(owed, parts=erased.pending, ids=erased.ids))
        else:
            self._owed.discard(owed.token)
        await self._owed.save()


async def near(store: EntryStore, embedder: Embedder, text: str, radius: float) -> list[str]:
    """Return the entries whose questions are within `radius` of a text: a cosine of at least 1 - radius.

    Of all tenants, and of the encoder's epoch only: others have no vector to compare. Raises EmbedderUnavailable and
    StoreUnavailable.
    """
    vector = (await embedder.embed(text)).vector
    if not np.isfinite(vector).all():
        raise EmbedderUnavailable("the encoder returned a vector that is not finite")
    found: list[str] = []
    ids, rows = list[str](), list["np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]()

    def compare() -> None:
        cosines = np.vecdot(np.stack(rows), vector)
        found.extend(entry_id for entry_id, cosine in zip(ids, cosines.tolist(), strict=True) if cosine >= 1 - radius)
        ids.clear()
        rows.clear()

    async for _, entry_id, row in store.scan(embedder.epoch):
        ids.append(entry_id)
        rows.append(row)
        if len(rows) == _ROWS_AT_ONCE:
            compare()
            await asyncio.sleep(0)  # rows may come from memory without ever giving way
    if rows:
        compare()
    return found


def _owed(
    selector: Selector,
    parts: tuple[str, ...],
    ids: tuple[str, ...],
    *,
    asked_s: float,
    descendants: bool = False,
    token: str = "",
) -> Owed:
    meant = {name: getattr(selector, name) for name in Selector.__slots__ if name != "text"}
    return Owed(asked_s=asked_s, parts=parts, ids=ids, meant=meant, descendants=descendants, token=token)
