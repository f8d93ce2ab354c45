"""Ports of Flower's processes: free, or told to be taken before anything starts."""

from __future__ import annotations

import ipaddress
import re
import socket

from cacheproxy.errors import ConfigError

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")


def need_free(host: str, port: int) -> None:
    """Raise ConfigError where a port is taken or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(f"{host}:{port}: cannot be used ({exc.strerror}); choose another --port") from exc


def free_port() -> int:
    """Return a port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def parted(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises ConfigError."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise ConfigError(f"--superlink: {address!r} is no HOST:PORT; name what `cacheproxy federated serve` printed")
    return found["host"], int(found["port"])
