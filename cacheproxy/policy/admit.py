"""Admit: whether an answer may be kept, and for how long. Strict: only a whole, ordinary answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.policy.whole import flaw
from cacheproxy.query.controls import delta_seconds, parse_directives

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Plan, Reply

# Not `no-cache`: nearly every event stream carries it out of habit, and no LLM backend offers revalidation.
_FORBIDDING = frozenset({"no-store", "private"})
_HARMLESS_VARY = frozenset({"accept-encoding", "accept", "origin", "authorization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The answer may be kept for `ttl_s` seconds."""

    reply: Reply
    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The answer may not be kept."""

    reason: str


def admit(
    dialect: str, status: int, headers: Iterable[tuple[str, str]], reply: Reply | str, plan: Plan
) -> Keep | Refuse:
    """Decide on a complete exchange. `reply` is the folded answer, or the reason why its bytes made none.

    A `Set-Cookie` of the answer is never kept or replayed, and does not forbid keeping the answer: hosted backends
    behind a CDN set one on every response.
    """
    if status != 200:
        return Refuse(reason=f"status_{status}")
    if isinstance(reply, str):
        return Refuse(reason=reply)
    reason = flaw(dialect, reply.body)
    if reason:
        return Refuse(reason=reason)
    return _within_directives(headers, reply, plan.ttl_s)


def _within_directives(headers: Iterable[tuple[str, str]], reply: Reply, ttl_s: float) -> Keep | Refuse:
    limits_s: dict[str, float] = {}
    for name, value in headers:
        if name.lower() == "cache-control":
            directives = parse_directives(value)
            if directives.keys() & _FORBIDDING:
                return Refuse(reason="upstream_cache_control")
            for limit in directives.keys() & {"s-maxage", "max-age"}:
                seconds = delta_seconds(directives[limit]) or 0.0  # nonsense counts as stale (RFC 9111 section 4.2.1)
                limits_s[limit] = min(seconds, limits_s.get(limit, seconds))
        elif name.lower() == "vary" and {part.strip().lower() for part in value.split(",")} - _HARMLESS_VARY - {""}:
            return Refuse(reason="upstream_vary")
    ttl_s = min(ttl_s, limits_s.get("s-maxage", limits_s.get("max-age", ttl_s)))
    return Keep(reply=reply, ttl_s=ttl_s) if ttl_s > 0 else Refuse(reason="zero_ttl")
