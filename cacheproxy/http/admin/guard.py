"""The guard before the admin port: who asks, from where, and whether a browser was tricked into asking.

It stands before routing, so that whoever has no token learns nothing of what is there. Three things are refused
whatever the token: a Host that is not ours (DNS rebinding), a request that another site's page made (CSRF), and a body
that is not declared as JSON, which is all that a page can send without asking first. Tokens are compared in constant
time, and an address that gave several wrong ones waits.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cacheproxy.access.limits import Bucket
from cacheproxy.http.admin.asked import ROLE
from cacheproxy.http.admin.roles import ROLES, Role, methods_at
from cacheproxy.http.problems import problem_body, retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cacheproxy.http.headers import Headers
    from cacheproxy.ports import Clock
    from cacheproxy.settings import Settings

    Asgi = Callable[[Any, Any, Any], Awaitable[None]]

WRONG_TOKENS_A_MINUTE = 10
_MOST_ADDRESSES = 4096
_OPEN = frozenset(route for route, methods in ROLES.items() if min(methods.values()) is Role.ANYONE)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_JSON = frozenset({b"application/json", b"application/merge-patch+json"})
_OWN_SITE = frozenset({b"same-origin", b"none"})
_ALWAYS: Headers = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or []


class Guarded:
    """The admin application behind its guard. It leaves the role of who asks in the scope, under `ROLE`."""

    def __init__(self, app: Asgi, settings: Settings, clock: Clock) -> None:
        admin = settings.admin
        self._app = app
        self._clock = clock
        self._tokens = [
            (role, _digest(token.reveal().encode()))
            for role, token in ((Role.OPERATOR, admin.token), (Role.READER, admin.read_token))
            if token.reveal()
        ]
        named = (host.strip().lower().strip("[]") for host in admin.hosts.split(","))
        self._hosts = frozenset({"localhost", settings.server.admin_host, *named} - {"", "0.0.0.0", "::"})
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or refuse it."""

        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_ALWAYS]}
            await send(message)

        try:
            scope[ROLE] = self._role(scope)
        except _Refused as refused:
            await _refuse(refused, send_marked)
            return
        if scope["method"] == "OPTIONS":
            await _tell_methods(scope["path"], send_marked)
            return
        await self._app(scope, receive, send_marked)

    def _role(self, scope: Any) -> Role:
        """Return who asks. Raises _Refused."""
        headers: Headers = scope["headers"]
        method, path = scope["method"], scope["path"]
        if path in _OPEN:
            return Role.ANYONE
        self._check_host(_all(headers, b"host"), scope.get("server"))
        _check_site(headers)
        role = self._known(headers, scope.get("client"))
        if method in _WITH_BODY:
            _check_content(headers)
        return role

    def _check_host(self, told: list[bytes], server: tuple[str, int] | None) -> None:
        host = _host(told[0].decode("latin-1")) if len(told) == 1 else None
        if host is None or not (host in self._hosts or _is_loopback(host) or (server and host == server[0])):
            raise _Refused(
                421, "wrong_host", "the Host of this request is none of the admin port's; add it to admin.hosts"
            )

    def _known(self, headers: Headers, client: tuple[str, int] | None) -> Role:
        if not self._tokens:
            return Role.OPERATOR
        told = _all(headers, b"authorization")
        scheme, _, token = told[0].partition(b" ") if len(told) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unknown("give the admin token as a bearer token")
        bucket, now = self._bucket(client), self._clock.monotonic()
        if bucket.level(now) < 1:
            raise _Refused(
                429,
                "too_many_wrong_tokens",
                "too many wrong tokens from this address; wait a moment",
                retry_after(bucket.wait_s(1, now)),
            )
        digest = _digest(token.strip())
        found = [role for role, expected in self._tokens if hmac.compare_digest(digest, expected)]
        if not found:
            bucket.charge(1, now)
            raise _unknown("this is not the admin token")
        return found[0]

    def _bucket(self, client: tuple[str, int] | None) -> Bucket:
        address = _block(client[0]) if client else ""
        bucket = self._wrong.pop(address, None) or Bucket(WRONG_TOKENS_A_MINUTE, self._clock.monotonic())
        self._wrong[address] = bucket
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        return bucket


def _check_site(headers: Headers) -> None:
    """Refuse what a page of another site made a browser ask: it sends at least one of these headers."""
    own = _all(headers, b"host")[0].decode("latin-1").lower()
    for origin in _all(headers, b"origin"):
        told = urlsplit(origin.decode("latin-1").lower())
        if told.scheme not in ("http", "https") or told.netloc != own:
            raise _cross_site()
    if any(site.lower() not in _OWN_SITE for site in _all(headers, b"sec-fetch-site")):
        raise _cross_site()


def _check_content(headers: Headers) -> None:
    kinds = [kind.partition(b";")[0].strip().lower() for kind in _all(headers, b"content-type")]
    length = _all(headers, b"content-length")
    has_body = bool(_all(headers, b"transfer-encoding")) or any(value.strip() != b"0" for value in length)
    if (kinds or has_body) and not (len(kinds) == 1 and kinds[0] in _JSON):
        raise _Refused(415, "not_json", "bodies on the admin port are JSON; send content-type: application/json")


def _all(headers: Headers, name: bytes) -> list[bytes]:
    return [value for sent, value in headers if sent == name]


def _host(told: str) -> str | None:
    """Return the host of a Host header without its port, lower case; None for what is none."""
    if not told or set(told) & set("/?#@\\ \t"):
        return None
    try:
        parts = urlsplit(f"//{told}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _block(address: str) -> str:
    """Return an address, or the /64 of an IPv6 one: whoever has one of them has all."""
    try:
        return str(ip_network(f"{address}/64", strict=False)) if ip_address(address).version == 6 else address
    except ValueError:
        return address


def _digest(token: bytes) -> bytes:
    return sha256(token).digest()


def _unknown(message: str) -> _Refused:
    return _Refused(401, "invalid_admin_token", message, [(b"www-authenticate", b"Bearer")])


def _cross_site() -> _Refused:
    return _Refused(403, "cross_site", "the admin port takes no requests that another site's page made")


async def _tell_methods(path: str, send: Any) -> None:
    methods = methods_at(path)
    if not methods:
        await _refuse(_Refused(404, "not_found", "there is no such route on the admin port"), send)
        return
    headers = [(b"allow", ", ".join([*methods, "OPTIONS"]).encode())]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(refused: _Refused, send: Any) -> None:
    kind = "authentication_error" if refused.status == 401 else "invalid_request_error"
    body = problem_body(refused.message, kind, refused.code)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),  # its body was not read
        *refused.headers,
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
