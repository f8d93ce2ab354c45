"""The live verifier: a scorer on threads of its own, within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cacheproxy.background import step_back
from cacheproxy.errors import VerifierUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from cacheproxy.background import Cores
    from cacheproxy.model import Asking, Verification

_TOO_LATE = "the verifier took longer than its budget"


class Scorer(Protocol):
    """What scores in the calling thread; several threads may call at once."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        ...

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return a verification for each kept text, given with its cosine."""
        ...

    def forget(self) -> int:
        """Remember no text of before; return how many were known."""
        ...


class ThreadedVerifier:
    """Implements `ports.Verifier`. Used as an async context manager, which ends its threads.

    A scorer at work cannot be interrupted: a lookup whose waiter has gone counts until its thread is done with it, so
    that hanging threads show in `health` and the next lookups are refused at once.
    """

    def __init__(
        self,
        scorer: Scorer,
        epochs: Collection[str],
        *,
        threads: int,
        timeout_s: float,
        queue: int,
        cores: Cores | None = None,
    ) -> None:
        """Serve similarities of these encoder epochs; beyond `queue` lookups waiting, the next one fails at once.

        Of `cores` it claims one for each thread while somebody waits for it: not for what hangs and nobody awaits.
        """
        self.scorer = scorer
        self._epochs = frozenset(epochs)
        self._threads = threads
        self._timeout_s = timeout_s
        self._room = threads + queue
        self._cores = cores
        self._awaited = 0
        self._inside: set[Future[list[Verification]]] = set()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify", initializer=step_back)

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        return self.scorer.fingerprint

    def covers(self, epoch: str) -> bool:
        """Whether its probabilities hold for similarities of this encoder epoch."""
        return epoch in self._epochs

    async def verify(self, asked: Asking, kept: Sequence[tuple[Asking, float]]) -> list[Verification]:
        """Return a verification for each kept asking. Chains are not looked at. Raises VerifierUnavailable."""
        if len(self._inside) >= self._room:
            raise VerifierUnavailable("too many questions wait to be verified")
        pairs, loop = [(asking.text, similarity) for asking, similarity in kept], asyncio.get_running_loop()
        # Not a future wrapped around the work: leaving would cancel it, and then it would count no more though its
        # thread is busy with it.
        waiter: asyncio.Future[None] = loop.create_future()
        try:
            work = self._pool.submit(self._run, asked.text, pairs, waiter)
        except RuntimeError as exc:
            raise VerifierUnavailable("the verifier is closed") from exc
        self._inside.add(work)
        work.add_done_callback(partial(self._end, loop, waiter))
        deadline = loop.call_later(self._timeout_s, _wake, waiter)
        self._await(1)
        try:
            await waiter
        finally:
            deadline.cancel()
            self._await(-1)
        return _told(work)

    def forget(self) -> int:
        """Remember no text of before, nor of what is being verified right now; return how many were known."""
        return self.scorer.forget()

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        return "overloaded" if len(self._inside) >= self._room else ""

    def _await(self, more: int) -> None:
        self._awaited += more
        if self._cores is not None:
            self._cores.claim(min(self._awaited, self._threads))

    def _run(self, asked: str, kept: Sequence[tuple[str, float]], waiter: asyncio.Future[None]) -> list[Verification]:
        if waiter.done():  # whoever waited has gone, or is about to hear that it took too long
            raise VerifierUnavailable(_TOO_LATE)
        return self.scorer.verify(asked, kept)

    def _end(
        self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None], work: Future[list[Verification]]
    ) -> None:
        self._inside.discard(work)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_wake, waiter)

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; what is being verified is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _told(work: Future[list[Verification]]) -> list[Verification]:
    """Return the result of what was waited for. Raises VerifierUnavailable."""
    if not work.done():
        raise VerifierUnavailable(_TOO_LATE)
    if work.cancelled():
        raise VerifierUnavailable("the verifier is closed")
    try:
        return work.result()
    except VerifierUnavailable:
        raise
    except Exception as exc:  # whatever a model or a text does is a miss, never a failed answer
        raise VerifierUnavailable(f"the verifier failed ({type(exc).__name__})") from exc


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
