"""What ails a replica: why it serves nothing that is kept, or keeps nothing more, and what to do about it.

One sentence for operators, made of what the parts know: `/readyz`, `cacheproxy ready`, `replicas` and `stats` tell it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.replica import Replica
    from cacheproxy.shared.faults import Fault

_NOT_SERVED = "nothing kept is served"
_NOT_KEPT = "what is kept is served, and not everything new is kept"
_REACH = "look whether it runs, and whether store.url names it"
_REMEDIES: Mapping[str, str] = {
    "timeout": "look whether it hangs, or the network does; replicas.timeout_ms is the longest wait",
    "unreachable": _REACH,
    "no-master": "look after its Sentinels, or its Cluster",
    "protocol": "look what listens at store.url, and whether it wants TLS (rediss://)",
    "pool": "raise replicas.max_connections",
    "clients": "raise its maxclients, or lower replicas.max_connections",
    "OOM": "raise its maxmemory above store.max_bytes, or lower store.max_bytes",
    "READONLY": "name its master in store.url, or its Sentinels, which know it",
    "MASTERDOWN": "look after its master, or name its Sentinels in store.url",
    "MISCONF": "look after its disk",
    "NOREPLICAS": "look after its replicas, or lower its min-replicas-to-write",
    "LOADING": "wait until it has read its files",
    "BUSY": "look after the script that it runs",
    "CLUSTERDOWN": "look after its nodes",
    "ERR": "its own log says more",
}
"""What to do, by fault, where the fault's own words do not say it."""
_GAPS: Mapping[str, str] = {
    "start": "it has just started",
    "stopped": "it is stopping",
    "epoch": "the engine was emptied",
    "engine": "the engine was restarted, or another server took over",
    "rolled_back": "the engine lost what it was told last",
    "trimmed": "it missed more changes than replicas.log_messages",
    "cut_off": "it was cut off from the engine for longer than replicas.lease_ms",
    "failed": "a change could not be applied; the log says which",
}
_GONE_ON = "this ends by itself"


def ails(replica: Replica) -> str:
    """Return why a replica serves nothing that is kept, or keeps nothing more, and what to do; "" when it does both."""
    members, joined, fault = replica.members, replica.joined, replica.link.fault
    logs = replica.layout.logs
    if all(members.serving(log) for log in logs):
        return f"{_NOT_KEPT}: {_engine(fault)}" if fault is not None and not fault.counts else ""
    # Of an engine that does not answer nothing else is known of now.
    wrong = joined.wrong or members.refused
    if wrong and not (fault is not None and fault.counts):
        return f"{_NOT_SERVED}: {wrong}"
    if fault is not None:
        apart = ", and the others' secret is not known here yet" if joined.apart else ""
        return f"{_NOT_SERVED}: {_engine(fault)}{apart}"
    if joined.apart:
        return f"{_NOT_SERVED}: waits for a replica that knows the secret of this cache; {_GONE_ON}"
    for log in logs:
        if (gap := members.gap(log)) is not None:
            return f"{_NOT_SERVED}: everything is being read again, since {_GAPS.get(gap, gap)}; {_GONE_ON}"
    behind_s = max(members.lag_s(log) for log in logs)
    if behind_s > 0:
        return f"{_NOT_SERVED}: this replica is {behind_s:.1f} s behind the others; {_GONE_ON}"
    return f"{_NOT_SERVED}: the engine's word is older than replicas.lease_ms, or its master is not sure; {_GONE_ON}"


def _engine(fault: Fault) -> str:
    todo = _REMEDIES.get(fault.code)
    return f"the engine {fault.says}" + (f"; {todo}" if todo else "")
