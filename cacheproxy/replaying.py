"""Replaying: while it is quiet, the large model answers weak examples' questions again; the better answer is kept.

Which are worth it, and when it stops, is pure (augment/worth.py). It costs the operator's own money, never a caller's:
nobody asked for it. No word on which answer is better keeps the old one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.worth import replay_order
from cacheproxy.errors import CacheProxyError
from cacheproxy.improving import GONE, Asked, Improving
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.model import entry_id
from cacheproxy.query.scope import ACCOUNTS, CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cacheproxy.improving import Means
    from cacheproxy.journey import Journey
    from cacheproxy.model import Selector
    from cacheproxy.ports import Call
    from cacheproxy.rewarding import Came

QUIET = 0.3
"""Load of the large model below which something may be asked again."""
_WATCH_S = 0.25
"""How often it is looked whether that still holds."""
_COST = 1.0
"""Of a replay, relative to one answer of the large model: it is one."""
_MOST_ASKED = 256
_REMEMBERED_S = 3600.0
_PAUSE_S = 300.0
"""Before one is tried again that came to nothing."""
_MOST_BODY_BYTES = 64 * 1024
_MOST_ANSWER_BYTES = 256 * 1024
_DROPPED = frozenset(
    (
        *(name.decode() for name in (*CREDENTIALS, *ACCOUNTS)),
        *("cookie", "idempotency-key", "x-request-id", "traceparent", "tracestate", "baggage"),
    )
)
"""Headers that are a caller's credentials, or of the one request that came with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How busy the backends of a model are: their load on average, and their requests now."""

    load: float
    running: int
    waiting: int
    limit: int

    def quiet(self, own: int = 0) -> bool:
        """Whether there is little to do, and nobody waits; of those that run, so many are ours."""
        running = max(0, self.running - own)
        return self.waiting == 0 and running < QUIET * max(1, self.limit)


class Replaying:
    """Remembers what was asked lately, an hour at most, and asks it again. Call `tend` every few seconds.

    `own_key` says whether a model is asked with a key of the operator's own, or needs none; every `watch_s`, while one
    is asked, it is looked whether it is quiet still.
    """

    def __init__(
        self,
        means: Means,
        traffic: Callable[[str], Traffic],
        own_key: Callable[[str], bool],
        watch_s: float = _WATCH_S,
    ) -> None:
        self._means = means
        self._improving = Improving(means)
        self._traffic = traffic
        self._own_key = own_key
        self._watch_s = watch_s
        self._asked: OrderedDict[str, Asked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def answered(self, came: Came) -> None:
        """Remember how the large model was asked for an answer that may become an example."""
        if not self._may_ask_again(came):
            return
        query = replace(came.journey.query, headers=())
        journey = replace(came.journey, query=query, body=None, embedding=None, placed=None, looked=None, missed=None)
        asked = Asked(journey=journey, call=_own(came.call), dialect=came.dialect, at_s=self._now())
        self._asked[came.entry_id] = asked
        self._asked.move_to_end(came.entry_id)
        if len(self._asked) > _MOST_ASKED:
            unknown = (known for known in self._asked if self._means.state.standing(known) is None)
            del self._asked[next(unknown, next(iter(self._asked)))]

    async def tend(self) -> None:
        """Ask one question again, where that pays, it is quiet, and the category's learning has something left."""
        for old in [known for known, one in self._asked.items() if self._now() - one.at_s > _REMEMBERED_S]:
            del self._asked[old]
        asked_id = self._due()
        if asked_id:
            came = await self._undisturbed(asked_id, self._asked[asked_id])
            self._means.parts.telemetry.replays.labels(came).inc()

    def forget(self, selector: Selector, erased: Collection[str]) -> int:
        """Forget the questions that an erasure means; return how many. One that is being asked is kept by no store."""
        ids = frozenset(erased)
        gone = [known for known, one in self._asked.items() if meant(selector, ids, _trace(known, one))]
        self.gone(gone)
        return len(gone)

    def gone(self, entry_ids: Collection[str]) -> None:
        """Forget the questions of entries that are gone."""
        for known in entry_ids:
            self._asked.pop(known, None)

    # What may be asked again, and when

    def _may_ask_again(self, came: Came) -> bool:
        query, plan, call = came.journey.query, came.journey.plan, came.call
        return (
            came.arm is Arm.LARGE
            and came.entry_id == entry_id(query.fingerprint)
            and plan.augment is not None
            and plan.augment.judge_rate > 0
            and plan.embed
            and not query.chain
            and isinstance(call.body, bytes)
            and len(call.body) <= _MOST_BODY_BYTES
            and call.upstream_key is None
            and all(self._own_key(model) for model in self._means.models(came.journey))
        )

    def _due(self) -> str:
        state, now_s = self._means.state, self._now()
        known = (state.standing(one) for one, asked in self._asked.items() if asked.not_before_s <= now_s)
        able = [one for one in known if one is not None and not one.pinned]
        for standing in replay_order(able, _COST, len(able), now_s):
            asked = self._asked[standing.entry_id]
            if (
                self._means.policy() is not asked.journey.policy
            ):  # by which it may be of another category, or not be kept
                del self._asked[standing.entry_id]
            elif self._quiet(asked.journey, begun=False) and self._means.take(asked.journey):
                asked.not_before_s = now_s + _PAUSE_S
                return standing.entry_id
        return ""

    def _quiet(self, journey: Journey, *, begun: bool) -> bool:
        found = [self._traffic(model) for model in dict.fromkeys(self._means.models(journey))]
        if begun:  # what is averaged would tell of ourselves
            return all(one.quiet(own=1) for one in found)
        return all(one.quiet() and one.load < QUIET for one in found)

    async def _undisturbed(self, asked_id: str, asked: Asked) -> str:
        """Ask it again, and stop at once when there is something else to do; return what came of it."""
        watch: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            try:
                async with asyncio.timeout(self._means.config.timeout_s) as limit:
                    watch = group.create_task(self._watch(asked.journey, limit))
                    return await self._improved(asked_id, asked)
            except TimeoutError:
                return "yielded" if watch is not None and watch.done() else "timeout"
            except CacheProxyError:
                return "failed"
            finally:
                if watch is not None:
                    watch.cancel()

    async def _watch(self, journey: Journey, limit: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(self._watch_s)
            if not self._quiet(journey, begun=True):
                limit.reschedule(asyncio.get_running_loop().time())
                return

    async def _improved(self, asked_id: str, asked: Asked) -> str:
        came = await self._improving.improve(asked_id, asked, lambda: self._asked.get(asked_id) is asked)
        if came == GONE:
            self._asked.pop(asked_id, None)
        return came

    def _now(self) -> float:
        return self._means.parts.clock.now()


def _own(call: Call) -> Call:
    """Return the call without anything of who made it, asked once, on nobody's account."""
    headers = tuple((name, value) for name, value in call.headers if name.lower() not in _DROPPED)
    return replace(
        call,
        headers=headers,
        max_answer_bytes=_MOST_ANSWER_BYTES,
        tenant="",
        repeatable=False,
        elsewhere=False,
        charge=None,
    )


def _trace(asked_id: str, one: Asked) -> Trace:
    query = one.journey.query
    return Trace(one.at_s, query.scope.tenant, asked_id, query.fingerprint, one.journey.plan.category, query.user)
