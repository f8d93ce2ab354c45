"""The admin application: every module of routes, listed, behind one guard."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.exceptions import PermissionDeniedException

from cacheproxy.errors import PartUnavailable, PolicyRefused
from cacheproxy.http import problems
from cacheproxy.http.admin import (
    audit,
    config,
    decisions,
    document,
    encoders,
    entries,
    examples,
    health,
    near_misses,
    policies,
    purge,
    recommendations,
    replicas,
    routing,
    sharing,
    stats,
    warm,
)
from cacheproxy.http.admin.asked import ROLE
from cacheproxy.http.admin.guard import Guarded
from cacheproxy.http.admin.roles import Role, needed

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

    from cacheproxy.http.admin.house import Operated

_ROUTES = (
    health,
    decisions,
    entries,
    purge,
    sharing,
    warm,
    encoders,
    stats,
    near_misses,
    examples,
    routing,
    recommendations,
    replicas,
    policies,
    audit,
    config,
)
"""Modules with `handlers(house)`; a new module is listed here and nowhere else."""
_SHARED = frozenset({"store", "shared"})
"""Parts that fail where the engine of replicas does."""


def create_admin_app(house: Operated) -> Guarded:
    """Return the admin application behind its guard: what `ROLES` says, and no more, for each role."""
    return Guarded(create_routes(house), house.settings, house.pipeline.parts.clock)


def create_routes(house: Operated) -> Litestar:
    """Return the routes alone. Each asks for its role again: what the guard lets through may still not be for it."""
    handlers = [handler for module in _ROUTES for handler in module.handlers(house)]
    handlers += document.handlers(handlers)
    return Litestar(
        handlers,
        guards=[check_role],
        openapi_config=None,
        logging_config=None,
        exception_handlers={
            **problems.HANDLERS,
            PolicyRefused: _refused_policy,
            PartUnavailable: partial(_with_reason, house),
        },
    )


def check_role(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse who has not the role that the route needs for this method."""
    scope: Any = connection.scope
    least = needed(scope["path_template"], scope["method"])
    if least is None or scope.get(ROLE, Role.ANYONE) < least:
        raise PermissionDeniedException("this token may not do that; give admin.token")


def _with_reason(house: Operated, request: Request[Any, Any, Any], exc: PartUnavailable) -> Response[bytes]:
    """Say what ails this replica, and what to do, in the place of what failed because of it."""
    why = house.replicas.ails() if exc.part in _SHARED else ""
    return problems.from_ours(request, PartUnavailable(f"{why} (/readyz says so, too)") if why else exc)


def _refused_policy(_: Request[Any, Any, Any], exc: PolicyRefused) -> Response[bytes]:
    """Return every problem of a policy beside the error, each with its key."""
    error = msgspec.json.decode(problems.body_of(exc))
    told = [{"key": key, "problem": problem} for key, problem in exc.problems]
    body = msgspec.json.encode({**error, "problems": told})
    return Response(body, status_code=exc.status, media_type="application/json")
