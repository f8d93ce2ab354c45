"""Several real proxies over one engine, asked and purged while everything they say is written down."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.histories import NEVER_S, Event, Kept, Made, Purged, Served
from tests.support.openai_wire import completion, last_user_text
from tests.support.polling import eventually_true
from tests.support.process import ServerProcess
from tests.support.proxy import CHAT, Answered, answered, chat
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, ScriptedUpstream, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from tests.support.upstream import Received, Step

KEY = "sk-replicas"
EXACT = {"x-cacheproxy-tier": "exact"}
"""Asks for no similarity: nothing is embedded, so that races are many."""


class Caller:
    """A client that keeps its connection, and opens another one when it has ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None

    async def call(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float = 20.0
    ) -> Answered:
        """Send one request and return the answer. Raises OSError, Truncated and TimeoutError."""
        for attempt in (1, 2):
            fresh = self._connection is None or self._connection.broken
            if fresh:
                self._connection = await Connection.open(self._url, timeout_s)
            connection = self._connection
            assert connection is not None
            connection.send(request_bytes(method, target, headers.items(), body))
            try:
                return answered(await connection.read_response(method))
            except Truncated:
                self.leave()
                if fresh or attempt == 2:
                    raise
            except BaseException:
                self.leave()
                raise
        raise AssertionError

    def leave(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.leave()
        self._connection = None


class Replica:
    """One proxy, with a pool of callers."""

    def __init__(self, name: str, server: ServerProcess, fleet: Fleet) -> None:
        self.name = name
        self.server = server
        self._fleet = fleet
        self._idle: list[Caller] = []

    async def ask(self, text: str, headers: Mapping[str, str] = EXACT, **fields: Any) -> Answered:
        """Ask a question and write down what was served or kept."""
        body = msgspec.json.encode(chat(text, **fields))
        sent = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **headers}
        began_s = time.monotonic()
        caller = self._idle.pop() if self._idle else Caller(self.server.proxy.url)
        told = await caller.call("POST", CHAT, sent, body)
        ended_s = time.monotonic()
        self._idle.append(caller)
        self._fleet.note(self.name, text, told, began_s, ended_s)
        return told

    async def serves(self, text: str) -> int | None:
        """Return the version it serves from what is kept, None when it has none."""
        told = await self.ask(text, {**EXACT, "cache-control": "only-if-cached"})
        return version_of(told) if told.status == 200 else None

    async def operate(self, method: str, path: str, body: object = None) -> Answered:
        """Send a request to the admin port."""
        caller = Caller(self.server.proxy.admin_url)
        data = None if body is None else msgspec.json.encode(body)
        try:
            return await caller.call(method, f"/admin/v1/{path}", {"content-type": "application/json"}, data)
        finally:
            caller.leave()

    async def purge(self, *texts: str) -> Answered:
        """Purge the entries of these questions by id, and write down what that promises."""
        ids = [self._fleet.ids[text] for text in texts]
        called_s = time.monotonic()
        told = await self.operate("POST", "purge", {"ids": ids})
        ended_s = time.monotonic()
        binding_s = NEVER_S
        if told.status == 200:
            binding_s = ended_s
        elif told.status == 202:
            binding_s = ended_s + max(0.0, told.json()["until_s"] - time.time())
        self._fleet.history += [Purged(text, called_s, binding_s) for text in texts]
        return told

    async def purge_for_good(self, *texts: str) -> None:
        """Purge, and return once that binds every replica."""
        told = await self.purge(*texts)
        assert told.status in {200, 202}, told.body[:300]
        await asyncio.sleep(max(0.0, told.json()["until_s"] - time.time()))

    def leave(self) -> None:
        """Close its callers' connections."""
        for caller in self._idle:
            caller.leave()
        self._idle.clear()


class Fleet:
    """Replicas, the backend behind them, and the history of what was said."""

    def __init__(self, upstream: ScriptedUpstream, directory: Path, environ: Mapping[str, str]) -> None:
        self.upstream = upstream
        self.directory = directory
        self.environ = dict(environ)
        self.replicas: list[Replica] = []
        self.history: list[Event] = []
        self.ids: dict[str, str] = {}
        """The entry's id of each question that was kept or served once."""
        self._versions = itertools.count(1)
        self._starts = itertools.count()
        self.hold: asyncio.Event | None = None
        """What the backend's next answers wait for."""
        upstream.always(self.answer)

    async def add(self, store_url: str, **environ: str) -> Replica:
        """Start one more replica on an engine; `environ` are its own settings."""
        number = next(self._starts)
        directory = self.directory / f"replica-{number}"
        directory.mkdir(exist_ok=True)
        settings = {"CACHEPROXY_STORE__URL": store_url, **self.environ, **environ}
        server = await ServerProcess.start(directory, self.upstream.url, environ=settings)
        replica = Replica(f"replica-{number}", server, self)
        self.replicas.append(replica)
        return replica

    def note(self, replica: str, text: str, told: Answered, began_s: float, ended_s: float) -> None:
        """Write down what one answer says."""
        if told.status != 200:
            return
        if (entry := told.get("x-cacheproxy-entry")) is not None:
            self.ids[text] = entry
        if told.outcome == "hit":
            self.history.append(Served(replica, text, version_of(told), began_s, ended_s))
        elif "stored" in told.cache_status.parameters:
            self.history.append(Kept(replica, text, version_of(told), ended_s))

    async def spread(self, *texts: str, within_s: float = 20.0) -> None:
        """Have these questions answered and kept, and return once every replica serves one version of each."""

        async def everywhere() -> bool:
            await asyncio.gather(*(self.replicas[0].ask(text) for text in texts))
            views = list((await self.views(texts)).values())
            return None not in views[0].values() and all(view == views[0] for view in views)

        await eventually_true(everywhere, "every replica serves what one of them kept", within_s)

    async def views(self, texts: Sequence[str], looks: int = 3) -> dict[str, dict[str, int | None]]:
        """Return what each replica serves of each question; one that may merely have been late is asked again."""
        found = {}
        for replica in self.replicas:
            view: dict[str, int | None] = {}
            for text in texts:
                for _ in range(looks):
                    view[text] = await replica.serves(text)
                    if view[text] is not None:
                        break
            found[replica.name] = view
        return found

    def answer(self, request: Received) -> Sequence[Step]:
        """Answer for the backend, with a new version."""
        version = next(self._versions)
        text = last_user_text(request.json())
        self.history.append(Made(text, version, time.monotonic()))
        steps = answer(completion(f"version {version}"))
        return steps if self.hold is None else [Hold(self.hold), *steps]


def version_of(told: Answered) -> int:
    """Return the version that an answer carries."""
    return int(told.content.removeprefix("version "))


@asynccontextmanager
async def fleet(directory: Path, store_urls: Sequence[str], **environ: str) -> AsyncIterator[Fleet]:
    """Run a replica for each URL of the engine until the block ends; `environ` are settings of all of them."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        found = Fleet(upstream, directory, environ)
        try:
            starts = await asyncio.gather(*(found.add(url) for url in store_urls), return_exceptions=True)
            for start in starts:  # all have ended, so that none is left behind
                if isinstance(start, BaseException):
                    raise start
            found.replicas.sort(key=lambda replica: replica.name)  # in the order of the URLs
            yield found
        finally:
            for replica in found.replicas:
                replica.leave()
                await replica.server.kill()
