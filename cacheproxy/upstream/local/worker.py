"""The one thread that generates, and the short queue in front of it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import CacheProxyError, UpstreamBusy
from cacheproxy.upstream.local.generate import generate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Future

    from cacheproxy.upstream.local.generate import Event, LanguageModel
    from cacheproxy.upstream.local.request import Ask

log = structlog.get_logger()


class Generation:
    """One request's place in the queue and its answer as it comes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Bounded by the answer: one item a token at most.
        self._events: asyncio.Queue[Event | CacheProxyError | None] = asyncio.Queue()
        self._cancelled = threading.Event()
        self.future: Future[None] | None = None

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Give up the place: at once when waiting, after the current token when being answered. Idempotent."""
        self._cancelled.set()
        if self.future is not None and self.future.cancel():
            self.post(None)  # it never began, so the worker will not say that it ended

    def post(self, event: Event | CacheProxyError | None) -> None:
        """Hand on an event from the worker's thread; None is the last."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the pieces and the Finish. Raises what the worker raised. To be read once."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, CacheProxyError):
                raise event
            yield event


class Worker:
    """Answers requests one after the other, in the order they came."""

    def __init__(self, model: LanguageModel, *, queue: int) -> None:
        self._model = model
        self._queue = queue
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._places: set[Generation] = set()

    @property
    def places(self) -> int:
        """Requests that are being answered or wait."""
        return len(self._places)

    def submit(self, ask: Ask) -> Generation:
        """Take a place for a request; `cancel` it when nobody reads any more. Raises UpstreamBusy when full."""
        if self.places > self._queue:
            raise UpstreamBusy(f"the embedded model answers one request at a time and {self._queue} wait already")
        generation = Generation()
        self._places.add(generation)
        loop = asyncio.get_running_loop()
        generation.future = self._executor.submit(self._answer, ask, generation)
        generation.future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._places.discard, generation))
        return generation

    def close(self) -> None:
        """Cancel everything and end the thread."""
        for generation in list(self._places):
            generation.cancel()
        self._executor.shutdown(wait=True)

    def _answer(self, ask: Ask, generation: Generation) -> None:
        try:
            for event in generate(self._model, ask, generation.cancelled):
                generation.post(event)
        except CacheProxyError as exc:
            generation.post(exc)
        except Exception:  # the thread must survive for the next request
            log.exception("local_model_failed")
            generation.post(CacheProxyError("the embedded model failed; its log has the cause"))
        finally:
            generation.post(None)
