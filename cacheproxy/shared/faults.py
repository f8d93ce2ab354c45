"""What an error of the engine means: the one place where redis-py's exceptions, and words of the server, are read.

Replies are never quoted: they may hold arguments of a command, or the name of a user.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from redis import exceptions as redis

from cacheproxy.shared.wire import NotMaster, PoolExhausted, UnknownService

if TYPE_CHECKING:
    from collections.abc import Mapping


class Remedy(Enum):
    """What is done about it."""

    RETRY = "retry"
    """Asked once more, elsewhere or in another form, within the same deadline."""
    DEGRADE = "degrade"
    """A miss; asked again with the next request."""
    CONFIG = "config"
    """A miss, or no start: the operator must change something first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of failure: `code` is the engine's own word for it where it has one."""

    code: str
    remedy: Remedy
    says: str
    counts: bool = False
    """Whether the engine is as good as away for everything: the breaker counts it."""
    moves: bool = False
    """Whether another server may have taken over: connections are dropped, and the master is asked for again."""


def _fault(code: str, remedy: Remedy, says: str, *, counts: bool = False, moves: bool = False) -> Fault:
    return Fault(code=code, remedy=remedy, says=says, counts=counts, moves=moves)


_D, _C, _R = Remedy.DEGRADE, Remedy.CONFIG, Remedy.RETRY

TIMEOUT = _fault("timeout", _D, "did not answer in time", counts=True, moves=True)
UNREACHABLE = _fault("unreachable", _D, "cannot be reached, or closed the connection", counts=True, moves=True)
POOL = _fault("pool", _D, "has all the connections it may have in use")
OPEN = _fault("open", _D, "failed just now and is left alone for a moment")
IN_VAIN = _fault("in-vain", _D, "did not answer this request before: it is not waited for again")
NO_MASTER = _fault("no-master", _D, "has no master that is known", counts=True, moves=True)
NOT_REDIS = _fault("protocol", _D, "answers in another protocol than Redis'", counts=True, moves=True)
TLS = _fault("tls", _C, "has no certificate that is trusted here; see replicas.ca_file", counts=True)
SERVICE = _fault("service", _C, "is not watched by these Sentinels under that name: see store.url", counts=True)
IS_CLUSTER = _fault("MOVED", _C, "is a Cluster: give redis+cluster:// as store.url", counts=True)
OTHER = _fault("ERR", _D, "refused a command")

_BY_CODE: Mapping[str, Fault] = {
    fault.code: fault
    for fault in (
        _fault("OOM", _D, "has no memory left (maxmemory): nothing more is kept until there is room"),
        _fault("READONLY", _D, "became a replica of another server", counts=True, moves=True),
        _fault("MISCONF", _D, "cannot save to its disk and takes no writes"),
        _fault("NOREPLICAS", _D, "has too few replicas and takes no writes"),
        _fault("LOADING", _D, "is still loading its data", counts=True),
        _fault("MASTERDOWN", _D, "is a replica without a master", counts=True, moves=True),
        _fault("BUSY", _D, "is busy with a script", counts=True),
        _fault("CLUSTERDOWN", _D, "is a Cluster that lacks nodes", counts=True, moves=True),
        _fault(
            "NOAUTH",
            _C,
            "wants a password: give it as store.password, by file in CACHEPROXY_STORE__PASSWORD_FILE",
            counts=True,
        ),
        _fault(
            "WRONGPASS",
            _C,
            "does not take this user and password: see store.url and store.password, or its file",
            counts=True,
        ),
        _fault("NOPERM", _C, "does not let this user do what is needed: see docs/operations.md for its ACL"),
        _fault("CROSSSLOT", _C, "refused keys of two slots in one command: this is a bug of ours"),
        _fault("WRONGTYPE", _C, "holds another program's data under our names: give another store.prefix"),
        _fault("MOVED", _R, "keeps this key elsewhere", moves=True),
        _fault("ASK", _R, "is moving this key"),
        _fault("TRYAGAIN", _R, "is moving these keys"),
        _fault("NOSCRIPT", _R, "does not know this script yet"),
    )
}

