"""What keys used at all replicas together: counters in the engine, brought up to date about once a second.

Between two rounds each replica admits by what it knows. Over N replicas a key may so use, in the worst case, N times a
minute's worth at once, before all of them know; afterwards it waits until the average is what it should be. The tokens
of a day are passed by at most what all replicas admit within a round, and the answers in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import SharedUnavailable
from cacheproxy.shared.script import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.access.limits import Accounts
    from cacheproxy.ports import Clock
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

log = structlog.get_logger()

ROUND_S = 1.0
_WATCHED_S = 600.0
"""How long after its last use here a key's use elsewhere is asked for in every round."""
_ALL_S = 5.0
"""How often that of all keys is."""
_AT_ONCE = 200

# No counter falls below what a replica knows of it: what a crash of the engine lost comes back with the next round.
_USE = Script("""
local told = {}
local function count(key, field, known, more)
  local now = math.max(tonumber(redis.call('HGET', key, field) or '0'), tonumber(known)) + tonumber(more)
  if now > 0 then
    redis.call('HSET', key, field, string.format('%.0f', now))
  end
  told[#told + 1] = string.format('%.0f', now)
end
for at = 1, #ARGV, 7 do
  count(KEYS[1], ARGV[at] .. ':requests', ARGV[at + 1], ARGV[at + 2])
  count(KEYS[1], ARGV[at] .. ':tokens', ARGV[at + 3], ARGV[at + 4])
  count(KEYS[2], ARGV[at], ARGV[at + 5], ARGV[at + 6])
end
redis.call('EXPIRE', KEYS[2], 259200)
return told
""")


@dataclass(slots=True)
class _Known:
    """What all replicas used, as this one knows it; None before it was told."""

    requests: int | None = None
    tokens: int | None = None
    day: int = -1
    spent: int = 0
    used_s: float = 0.0


class SharedUsage:
    """Brings the accounts of one replica together with those of the others."""

    def __init__(self, link: Link, layout: Layout, accounts: Callable[[], Accounts], clock: Clock) -> None:
        self._link = link
        self._layout = layout
        self._accounts = accounts
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._away = False
        self._all_s = float("-inf")

    async def tend(self) -> None:
        """Do one round: say what was used here, and charge what was used elsewhere.

        Without the engine each replica counts by itself, and says it later.
        """
        try:
            await self._round()
        except SharedUnavailable as exc:
            if not self._away:
                log.warning("usage_not_shared", reason=exc.message)
            self._away = True
        else:
            self._away = False

    async def _round(self) -> None:
        accounts, now_s, wall_s = self._accounts(), self._clock.monotonic(), self._clock.now()
        ids, everybody = list[str](), now_s - self._all_s >= _ALL_S
        for key_id in accounts.ids():
            known = self._known.setdefault(key_id, _Known(used_s=-_WATCHED_S))
            if accounts.of(key_id).unsaid:
                known.used_s = now_s
            if everybody or now_s - known.used_s < _WATCHED_S:
                ids.append(key_id)
        for gone in self._known.keys() - set(accounts.ids()):
            del self._known[gone]
        for start in range(0, len(ids), _AT_ONCE):
            await self._say(ids[start : start + _AT_ONCE], wall_s)
        if everybody:
            self._all_s = now_s

    async def _say(self, ids: list[str], wall_s: float) -> None:
        accounts, day = self._accounts(), _day(wall_s)
        said = {key_id: accounts.of(key_id).say(wall_s) for key_id in ids}
        args: list[str | bytes | int] = []
        for key_id, use in said.items():
            known = self._known[key_id]
            spent = known.spent if known.day == day else max(0, use.spent - use.day_tokens)
            requests, tokens = known.requests or 0, known.tokens or 0
            args += [key_id, requests, use.requests, tokens, use.tokens, spent, use.day_tokens]
        keys = [self._layout.key("c", "used"), self._layout.key("c", "spent", str(day))]
        try:
            told: list[bytes] = await self._link.run(_USE, keys, args)
        except BaseException:
            for key_id, use in said.items():
                accounts.of(key_id).unsay(use, wall_s)
            raise
        now_s = self._clock.monotonic()
        for at, (key_id, use) in enumerate(said.items()):
            requests, tokens, spent = (int(one) for one in told[3 * at : 3 * at + 3])
            known = self._known[key_id]
            others_requests = 0 if known.requests is None else requests - known.requests - use.requests
            others_tokens = 0 if known.tokens is None else tokens - known.tokens - use.tokens
            known.requests, known.tokens, known.day, known.spent = requests, tokens, day, spent
            accounts.of(key_id).hear(others_requests, others_tokens, day, spent, now_s)


async def spent_today(link: Link, layout: Layout, wall_s: float) -> dict[str, int]:
    """Return the tokens of the day by key, of all replicas. Raises SharedUnavailable."""
    found: list[bytes] = await link.slow("HGETALL", layout.key("c", "spent", str(_day(wall_s))), timeout_s=5.0)
    return {name.decode(): int(tokens) for name, tokens in zip(found[::2], found[1::2], strict=True)}


def _day(wall_s: float) -> int:
    return int(wall_s // 86_400)
