"""Following one log: every message applied in order, and everything read again when one may be missing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from cacheproxy.errors import PartUnavailable, SharedUnavailable
from cacheproxy.shared.lease import Position
from cacheproxy.shared.script import LAST_ID, Script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cacheproxy.shared.layout import Layout, Log
    from cacheproxy.shared.link import Link
    from cacheproxy.shared.members import Members

log = structlog.get_logger()

BATCH = 512
_QUIET = frozenset({b"put", b"evict", b"used"})
"""Kinds of messages that nobody waits for."""
_SHORTEST_S, _LONGEST_S = 0.05, 1.0
_BEYOND_S = 0.5
"""How much longer than its own blocking a read may take."""
_HEAD = Script(LAST_ID + "return last_id(KEYS[1])")


@dataclass(frozen=True, slots=True)
class Message:
    """One change: `id` is its place in the log."""

    log: Log
    id: str
    fields: dict[bytes, bytes]

    @property
    def op(self) -> bytes:
        """What kind of change it is."""
        return self.fields.get(b"op", b"")


@dataclass(frozen=True, slots=True)
class _Read:
    messages: list[Message]
    skipped: bool
    """Whether the log may have been cut between what was applied and these."""


async def head(link: Link, layout: Layout, log: Log, timeout_s: float) -> str:
    """Return the last id that a log gave out: read before everything else is read again, to follow from afterwards.

    Raises SharedUnavailable.
    """
    found: bytes = await link.slow_run(_HEAD, [layout.stream(log)], [], timeout_s)
    return found.decode()


class Follower:
    """Keeps one log followed for as long as `run` runs.

    `resync(reason)` reads everything again and returns the id to go on from (that of `head`, asked first). `handle` is
    given messages in the order of the log, in batches, each once unless it raised: then everything is read again. Both
    may raise SharedUnavailable or another PartUnavailable, and are tried again.
    """

    def __init__(
        self,
        link: Link,
        layout: Layout,
        log: Log,
        members: Members,
        handle: Callable[[Sequence[Message]], Awaitable[None]],
        resync: Callable[[str], Awaitable[str]],
    ) -> None:
        self.log = log
        self._link = link
        self._stream = layout.stream(log)
        self._members = members
        self._handle = handle
        self._resync = resync
        self._at = "0-0"

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            try:
                if (reason := self._members.gap(self.log)) is not None:
                    if not await self._catch_up(reason):
                        failures += 1
                        await asyncio.sleep(pause_s(failures, random.random()))
                        continue
                elif (read := await self._read()) and read.messages:
                    if read.skipped:
                        self._members.lose(self.log, "trimmed")
                        continue
                    await self._apply(read.messages)
                failures = 0
            except PartUnavailable as exc:
                failures += 1
                if not isinstance(exc, SharedUnavailable):
                    log.warning("replica_behind", log=str(self.log), part=exc.part, reason=exc.message)
                await asyncio.sleep(pause_s(failures, random.random()))  # no secret: spreads replicas
            except Exception:
                # A border: a bug in applying one message must not end the following of all.
                failures += 1
                log.exception("replica_failed", log=str(self.log))
                self._members.lose(self.log, "failed")
                await asyncio.sleep(pause_s(failures, random.random()))

    async def _catch_up(self, reason: str) -> bool:
        """Read everything again; False where another gap opened in the meantime."""
        await self._members.contact(self.log)
        turn = self._members.begin(self.log)
        position = await self._resync(reason)
        self._at = position
        if not await self._members.synced(self.log, turn, position):
            return False
        log.info("replica_synced", log=str(self.log), reason=reason)
        return True

    async def _read(self) -> _Read | None:
        """Return what follows, after waiting for it a while; nothing where there is nothing, or a gap opened.

        XREAD goes on from the oldest message there is and says nothing of those that were cut away before; a heartbeat
        would not notice either, once the next ones are applied. So the oldest one is asked for right after it.
        """
        block_s = self._members.pause_s
        commands = (
            ("XREAD", "COUNT", BATCH, "BLOCK", max(1, int(block_s * 1000)), "STREAMS", self._stream, self._at),
            ("XRANGE", self._stream, "-", "+", "COUNT", 1),
        )
        reading = asyncio.ensure_future(self._link.slow_pipe(commands, block_s + _BEYOND_S))
        gapped = asyncio.ensure_future(self._members.gapped(self.log))
        try:
            await asyncio.wait((reading, gapped), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() or gapped.done():
                return None
            found, oldest = reading.result()
            skipped = not oldest or Position.read(oldest[0][0]) > Position.read(self._at)
            return _Read(self._messages(found), skipped)
        finally:
            for task in (reading, gapped):
                task.cancel()
            await asyncio.gather(reading, gapped, return_exceptions=True)

    def _messages(self, reply: Any) -> list[Message]:
        if not reply:
            return []
        [[_, entries]] = reply
        return [
            Message(self.log, identifier.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for identifier, fields in entries
        ]

    async def _apply(self, messages: list[Message]) -> None:
        told = [message for message in messages if message.op != b"open"]
        try:
            if told:
                await self._handle(told)
        except PartUnavailable:
            self._members.lose(self.log, "failed")
            raise
        self._at = messages[-1].id
        await self._members.applied(self.log, self._at, tell=any(message.op not in _QUIET for message in told))


def pause_s(failures: int, chance: float) -> float:
    """Return how long to wait after that many failures in a row: doubling, at most a second, spread by `chance`."""
    longest_s = min(_LONGEST_S, _SHORTEST_S * 2.0 ** min(failures - 1, 10))
    return longest_s * (0.5 + chance / 2)
