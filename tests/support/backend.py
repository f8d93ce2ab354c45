"""An Upstream in this process that does exactly what a test tells it to: the far end of pipeline tests."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cacheproxy.ports import Call

Step = bytes | UpstreamError | asyncio.Event
"""Send these bytes, fail with this error, or wait until a test sets the event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One answer: what happens before its head, the head, and what happens after it."""

    before: Sequence[Step] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    steps: Sequence[Step] = ()


class Backend:
    """An Upstream. Calls get the scripts given to `play`, one each, then the one given to `always`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.open = 0
        self.left_early = 0
        self._scripts: deque[Told] = deque()
        self._always = Told(steps=[b"{}"])

    def play(self, *scripts: Told) -> None:
        """Give the next calls these scripts."""
        self._scripts.extend(scripts)

    def always(self, script: Told) -> None:
        """Give every call without a script of its own this one."""
        self._always = script

    async def send(self, call: Call) -> BackendAnswer:
        """Answer as told."""
        self.calls.append(call)
        told = self._scripts.popleft() if self._scripts else self._always
        for step in told.before:
            await _take(step)
        return BackendAnswer(self, told)


class BackendAnswer:
    """An answer whose head has arrived."""

    def __init__(self, backend: Backend, told: Told) -> None:
        self.status = told.status
        self.headers = told.headers
        self._backend = backend
        self._steps = told.steps
        self._ended = False

    async def __aenter__(self) -> BackendAnswer:
        self._backend.open += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._backend.open -= 1
        self._backend.left_early += not self._ended

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as told."""
        for step in self._steps:
            chunk = await _take(step)
            if chunk:
                yield chunk
        self._ended = True


async def _take(step: Step) -> bytes:
    match step:
        case bytes():
            return step
        case UpstreamError():
            raise step
    await step.wait()
    return b""
