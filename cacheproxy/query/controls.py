"""What a request asks of the cache: RFC 9111 directives, `x-cacheproxy-*` headers, and LiteLLM's body field `cache`.

A request can narrow policy, never widen it: of two values for one control the stricter counts, and two names for one
thing are refused. What it accepts beyond freshness (`max-stale`, `stale-if-error`) counts within policy's cap. Unknown
Cache-Control directives are ignored (RFC 9111); an unknown `x-cacheproxy-*` name is refused, since a misspelt
restriction must not go unnoticed.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import ALIAS_TAG, COMMON_TAG, CONSENT_TAG, PRINCIPAL_TAG, SHARED_TAG, Controls, Tier
from cacheproxy.query.directives import delta_seconds, read_directives

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX = b"x-cacheproxy-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
_TIERS = {"exact": frozenset({Tier.EXACT}), "semantic": frozenset(Tier), "off": frozenset[Tier]()}
_FOREIGN = frozenset({b"cf-aig-skip-cache", b"cf-aig-cache-ttl", b"x-portkey-cache-force-refresh"})
_NOTHING, _REFRESH = Controls(), Controls(no_cache=True)
_DIRECTING = frozenset({b"cache-control", b"pragma"})


def controlling(name: bytes) -> bool:
    """Whether a header of this lower-case name may be read as a control."""
    return name.startswith(_PREFIX) or name in _DIRECTING or name in _FOREIGN


def read_controls(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Controls, str]:
    """Return the controls of a request's headers and its namespace. Raises InvalidRequest naming the header."""
    given = list(headers)
    controls, namespace = _directed(given), ""
    for name, value in given:
        if name.startswith(_PREFIX):
            key, text = name[len(_PREFIX) :].decode("latin-1"), value.decode("latin-1").strip()
            if key == "namespace":
                namespace = _only(namespace, _name(f"x-cacheproxy-{key}", text), f"x-cacheproxy-{key}")
            else:
                controls = _own(controls, key, text)
        elif name in _FOREIGN:
            controls = _foreign(controls, name, value.decode("latin-1").strip().lower())
    return controls, namespace


def read_body_controls(controls: Controls, namespace: str, cache: object) -> tuple[Controls, str]:
    """Narrow by a body's `cache` object, as LiteLLM's users write it. Raises InvalidRequest naming the key."""
    if cache is None:
        return controls, namespace
    if not isinstance(cache, dict):
        raise InvalidRequest('cache must be an object such as {"no-cache": true}', param="cache")
    flags: Mapping[str, Any] = cache
    for key, value in flags.items():
        where = f"cache.{key[:64]}"
        match key:
            case "no-cache" | "no-store" | "use-cache":
                if not isinstance(value, bool):
                    raise InvalidRequest(f"{where} must be true or false", param=where)
                if key == "no-cache":
                    controls = replace(controls, no_cache=controls.no_cache or value)
                elif key == "no-store":
                    controls = replace(controls, no_store=controls.no_store or value)
                elif not value:
                    controls = replace(controls, tiers=frozenset(), no_store=True)
            case "ttl":
                controls = replace(controls, ttl_s=_least(controls.ttl_s, _seconds(where, value)))
            case "s-maxage" | "s-max-age":  # LiteLLM reads both
                seconds = _least(controls.max_age_s, _seconds(where, value))
                controls = replace(controls, max_age_s=seconds, no_cache=controls.no_cache or seconds == 0)
            case "namespace":
                namespace = _only(namespace, _name(where, value), where)
            case _:
                raise InvalidRequest(
                    f"unknown key {where}; known: no-cache, no-store, use-cache, ttl, s-maxage, namespace", param=where
                )
    return controls, namespace


def _directed(headers: Iterable[tuple[bytes, bytes]]) -> Controls:
    """Read what RFC 9111 section 5.2.1 and RFC 5861 section 4 define; of `Pragma`, what section 5.4 left of it."""
    cache_control = [value.decode("latin-1") for name, value in headers if name == b"cache-control"]
    if not cache_control:
        pragma = [value.decode("latin-1") for name, value in headers if name == b"pragma"]
        return _REFRESH if pragma and "no-cache" in read_directives(pragma) else _NOTHING
    directives = read_directives(cache_control)
    max_age_s = directives.least("max-age")
    return Controls(
        no_store="no-store" in directives,
        no_cache="no-cache" in directives or max_age_s == 0,
        only_if_cached="only-if-cached" in directives,
        max_age_s=max_age_s,
        min_fresh_s=directives.most("min-fresh"),
        max_stale_s=directives.least("max-stale", bare=math.inf),
        stale_if_error_s=directives.least("stale-if-error", bare=math.inf),
    )


def _own(controls: Controls, key: str, text: str) -> Controls:
    where = f"x-cacheproxy-{key}"
    match key:
        case "category":
            return replace(controls, category=_only(controls.category or "", _name(where, text), where))
        case "ttl":
            return replace(controls, ttl_s=_least(controls.ttl_s, _seconds(where, text)))
        case "threshold":
            threshold = _number(where, text)
            if not 0.0 <= threshold <= 1.0:
                raise InvalidRequest(f"{where} must be in [0, 1]", param=where)
            return replace(controls, threshold=max(controls.threshold or 0.0, threshold))
        case "tier":
            if text not in _TIERS:
                raise InvalidRequest(f"{where} must be one of exact, semantic, off", param=where)
            return replace(controls, tiers=controls.tiers & _TIERS[text], no_store=controls.no_store or text == "off")
        case "tags":
            tags = (_tag(where, tag.strip()) for tag in text.split(",") if tag.strip())
            return replace(controls, tags=(*controls.tags, *tags))
        case "augment":
            if text not in ("off", "auto"):
                raise InvalidRequest(f"{where} must be off or auto", param=where)
            return replace(controls, augment=controls.augment and text == "auto")
        case _:
            known = "category, namespace, tags, ttl, threshold, tier, augment"
            raise InvalidRequest(f"unknown request header {where[:64]}; known: {known}", param=where[:64])


def _foreign(controls: Controls, name: bytes, text: str) -> Controls:
    """Take what other gateways' users write as narrowing only; the header goes on to the backend as it came."""
    if name == b"cf-aig-cache-ttl":
        seconds = delta_seconds(text)
        return controls if seconds is None else replace(controls, ttl_s=_least(controls.ttl_s, seconds))
    return replace(controls, no_cache=controls.no_cache or text == "true")


def _only(current: str, new: str, where: str) -> str:
    if current not in ("", new):
        raise InvalidRequest(f"{where} was given twice with different values; give one", param=where)
    return new


def _name(where: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{where} must be 1 to 64 letters, digits or . _ : / - and start with a letter or digit", param=where
        )
    return value


def _tag(where: str, value: str) -> str:
    if value in (SHARED_TAG, CONSENT_TAG) or value.startswith((ALIAS_TAG, COMMON_TAG, PRINCIPAL_TAG)):
        raise InvalidRequest(
            f"{where} may not be {SHARED_TAG!r} or {CONSENT_TAG!r}, nor begin with {ALIAS_TAG!r}, {COMMON_TAG!r} or "
            f"{PRINCIPAL_TAG!r}: the cache itself tells by these where an answer is from",
            param=where,
        )
    return _name(where, value)


def _number(where: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest(f"{where} must be a number", param=where)
    return number


def _seconds(where: str, value: object) -> float:
    seconds = _number(where, value)
    if seconds < 0:
        raise InvalidRequest(f"{where} must be a number of seconds, zero or more", param=where)
    return seconds


def _least(current: float | None, new: float) -> float:
    return new if current is None else min(current, new)
