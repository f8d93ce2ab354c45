"""Freshness: whether an entry may be served now, and if it is past its expiry, by whose leave. Pure.

The request narrows (`max-age`, `min-fresh`), policy caps: nothing is ever served further past its expiry than the
category's `max_stale_s`, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.model import Stale

if TYPE_CHECKING:
    from cacheproxy.model import Entry, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Why an entry may not be served for want of freshness, or "" with the leave that was needed."""

    reason: str = ""
    stale: Stale = Stale.NO


_FRESH = Freshness()


def stale_reason(entry: Entry, plan: Plan, now_s: float) -> str:
    """Return why an entry is not fresh enough for this request, or "" (RFC 9111 sections 4.2 and 5.2.1)."""
    if entry.expires_s - now_s <= plan.min_fresh_s:
        return "expired" if entry.expires_s <= now_s else "not_fresh_enough"
    if plan.max_age_s is not None and now_s - entry.created_s > plan.max_age_s:
        return "too_old"
    return ""


def freshness(entry: Entry, plan: Plan, now_s: float) -> Freshness:
    """Judge an entry's freshness for a request."""
    reason = stale_reason(entry, plan, now_s)
    if not reason:
        return _FRESH
    if reason == "expired" and _revalidating(entry, plan, now_s):
        return Freshness(stale=Stale.REVALIDATING)
    if reason == "expired" and _asked(entry, plan, now_s):
        return Freshness(stale=Stale.ASKED)
    if plan.failed and _on_error(entry, plan, now_s):
        return Freshness(stale=Stale.ON_ERROR)
    return Freshness(reason=reason)


def may_rescue(plan: Plan) -> bool:
    """Whether any entry could be served on a failure of the backend that could not be served before it."""
    return plan.lookup and (plan.stale.cap_s > 0 or plan.stale.asked_on_error_s is not None)


def prefers_stale(plan: Plan) -> bool:
    """Whether somebody said that a stale answer is better than a failure: worth the wait for an answer's first byte."""
    stale = plan.stale
    return may_rescue(plan) and bool(stale.asked_on_error_s or (stale.asked_on_error_s is None and stale.on_error_s))


def _asked(entry: Entry, plan: Plan, now_s: float) -> bool:
    stale = plan.stale
    if stale.asked_s is None or _wants_fresh(entry, plan, now_s):
        return False
    return now_s < entry.stale_until_s and _within(now_s - entry.expires_s, stale.asked_s, stale.cap_s)


def _revalidating(entry: Entry, plan: Plan, now_s: float) -> bool:
    stale, past_s = plan.stale, now_s - entry.expires_s
    # A refresh asks the backend and keeps what it says: not for those who forbid either. And whoever names an age or a
    # freshness does not want anything stale (RFC 9111 section 5.2.1.1).
    if plan.only_if_cached or not plan.store or plan.max_age_s is not None or plan.min_fresh_s > 0:
        return False
    if stale.asked_s is not None and past_s > stale.asked_s:
        return False
    own = _within(past_s, stale.while_revalidate_s, stale.cap_s) and now_s < entry.stale_until_s
    return own or _within(past_s, entry.revalidate_s, stale.cap_s)


def _on_error(entry: Entry, plan: Plan, now_s: float) -> bool:
    stale, past_s = plan.stale, now_s - entry.expires_s
    if stale.asked_on_error_s is None:
        if past_s < 0 or _wants_fresh(entry, plan, now_s):
            return False
        own = _within(past_s, stale.on_error_s, stale.cap_s) and now_s < entry.stale_until_s
        return own or _within(past_s, entry.on_error_s, stale.cap_s)
    if past_s >= 0 and not _retained(entry, past_s, stale.cap_s, now_s):
        return False
    # "Regardless of other freshness information" (RFC 5861 section 4): what exceeds the caller's own limits counts too.
    over_age_s = 0.0 if plan.max_age_s is None else now_s - entry.created_s - plan.max_age_s
    return _within(max(past_s, over_age_s, 0.0), stale.asked_on_error_s, stale.asked_on_error_s)


def _retained(entry: Entry, past_s: float, cap_s: float, now_s: float) -> bool:
    return _within(past_s, cap_s, cap_s) and (now_s < entry.stale_until_s or past_s <= entry.on_error_s)


def _wants_fresh(entry: Entry, plan: Plan, now_s: float) -> bool:
    """Whether the request's own limits rule this entry out, however stale an answer may be."""
    too_old = plan.max_age_s is not None and now_s - entry.created_s > plan.max_age_s
    return too_old or plan.min_fresh_s > 0


def _within(past_s: float, window_s: float, cap_s: float) -> bool:
    return window_s > 0 and cap_s > 0 and past_s <= min(window_s, cap_s)
