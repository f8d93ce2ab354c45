"""How often a key may ask and how many tokens it may spend; time is given by the caller.

Requests and tokens a minute are token buckets: a key that was idle may use one minute's worth at once, and in any
span of t seconds uses at most (1 + t/60) minutes' worth. Tokens are charged once an answer has ended, so a bucket may
fall below zero by the answers in flight; nothing new starts before it is above zero again. The day is UTC's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cacheproxy.access.keyring import KeyRecord

_MINUTE_S = 60.0
_DAY_S = 86_400


class Bucket:
    """Up to `limit` units, refilled at `limit` a minute."""

    __slots__ = ("_at_s", "_level", "limit")

    def __init__(self, limit: int, now_s: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Return the units that may be used now; below zero after a charge that came late."""
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._level = min(float(self.limit), self._level + passed_s * self.limit / _MINUTE_S)
        return self._level

    def charge(self, units: float, now_s: float) -> None:
        """Use units, present or not."""
        self._level = self.level(now_s) - units

    def wait_s(self, wanted: float, now_s: float) -> float:
        """Return how long until `wanted` units (at most `limit`) are there."""
        return max(0.0, (wanted - self.level(now_s)) * _MINUTE_S / self.limit)

    def resize(self, limit: int, now_s: float) -> None:
        """Go on under another limit; what was used stays used."""
        self._level = self.level(now_s) + limit - self.limit
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one limit stands: `reset_s` is how long until all of it is free again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Use:
    """What a key used since it was last asked for; `spent` is the day's tokens, `day_tokens` what of them is new."""

    requests: int
    tokens: int
    day_tokens: int
    spent: int


class Account:
    """The use of one key, counted under the limits it has now."""

    __slots__ = ("_day", "_new_of_day", "_new_requests", "_new_tokens", "_record", "_requests", "_tokens", "spent")

    def __init__(self, record: KeyRecord, now_s: float) -> None:
        self._record = record
        self._requests = _bucket(record.requests_per_minute, None, now_s)
        self._tokens = _bucket(record.tokens_per_minute, None, now_s)
        self._day = -1
        self._new_requests = self._new_tokens = self._new_of_day = 0
        self.spent = 0
        """Tokens of the day."""

    def adopt(self, record: KeyRecord, now_s: float) -> None:
        """Go on under the limits of a changed record."""
        self._record = record
        self._requests = _bucket(record.requests_per_minute, self._requests, now_s)
        self._tokens = _bucket(record.tokens_per_minute, self._tokens, now_s)

    @property
    def metered(self) -> bool:
        """Whether tokens must be counted."""
        return self._tokens is not None or self._record.tokens_per_day is not None

    def restore(self, day: int, spent: int) -> None:
        """Take up the tokens of a day that was counted before a restart."""
        self._day, self.spent = day, spent

    def count_request(self, now_s: float) -> None:
        """Use one request. Raises RateLimited, using nothing."""
        bucket = self._requests
        if bucket is None:
            return
        if bucket.level(now_s) < 1:
            raise RateLimited(
                f"this API key may send {bucket.limit} requests a minute; wait as retry-after says",
                kind="requests",
                retry_after_s=bucket.wait_s(1, now_s),
            )
        bucket.charge(1, now_s)
        self._new_requests += 1

    def check_tokens(self, now_s: float, wall_s: float) -> None:
        """Raise RateLimited when the tokens of the minute or of the day are spent."""
        bucket = self._tokens
        if bucket is not None and bucket.level(now_s) <= 0:
            raise RateLimited(
                f"this API key may spend {bucket.limit} tokens a minute; wait as retry-after says",
                kind="tokens",
                retry_after_s=bucket.wait_s(min(1, bucket.limit), now_s),
            )
        day = self.day(wall_s)
        if day is not None and day.remaining == 0:
            raise RateLimited(
                f"this API key may spend {day.limit} tokens a day, and this day's (UTC) are spent",
                kind="tokens",
                retry_after_s=day.reset_s,
            )

    def charge_tokens(self, tokens: int, now_s: float, wall_s: float) -> None:
        """Use the tokens of an answer."""
        if self._tokens is not None:
            self._tokens.charge(tokens, now_s)
        self._roll(wall_s)
        self.spent += tokens
        self._new_tokens += tokens
        self._new_of_day += tokens

    # Where replicas share what a key may use

    @property
    def unsaid(self) -> bool:
        """Whether anything was used since `say`."""
        return bool(self._new_requests or self._new_tokens)

    def say(self, wall_s: float) -> Use:
        """Return what was used since the last time, for other replicas to hear."""
        self._roll(wall_s)
        use = Use(self._new_requests, self._new_tokens, self._new_of_day, self.spent)
        self._new_requests = self._new_tokens = self._new_of_day = 0
        return use

    def unsay(self, use: Use, wall_s: float) -> None:
        """Keep what could not be said for the next time."""
        self._roll(wall_s)
        self._new_requests += use.requests
        self._new_tokens += use.tokens
        self._new_of_day += min(use.day_tokens, self.spent)

    def hear(self, requests: int, tokens: int, day: int, spent: int, now_s: float) -> None:
        """Charge what was used elsewhere; `spent` are all tokens of the day, but for what is not said yet."""
        if self._requests is not None:
            self._requests.charge(max(0, requests), now_s)
        if self._tokens is not None:
            self._tokens.charge(max(0, tokens), now_s)
        if day == self._day:
            self.spent = max(self.spent, spent + self._new_of_day)

    def requests(self, now_s: float) -> Standing | None:
        """Return where requests stand; None without a limit."""
        return _standing(self._requests, now_s)

    def tokens(self, now_s: float) -> Standing | None:
        """Return where tokens a minute stand; None without a limit."""
        return _standing(self._tokens, now_s)

    def day(self, wall_s: float) -> Standing | None:
        """Return where tokens a day stand; None without a limit."""
        limit = self._record.tokens_per_day
        if limit is None:
            return None
        self._roll(wall_s)
        reset_s = (self._day + 1) * _DAY_S - wall_s
        return Standing(limit=limit, remaining=max(0, limit - self.spent), reset_s=reset_s if self.spent else 0.0)

    def _roll(self, wall_s: float) -> None:
        if (today := day_of(wall_s)) != self._day:
            self._day, self.spent, self._new_of_day = today, 0, 0


