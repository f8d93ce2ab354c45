"""What a request asks of the cache: RFC 9111 directives, `x-cacheproxy-*` headers, and LiteLLM's body field `cache`.

A request can narrow policy, never widen it: of two values for one control the stricter counts. Unknown Cache-Control
directives are ignored (RFC 9111); an unknown `x-cacheproxy-*` name is refused, since a misspelt restriction must not go
unnoticed.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Controls, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX = b"x-cacheproxy-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
_TIERS = {"exact": frozenset({Tier.EXACT}), "semantic": frozenset(Tier), "off": frozenset[Tier]()}
_NOTHING = Controls()
_LONGEST_S = float(2**31)


def read_controls(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Controls, str]:
    """Return the controls of a request's headers and its namespace. Raises InvalidRequest naming the header."""
    controls, namespace = _NOTHING, ""
    for name, value in headers:
        if name == b"cache-control":
            controls = _directives(controls, value.decode("latin-1"))
        elif name == b"pragma" and value.strip().lower() == b"no-cache":
            controls = replace(controls, no_cache=True)
        elif name.startswith(_PREFIX):
            key, text = name[len(_PREFIX) :].decode("latin-1"), value.decode("latin-1").strip()
            if key == "namespace":
                namespace = _name(f"x-cacheproxy-{key}", text)
            else:
                controls = _own(controls, key, text)
    return controls, namespace


def read_body_controls(controls: Controls, namespace: str, cache: object) -> tuple[Controls, str]:
    """Narrow by a body's `cache` object, as LiteLLM's users write it. Raises InvalidRequest naming the key."""
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
            case "s-maxage":
                controls = replace(controls, max_age_s=_least(controls.max_age_s, _seconds(where, value)))
            case "namespace":
                namespace = _name(where, value)
            case _:
                raise InvalidRequest(
                    f"unknown key {where}; known: no-cache, no-store, use-cache, ttl, s-maxage, namespace", param=where
                )
    return controls, namespace


def parse_directives(value: str) -> dict[str, str]:
    """Return the directives of a Cache-Control value, lower-cased, with "" for those without an argument."""
    found: dict[str, str] = {}
    for part in value.split(","):
        name, _, argument = part.strip().partition("=")
        if name:
            found.setdefault(name.strip().lower(), argument.strip().strip('"'))
    return found


def delta_seconds(argument: str) -> float | None:
    """Return a whole number of seconds, at most 2**31 (RFC 9111 section 1.2.2), or None when it is none."""
    return min(float(argument), _LONGEST_S) if argument.isascii() and argument.isdigit() else None


def _directives(controls: Controls, value: str) -> Controls:
    for name, argument in parse_directives(value).items():
        seconds = delta_seconds(argument)
        match name:
            case "no-store":
                controls = replace(controls, no_store=True)
            case "no-cache":
                controls = replace(controls, no_cache=True)
            case "only-if-cached":
                controls = replace(controls, only_if_cached=True)
            case "max-age" if seconds is not None:
                controls = replace(
                    controls, max_age_s=_least(controls.max_age_s, seconds), no_cache=controls.no_cache or seconds == 0
                )
            case "min-fresh" if seconds is not None:
                controls = replace(controls, min_fresh_s=max(controls.min_fresh_s or 0.0, seconds))
    return controls


def _own(controls: Controls, key: str, text: str) -> Controls:
    where = f"x-cacheproxy-{key}"
    match key:
        case "category":
            return replace(controls, category=_name(where, text))
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
            tags = (_name(where, tag.strip()) for tag in text.split(",") if tag.strip())
            return replace(controls, tags=(*controls.tags, *tags))
        case "augment":
            if text not in ("off", "auto"):
                raise InvalidRequest(f"{where} must be off or auto", param=where)
            return controls
        case _:
            known = "category, namespace, tags, ttl, threshold, tier, augment"
            raise InvalidRequest(f"unknown request header {where[:64]}; known: {known}", param=where[:64])


def _name(where: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{where} must be 1 to 64 letters, digits or . _ : / - and start with a letter or digit", param=where
        )
    return value


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
