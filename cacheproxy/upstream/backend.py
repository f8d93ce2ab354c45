"""One backend of the pool: its client, its queue, its health, and one attempt at it."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from cacheproxy.errors import ConnectTimeout, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from cacheproxy.upstream.breaker import CONNECT, EJECTION, Breaker, CoolDown
from cacheproxy.upstream.recent import RecentTimes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from cacheproxy.ports import Answer, Call, Clock, Upstream
    from cacheproxy.upstream.queue import FairQueue, Permit

_LONGEST_COOL_DOWN_S = 60.0
_WEIGHT_OF_NEW = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How one backend is, for metrics and operators.

    `state` is `ok`, `cooling` (it answered 429), `ejected` or `unreachable` (no attempts for now).
    """

    name: str
    state: str
    running: int
    waiting: int
    limit: int
    """How many may run at once."""
    shed: int
    ejections: int
    retries: int
    first_byte_ms: float
    p95_ms: float
    """Within it 19 in 20 recent answers began; 0 when there were too few."""


class Backend:
    """One backend. `shared` says that others may stand in for it: only then its failures take it out of the choice.

    `per_caller` says that it is sent callers' own keys, so that a 429 is the affair of one tenant. `observe` is told
    how long every head took to come, in seconds.
    """

    def __init__(
        self,
        name: str,
        client: Upstream,
        queue: FairQueue,
        clock: Clock,
        *,
        shared: bool = False,
        per_caller: bool = True,
        observe: Callable[[float], object] = float,
    ) -> None:
        self.name = name
        self.queue = queue
        self.client = client
        self.retries = 0
        self.connect = Breaker(CONNECT)
        self.ejection = Breaker(EJECTION)
        self._cool = CoolDown()
        self._clock = clock
        self._shared = shared
        self._per_caller = per_caller
        self._observe = observe
        self._first_byte_s = 0.0
        self._recent = RecentTimes()

    def out(self, now: float, tenant: str) -> bool:
        """Whether another one should be asked instead."""
        return self.connect.out(now) or self.ejection.out(now) or now < self._cool.back_at(self._whose(tenant))

    def back_at(self, now: float, tenant: str) -> float:
        """Return when that ends."""
        waits = [breaker.back_at for breaker in (self.connect, self.ejection) if breaker.out(now)]
        return max([*waits, self._cool.back_at(self._whose(tenant))])

    def state(self, now: float) -> State:
        """Return how it is."""
        state = "ok"
        if now < self._cool.back_at(self._whose("")):
            state = "cooling"
        if self.ejection.out(now):
            state = "ejected"
        if self.connect.out(now):
            state = "unreachable"
        return State(
            name=self.name,
            state=state,
            running=self.queue.running,
            waiting=self.queue.waiting,
            limit=self.queue.limit,
            shed=self.queue.shed,
            ejections=self.ejection.opened,
            retries=self.retries,
            first_byte_ms=self._first_byte_s * 1000,
            p95_ms=self._recent.p95_s(now) * 1000,
        )

    async def send(self, call: Call) -> Answer:
        """Send, and learn from what comes of it. Raises as `ports.Upstream`."""
        started = self._clock.monotonic()
        tickets = self.connect.begin(), self.ejection.begin()
        connected: bool | None = None
        well: bool | None = None
        try:
            answer = await self.client.send(call)
            connected, well = True, answer.status < 500
        except UpstreamError as exc:
            connected = not isinstance(exc, ConnectTimeout)
            # What breaks while a caller's body streams may be the caller's doing.
            blamed = isinstance(call.body, bytes) or isinstance(exc, UpstreamUnreachable)
            well = False if blamed else None
            if isinstance(exc, UpstreamTimeout):
                self._recent.add(self._clock.monotonic() - started, self._clock.monotonic())
            raise
        finally:
            now = self._clock.monotonic()
            self.connect.end(tickets[0], connected, now)
            self.ejection.end(tickets[1], well if self._shared else None, now)
        self._learn(call, answer, now, now - started)
        return answer

    def _learn(self, call: Call, answer: Answer, now: float, took_s: float) -> None:
        self._observe(took_s)
        self._recent.add(took_s, now)
        self._first_byte_s += _WEIGHT_OF_NEW * (took_s - self._first_byte_s) if self._first_byte_s else took_s
        wait_s = retry_after_s(answer.headers, self._clock.now()) if answer.status == 429 else None
        if wait_s:
            self._cool.start(self._whose(call.tenant), now + min(wait_s, _LONGEST_COOL_DOWN_S))

    def _whose(self, tenant: str) -> str:
        return tenant if self._per_caller else ""


class Attempt:
    """One attempt at one backend, which holds its permit. Once it has an answer, it is that answer (`ports.Answer`)."""

    def __init__(self, backend: Backend, permit: Permit) -> None:
        self.backend = backend
        self.error: UpstreamError | None = None
        self._answer: Answer | None = None
        self._permit = permit

    async def run(self, call: Call) -> None:
        """Send; afterwards there is an answer or an `error`. May be run again once the answer was dropped."""
        self.error = None
        try:
            answer = await self.backend.send(call)
            self._answer = await answer.__aenter__()
        except UpstreamError as exc:
            self.error = exc

    def outcome(self) -> Attempt:
        """Return this as an answer, or raise its error, giving the permit back."""
        if self.error is not None:
            self._permit.release()
            raise self.error
        return self

    async def close(self) -> None:
        """Let go of answer and permit."""
        try:
            await self.drop()
        finally:
            self._permit.release()

    async def drop(self) -> None:
        """Let go of the answer; the permit is kept."""
        answer, self._answer = self._answer, None
        if answer is not None:
            await answer.__aexit__(None, None, None)

    @property
    def answer(self) -> Answer:
        """The answer itself."""
        if self._answer is None:
            raise RuntimeError("the attempt has no answer")
        return self._answer

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.answer.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """End-to-end headers."""
        return self.answer.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        return self.answer.chunks()

    async def __aenter__(self) -> Attempt:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def retry_after_s(headers: Iterable[tuple[str, str]], now: float) -> float | None:
    """Return for how long an answer asks to be left alone: `retry-after-ms`, else `retry-after`; None when it does not.

    `now` is the wall clock, for the form that is a date (RFC 9110 section 10.2.3).
    """
    found = {name.lower(): value.strip() for name, value in headers}
    if (told := found.get("retry-after-ms", "")).isascii() and told.isdigit():
        return int(told[:12]) / 1000
    told = found.get("retry-after", "")
    if told.isascii() and told.isdigit():
        return float(told[:9])
    try:
        return max(0.0, parsedate_to_datetime(told[:64]).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
