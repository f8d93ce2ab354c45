"""A hundred thousand damaged requests: each gets a well-formed answer, no 5xx, or an end; and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.mutations import REQUEST_LINE, Mutator
from tests.support.openai_wire import completion, events
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import Proxy, chat
from tests.support.rawhttp import Connection, ProtocolViolation, Response, Truncated, request_bytes, send_raw
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.upstream import Received, ScriptedUpstream, Step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "20260803"))
LANES, ADMIN_SHARE, MOST_ON_ONE = 500, 0.06, 25
DEADLINE_S = 15.0  # no request may take longer; the proxy's own deadlines are far shorter
SHORT = {"HEADER_TIMEOUT_S": "0.4", "BODY_TIMEOUT_S": "0.4", "KEEP_ALIVE_S": "5"}
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CLEAN_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
WHOLE, EVENTS = completion("Fine."), events("Fine.")


@dataclass
class Tally:
    """What was sent, and what was wrong with what came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lines: int = 0
    slowest_s: float = 0.0

    def fault(self, what: str, data: bytes) -> None:
        """Keep a case to be looked at."""
        self.faults.append(f"{what}: {data[:1500]!r}")


class Backend:
    """Answers any request, and notes each that an HTTP client could not have meant."""

    def __init__(self) -> None:
        self.violations: list[str] = []

    def __call__(self, request: Received) -> Sequence[Step]:
        names = [name.lower() for name, _ in request.headers]
        framings = [name for name in names if name in ("content-length", "transfer-encoding")]
        if not (
            TOKEN.fullmatch(request.method)
            and re.fullmatch(r"/v1/[\x21-\x7e]*", request.target)
            and names.count("host") == 1
            and len(framings) <= 1
            and all(TOKEN.fullmatch(name) and CLEAN_VALUE.fullmatch(value) for name, value in request.headers)
        ):
            self.violations.append(repr((request.method, request.target, request.headers)))
        if request.method == "HEAD":
            return answer(b"", length=5)
        streamed = b'"stream":true' in request.body.replace(b" ", b"")
        return stream(*EVENTS) if streamed else answer(WHOLE)


def acceptable(response: Response, sent: bytes, *, blind: bool) -> bool:
    """Whether an answer is whole and not our failure; `only-if-cached` asks for its 504."""
    if response.status < 500:
        return response.complete
    return response.status == 504 and b"only-if-cached" in sent.lower() and (blind or b'"not_cached"' in response.body)


class Lane:
    """Sends damaged requests one after another, on one connection for as long as the proxy keeps it."""

    def __init__(self, urls: tuple[str, str], seed: int, tally: Tally) -> None:
        self._urls = urls
        self._chance = random.Random(seed)
        self._mutator = Mutator(self._chance)
        self._tally = tally
        self._on_admin = False

    async def run(self, share: int) -> None:
        """Send `share` requests."""
        connection, sent, count, usable = await self._connect(), b"", 0, True
        for _ in range(share):
            if not usable or connection.broken or count >= MOST_ON_ONE:
                connection.leave(reset=self._chance.random() < 0.2)
                connection, sent, count = await self._connect(), b"", 0
            data = self._mutator.damaged(admin=self._on_admin)
            sent, count = sent + data, count + 1
            self._tally.lines += len(REQUEST_LINE.findall(data))
            began_s = time.monotonic()
            connection.send(data)
            usable = await self._answered(connection, sent)
            self._tally.slowest_s = max(self._tally.slowest_s, time.monotonic() - began_s)
        connection.leave()

    async def _connect(self) -> Connection:
        self._on_admin = self._chance.random() < ADMIN_SHARE
        return await Connection.open(self._urls[self._on_admin], timeout_s=DEADLINE_S)

    async def _answered(self, connection: Connection, sent: bytes) -> bool:
        """Judge the next answer; return whether the connection is of further use."""
        blind = b"HEAD" in sent.upper()  # whether a body follows the head cannot be known then
        try:
            exchange = await connection.exchange("HEAD" if blind else "POST")
            response = await exchange.rest()
        except Truncated as exc:
            self._tally.statuses["closed"] += 1
            if exc.args and exc.args[0]:
                self._tally.fault(f"half a head {exc.args[0]!r}", sent)
            return False
        except TimeoutError:
            self._tally.fault("hangs", sent)
            return False
        except ProtocolViolation as exc:
            self._tally.fault(f"not HTTP: {exc}", sent)
            return False
        self._tally.statuses[str(response.status)] += 1
        if not acceptable(response, sent, blind=blind):
            self._tally.fault(f"{response.status} {response.complete} {response.body[:300]!r}", sent)
        return not blind and response.get("connection") != "close"


async def gauges(proxy: Proxy, *names: str) -> list[float]:
    told = (await send_raw(proxy.admin_url, request_bytes("GET", "/metrics"), "GET")).body.decode()
    values = dict(re.findall(r"^(\S+) (\S+)$", told, re.MULTILINE))
    return [float(values[name]) for name in names]


async def at_rest(proxy: Proxy, tasks: float) -> bool:
    now = await gauges(
        proxy,
        "cacheproxy_flights",
        "cacheproxy_requests_in_flight",
        "cacheproxy_held_body_bytes",
        "cacheproxy_connections",
        "cacheproxy_tasks",
    )
    return now[:4] == [0, 0, 0, 0] and now[4] <= tasks


async def test_no_bytes_break_the_edge(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    print(f"seed {SEED}, {REQUESTS} requests: FUZZ_SEED and FUZZ_REQUESTS change them")  # noqa: T201 - shown when it fails
    backend, tally = Backend(), Tally()
    upstream.always(backend)
    environ = {f"CACHEPROXY_SERVER__{name}": value for name, value in SHORT.items()}
    async with serving(tmp_path, upstream.url, "--store", "memory://", environ=environ) as server:
        proxy = server.proxy
        assert (await proxy.ask(chat(), key=key)).status == 200
        [tasks] = await gauges(proxy, "cacheproxy_tasks")
        urls, calls, began_s = (proxy.url, proxy.admin_url), upstream.calls, time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(LANES):
                group.create_task(Lane(urls, SEED * 1000 + number, tally).run(REQUESTS // LANES))
        print(f"{time.monotonic() - began_s:.0f} s, slowest {tally.slowest_s:.1f} s, {tally.statuses.most_common()}")  # noqa: T201 - as above

        assert not tally.faults, (len(tally.faults), tally.faults[:5])
        assert not backend.violations, (len(backend.violations), backend.violations[:5])
        assert upstream.calls - calls <= tally.lines
        assert upstream.calls - calls > REQUESTS / 100, "most of it never got far"
        await eventually_true(lambda: at_rest(proxy, tasks), "nothing is left of it", within_s=10.0)
        assert (await proxy.call("GET", "/healthz")).status == 200
        assert (await proxy.call("GET", "/readyz")).status == 200
        assert (await proxy.fill(chat("And now something ordinary?"), key=key)).status == 200
        assert "request_failed" not in server.said
        assert "task_failed" not in server.said
        assert await server.stop() == 0
