"""The Embedder: adaptive micro-batches over worker threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import structlog

from cacheproxy.background import step_back, usable_cores
from cacheproxy.embed.batch import Flaw, Job, choose, run
from cacheproxy.embed.memo import Memo
from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.model import Embedding

if TYPE_CHECKING:
    from cacheproxy import settings
    from cacheproxy.background import Cores
    from cacheproxy.embed.encoder import Encoder

_START_TIMEOUT_S = 10.0
_FAILING_AFTER = 3
_WEIGHT_OF_NEW = 0.2
_USUAL_S = 0.0002
"""What a token takes before anything is known of it."""
_ODD = 4
"""Times what is known that one batch may raise it to: a single stall says nothing of the next."""
_FAILING_FOR_S = 30.0
"""How long failures in a row count against health: then traffic is let in to try again."""

_REASONS = {
    Flaw.EXCEPTION: "the encoder failed",
    Flaw.SHAPE: "the encoder returned vectors of another shape or type",
    Flaw.NOT_FINITE: "the encoder returned a vector that is not finite",
    Flaw.NORM: "the encoder returned a vector that is not of unit norm",
    Flaw.DEADLINE: "no embedding within encoder.timeout_ms",
    Flaw.QUEUE_FULL: "the embedding queue is full",
    Flaw.STUCK: "every encoder worker is stuck",
    Flaw.CLOSED: "the embedder is not running",
}

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counts since the start, for metrics; only the event loop writes them.

    `texts` were encoded in `batches`; `memo_hits` and `shared` needed no encoding of their own; `left` were dropped
    from the queue because every waiter had gone. `failures` counts callers by flaw.
    """

    batches: int = 0
    texts: int = 0
    memo_hits: int = 0
    shared: int = 0
    left: int = 0
    failures: Counter[Flaw] = field(default_factory=Counter)


