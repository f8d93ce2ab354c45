"""The way to the engine: one server, Sentinel or a Cluster, behind the same six calls.

Every call has one deadline for everything (finding the server, a connection, sending, the whole reply), a request one
in vain for all its calls (`patience`), and nothing is tried twice but what the engine itself sent elsewhere. Replies
are as RESP2 gives them: bytes, int, list or None.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.shared import faults, patience
from cacheproxy.shared.address import Address, parse
from cacheproxy.shared.breaker import Breaker
from cacheproxy.shared.eviction import may_evict
from cacheproxy.shared.routes import FAILURES, Cluster, OneServer, Sentinels
from cacheproxy.shared.slots import key_of
from cacheproxy.shared.wire import Login, Wire, read_info, tls_context

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from cacheproxy.ports import Clock
    from cacheproxy.settings import Replicas, Store
    from cacheproxy.shared.routes import Route
    from cacheproxy.shared.script import Script
    from cacheproxy.shared.wire import Command, Identity

log = structlog.get_logger()

CLUSTER_SHARDS = 16
CHECK_S = 2.0
_REDIRECTS = 4
_NODES_ASKED = 3
"""How many nodes a new map can be asked of, one after the other."""
_REMEMBERED_S = 2.0
_ELSEWHERE = (AskError, TryAgainError)  # MovedError is an AskError
_OLDEST = (6, 2)


class _Place:
    """One server: connections of requests, connections of what takes long, and how long it is left alone."""

    def __init__(self, address: Address, login: Login, most: int, breaker: Breaker) -> None:
        self.address = address
        self.breaker = breaker
        self.identity: Identity | None = None
        self.hot = Wire(address, login, most, self._meet)
        self.slow = Wire(address, login, most, self._meet)

    def drop(self) -> None:
        self.hot.drop()
        self.slow.drop()

    async def close(self) -> None:
        await asyncio.gather(self.hot.close(), self.slow.close())

    def _meet(self, identity: Identity) -> None:
        if self.identity not in {None, identity}:
            self.drop()
        self.identity = identity


class Link:
    """An engine that may be away at any time: entering waits a moment for it, and goes on without.

    Use it as an async context manager; entering raises ConfigError for what the operator must change.
    """

    def __init__(self, store: Store, replicas: Replicas, clock: Clock) -> None:
        target = parse(store.url)
        self.kind = target.kind
        self.shards = CLUSTER_SHARDS if target.kind == "cluster" else 1
        self.timeout_s = replicas.timeout_ms / 1000
        self._replicas = replicas
        self._clock = clock
        self._login = Login(
            name=re.sub(r"[^!-~]", "-", f"cacheproxy-{store.prefix}-{socket.gethostname()}-{os.getpid()}"),
            username=target.username,
            password=target.password,
            db=target.db,
            tls=tls_context(replicas.ca_file) if target.tls else None,
        )
        self._breaker = Breaker()
        self._places: dict[Address, _Place] = {}
        self._route: Route = OneServer(target) if target.kind == "standalone" else Sentinels(target, self._login)
        self._askers: dict[Address, Wire] = {}
        if target.kind == "cluster":
            self._route = Cluster(target, self._asker, clock)
        self._beside: set[asyncio.Task[Any]] = set()
        self._looking: asyncio.Task[Any] | None = None
        self._fault: faults.Fault | None = faults.UNREACHABLE
        self._fault_at = clock.monotonic()
        self._answered_s = float("-inf")
        self._told = ""
        self._told_at = float("-inf")

    async def __aenter__(self) -> Link:
        try:
            await self.check()
        except SharedUnavailable as exc:
            if not self._told:
                log.warning("shared_unavailable", kind=self.kind, fault=exc.fault, reason=exc.message)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def call(self, *command: Any) -> Any:
        """Send one command within `replicas.timeout_ms`. Raises SharedUnavailable."""
        return _sole(await self._hot([command], self.timeout_s))

    async def pipe(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands of one slot together, not as a transaction. Raises SharedUnavailable where one is refused."""
        return _whole(await self._hot(commands, self.timeout_s)) if commands else []

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | int]) -> Any:
        """Run a script whose keys are all of one slot. Raises SharedUnavailable."""
        return await self._run(script, keys, args, self.timeout_s, slow=False)

    async def slow(self, *command: Any, timeout_s: float) -> Any:
        """Send what may take long (scans, XREAD BLOCK) on connections apart, beside the breaker."""
        return _sole(await self._slow([command], timeout_s))

    async def slow_pipe(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Send commands of one slot together, as `slow` does."""
        return _whole(await self._slow(commands, timeout_s)) if commands else []

    async def slow_run(
        self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | int], timeout_s: float
    ) -> Any:
        """Run a script as `slow` does: for work behind the line, such as heartbeats and repairs."""
        return await self._run(script, keys, args, timeout_s, slow=True)

    def identity(self, key: str) -> Identity | None:
        """Return which data answers for a key now, as the newest connection was told; None while it is not known."""
        address = self._route.known(key)
        place = self._places.get(address) if address else None
        return place.identity if place else None

    async def confirmed(self, timeout_s: float) -> Collection[Address]:
        """Return the masters that those who watch the engine (Sentinels, the other masters) still see as such."""
        try:
            return await self._route.confirmed(timeout_s)
        except FAILURES:
            return ()

    def master_of(self, key: str) -> Address | None:
        """Return the server of a key, as far as it is known."""
        return self._route.known(key)

    async def check(self) -> None:
        """Look whether the engine can be used as it is. Raises ConfigError, or SharedUnavailable while it is away."""
        try:
            await self._check()
        except SharedUnavailable as exc:
            if faults.must_be_mended(exc.fault):
                raise ConfigError(f"store.url: {exc.message}") from exc
            raise

    def health(self) -> str:
        """Return `ok`, or what is the matter, for operators."""
        return "ok" if self._fault is None else f"the engine {self._fault.says}"

    @property
    def fault(self) -> faults.Fault | None:
        """What is the matter with the engine, as far as it was heard of; None when nothing is."""
        return self._fault

    @property
    def breaker_openings(self) -> int:
        """How often a server was left alone."""
        own = {id(place.breaker): place.breaker for place in self._places.values()}
        own[id(self._breaker)] = self._breaker
        return sum(breaker.opened for breaker in own.values())

    async def _run(
        self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | int], timeout_s: float, *, slow: bool
    ) -> Any:
        until = asyncio.get_running_loop().time() + timeout_s
        rest = (len(keys), *keys, *args)
        ask = self._slow if slow else self._hot
        [reply] = await ask([("EVALSHA", script.sha, *rest)], timeout_s)
        if isinstance(reply, SharedUnavailable) and reply.fault == "NOSCRIPT":
            left_s = until - asyncio.get_running_loop().time()
            [reply] = await ask([("EVAL", script.text, *rest)], left_s)
        return _sole([reply])

    async def _slow(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        return await self._ask(commands, timeout_s, slow=True)

    async def _hot(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Ask for a request, which waits in vain for one deadline at most; for one with patience as `slow` does."""
        now = asyncio.get_running_loop().time
        if patience.lost(now(), self._answered_s):
            raise self._unavailable(faults.IN_VAIN)
        apart = patience.least_s() > self.timeout_s
        timeout_s = patience.least_s() if apart else timeout_s
        until = now() + timeout_s
        try:
            return await self._ask(commands, timeout_s, slow=apart)
        except SharedUnavailable:
            if now() >= until:
                patience.lose(now())
            raise

    async def _ask(self, commands: Sequence[Command], timeout_s: float, *, slow: bool) -> list[Any]:
        """Return a reply or a SharedUnavailable for each command, redirections followed; raises what concerns all."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        key = key_of(commands[0])
        self._admit(None, slow=slow)
        place = await self._find(key, timeout_s, slow=slow)
        self._admit(place, slow=slow)
        replies = await self._exchange(place, commands, until - loop.time(), slow=slow)
        for _ in range(_REDIRECTS if self.kind == "cluster" else 0):
            again = [at for at, reply in enumerate(replies) if isinstance(reply, _ELSEWHERE)]
            if not again or loop.time() >= until:
                break
            place, asking = await self._follow(place, key, replies[again[0]], until - loop.time(), slow=slow)
            self._admit(place, slow=slow)
            sent: list[Command] = []
            for at in again:
                sent += [("ASKING",), commands[at]] if asking else [commands[at]]
            answers = await self._exchange(place, sent, until - loop.time(), slow=slow)
            for at, answer in zip(again, answers[1::2] if asking else answers, strict=True):
                replies[at] = answer
        return [self._refused(place, reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _find(self, key: str | bytes | None, timeout_s: float, *, slow: bool) -> _Place:
        address = self._route.known(key) if key is not None else None
        if address is not None and self._route.stale:
            if self.kind == "cluster" and not slow:
                self._look()  # a slot that is elsewhere by now is told by the node that had it
            else:
                address = None
        if address is None:
            try:
                address = await self._route.address(key, timeout_s)
            except FAILURES as exc:
                self._route.trouble = exc
        if address is None:
            if self.kind != "cluster" and not slow:
                self._breaker.failed(self._clock.monotonic())
            trouble = self._route.trouble
            fault = faults.fault_of(trouble) if trouble else faults.NO_MASTER
            raise self._unavailable(fault if fault.remedy is faults.Remedy.CONFIG else faults.NO_MASTER)
        return self._place_at(address)

    def _admit(self, place: _Place | None, *, slow: bool) -> None:
        """Let a request go on, or raise SharedUnavailable: it never waits for the trial that ends this."""
        if not slow and (place.breaker if place else self._breaker).open:
            self._try(place)
            raise self._unavailable(faults.OPEN, place)

    def _try(self, place: _Place | None) -> None:
        """Begin a trial beside the requests, where it is time for one."""
        breaker = place.breaker if place else self._breaker
        if breaker.tries(self._clock.monotonic(), self.timeout_s):
            self._start(self._trial(place))

    async def _trial(self, place: _Place | None) -> None:
        until = asyncio.get_running_loop().time() + self.timeout_s
        if place is None or self.kind != "cluster":  # another server may be the master now
            place = await self._find(None, self.timeout_s, slow=False)
        await self._exchange(place, [("PING",)], until - asyncio.get_running_loop().time(), slow=False)

    def _look(self) -> None:
        """Ask for a new map beside the requests."""
        if self._looking is None or self._looking.done():
            self._looking = self._start(self._route.masters(_NODES_ASKED * self.timeout_s))

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._beside.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (SharedUnavailable, *FAILURES)):  # those were noted already
            log.error("shared_failed", kind=self.kind, exc_info=error)

    async def _follow(
        self, place: _Place, key: str | bytes | None, reply: Exception, left_s: float, *, slow: bool
    ) -> tuple[_Place, bool]:
        """Return where the engine sends a command, and whether it must be told that it was sent (ASKING)."""
        if isinstance(reply, AskError):  # MovedError is one, too
            other = self._place_at(Address(reply.host or place.address.host, int(reply.port)))
            if isinstance(reply, MovedError):
                self._route.moved(int(reply.slot_id), other.address)
                return other, False
            return other, True
        await asyncio.sleep(min(0.01, left_s))  # TRYAGAIN: the keys of the command are on their way
        return await self._find(key, left_s, slow=slow), False

    async def _exchange(self, place: _Place, commands: Sequence[Command], left_s: float, *, slow: bool) -> list[Any]:
        wire = place.slow if slow else place.hot
        try:
            replies = await wire.exchange(commands, max(left_s, 0.001))
        except FAILURES as exc:
            raise self._failed(place, faults.fault_of(exc), slow=slow) from exc
        if self.kind != "cluster":  # there the others' answers say nothing of a node that hangs
            self._answered_s = asyncio.get_running_loop().time()
        told = [faults.fault_of(reply) for reply in replies if isinstance(reply, ResponseError)]
        for fault in told:
            if fault.counts or (fault.moves and self.kind != "cluster"):
                raise self._failed(place, fault if fault.counts else faults.IS_CLUSTER, slow=slow)
            if fault.remedy is not faults.Remedy.RETRY:
                self._note(fault)
        if not slow:
            place.breaker.succeeded()
        elif place.breaker.open:
            self._try(place)
        if not told:
            self._note(None)
        return replies

    async def _check(self) -> None:
        masters = await self._masters()
        for address in masters:
            commands = [("INFO", "server"), ("INFO", "memory"), ("INFO", "cluster")]
            told: dict[str, str] = {}
            place = self._place_at(address)
            for reply in await self._exchange(place, commands, CHECK_S, slow=True):
                if isinstance(reply, Exception):
                    raise self._refused(place, reply)
                told |= read_info(reply)
            self._check_one(address, told)

    async def _masters(self) -> tuple[Address, ...]:
        try:
            if masters := await self._route.masters(CHECK_S):
                return masters
        except FAILURES as exc:
            self._route.trouble = exc
        trouble = self._route.trouble
        raise self._unavailable(faults.fault_of(trouble) if trouble else faults.NO_MASTER)

    def _check_one(self, address: Address, told: dict[str, str]) -> None:
        version = told.get("redis_version", "0")
        if tuple(int(part) for part in re.findall(r"[0-9]+", version)[:2]) < _OLDEST:
            raise ConfigError(f"store.url: the engine at {address} is Redis {version}; 6.2 or later is needed")
        if self.kind != "cluster" and told.get("cluster_enabled") == "1":
            raise ConfigError(f"store.url: the engine at {address} {faults.IS_CLUSTER.says}")
        evicts = may_evict(told.get("maxmemory_policy", ""))
        if evicts and not self._replicas.allow_eviction:
            raise ConfigError(f"store.url: the engine at {address} {evicts}")

    def _place_at(self, address: Address) -> _Place:
        place = self._places.get(address)
        if place is None:
            breaker = Breaker() if self.kind == "cluster" else self._breaker
            most = self._replicas.max_connections
            place = self._places[address] = _Place(address, self._login, most, breaker)
        return place

    def _asker(self, address: Address) -> Wire:
        if address not in self._askers:
            self._askers[address] = Wire(address, self._login, 4, None)
        return self._askers[address]

    def _failed(self, place: _Place, fault: faults.Fault, *, slow: bool) -> SharedUnavailable:
        if fault.counts and not slow:
            place.breaker.failed(self._clock.monotonic())
        if fault.moves:
            place.drop()
            self._route.lost(place.address)
        self._note(fault)
        return self._unavailable(fault, place)

    def _refused(self, place: _Place, reply: Exception) -> SharedUnavailable:
        return self._unavailable(faults.fault_of(reply), place)

    def _unavailable(self, fault: faults.Fault, place: _Place | None = None) -> SharedUnavailable:
        where = f" at {place.address}" if place else ""
        return SharedUnavailable(f"the engine{where} {fault.says}", fault=fault.code)

    def _note(self, fault: faults.Fault | None) -> None:
        """Remember how the engine is. A refusal, such as OOM, is remembered for a moment beside what it does answer."""
        now, before = self._clock.monotonic(), self._fault
        if fault is None and (before is None or (not before.counts and now - self._fault_at < _REMEMBERED_S)):
            return
        self._fault, self._fault_at = fault, now
        code = fault.code if fault else "ok"
        if code == self._told or now - self._told_at < _REMEMBERED_S:
            return
        self._told, self._told_at = code, now
        if fault is None:
            log.info("shared_available", kind=self.kind)
        else:
            log.warning("shared_unavailable", kind=self.kind, fault=fault.code, reason=f"the engine {fault.says}")

    async def _close(self) -> None:
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        wires = [place.close() for place in self._places.values()]
        await asyncio.gather(self._route.close(), *wires, *(wire.close() for wire in self._askers.values()))


def _whole(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, SharedUnavailable):
            raise reply
    return replies


def _sole(replies: list[Any]) -> Any:
    [reply] = _whole(replies)
    return reply
