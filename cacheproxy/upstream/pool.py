"""The pool: every backend behind one `Upstream`. It chooses one, waits for its permit, and may ask a second time.

An answer is never made of two: the second attempt comes before the first byte, or not at all.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from cacheproxy.errors import UpstreamBusy, UpstreamClosed, UpstreamUnreachable
from cacheproxy.upstream.backend import Attempt, retry_after_s
from cacheproxy.upstream.models import lists_models, merge
from cacheproxy.upstream.rename import asked_model, renamed
from cacheproxy.upstream.route import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cacheproxy.model import Destination
    from cacheproxy.ports import Answer, Call, Clock
    from cacheproxy.upstream.backend import Backend, State
    from cacheproxy.upstream.budget import RetryBudget
    from cacheproxy.upstream.route import Routes

_MAY_PASS = frozenset({500, 502, 503, 504, 529})
_SAFE = frozenset({"GET", "HEAD"})


def _jitter_s() -> float:
    return random.uniform(0.02, 0.1)


class UpstreamPool:
    """Backends by name, chosen by the model that a call is for.

    Among several: by weight, in smooth turns, passing over those that are out or have no room. When all are out, the
    one closest to its return is asked anyway: the proxy is never less available than its backends.
    """

    def __init__(
        self,
        routes: Routes,
        backends: Mapping[str, Backend],
        clock: Clock,
        budget: RetryBudget,
        pause_s: Callable[[], float] = _jitter_s,
    ) -> None:
        self._routes = routes
        self._backends = backends
        self._clock = clock
        self._pause_s = pause_s
        self._budget = budget
        self._turns: dict[tuple[str, ...], dict[str, int]] = {}

    def resolve(self, model: str) -> Destination:
        """Return where requests for a model go; what is kept is kept for this route only."""
        return self._routes.resolve(model)

    def routes(self, model: str) -> tuple[str, ...]:
        """Return the names of all that may ever be asked for a model."""
        return tuple(self._routes.candidates(model))

    def backends(self, model: str) -> tuple[str, ...]:
        """Return the names of those that may be asked for a model now: all of them when all are out."""
        names = self._routes.candidates(model)
        if len(names) == 1:
            return names
        now = self._clock.monotonic()
        return tuple(name for name in names if not self._backends[name].out(now, "")) or names

    def full(self, model: str, tenant: str) -> bool:
        """Whether all that may be asked for a model would turn a tenant away now."""
        return all(self._backends[name].queue.full(tenant) for name in self.backends(model))

    def expect(self, model: str, tenant: str) -> Callable[[bool], None]:
        """Keep a place for a tenant's request whose lookup may end as a miss (`FairQueue.expect`).

        Of several backends it is kept at the one that has most to spare; which one is asked, the miss will see.
        """
        queues = [self._backends[name].queue for name in self.backends(model)]
        return min(queues, key=lambda queue: (queue.full(tenant), queue.load)).expect(tenant)

    def states(self) -> list[State]:
        """Return how every backend is."""
        now = self._clock.monotonic()
        return [backend.state(now) for backend in self._backends.values()]

    async def send(self, call: Call) -> Answer:
        """Send to the backend of the call's model, as `ports.Upstream` promises."""
        self._budget.earn()
        if self._routes.trivial:
            return await self._send(call, (DEFAULT,))
        if lists_models(call):
            return await merge(call, self._send, self._routes)
        model = call.model or asked_model(call)
        route = self._routes.resolve(model)
        if route.model != model:
            call = renamed(call, model, route.model)
        return await self._send(call, self._routes.candidates(route.model))

    async def _send(self, call: Call, names: Sequence[str]) -> Answer:
        candidates = [self._backends[name] for name in names]
        backend = self._choose(candidates, call.tenant)
        attempt = Attempt(backend, await backend.queue.acquire(call.tenant))
        try:
            await attempt.run(call)
            if _worth_another(attempt, call):
                attempt = await self._again(attempt, call, [one for one in candidates if one is not backend])
        except BaseException:
            await attempt.close()
            raise
        return attempt.outcome()

    # Choosing

    def _choose(self, candidates: Sequence[Backend], tenant: str) -> Backend:
        now = self._clock.monotonic()
        if len(candidates) == 1:
            # Nobody else to ask: its errors are its callers' to see, and only the time that trying costs is spared.
            candidates = [one for one in candidates if not one.connect.out(now)] or self._refuse(candidates, now)
            return candidates[0]
        up = [one for one in candidates if not one.out(now, tenant)]
        if up:
            return self._turn(up, candidates)
        tryable = [one for one in candidates if not one.connect.out(now)] or self._refuse(candidates, now)
        return min(tryable, key=lambda one: one.back_at(now, tenant))

    def _turn(self, up: Sequence[Backend], candidates: Sequence[Backend]) -> Backend:
        """Choose by weight: smooth weighted round robin, as nginx does it.

        Not by a hash of the tenant: shares hold for any number of tenants, one included; what it costs is that a
        backend's own prompt cache sees only its share of a conversation.
        """
        turns = self._turns.setdefault(tuple(one.name for one in candidates), dict.fromkeys(self._backends, 0))
        weighted = {one.name: self._routes.weights[one.name] for one in up}
        up = [one for one in up if weighted[one.name]] or up
        free = [one for one in up if one.queue.free] or up
        for one in free:
            turns[one.name] += weighted[one.name] or 1
        chosen = max(free, key=lambda one: turns[one.name])
        turns[chosen.name] -= sum(weighted[one.name] or 1 for one in free)
        return chosen

    def _refuse(self, candidates: Sequence[Backend], now: float) -> list[Backend]:
        wait_s = max(1.0, min(one.connect.back_at for one in candidates) - now)
        raise UpstreamBusy(
            f"the backend takes no connections; it is tried again in {wait_s:.0f} s", retry_after_s=wait_s
        )

    # A second attempt

    async def _again(self, first: Attempt, call: Call, others: Sequence[Backend]) -> Attempt:
        """Return the attempt that counts: another one, where that may be and went better, or the first."""
        unreachable = isinstance(first.error, UpstreamUnreachable)
        second = await self._elsewhere(others, call, free_of_charge=unreachable)
        if second is not None:
            try:
                await second.run(call)
            except BaseException:
                await second.close()
                raise
            worse = second.error is not None or second.status in _MAY_PASS or second.status == 429
            kept, left = (first, second) if worse and first.error is None else (second, first)
            await left.close()
            return kept
        status = None if first.error else first.status
        asked_to_wait = first.error is None and retry_after_s(first.headers, self._clock.now()) is not None
        # What passes through is not asked twice of one backend: its error is its answer.
        again = call.repeatable or first.error is not None
        if again and not unreachable and status != 429 and not asked_to_wait and self._budget.spend():
            first.backend.retries += 1
            if status is not None:
                await first.drop()
                await asyncio.sleep(self._pause_s())
            await first.run(call)
        return first

    async def _elsewhere(self, others: Sequence[Backend], call: Call, *, free_of_charge: bool) -> Attempt | None:
        """Return an attempt at another backend, not run yet; None when there is none, or no retry to spend.

        After a connection that never was, nothing was sent: asking elsewhere repeats nothing, so it costs nothing from
        the budget, and may wait for a permit.
        """
        now = self._clock.monotonic()
        up = [one for one in others if not one.out(now, call.tenant)]
        if free_of_charge:
            up = up or [one for one in others if not one.connect.out(now)]
            if not up:
                return None
            backend = self._turn(up, others)
            permit = await backend.queue.acquire(call.tenant)
        else:
            up = [one for one in up if one.queue.free]
            if not up or not self._budget.has():
                return None
            backend = self._turn(up, others)
            free = backend.queue.try_acquire()
            if free is None:
                return None
            permit = free
            self._budget.spend()
        backend.retries += 1
        return Attempt(backend, permit)


def _worth_another(attempt: Attempt, call: Call) -> bool:
    """Whether another try might go better and could do no harm."""
    if not isinstance(call.body, bytes):
        return False
    if isinstance(attempt.error, UpstreamUnreachable):
        return True
    if not (call.repeatable or call.elsewhere or call.method in _SAFE):
        return False
    if attempt.error is not None:
        return isinstance(attempt.error, UpstreamClosed)
    return attempt.status in _MAY_PASS or attempt.status == 429
