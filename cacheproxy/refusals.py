"""Backends that refuse what a request was made to ask beyond its caller's words: these words alone go out instead."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.ports import Answer, Call, Clock, Upstream

log = structlog.get_logger()

_REFUSING = frozenset({400, 422})
_ASKED = (b"stream_options", b"include_usage")
_READ_BYTES = 16 * 1024
_MOST_ROUTES = 256
_REMEMBERED_S = 3600.0


class _Refusal:
    """A refusal whose first bytes were read, and are given again."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._read: list[bytes] = []
        self._rest = answer.chunks()
        self.status = answer.status
        self.headers = answer.headers

    async def names(self, fields: tuple[bytes, ...]) -> bool:
        """Whether the refusal speaks of one of these fields."""
        room = _READ_BYTES
        while room > 0:
            chunk = await anext(self._rest, b"")
            if not chunk:
                break
            self._read.append(chunk)
            room -= len(chunk)
        told = b"".join(self._read)
        return any(field in told for field in fields)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body from its start."""
        for chunk in self._read:
            yield chunk
        async for chunk in self._rest:
            yield chunk

    async def __aenter__(self) -> _Refusal:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._answer.__aexit__(*exc)


class Refusals:
    """Sends calls, and remembers for an hour on which routes (path and model) an altered body is refused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def send(self, upstream: Upstream, call: Call) -> tuple[Answer, bool]:
        """Send a call, or its plain body where the altered one is refused; return the answer, and whether to `body`.

        What is refused in both forms is refused for another reason, and nothing is learnt. Raises as `ports.Upstream`.
        """
        if call.plain_body is None:
            return await upstream.send(call), True
        plain, route = replace(call, body=call.plain_body, plain_body=None), (call.target.partition("?")[0], call.model)
        if self._clock.monotonic() < self._until_s.get(route, 0.0):
            return await upstream.send(plain), False
        answer = await upstream.send(call)
        if answer.status not in _REFUSING:
            return answer, True
        refusal = _Refusal(answer)
        if not await refusal.names(_ASKED):
            return refusal, True  # of something else: the caller's own fault, told once
        async with refusal:
            pass
        answer = await upstream.send(plain)
        if 200 <= answer.status < 300:
            self._remember(route)
        return answer, False

    def _remember(self, route: tuple[str, str]) -> None:
        self._until_s[route] = self._clock.monotonic() + _REMEMBERED_S
        self._until_s.move_to_end(route)
        if len(self._until_s) > _MOST_ROUTES:
            self._until_s.popitem(last=False)
        log.info("stream_usage_refused", path=route[0], what="streams of this model go out as their callers wrote them")
