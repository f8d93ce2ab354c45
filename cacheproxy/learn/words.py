"""Words that replicas share: the last one on each pair of an entry and a question, for all of them, without any text.

Last by time: of two words at the same instant the bad one holds. No tenant can push out another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cacheproxy.shared.script import Script
from cacheproxy.shared.topics import APPEND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from cacheproxy.learn.ledger import Pair
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

TOPIC = "words"
MOST_OF_A_TENANT = 20_000
_AT_ONCE = 500
_READ_TIMEOUT_S = 5.0

_SAY = Script(
    APPEND
    + """
local at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if at and (tonumber(at) > tonumber(ARGV[2]) or (tonumber(at) == tonumber(ARGV[2]) and ARGV[3] == '1')) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[5])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], over)
  for at = 1, #oldest, 2 do
    redis.call('HDEL', KEYS[1], oldest[at])
  end
end
tell(KEYS[4], ARGV[7], 'words', ARGV[4])
return 1
"""
)
_UNSAY = Script("""
for at = 2, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[at])
  redis.call('ZREM', KEYS[2], ARGV[at])
end
if redis.call('HLEN', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[3], ARGV[1])
end
return 0
""")


class SharedWord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a replica tells others of a verdict. New fields go at the end: others may be older, or newer."""

    at_s: float
    tenant: str
    entry_id: str
    question: bytes
    good: bool
    category: str = ""
    user: str = ""

    @property
    def pair(self) -> Pair:
        """What it is about."""
        return self.tenant, self.entry_id, self.question


def read_word(raw: bytes) -> SharedWord | None:
    """Return a word as it was told; None for what cannot be one."""
    try:
        return msgspec.msgpack.decode(raw, type=SharedWord)
    except msgspec.MsgspecError:
        return None


class Words:
    """The words that the engine keeps."""

    def __init__(
        self, link: Link, layout: Layout, *, log_messages: int, most_of_a_tenant: int = MOST_OF_A_TENANT
    ) -> None:
        self._link = link
        self._layout = layout
        self._log = layout.stream("c")
        self._log_messages = log_messages
        self._most_of_a_tenant = most_of_a_tenant
        self._tenants = layout.key("c", "words", "tenants")

    async def say(self, word: SharedWord) -> None:
        """Keep a word unless a later one is there, and tell all replicas. Raises SharedUnavailable."""
        words, ages = self._keys(word.tenant)
        args: list[bytes | str | int] = [
            _field(word.pair),
            repr(word.at_s),
            "1" if word.good else "0",
            msgspec.msgpack.encode(word),
            word.tenant,
            self._most_of_a_tenant,
            self._log_messages,
        ]
        await self._link.run(_SAY, [words, ages, self._tenants, self._log], args)

    async def unsay(self, pairs: Iterable[Pair]) -> None:
        """Forget words for good. Raises SharedUnavailable."""
        of: dict[str, list[bytes]] = {}
        for pair in pairs:
            of.setdefault(pair[0], []).append(_field(pair))
        for tenant, fields in of.items():
            keys = [*self._keys(tenant), self._tenants]
            for start in range(0, len(fields), _AT_ONCE):
                await self._link.run(_UNSAY, keys, [tenant, *fields[start : start + _AT_ONCE]])

    async def all(self) -> AsyncIterator[SharedWord]:
        """Yield every word. Raises SharedUnavailable."""
        for raw in await self._link.slow("SMEMBERS", self._tenants, timeout_s=_READ_TIMEOUT_S):
            words, _ = self._keys(raw.decode("utf-8", "replace"))
            cursor = b"0"
            while True:
                cursor, found = await self._link.slow(
                    "HSCAN", words, cursor, "COUNT", _AT_ONCE, timeout_s=_READ_TIMEOUT_S
                )
                values = found[1::2] if isinstance(found, list) else list(found.values())
                for value in values:
                    if (word := read_word(value)) is not None:
                        yield word
                if int(cursor) == 0:
                    break

    def _keys(self, tenant: str) -> tuple[str, str]:
        return self._layout.key("c", "words", "of", tenant), self._layout.key("c", "words", "at", tenant)


def _field(pair: Pair) -> bytes:
    _, entry_id, question = pair
    return question + entry_id.encode()
