"""`store.url` of an engine, taken apart. Errors name what is wrong, never what was given: it may hold a password."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import unquote

from cacheproxy.errors import ConfigError
from cacheproxy.settings import Secret

Kind = Literal["standalone", "sentinel", "cluster"]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_DEFAULT_PORT: dict[Kind, int] = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}
_FORMS = (
    "redis://[USER:PASSWORD@]HOST[:PORT][/DB], redis+sentinel://HOST[:PORT],.../SERVICE[/DB] or "
    "redis+cluster://HOST[:PORT],... (rediss for TLS)"
)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine: what it is, where to ask, and as whom."""

    kind: Kind
    tls: bool
    nodes: tuple[Address, ...]
    """The server, the Sentinels, or some nodes of the Cluster."""
    service: str = ""
    db: int = 0
    username: str = ""
    password: Secret = field(default=Secret(""))


def is_shared(url: str) -> bool:
    """Whether `store.url` names an engine that replicas share."""
    return url.partition("://")[0].lower() in _SCHEMES


def parse(url: str) -> Target:
    """Take `store.url` apart. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES:
        raise ConfigError(f"store.url: not an engine that replicas can share; give {_FORMS}")
    kind, tls = _SCHEMES[scheme.lower()]
    if any(mark in rest for mark in "?#"):
        raise _wrong("takes no parameters (a `?` or `#` of a password is written %3F or %23)")
    # A bare @ of a password would move the border, so the last one counts: a host cannot hold one.
    credentials, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    nodes = tuple(_address(part, _DEFAULT_PORT[kind]) for part in hosts.split(","))
    if kind == "standalone" and len(nodes) > 1:
        raise _wrong("names several servers; give redis+sentinel:// or redis+cluster://")
    service, db = _service_and_db(kind, [unquote(part) for part in path.split("/") if part])
    username, colon, password = credentials.partition(":")
    if credentials and not colon:
        raise _wrong("has a user without a password; give USER:PASSWORD@ or :PASSWORD@")
    return Target(
        kind=kind,
        tls=tls,
        nodes=nodes,
        service=service,
        db=db,
        username=unquote(username),
        password=Secret(unquote(password)),
    )


def _service_and_db(kind: Kind, parts: list[str]) -> tuple[str, int]:
    service = ""
    if kind == "sentinel":
        if not parts:
            raise _wrong("must name the service that Sentinel watches, after the hosts: .../SERVICE")
        service = parts.pop(0)
    if len(parts) > 1:
        raise _wrong("has too many parts after the hosts")
    number = parts[0] if parts else "0"
    if not (number.isascii() and number.isdecimal() and int(number) < 2**31):
        raise _wrong("must have the number of a database as its last part")
    if kind == "cluster" and int(number):
        raise _wrong("has a database, and a Cluster has none but 0")
    return service, int(number)


def _address(part: str, default_port: int) -> Address:
    host, bracket, port = part.rpartition("]")
    if bracket:
        host, port = host.removeprefix("["), port.removeprefix(":")
    else:
        host, _, port = part.partition(":")
    if not host or any(mark.isspace() for mark in host):
        raise _wrong("lacks the name of a host")
    if not port:
        return Address(host, default_port)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise _wrong("has a port that is not a number from 1 to 65535")
    return Address(host, int(port))


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"store.url: the address {what}; the forms are {_FORMS}")
