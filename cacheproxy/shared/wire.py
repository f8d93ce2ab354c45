"""Connections to one server, with deadlines of our own and no second attempts.

A connection is used for one exchange at a time. Whatever ends an exchange before its last reply was read (a deadline, a
cancelled caller, an error) ends the connection too, so no reply is ever left for somebody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.settings import Secret
    from cacheproxy.shared.address import Address

Command = tuple[Any, ...]

CONNECT_S = 1.0
"""Longest time a connection may take to be made, also where its first user does not wait that long."""


class PoolExhausted(Exception):
    """Every connection that may be open is in use."""


class NotMaster(Exception):
    """The server is a replica of another one."""


class UnknownService(Exception):
    """No Sentinel watches a service of that name."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which data is spoken to: a process, and a history of it. They change when a server restarts or is replaced."""

    run_id: str
    replication_id: str
    up_s: float = field(default=0.0, compare=False)
    """How long it had been running when it was met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """As whom, and how, a server is spoken to."""

    name: str
    """What `CLIENT LIST` shows."""
    username: str
    password: Secret
    db: int = 0
    tls: RedisSSLContext | None = None


def tls_context(ca_file: str) -> RedisSSLContext:
    """Return what TLS is spoken with: certificates are required and checked, against `ca_file` where one is given.

    Raises ConfigError for a file that is none of certificates.
    """
    context = RedisSSLContext(cert_reqs="required", check_hostname=True, ca_certs=ca_file or None)
    try:
        context.get()
    except OSError as exc:  # a file without certificates is one, too
        raise ConfigError(f"replicas.ca_file: {ca_file} holds no certificates ({exc.strerror})") from exc
    return context


class _Session:
    """Ours on top of redis-py's connection: one round trip to begin with, and an end that waits for nobody."""

    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    def abort(self) -> None:
        """End the connection now; what was not sent is not sent."""
        writer, self._writer, self._reader = self._writer, None, None
        self._parser.on_disconnect()  # type: ignore[attr-defined]  # of the class this is mixed into
        if writer is not None:
            writer.transport.abort()


class _Plain(_Session, Connection):
    pass


class _Tls(_Session, SSLConnection):
    pass


class Wire:
    """A pool of connections to one server; entered by its first use, ended by `close`."""

    def __init__(self, address: Address, login: Login, most: int, meet: Callable[[Identity], None] | None) -> None:
        """Make a pool of at most `most`. `meet` is told whom each new connection reached, which must be a master."""
        self.address = address
        self._meet = meet
        self._login = login
        self._most = most
        self._idle: list[_Plain | _Tls] = []
        self._busy: set[_Plain | _Tls] = set()
        self._waiters: deque[asyncio.Future[_Plain | _Tls]] = deque()
        self._openers: set[asyncio.Task[None]] = set()
        self._closed = False

    async def exchange(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Send all, return a reply for each: as RESP2 gives it (bytes, int, list, None), or a ResponseError.

        Raises TimeoutError, redis-py's ConnectionError and its kin, OSError, or PoolExhausted.
        """
        async with asyncio.timeout(timeout_s):
            connection = await self._take(asyncio.get_running_loop().time() + timeout_s)
            whole = False
            try:
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                replies = [await _reply(connection) for _ in commands]
                whole = True
                return replies
            finally:
                self._give(connection, whole)

    def drop(self) -> None:
        """End every connection that nobody uses; those in use end with their exchange."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    async def close(self) -> None:
        """End everything; exchanges under way fail."""
        self._closed = True
        for task in self._openers:
            task.cancel()
        await asyncio.gather(*self._openers, return_exceptions=True)
        self.drop()
        for connection in [*self._busy]:
            connection.abort()
        while self._waiters:
            self._waiters.popleft().cancel()

    async def _take(self, until: float) -> _Plain | _Tls:
        while self._idle:
            connection = self._idle.pop()
            # Something to read before anything was asked: the server closed it, or told us off.
            if connection.is_connected and not await connection.can_read():
                self._busy.add(connection)
                return connection
            connection.abort()
        if self._closed:
            raise PoolExhausted
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Plain | _Tls] = loop.create_future()
        self._waiters.append(future)
        full = len(self._busy) + len(self._openers) >= self._most
        if not full:
            self._begin_opening()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give(future.result(), True)
            if full and not self._openers and loop.time() >= until:
                raise PoolExhausted from None
            raise

    def _begin_opening(self) -> None:
        """Make a connection beside its first user: where that takes longer than a deadline, the next finds it ready."""
        task = asyncio.create_task(self._open())
        self._openers.add(task)
        task.add_done_callback(self._openers.discard)

    async def _open(self) -> None:
        connection = self._connection()
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types it half
                if self._meet is not None:
                    self._meet(await _who(connection))
        except asyncio.CancelledError:
            connection.abort()
            raise
        except Exception as exc:  # handed to whoever waits, who tells them apart
            connection.abort()
            if (waiter := self._next_waiter()) is not None:
                waiter.set_exception(exc)
            return
        self._busy.add(connection)
        self._give(connection, True)

    def _give(self, connection: _Plain | _Tls, whole: bool) -> None:
        self._busy.discard(connection)
        if not whole or self._closed or not connection.is_connected:
            connection.abort()
            waiting = sum(not waiter.done() for waiter in self._waiters)
            if not self._closed and waiting > len(self._openers):
                self._begin_opening()  # whoever waits for this one's return would wait in vain
        elif (waiter := self._next_waiter()) is not None:
            self._busy.add(connection)
            waiter.set_result(connection)
        else:
            self._idle.append(connection)

    def _next_waiter(self) -> asyncio.Future[_Plain | _Tls] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _connection(self) -> _Plain | _Tls:
        login = self._login
        options: dict[str, Any] = {
            "host": self.address.host,
            "port": self.address.port,
            "db": login.db,
            "username": login.username or None,
            "password": login.password.reveal() or None,
            "client_name": login.name,
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
            # Deadlines are those of an exchange, and end its connection: no timers of redis-py's own beside them.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "health_check_interval": 0,
        }
        if login.tls is None:
            return _Plain(**options)
        connection = _Tls(**options)
        connection.ssl_context = login.tls  # one for all: to make one costs 20 ms
        return connection


async def _reply(connection: _Plain | _Tls) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        # Such as OOM: this command was refused, and the replies to the others follow.
        return error
    except asyncio.IncompleteReadError as exc:
        raise RedisConnectionError from exc


async def _who(connection: _Plain | _Tls) -> Identity:
    await connection.send_packed_command(
        connection.pack_commands([("INFO", "server"), ("INFO", "replication")]), check_health=False
    )
    told: dict[str, str] = {}
    for _ in range(2):
        told |= read_info(await connection.read_response(disable_decoding=True))
    if told.get("role") != "master":
        raise NotMaster
    up_s = told.get("uptime_in_seconds", "0")
    return Identity(told.get("run_id", ""), told.get("master_replid", ""), float(up_s) if up_s.isdecimal() else 0.0)


def read_info(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
