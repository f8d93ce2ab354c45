"""Jitter: lifetimes that differ a little, so that what was stored together does not end together."""

from __future__ import annotations


def jittered(ttl_s: float, share: float, key: bytes) -> float:
    """Return a lifetime shortened by up to `share` of itself, evenly and always the same for one key.

    `key` is a digest (at least 8 bytes). Never longer: a lifetime is a promise.
    """
    return ttl_s * (1.0 - share * int.from_bytes(key[:8], "big") / 2**64)
