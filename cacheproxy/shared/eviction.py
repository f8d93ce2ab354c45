"""Whether the engine may evict: looked at before the start, and again with each heartbeat, since it can be changed."""

from __future__ import annotations


def may_evict(policy: str) -> str:
    """Return what is wrong with a `maxmemory-policy`, and what to do; "" where nothing is, or none was told."""
    if policy in {"", "noeviction"}:
        return ""
    return (
        f"may evict what replicas agree by, purges among it (maxmemory-policy {policy}); "
        "set noeviction, or replicas.allow_eviction = true"
    )
