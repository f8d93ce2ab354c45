"""What a request on the admin port says: its body, read strictly, who acts, and whether it is only tried."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cacheproxy.errors import InvalidRequest
from cacheproxy.http.admin.roles import Role
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from collections.abc import Collection

    from litestar import Request

MAX_DEPTH = 64
ROLE = "cacheproxy.role"
"""Under this name the scope of a request says its role (`http/admin/guard.py`)."""

_NAME = re.compile(r"[\w.@ -]{1,64}", re.ASCII)

Body = TypeVar("Body", bound=msgspec.Struct)


def body_of(body: bytes, form: type[Body], what: str) -> Body:
    """Return a request's body as `form`, read as strictly as on the data port. Raises InvalidRequest."""
    try:
        return msgspec.convert(decode(body, MAX_DEPTH), form)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"the body is not what {what} takes: {exc}") from exc


def actor_of(request: Request[Any, Any, Any]) -> str:
    """Return who acts, for the audit log: role, address and, where told, a name in quotes (told, not proven)."""
    scope: Any = request.scope
    role = Role(scope.get(ROLE, Role.ANYONE)).name.lower()
    address = request.client.host if request.client else "unknown"
    name = request.headers.get("x-cacheproxy-actor", "")
    told = f" '{name}'" if _NAME.fullmatch(name) else ""
    return f"{role}@{address}{told}"


def is_dry_run(request: Request[Any, Any, Any]) -> bool:
    """Whether the request only asks what would happen: `?dry_run=true`. Raises InvalidRequest for another value."""
    said = request.query_params.getall("dry_run", [])
    if said and (len(said) > 1 or said[0] not in ("true", "false", "1", "0", "")):
        raise InvalidRequest("dry_run must be true or false", param="dry_run")
    return bool(said) and said[0] in ("true", "1", "")


def refuse_unknown(request: Request[Any, Any, Any], known: Collection[str]) -> None:
    """Raise InvalidRequest for a query parameter that is not known: a misspelt dry_run must not do it for real."""
    if unknown := sorted(set(request.query_params) - set(known)):
        told = ", ".join(sorted(known))
        raise InvalidRequest(f"unknown query parameter {unknown[0][:64]!r}; known: {told}", param="query")