class Accounts:
    """The accounts of all keys, one each: bounded by the ring."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def adopt(self, records: Iterable[KeyRecord], now_s: float) -> None:
        """Open an account for new keys, go on with known ones, close those of keys that are gone."""
        old = self._accounts
        self._accounts = {}
        for record in records:
            account = old.get(record.id) or Account(record, now_s)
            account.adopt(record, now_s)
            self._accounts[record.id] = account

    def ids(self) -> list[str]:
        """Return the ids of all keys."""
        return list(self._accounts)

    def of(self, key_id: str) -> Account:
        """Return a key's account. Raises KeyError for a key that `adopt` was not told of."""
        return self._accounts[key_id]

    def spent(self, wall_s: float) -> dict[str, int]:
        """Return the tokens each key spent on this day, where any."""
        for account in self._accounts.values():
            account._roll(wall_s)
        return {key_id: account.spent for key_id, account in self._accounts.items() if account.spent}

    def restore(self, day: int, spent: Mapping[str, int]) -> None:
        """Take up what was counted before a restart."""
        for key_id, tokens in spent.items():
            if key_id in self._accounts:
                self._accounts[key_id].restore(day, tokens)


def day_of(wall_s: float) -> int:
    """Return the number of a UTC day since the epoch."""
    return math.floor(wall_s / _DAY_S)


def _bucket(limit: int | None, old: Bucket | None, now_s: float) -> Bucket | None:
    if limit is None:
        return None
    if old is None:
        return Bucket(limit, now_s)
    old.resize(limit, now_s)
    return old


def _standing(bucket: Bucket | None, now_s: float) -> Standing | None:
    if bucket is None:
        return None
    remaining = max(0, math.floor(bucket.level(now_s)))
    return Standing(limit=bucket.limit, remaining=remaining, reset_s=bucket.wait_s(bucket.limit, now_s))
