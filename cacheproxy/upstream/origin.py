"""Where requests may go: base URLs that an operator may configure, and the addresses that their names may have.

Loopback and private addresses are allowed: backends often live there. Link-local ones never are: cloud machines find
their own credentials there (169.254.169.254), and no backend lives there.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING

from aiohttp.resolver import ThreadedResolver
from yarl import URL

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiohttp.abc import ResolveResult

_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?", re.IGNORECASE)
"""What a C library's resolver takes for an IPv4 address, however it is written."""


def base_url(url: str, section: str) -> str:
    """Return a base URL in normal form, `/v1` when it has no path. Raises ConfigError naming `section`.url."""
    try:
        parsed = URL(url)
        origin = parsed.origin()
    except ValueError as exc:
        raise ConfigError(f"{section}.url must look like https://host/v1 (http or https)") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query_string or parsed.fragment:
        local = ", or be `local`" if section == "upstream" else ""
        raise ConfigError(f"{section}.url must look like https://host/v1 (http or https, no query){local}")
    if "@" in url.partition("//")[2].partition("/")[0]:
        raise ConfigError(f"{section}.url must not hold a user or password: give the key as {section}.api_key")
    flaw = host_flaw(parsed.host)
    if flaw:
        raise ConfigError(f"{section}.url: {flaw}")
    return f"{origin}{parsed.raw_path.rstrip('/') or '/v1'}"


def host_flaw(host: str) -> str:
    """Return "" for a host that may be a backend, else what is wrong with it."""
    address = _address(host)
    if address is None and _NUMERIC.fullmatch(host):
        return f"{host} is a number, not a name; write an IPv4 address as four decimal numbers"
    if address is not None and not allowed(address):
        return f"{host} is a link-local or multicast address, where no backend lives"
    return ""


def allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a backend may have this address."""
    plain = getattr(address, "ipv4_mapped", None) or address
    return not (plain.is_link_local or plain.is_multicast or str(plain) == "fd00:ec2::254")


def leads_home(base: URL, port: int, hosts: Collection[str] = ()) -> bool:
    """Whether a base URL is `port` of this machine, under any name that can be told without asking a resolver."""
    host = (base.host or "").lower().rstrip(".")
    address = _address(host)
    here = host in hosts or host == "localhost" or host.endswith(".localhost")
    if address is not None:
        plain = getattr(address, "ipv4_mapped", None) or address
        here = here or plain.is_loopback or plain.is_unspecified
    return here and base.port == port


class Resolver(ThreadedResolver):
    """Names to addresses, leaving out those no backend may have, whatever a name server says (DNS rebinding)."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve. Raises OSError when nothing is left."""
        found = await super().resolve(host, port, family)
        usable = [one for one in found if (address := _address(one["host"])) is None or allowed(address)]
        if not usable:
            raise OSError(None, "every address of the host is link-local or multicast")
        return usable


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
