"""Who shares the cache: heartbeats, leases, and whether everybody has applied a change.

Each log has a hash of its replicas: `name -> engine's time in ms | state | applied | lease in ms | its age in ms`.
One script writes a replica's line and reads the log's head, so whoever is granted a lease has been told of every purge
before it. The script deletes a key first: Redis refuses writes when its memory is full, but not those of a script that
begins so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.ports import Acknowledgement
from cacheproxy.shared.eviction import may_evict
from cacheproxy.shared.lease import SCHEMA, Data, Lease, Position, Seen, margin_s, schema_of
from cacheproxy.shared.script import LAST_ID, Script

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cacheproxy.ports import Clock
    from cacheproxy.settings import Replicas
    from cacheproxy.shared.address import Address
    from cacheproxy.shared.layout import Layout, Log
    from cacheproxy.shared.lease import Sent
    from cacheproxy.shared.link import Link

log = structlog.get_logger()

BEFORE = "replicas of before the engine changed"
"""Named among laggards while leases may be held that an engine granted which was replaced or emptied since."""
HEARTBEATS = 4
"""A lease is that many pauses between heartbeats."""
_FORGOTTEN_MS = 600_000
_PRUNE_S = 60.0
_POLLS_S = (0.003, 0.005, 0.01, 0.02)
_SLOWEST_POLL_S = 0.05
_GOODBYE_S = 0.25

_HEARTBEAT = Script(
    LAST_ID
    + """
redis.call('DEL', KEYS[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f|%s|%s|%s|%s', now, ARGV[2], ARGV[3], ARGV[4], ARGV[6]))
local epoch = redis.call('GET', KEYS[4])
if not epoch then
  epoch = ARGV[5]
  redis.call('SET', KEYS[4], epoch)
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('XADD', KEYS[3], '*', 'op', 'open')
end
local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)
local first = oldest[1] and oldest[1][1] or ''
local replication = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
local longest = 0
for _, line in ipairs(redis.call('HVALS', KEYS[1])) do
  local at, lease = string.match(line, '^(%d+)|[^|]*|[^|]*|(%d+)')
  lease = tonumber(lease) or 0
  if lease > longest and now - tonumber(at) <= 2 * lease then longest = lease end
end
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)') or ''
return {last_id(KEYS[3]), first, epoch, replication, longest, policy}
"""
)
_LINES = Script(
    """
local time = redis.call('TIME')
return {time[1], time[2], redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2]) or ''}
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One replica, as the engine knows it."""

    replica: str
    state: str
    """`serving`, `syncing`, or `gone`: not heard of for longer than its lease."""
    heard_s: float
    """How long ago its last heartbeat arrived, the oldest of all logs."""
    applied: dict[str, str]
    """Log -> the last message it has applied."""
    lease_s: float
    """For how long it may still serve without another heartbeat, the shortest of all logs; 0 where it does not."""
    up_s: float | None
    """How long it has been there; None of a version that does not tell."""


@dataclass(frozen=True, slots=True)
class _Line:
    at_ms: int
    state: str
    applied: Position
    lease_s: float
    up_s: float | None = None

    def left_s(self, now_ms: int) -> float:
        """Return for how long a lease that began with this line still holds, by the replica's own reckoning."""
        return max(0.0, (self.at_ms - now_ms) / 1000 + self.lease_s) if self.state == "serving" else 0.0

    def over_s(self, now_ms: int) -> float:
        """Return for how long a lease of before this line's next one may still hold."""
        return (self.at_ms - now_ms) / 1000 + self.lease_s + margin_s(self.lease_s)


@dataclass(slots=True)
class _Held:
    lease: Lease
    longest_s: float = 0.0
    """The longest lease that any replica may hold, as the last heartbeat told; they need not all be set alike."""
    before_s: float = 0.0
    """The same of the engine, or the data, that was there before."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a heartbeat has been answered; a gap, or the first answer, is looked for by the follower."""
    gap: asyncio.Event = field(default_factory=asyncio.Event)