_NO_PASSWORD = _fault("WRONGPASS", _C, "has no password, and store.url or store.password gives one", counts=True)
_BY_WORDS: tuple[tuple[str, Fault], ...] = (
    ("max number of clients reached", _fault("clients", _D, "has no connection left (maxclients)", counts=True)),
    ("unknown command", _fault("unknown-command", _C, "lacks a command: Redis 6.2 or later is needed")),
    ("DB index is out of range", _fault("db", _C, "has no database of that number: see store.url", counts=True)),
    ("invalid DB index", _fault("db", _C, "has no database of that number: see store.url", counts=True)),
    ("SELECT is not allowed", _fault("db", _C, "is a Cluster: give redis+cluster:// as store.url", counts=True)),
    ("cluster support disabled", _fault("cluster", _C, "is not a Cluster: give redis:// as store.url", counts=True)),
    ("without any password configured", _NO_PASSWORD),
    ("no password is set", _NO_PASSWORD),
    ("ACL failure in script", _BY_CODE["NOPERM"]),
    ("The user executing the script", _BY_CODE["NOPERM"]),
)

_BY_CLASS: tuple[tuple[type[Exception], Fault], ...] = (
    (redis.OutOfMemoryError, _BY_CODE["OOM"]),
    (redis.ReadOnlyError, _BY_CODE["READONLY"]),
    (redis.BusyLoadingError, _BY_CODE["LOADING"]),
    (redis.MasterDownError, _BY_CODE["MASTERDOWN"]),
    (redis.ClusterDownError, _BY_CODE["CLUSTERDOWN"]),
    (redis.ClusterCrossSlotError, _BY_CODE["CROSSSLOT"]),
    (redis.MovedError, _BY_CODE["MOVED"]),
    (redis.AskError, _BY_CODE["ASK"]),
    (redis.TryAgainError, _BY_CODE["TRYAGAIN"]),
    (redis.NoScriptError, _BY_CODE["NOSCRIPT"]),
    (redis.NoPermissionError, _BY_CODE["NOPERM"]),
    (redis.AuthenticationError, _BY_CODE["WRONGPASS"]),
    (redis.AuthorizationError, _BY_CODE["NOPERM"]),
    (redis.AuthenticationWrongNumberOfArgsError, _BY_CODE["WRONGPASS"]),
    (UnknownService, SERVICE),
    (NotMaster, _BY_CODE["READONLY"]),
    (PoolExhausted, POOL),
    (redis.MaxConnectionsError, POOL),
    (redis.TimeoutError, TIMEOUT),
    (TimeoutError, TIMEOUT),
    (ssl.SSLError, TLS),
    (redis.InvalidResponse, NOT_REDIS),
    (redis.ConnectionError, UNREACHABLE),
    (OSError, UNREACHABLE),
)


def fault_of(error: Exception) -> Fault:
    """Return what an exception of redis-py, or of the socket, means."""
    if isinstance(error, redis.AuthenticationError) and getattr(error, "status_code", None) == "NOAUTH":
        return _BY_CODE["NOAUTH"]
    text = str(error)
    for words, fault in _BY_WORDS:
        if words in text:
            return fault
    if isinstance(error, redis.ConnectionError) and isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return TLS
    for kind, fault in _BY_CLASS:
        if isinstance(error, kind):
            return fault
    return _BY_CODE.get(text.partition(" ")[0], OTHER)


def must_be_mended(code: str) -> bool:
    """Whether a fault of this code lasts until the operator changes something."""
    return code in _CONFIG


_CONFIG = frozenset(
    fault.code
    for fault in (TLS, SERVICE, IS_CLUSTER, *_BY_CODE.values(), *(fault for _, fault in _BY_WORDS))
    if fault.remedy is Remedy.CONFIG
)


def known_codes() -> tuple[str, ...]:
    """Return every word of the server that is told apart, for tests and documents."""
    return tuple(_BY_CODE)
