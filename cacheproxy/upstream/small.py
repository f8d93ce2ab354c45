"""The small model as a backend: its own client, key, queue and breaker; asked once, and with nothing of a caller's."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import msgspec

from cacheproxy.errors import ConfigError, UpstreamBusy
from cacheproxy.upstream.backend import Attempt, Backend
from cacheproxy.upstream.client import HttpUpstream
from cacheproxy.upstream.keys import Keys
from cacheproxy.upstream.local import CONTEXT_TOKENS, MODEL_ID
from cacheproxy.upstream.queue import FairQueue, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from cacheproxy.ports import Answer, Call, Clock
    from cacheproxy.settings import Settings, Small
    from cacheproxy.upstream.backend import State
    from cacheproxy.upstream.local.process import LocalModel

NAME = "small"
"""Its name among the backends, for operators and metrics."""
QUEUE_S = 2.0
"""Longest wait for a place: after that, the large model is asked sooner than this one answers."""

_SENT = frozenset({"accept", "content-type", "traceparent", "user-agent", "x-request-id"})


class SmallUpstream:
    """The small model as an `Upstream`.

    Asked once: whatever goes wrong, the large model is the second try. While it is out (five failures in a row, it
    asked to be left alone, or it is embedded and not loaded) nobody waits for it.
    """

    def __init__(self, backend: Backend, clock: Clock, embedded: LocalModel | None = None) -> None:
        self._backend = backend
        self._clock = clock
        self._embedded = embedded

    def state(self) -> State:
        """Return how it is."""
        state = self._backend.state(self._clock.monotonic())
        return replace(state, state="unreachable") if self._problem() else state

    async def send(self, call: Call) -> Answer:
        """Send the call without its caller. Raises as `ports.Upstream`; UpstreamBusy while it is out."""
        backend, now = self._backend, self._clock.monotonic()
        if problem := self._problem():
            raise UpstreamBusy(f"the small model: {problem}", retry_after_s=1.0)
        if backend.out(now, ""):
            wait_s = max(1.0, backend.back_at(now, "") - now)
            raise UpstreamBusy(f"the small model is out; it is tried again in {wait_s:.0f} s", retry_after_s=wait_s)
        attempt = Attempt(backend, await backend.queue.acquire(call.tenant))
        try:
            await attempt.run(anonymous(call))
        except BaseException:
            await attempt.close()
            raise
        return attempt.outcome()

    def _problem(self) -> str:
        return self._embedded.health() if self._embedded is not None else ""


def anonymous(call: Call) -> Call:
    """Return the call without whatever might be a credential: few headers are known to be none, a query is dropped."""
    headers = tuple((name, value) for name, value in call.headers if name.lower() in _SENT)
    return replace(call, target=call.target.partition("?")[0], headers=headers, upstream_key=None)


def model_of(settings: Settings) -> str:
    """Return the name that the small model is asked for by, "" without one.

    Raises ConfigError where none is known, or it cannot be.
    """
    small = settings.small
    if not small.url:
        if small.model:
            raise ConfigError("small.url (--small-upstream): say where small.model is, or `local`")
        return ""
    if small.url != "local":
        if not small.model:
            raise ConfigError(
                "small.model (--small-model): name what small.url is to answer with, such as llama-3.2-1b"
            )
        return small.model
    if small.context_tokens > CONTEXT_TOKENS:
        raise ConfigError(f"small.context_tokens: the embedded model reads {CONTEXT_TOKENS} at most; lower it")
    return small.model or MODEL_ID


def form_of(small: Small) -> Literal["block", "turns"]:
    """Return how it is told examples: of the smallest models, it is known that they learn from turns only."""
    turns = small.url == "local" if small.form == "auto" else small.form == "turns"
    return "turns" if turns else "block"


def small_client(settings: Settings, socket_path: Path | None = None) -> HttpUpstream:
    """Return a client for `[small]`, not open yet. Raises ConfigError naming the key of what is wrong."""
    small = settings.small
    model_of(settings)
    if NAME in settings.upstreams:
        raise ConfigError(f"upstreams.{NAME}: that is what [small] is called; give the backend another name")
    config = msgspec.structs.replace(
        settings.upstream,
        url="http://local/v1" if small.url == "local" else small.url,
        api_key=small.api_key,
        first_byte_timeout_s=small.total_timeout_s,  # of a body the head comes last; streams have their own limit
        total_timeout_s=small.total_timeout_s,
        max_connections=small.max_concurrency,
    )
    # Keys with nothing of callers': neither their own headers nor the upstream key of a virtual one go with it.
    return HttpUpstream(config, socket_path=socket_path, section=NAME, keys=Keys(own=small.api_key))


@asynccontextmanager
async def open_small(
    settings: Settings,
    clock: Clock,
    *,
    embedded: LocalModel | None = None,
    observe: Callable[[float], object] = float,
) -> AsyncIterator[SmallUpstream]:
    """Open the way to the small model, which `embedded` is where `small.url` is `local`; close the way at the end.

    `observe` is told how long every head took, in seconds. Raises ConfigError.
    """
    limits = Limits(running=settings.small.max_concurrency, waiting=settings.small.queue, wait_s=QUEUE_S)
    async with small_client(settings, embedded.socket_path if embedded else None) as client:
        # Shared, since the large model stands in for it; a limit on its key is no single caller's affair.
        queue = FairQueue(limits, clock)
        backend = Backend(NAME, client, queue, clock, shared=True, per_caller=False, observe=observe)
        yield SmallUpstream(backend, clock, embedded)