class Members:
    """This replica among the others. Use it as an async context manager: it sends heartbeats until the block ends.

    Entering waits a moment for the engine; it raises ConfigError where that may not be used: its data are of a later
    version, or it may evict.
    """

    def __init__(self, link: Link, layout: Layout, replicas: Replicas, clock: Clock, name: str | None = None) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
        self.replica = name or f"{host}-{secrets.token_hex(4)}"
        self.lease_s = replicas.lease_ms / 1000
        self.pause_s = self.lease_s / HEARTBEATS
        self.gaps: dict[str, int] = {}
        """How often something may have been missed, by reason."""
        self._link = link
        self._layout = layout
        self._clock = clock
        self._streams = {log_: layout.stream(log_) for log_ in layout.logs}
        self._held = {log_: _Held(Lease(self.lease_s)) for log_ in layout.logs}
        self._allow_eviction = replicas.allow_eviction
        self._refused: dict[Log, str] = {}
        self._began_s = clock.monotonic()
        self._first_s: dict[Log, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Members:
        await self._beat()
        if self.refused:
            raise ConfigError(self.refused)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for held in self._held.values():
            held.lease.lose("stopped")
        leaving = [self._link.slow("HDEL", self._live(log_), self.replica, timeout_s=_GOODBYE_S) for log_ in self._held]
        await asyncio.gather(*leaving, return_exceptions=True)

    @property
    def refused(self) -> str:
        """Why what the engine holds under the prefix may not be used; "" where it may."""
        return next(iter(self._refused.values()), "")

    @property
    def openings(self) -> int:
        """How often the engine failed so that it was left alone for a moment."""
        return self._link.breaker_openings

    def serving(self, log: Log) -> bool:
        """Whether what is known of this log may be served at this moment."""
        lease = self._held[log].lease
        return lease.held(self._clock.monotonic(), self._link.identity(self._streams[log]))

    def epoch(self, log: Log) -> str | None:
        """Return the mark of the data in the engine, made anew when it was empty; None before the first answer."""
        seen = self._held[log].lease.seen
        return seen.epoch if seen else None

    def data(self, log: Log) -> Data | None:
        """Return which data the engine had at the last heartbeat; None before the first answer."""
        seen = self._held[log].lease.seen
        return Data(seen.epoch, seen.replication_id) if seen else None

    def lag_s(self, log: Log) -> float:
        """Return how old what was applied is against the head of the log; 0 when nothing is behind."""
        lease = self._held[log].lease
        return max(0, lease.head.ms - lease.applied.ms) / 1000 if lease.gap is None else 0.0

    def left_s(self, log: Log) -> float:
        """Return for how long the lease still holds without another heartbeat."""
        return self._held[log].lease.left_s(self._clock.monotonic()) if self.serving(log) else 0.0

    async def acknowledged(self, positions: Mapping[Log, str], timeout_s: float) -> Acknowledgement:
        """Wait until every replica that may serve has applied each log up to its position, at most `timeout_s`."""
        results = await asyncio.gather(
            *(self._acknowledged(log_, Position.read(position), timeout_s) for log_, position in positions.items())
        )
        laggards = sorted({name for result in results for name in result.laggards})
        return Acknowledgement(laggards=tuple(laggards), until_s=max((one.until_s for one in results), default=0.0))

    async def listed(self) -> list[Member]:
        """Return every replica that was heard of in the last ten minutes. Raises SharedUnavailable."""
        found: dict[str, Member] = {}
        read = await asyncio.gather(*(self._lines(log_) for log_ in self._held))
        for log_, (now_ms, lines, _) in zip(self._held, read, strict=True):
            for name, line in lines.items():
                state = line.state if line.over_s(now_ms) > 0 else "gone"
                heard_s, applied = max(0.0, (now_ms - line.at_ms) / 1000), {str(log_): str(line.applied)}
                lease_s = line.left_s(now_ms)
                if (other := found.get(name)) is not None:
                    state = min(state, other.state, key=("gone", "syncing", "serving").index)
                    heard_s, applied = max(heard_s, other.heard_s), {**other.applied, **applied}
                    lease_s = min(lease_s, other.lease_s)
                found[name] = Member(
                    replica=name, state=state, heard_s=heard_s, applied=applied, lease_s=lease_s, up_s=line.up_s
                )
        return sorted(found.values(), key=lambda member: member.replica)

    # What followers call.

    def gap(self, log: Log) -> str | None:
        """Return why everything must be read again, if it must."""
        return self._held[log].lease.gap

    def lose(self, log: Log, reason: str) -> None:
        """Stop serving this log until everything was read again: a message could not be applied."""
        held = self._held[log]
        if held.lease.gap is None:
            held.lease.lose(reason)
            self._told_gap(log, reason)

    async def contact(self, log: Log) -> None:
        """Wait until the engine has answered a heartbeat since the last gap, and is one that may be used."""
        await self._held[log].told.wait()

    async def gapped(self, log: Log) -> None:
        """Wait for a gap."""
        await self._held[log].gap.wait()

    def begin(self, log: Log) -> int:
        """Note that everything is read again now; hand the number to `synced`."""
        self._held[log].gap.clear()
        return self._held[log].lease.begin()

    async def synced(self, log: Log, turn: int, position: str) -> bool:
        """Note that everything up to `position` is known; False where a gap opened in the meantime."""
        if not self._held[log].lease.end(turn, Position.read(position)):
            return False
        await self._beat_one(log, self._clock.monotonic(), None)
        return True

    async def applied(self, log: Log, position: str, *, tell: bool) -> None:
        """Note that all messages up to `position` are applied; with `tell`, tell the others at once."""
        held = self._held[log]
        held.lease.apply(Position.read(position))
        if tell:
            await self._beat_one(log, self._clock.monotonic(), None)

    # Heartbeats.

    async def _run(self) -> None:
        pruned_s = self._clock.monotonic()
        while True:
            began_s = self._clock.monotonic()
            try:
                await self._beat()
                if began_s - pruned_s > _PRUNE_S:
                    pruned_s = began_s
                    with contextlib.suppress(SharedUnavailable):
                        await self._prune()
            except Exception:  # a border: a bug must not end the heartbeats for good
                log.exception("background_failed", work="heartbeat")
            await asyncio.sleep(max(0.01, began_s + self.pause_s - self._clock.monotonic()))

    async def _beat(self) -> None:
        # Asked beside the heartbeats, which count from before both.
        began_s = self._clock.monotonic()
        confirmed = asyncio.ensure_future(self._link.confirmed(self.pause_s))
        try:
            await asyncio.gather(*(self._beat_one(log_, began_s, confirmed) for log_ in self._held))
        finally:
            confirmed.cancel()

    async def _beat_one(self, log_: Log, began_s: float, confirmed: asyncio.Future[Collection[Address]] | None) -> None:
        held = self._held[log_]
        async with held.lock:
            stream = self._streams[log_]
            before, sent = self._link.identity(stream), held.lease.send(began_s)
            state = "serving" if sent.serving else "syncing"
            keys = [self._live(log_), self._layout.key(log_, "scratch"), stream, self._layout.key(log_, "epoch")]
            lease_ms, epoch = int(self.lease_s * 1000), f"{SCHEMA}:{secrets.token_hex(16)}"
            up_ms = int((began_s - self._began_s) * 1000)
            args: list[bytes | str | int] = [self.replica, state, str(sent.applied), lease_ms, epoch, up_ms]
            try:
                reply = await self._link.slow_run(_HEARTBEAT, keys, args, timeout_s=self.pause_s)
                # Between heartbeats it tells what it applied, and asks nobody who is master: no lease grows by that.
                sure = self._link.kind == "standalone"
                if confirmed is not None:
                    sure = self._link.master_of(stream) in await confirmed
            except SharedUnavailable:
                return  # told by the link; the lease runs out by itself
            after = self._link.identity(stream)
            if after is None or before not in {None, after}:
                return  # the server changed in between: the next heartbeat says which
            seen = Seen(
                head=Position.read(reply[0]),
                first=Position.read(reply[1]) if reply[1] else None,
                epoch=reply[2].decode("utf-8", "replace"),
                identity=after,
                replication_id=reply[3].decode("ascii", "replace"),
            )
            if wrong := self._wrong(log_, seen, reply[5].decode("ascii", "replace")):
                self._refuse(log_, wrong)
            else:
                self._hear(log_, sent, seen, sure, int(reply[4]) / 1000)

    def _hear(self, log_: Log, sent: Sent, seen: Seen, sure: bool, longest_s: float) -> None:
        held = self._held[log_]
        self._refused.pop(log_, None)
        now_s = self._clock.monotonic()
        self._first_s.setdefault(log_, now_s)
        changed_s = held.lease.changed_s
        gap = held.lease.hear(sent, seen, now_s, confirmed=sure)
        if held.lease.changed_s != changed_s:
            held.before_s = max(held.longest_s, held.before_s if changed_s > now_s - held.before_s else 0.0)
        held.longest_s = longest_s
        held.told.set()
        if gap is not None:
            self._told_gap(log_, gap)

    def _told_gap(self, log_: Log, reason: str) -> None:
        self.gaps[reason] = self.gaps.get(reason, 0) + 1
        self._held[log_].gap.set()
        log.warning("replica_gap", log=str(log_), reason=reason)

    def _wrong(self, log_: Log, seen: Seen, policy: str) -> str:
        """Return why the engine may not be used as it is now; "" where it may."""
        known = schema_of(seen.epoch)
        if known != SCHEMA:
            what = f"of schema {known}, and this version reads {SCHEMA}" if known else "of another program"
            where = self._layout.key(log_, "epoch")
            return f"store.prefix: the engine holds data {what}, under {where}; give another prefix"
        evicts = "" if self._allow_eviction else may_evict(policy)
        return evicts and f"store.url: the engine {evicts}"

    def _refuse(self, log_: Log, refused: str) -> None:
        if not self._refused:
            log.error("replica_refused", reason=refused)
        self._refused[log_] = refused
        held = self._held[log_]
        held.told.clear()
        held.lease.lose("refused")

    def _live(self, log_: Log) -> str:
        return self._layout.key(log_, "live")

    async def _acknowledged(self, log_: Log, position: Position, timeout_s: float) -> Acknowledgement:
        clock = self._clock.monotonic
        began_s, polls = clock(), iter(_POLLS_S)
        behind = Acknowledgement(laggards=("unknown",), until_s=self._longest_s(log_))
        while True:
            with contextlib.suppress(SharedUnavailable):
                now_ms, lines, epoch = await self._lines(log_)
                behind = _behind(lines, position, now_ms)
                if behind.everybody and (left_s := self._unsettled_s(log_, epoch)) > 0:
                    behind = Acknowledgement(laggards=(BEFORE,), until_s=left_s)
            if behind.everybody:
                return behind
            pause_s = next(polls, _SLOWEST_POLL_S)
            if clock() + pause_s > began_s + timeout_s:
                # Whoever is behind, or cannot be seen: a lease of before ends by then.
                return behind
            await asyncio.sleep(pause_s)

    def _longest_s(self, log_: Log) -> float:
        """Return for how long, from now on, a lease may hold that was granted before now: the longest of all."""
        held = self._held[log_]
        longest_s = max(self.lease_s, held.longest_s, held.before_s)
        return longest_s + margin_s(longest_s)

    def _unsettled_s(self, log_: Log, epoch: str) -> float:
        """Return for how long replicas may hold leases of an engine that was replaced, unknown to this one."""
        lease, now_s, whole_s = self._held[log_].lease, self._clock.monotonic(), self._longest_s(log_)
        seen, first_s = lease.seen, self._first_s.get(log_)
        identity = self._link.identity(self._streams[log_])
        if seen is None or first_s is None or (identity, epoch) != (seen.identity, seen.epoch):
            return whole_s
        # One server that has been up for long was not replaced; of others that is not known.
        since_s = first_s - seen.identity.up_s if self._link.kind == "standalone" else first_s
        return max(0.0, max(since_s, lease.changed_s) + whole_s - now_s)

    async def _lines(self, log_: Log) -> tuple[int, dict[str, _Line], str]:
        keys = [self._live(log_), self._layout.key(log_, "epoch")]
        seconds, micros, told, epoch = await self._link.slow_run(_LINES, keys, [], timeout_s=self.pause_s)
        lines: dict[str, _Line] = {}
        for name, raw in zip(told[::2], told[1::2], strict=True):
            with contextlib.suppress(ValueError):
                at_ms, state, applied, lease_ms, *more = raw.decode().split("|")
                up_s = int(more[0]) / 1000 if more and more[0].isdecimal() else None
                line = _Line(int(at_ms), state, Position.read(applied), int(lease_ms) / 1000, up_s)
                lines[name.decode("utf-8", "replace")] = line
        return int(seconds) * 1000 + int(micros) // 1000, lines, epoch.decode("utf-8", "replace")

    async def _prune(self) -> None:
        for log_ in self._held:
            now_ms, lines, _ = await self._lines(log_)
            old = [name for name, line in lines.items() if abs(now_ms - line.at_ms) > _FORGOTTEN_MS]
            if old:
                await self._link.slow("HDEL", self._live(log_), *old, timeout_s=self.pause_s)


def _behind(lines: Mapping[str, _Line], position: Position, now_ms: int) -> Acknowledgement:
    """Return who may hold a lease and has not applied `position`.

    Who was syncing when last heard of holds none, and is told of the position with the heartbeat that grants one.
    """
    left_s = {
        name: line.over_s(now_ms)
        for name, line in lines.items()
        if line.state == "serving" and line.applied < position and line.over_s(now_ms) > 0
    }
    return Acknowledgement(laggards=tuple(sorted(left_s)), until_s=max(left_s.values(), default=0.0))