class MicroBatcher:
    """An Embedder over one encoder.

    A text never waits while a worker is idle, unless others have claimed the cores; while all are busy, texts queue up
    and the next free worker takes as many of similar length as pay. Equal texts in flight are encoded once, and recent
    embeddings are remembered, both only within one `scope`: across tenants the time saved would tell one what another
    has asked.

    Use it as `async with MicroBatcher(encoder, settings.encoder) as embedder`. All state belongs to the event loop;
    only `encoder.encode` runs in the worker threads. A call into a model cannot be interrupted: a worker that hangs
    shows in `health`, and once all hang, callers are refused at once instead of after the deadline.
    """

    def __init__(
        self, encoder: Encoder, config: settings.Encoder, *, memo: int = 4096, cores: Cores | None = None
    ) -> None:
        """Take threads, batch, queue and deadline from the settings; remember `memo` embeddings, 0 for none.

        With `cores`, a batch begins while one is left for it.
        """
        self.stats = Stats()
        self._encoder = encoder
        self._workers = config.threads or min(usable_cores(), 4)
        self._max_texts = min(config.max_batch, encoder.max_batch)
        self._queue = config.queue
        self._timeout_s = config.timeout_ms / 1000
        self._memo = Memo(memo)
        self._jobs: dict[bytes, Job] = {}
        self._pending: dict[bytes, Job] = {}
        self._runs: dict[Future[list[Embedding | Flaw]], list[Job]] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._failed_in_a_row = 0
        self._failed_at_s = 0.0
        self._token_s = _USUAL_S
        self._waiting = 0
        self._cores = cores
        if cores is not None:
            cores.when_fewer(self._dispatch)

    @property
    def epoch(self) -> str:
        """The encoder's fingerprint."""
        return self._encoder.fingerprint

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._encoder.dim

    @property
    def queued(self) -> int:
        """Texts waiting for a worker."""
        return len(self._pending)

    @property
    def waited_s(self) -> float:
        """How long the text that came first has been waiting for a worker; 0 while none waits."""
        return time.monotonic() - next(iter(self._pending.values())).queued_s if self._pending else 0.0

    @property
    def ahead_s(self) -> float:
        """How long those before a text that came now will take, as tokens took lately: what waits, half of what runs.

        0 while a worker is idle. Workers that hang are left out, and what they hang on.
        """
        runs = [jobs for jobs in self._runs.values() if not self._overdue(jobs[0])]
        workers = self._workers - len(self._runs) + len(runs)
        if not self._pending and len(runs) < workers and self._has_core():
            return 0.0
        running = sum(job.weight for jobs in runs for job in jobs)
        return (self._waiting + running / 2) / max(1, workers) * self._token_s

    @property
    def running(self) -> int:
        """Batches being encoded."""
        return len(self._runs)

    async def __aenter__(self) -> Self:
        """Start the worker threads, all of them now: a machine that has none to spare fails here, not under load."""
        executor = ThreadPoolExecutor(self._workers, thread_name_prefix="cacheproxy-embed", initializer=step_back)
        everybody = threading.Barrier(self._workers)
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(executor, everybody.wait, _START_TIMEOUT_S) for _ in range(self._workers))
        )
        self._executor = executor
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Refuse what waits in the queue, let running batches finish within the deadline, end the threads."""
        executor, self._executor = self._executor, None
        for job in list(self._pending.values()):
            self._settle(job, Flaw.CLOSED)
        self._pending.clear()
        self._waiting = 0
        if self._runs:
            await asyncio.wait(list(map(asyncio.wrap_future, self._runs)), timeout=self._timeout_s)
        if self._runs:
            _log.warning("encoder_abandoned", batches=len(self._runs))
        if executor is not None:
            executor.shutdown(wait=not self._runs)

    async def embed(self, text: str, *, scope: str = "") -> Embedding:
        """Embed one text of any length. Raises EmbedderUnavailable, see the Embedder port.

        Work is shared only between calls of the same `scope` (a tenant); "" is a scope like any other.
        """
        key = _key(text, scope)
        known = self._memo.get(key)
        if known is not None:
            self.stats.memo_hits += 1
            return known
        job = self._jobs.get(key)
        if job is None:
            job = self._enqueue(key, text)
        elif self._overdue(job):
            raise self._unavailable(Flaw.STUCK)
        else:
            self.stats.shared += 1
        return await self._wait(job)

    def drop(self, text: str, *, scope: str = "") -> None:
        """Forget the embedding of one text, if it is remembered."""
        self._memo.drop(_key(text, scope))

    def forget(self) -> int:
        """Remember no embedding of before, nor of what is being encoded right now; return how many were known."""
        for job in self._jobs.values():
            job.forgotten = True
        return self._memo.clear()

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong: not running, a worker stuck, recent batches all failed."""
        if self._executor is None:
            return _REASONS[Flaw.CLOSED]
        stuck = self._stuck()
        if stuck:
            return f"{stuck} of {self._workers} encoder workers stuck"
        if self._failed_in_a_row >= _FAILING_AFTER and time.monotonic() - self._failed_at_s < _FAILING_FOR_S:
            return f"the last {self._failed_in_a_row} batches failed"
        return ""

    def _enqueue(self, key: bytes, text: str) -> Job:
        if self._executor is None:
            raise self._unavailable(Flaw.CLOSED)
        if self._stuck() == self._workers:
            raise self._unavailable(Flaw.STUCK)
        if len(self._pending) >= self._queue:
            raise self._unavailable(Flaw.QUEUE_FULL)
        job = Job(key=key, text=text, weight=self._encoder.weigh(text), queued_s=time.monotonic())
        self._jobs[key] = self._pending[key] = job
        self._waiting += job.weight
        return job

    async def _wait(self, job: Job) -> Embedding:
        waiter: asyncio.Future[Embedding | Flaw] = asyncio.get_running_loop().create_future()
        job.waiters.append(waiter)
        self._dispatch()
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome = await waiter
        except TimeoutError as exc:
            raise self._unavailable(Flaw.DEADLINE) from exc
        finally:
            self._leave(job, waiter)
        if isinstance(outcome, Flaw):
            raise self._unavailable(outcome)
        return outcome

    def _leave(self, job: Job, waiter: asyncio.Future[Embedding | Flaw]) -> None:
        job.waiters.remove(waiter)
        if not job.waiters and self._pending.pop(job.key, None) is not None:
            del self._jobs[job.key]
            self._waiting -= job.weight
            self.stats.left += 1

    def _dispatch(self) -> None:
        while self._pending and self._executor is not None and len(self._runs) < self._workers and self._has_core():
            jobs = choose(self._pending, max_texts=self._max_texts, max_tokens=self._encoder.batch_tokens)
            for job in jobs:
                del self._pending[job.key]
                self._waiting -= job.weight
                job.started_s = time.monotonic()
            texts = [job.text for job in jobs]
            work = self._executor.submit(run, self._encoder, texts)
            self._runs[work] = jobs
            work.add_done_callback(partial(self._end, asyncio.get_running_loop()))

    def _has_core(self) -> bool:
        left = None if self._cores is None else self._cores.left
        return left is None or len(self._runs) - self._stuck() < left

    def _end(self, loop: asyncio.AbstractEventLoop, work: Future[list[Embedding | Flaw]]) -> None:
        """Hand a batch back to the loop: called in the worker thread. An asyncio future would take a turn more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._finish, work)

    def _finish(self, work: Future[list[Embedding | Flaw]]) -> None:
        jobs = self._runs.pop(work)
        outcomes = work.result()
        took_s = time.monotonic() - (jobs[0].started_s or 0.0)
        each_s = min(_ODD * self._token_s, took_s / max(1, sum(job.weight for job in jobs)))
        self._token_s += _WEIGHT_OF_NEW * (each_s - self._token_s)
        self.stats.batches += 1
        self.stats.texts += len(jobs)
        if any(isinstance(outcome, Flaw) for outcome in outcomes):
            self._failed_in_a_row += 1
            self._failed_at_s = time.monotonic()
        else:
            self._failed_in_a_row = 0
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Embedding) and not job.forgotten:
                self._memo.put(job.key, outcome)
            self._settle(job, outcome)
        # Those who waited go on first: they may claim the core.
        asyncio.get_running_loop().call_soon(self._dispatch)

    def _settle(self, job: Job, outcome: Embedding | Flaw) -> None:
        del self._jobs[job.key]
        for waiter in job.waiters:
            if not waiter.done():
                waiter.set_result(outcome)

    def _overdue(self, job: Job) -> bool:
        return job.started_s is not None and time.monotonic() - job.started_s > self._timeout_s

    def _stuck(self) -> int:
        return sum(self._overdue(jobs[0]) for jobs in self._runs.values())

    def _unavailable(self, flaw: Flaw) -> EmbedderUnavailable:
        self.stats.failures[flaw] += 1
        return EmbedderUnavailable(f"embedder: {_REASONS[flaw]}")


def _key(text: str, scope: str) -> bytes:
    return blake2b(f"{len(scope)}:{scope}{text}".encode("utf-8", "surrogatepass"), digest_size=20).digest()
