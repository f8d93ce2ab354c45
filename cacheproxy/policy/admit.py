"""Admit: whether an answer may be kept, and for how long. Strict: only a whole, ordinary answer is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from cacheproxy.policy.whole import flaw
from cacheproxy.query.directives import delta_seconds, read_directives, read_targeted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Plan, Reply
    from cacheproxy.query.directives import Directives

TARGETED = "cacheproxy-cache-control"
"""The field that speaks to this cache alone, and counts before all others (RFC 9213)."""

# Not `no-cache`: nearly every event stream carries it out of habit, and no LLM backend offers revalidation.
_FORBIDDING = ("no-store", "private")
_NEVER_STALE = ("must-revalidate", "proxy-revalidate", "no-cache")
# Part of the scope, or of the wire form, which is rendered anew for each caller.
_HARMLESS_VARY = frozenset({"accept-encoding", "accept", "origin", "authorization"})
_MOST_VARY = 16
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,64}")
_LONGEST_DATE = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """How long an answer may be served, in seconds, as far as its headers and the plan say.

    It is fresh for `ttl_s` from now, and was `age_s` old when it came.
    """

    ttl_s: float
    age_s: float = 0.0
    stale_s: float = 0.0
    """How long past its expiry policy or a caller may have it served."""
    revalidate_s: float = 0.0
    """The backend's own `stale-while-revalidate`."""
    on_error_s: float = 0.0
    """The backend's own `stale-if-error`."""
    vary: tuple[str, ...] = ()
    """Request headers, lower-case and sorted, that it was chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The answer may be kept for that long."""

    reply: Reply
    life: Lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The answer may not be kept."""

    reason: str


def admit(
    dialect: str,
    status: int,
    headers: Iterable[tuple[str, str]],
    reply: Reply | str,
    plan: Plan,
    *,
    now_s: float | None = None,
) -> Keep | Refuse:
    """Decide on a complete exchange. `reply` is the folded answer, or the reason why its bytes made none.

    A `Set-Cookie` of the answer is never kept or replayed, and does not forbid keeping the answer: hosted backends
    behind a CDN set one on every response.
    """
    if status != 200:
        return Refuse(reason=f"status_{status}")
    if isinstance(reply, str):
        return Refuse(reason=reply)
    reason = flaw(dialect, reply.body, keep_tool_calls=plan.keep_tool_calls)
    if reason:
        return Refuse(reason=reason)
    life = lifetime(headers, plan, now_s=now_s)
    return life if isinstance(life, Refuse) else Keep(reply=reply, life=life)


def lifetime(headers: Iterable[tuple[str, str]], plan: Plan, *, now_s: float | None = None) -> Lifetime | Refuse:
    """Return how long an answer with these headers may be served, or why it may not be kept at all.

    The first of `CacheProxy-Cache-Control` (RFC 9213) and `Cache-Control` that is there and valid counts, then
    `Expires` (RFC 9111 section 5.3, which needs `now_s` where the answer has no `Date`). All can only narrow the plan.
    """
    fields = _by_name(headers)
    if any(value.strip().lower() not in ("", "identity") for value in fields.get("content-encoding", ())):
        return Refuse(reason="upstream_encoding")  # unasked for, and not decoded on the way: these bytes are not text
    vary = _vary(fields.get("vary", ()))
    if vary is None:
        return Refuse(reason="upstream_vary")
    targeted = read_targeted(fields[TARGETED]) if TARGETED in fields else None
    directives = read_directives(fields.get("cache-control", ())) if targeted is None else targeted
    if any(name in directives for name in _FORBIDDING):
        return Refuse(reason="upstream_cache_control")
    granted_s = _granted_s(directives)
    if granted_s is None and targeted is None and "expires" in fields:
        granted_s = _until_expires_s(fields, now_s)
    # The age of what came through another cache; the first value counts, a malformed one is ignored (section 5.1).
    age_s = delta_seconds(fields.get("age", [""])[0].partition(",")[0].strip()) or 0.0
    ttl_s = min(plan.ttl_s, math.inf if granted_s is None else granted_s) - age_s
    if ttl_s <= 0:
        return Refuse(reason="zero_ttl")
    cap_s = plan.stale.cap_s
    if any(name in directives for name in _NEVER_STALE):
        cap_s = 0.0
    return Lifetime(
        ttl_s=ttl_s,
        age_s=age_s,
        # s-maxage forbids what nobody but us asked for (section 5.2.2.10); the backend's own windows are its word.
        stale_s=0.0 if "s-maxage" in directives else cap_s,
        revalidate_s=min(cap_s, directives.least("stale-while-revalidate") or 0.0),
        on_error_s=min(cap_s, directives.least("stale-if-error") or 0.0),
        vary=vary,
    )


def vary_names(headers: Iterable[tuple[str, str]]) -> tuple[str, ...] | None:
    """Return the request headers that an answer was chosen by, lower-case and sorted; None when nothing can tell.

    Those that are part of the scope or of the wire form anyway are left out.
    """
    return _vary(_by_name(headers).get("vary", ()))


def _by_name(headers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    return fields


def _vary(values: Iterable[str]) -> tuple[str, ...] | None:
    names = {part.strip().lower() for value in values for part in value.split(",")} - _HARMLESS_VARY - {""}
    if "*" in names or len(names) > _MOST_VARY or not all(_NAME.fullmatch(name) for name in names):
        return None
    return tuple(sorted(names))


def _granted_s(directives: Directives) -> float | None:
    # Nonsense counts as stale (section 4.2.1).
    for limit in ("s-maxage", "max-age"):
        seconds = directives.least(limit, bare=0.0, nonsense=0.0)
        if seconds is not None:
            return seconds
    return None


def _until_expires_s(fields: dict[str, list[str]], now_s: float | None) -> float:
    expires_s = [_date_s(value) for value in fields["expires"]]
    dates_s = [date_s for value in fields.get("date", ()) if (date_s := _date_s(value)) is not None]
    from_s = max(dates_s, default=now_s)
    if from_s is None or any(date_s is None for date_s in expires_s):
        return 0.0  # an invalid date, above all "0", means already expired (section 5.3)
    return min(date_s for date_s in expires_s if date_s is not None) - from_s


def _date_s(value: str) -> float | None:
    if len(value) > _LONGEST_DATE:
        return None
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
