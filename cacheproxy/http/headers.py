"""The response headers that tell what the cache did: RFC 9211 `Cache-Status`, `Age`, and `x-cacheproxy-*`.

The same outcome value feeds headers, metrics and `explain`. Nothing here holds prompt text; values that come from a
backend are reduced to visible ASCII.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, assert_never

from cacheproxy.model import Augment, Bypass, Hit, Miss, Stale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.flight import Settlement
    from cacheproxy.model import Lookup, Outcome

Headers = list[tuple[bytes, bytes]]

_LEADERS_OWN = ("set-cookie", "x-request-id", "openai-organization", "openai-processing-ms", "x-ratelimit-")
_UNSAFE = re.compile(r"[^\x21-\x7e]")
_FWD = {
    "request_no_cache": "request",
    "too_old": "request",
    "not_fresh_enough": "request",
    "expired": "stale",
    "vary": "vary-miss",
}


def outcome_headers(outcome: Outcome, now_s: float, saved: float = 0.0) -> Headers:
    """Return the headers known as soon as the outcome is; `saved` is in US dollars."""
    match outcome:
        case Hit(entry=entry):
            headers = _common("hit", outcome.category, outcome.reason, outcome.evidence, saved)
            headers += [
                (b"cache-status", _hit_status(outcome, now_s)),
                (b"age", b"%d" % max(0, int(now_s - entry.created_s))),
                (b"x-cacheproxy-tier", outcome.tier.value.encode()),
                (b"x-cacheproxy-entry", entry.id.encode()),
                (b"x-cacheproxy-model", visible(str(entry.reply.body.get("model") or ""))),
                (b"x-cacheproxy-coalesced", b"false"),
            ]
            return headers
        case Augment(by=by):
            headers = _common("augment", outcome.category, outcome.reason, outcome.evidence)
            return [
                *headers,
                (b"x-cacheproxy-arm", by.arm.encode()),
                (b"x-cacheproxy-arm-reason", by.reason.encode()),
                (b"x-cacheproxy-examples", b"%d" % len(by.examples)),
            ]
        case Miss():
            return _common("miss", outcome.category, outcome.reason, outcome.evidence)
        case Bypass():
            return _common("bypass", outcome.category, outcome.reason, None)
        case _:
            assert_never(outcome)


def forwarded_headers(
    outcome: Miss | Bypass, *, status: int, model: str, settlement: Settlement | None, coalesced: bool
) -> Headers:
    """Return the headers of an answer that came from the backend; `settlement` is None when it is not known yet.

    They say `stored` of what is kept for certain and of nothing else.
    """
    members = [b"cacheproxy", b"fwd=" + _forward(outcome), b"fwd-status=%d" % status]
    headers: Headers = []
    if isinstance(outcome, Bypass):
        members.append(b'detail="' + visible(outcome.reason) + b'"')
    if settlement is not None:
        model = settlement.model or model
        if settlement.stored:
            members.append(b"stored")
        elif settlement.stored is not None:
            members.append(b'detail="' + visible(settlement.reason) + b'"')
        if settlement.entry_id and settlement.stored is not False:  # none for a list: each of its inputs has its own
            headers.append((b"x-cacheproxy-entry", settlement.entry_id.encode()))
    if coalesced:
        members.append(b"collapsed")
    return [
        (b"cache-status", b"; ".join(members)),
        (b"x-cacheproxy-coalesced", b"true" if coalesced else b"false"),
        (b"x-cacheproxy-model", visible(model)),
        *headers,
    ]


def unanswered_headers(outcome: Miss | Bypass, code: str, model: str = "") -> Headers:
    """Return the headers of a refusal of ours: no answer of a backend stands behind it. `model` was asked for."""
    members = [b"cacheproxy", b'detail="' + visible(code) + b'"']
    if isinstance(outcome, Miss) and code != "not_cached":
        members.insert(1, b"fwd=" + _forward(outcome))
    return [
        (b"cache-status", b"; ".join(members)),
        (b"x-cacheproxy-coalesced", b"false"),
        (b"x-cacheproxy-model", visible(model)),
    ]


def visible(text: str) -> bytes:
    """Return at most 128 visible ASCII characters, others replaced: no line break or control byte reaches a header."""
    return _UNSAFE.sub("?", text[:128]).replace('"', "?").replace("\\", "?").encode()


def shareable(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return what of an answer's headers is meant for all who share it: nothing of the one request that asked."""
    return tuple((name, value) for name, value in headers if not name.lower().startswith(_LEADERS_OWN))


def lacks(headers: Iterable[tuple[str, str]], name: str) -> bool:
    """Whether no header has this lower-case name."""
    return all(key.lower() != name for key, _ in headers)


def _hit_status(hit: Hit, now_s: float) -> bytes:
    """Return the member of an answer from the cache: `hit`, or with `fwd` where it stands in for a failed forward.

    The detail names the tier, then by whose leave it is stale. Rounded down, so that what is past its expiry is below
    zero.
    """
    if hit.stale is Stale.ON_ERROR:
        forward = b"stale" if hit.instead_of is None else _forward(hit.instead_of)
        status = b"" if hit.failed_status is None else b"; fwd-status=%d" % hit.failed_status
        return b'cacheproxy; fwd=%b%b; detail="%b"' % (forward, status, hit.stale.value.encode())
    detail = hit.tier.value + (f";{hit.stale.value}" if hit.stale else "")
    return f'cacheproxy; hit; ttl={math.floor(hit.entry.expires_s - now_s)}; detail="{detail}"'.encode()


def _forward(outcome: Miss | Bypass) -> bytes:
    if isinstance(outcome, Miss):
        return _FWD.get(outcome.reason, "vary-miss" if outcome.asked_otherwise else "miss").encode()
    return b"request" if outcome.reason == "request_no_cache" else b"bypass"  # it was the caller who asked


def _common(kind: str, category: str, reason: str, evidence: Lookup | None, saved: float = 0.0) -> Headers:
    headers: Headers = [
        (b"x-cacheproxy-outcome", kind.encode()),
        (b"x-cacheproxy-category", category.encode()),
        (b"x-cacheproxy-reason", reason.encode()),
        (b"x-cacheproxy-lookup-ms", b"%.3f" % (evidence.lookup_ms if evidence else 0.0)),
        (b"x-cacheproxy-saved-usd", b"%.6f" % saved),
    ]
    if evidence is not None and evidence.similarity is not None:
        headers.append((b"x-cacheproxy-similarity", b"%.4f" % evidence.similarity))
    if evidence is not None and evidence.threshold is not None:
        headers.append((b"x-cacheproxy-threshold", b"%.4f" % evidence.threshold))
    if evidence is not None and evidence.probability is not None:
        headers.append((b"x-cacheproxy-probability", b"%.4f" % evidence.probability))
    return headers
