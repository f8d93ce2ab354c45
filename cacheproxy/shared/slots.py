"""Which node of a Cluster has which slot, and which slot a command is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

from cacheproxy.shared.address import Address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SECOND = frozenset({"XINFO", "XGROUP", "OBJECT", "MEMORY"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_KEYLESS = frozenset({"PING", "INFO", "TIME", "ROLE", "CONFIG", "CLUSTER", "CLIENT", "SCRIPT", "DBSIZE", "ACL", "WAIT"})


def key_of(command: Sequence[Any]) -> str | bytes | None:
    """Return the first key of a command as the engine reads it; None where it has none."""
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return None
    if name in _SCRIPTS:
        return command[3] if int(command[2]) else None
    if name in {"XREAD", "XREADGROUP"}:
        words = [str(word).upper() for word in command]
        key: str | bytes = command[words.index("STREAMS") + 1]
        return key
    at = 2 if name in _SECOND else 1
    return command[at] if len(command) > at else None


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key, by its hash tag where it has one."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


def read_slots(reply: Sequence[Any], asked: Address) -> dict[int, Address]:
    """Return the master of each slot by a reply to CLUSTER SLOTS of the node `asked`; uncovered ones are missing."""
    found: dict[int, Address] = {}
    for first, last, master, *_ in reply:
        host = master[0].decode() if master[0] else ""
        address = Address(host if host not in {"", "?"} else asked.host, int(master[1]))
        found.update(dict.fromkeys(range(int(first), int(last) + 1), address))
    return found


def read_masters(reply: bytes, asked: Address) -> set[Address]:
    """Return the masters that a reply to CLUSTER NODES sees nothing wrong with, each under all its names."""
    found: set[Address] = set()
    for line in reply.decode("utf-8", "replace").splitlines():
        words = line.split()
        flags = set(words[2].split(",")) if len(words) >= 8 else set()
        if "master" not in flags or flags & {"fail", "fail?", "noaddr", "handshake"}:
            continue
        place, _, names = words[1].partition(",")
        host, _, port = place.partition("@")[0].rpartition(":")
        for name in (host or asked.host, names.partition(",")[0]):
            if name and port.isdecimal():
                found.add(Address(name, int(port)))
    return found


def spread(slots: Mapping[int, Address]) -> tuple[Address, ...]:
    """Return the masters, each once."""
    return tuple(dict.fromkeys(slots.values()))
