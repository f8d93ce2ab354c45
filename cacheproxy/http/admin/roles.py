"""Who may ask what on the admin port: every route with its methods and the least role that each needs.

This table is the whole answer. A route that is not in it answers nobody.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Role(IntEnum):
    """Roles, each of which may do all that those below it may."""

    ANYONE = 0
    """No token, or none that is known."""
    READER = 1
    """`admin.read_token`: sees everything, changes nothing."""
    OPERATOR = 2
    """`admin.token`; without one, whoever reaches the listener, which is then on loopback."""


_V1 = "/admin/v1"
_READ = {"GET": Role.READER}
_ASK = {"POST": Role.READER}
"""Questions that need a body; they change nothing."""
_DO = {"POST": Role.OPERATOR}

ROLES: Mapping[str, Mapping[str, Role]] = {
    "/healthz": {"GET": Role.ANYONE},
    "/readyz": {"GET": Role.ANYONE},
    "/metrics": _READ,
    f"{_V1}/openapi.json": _READ,
    f"{_V1}/config": _READ,
    f"{_V1}/audit": _READ,
    f"{_V1}/stats": _READ,
    f"{_V1}/upstreams": _READ,
    f"{_V1}/encoders": {**_READ, **_DO},
    f"{_V1}/policies": {**_READ, "PUT": Role.OPERATOR},
    f"{_V1}/policies/versions": _READ,
    f"{_V1}/policies/validate": _ASK,
    f"{_V1}/policies/rollback": _DO,
    f"{_V1}/policies/categories/{{}}": {
        **_READ,
        "PUT": Role.OPERATOR,
        "PATCH": Role.OPERATOR,
        "DELETE": Role.OPERATOR,
    },
    f"{_V1}/explain": _ASK,
    f"{_V1}/sweep": _ASK,
    f"{_V1}/entries": _READ,
    f"{_V1}/entries/{{}}": {**_READ, "DELETE": Role.OPERATOR},
    f"{_V1}/entries/{{}}/share": _DO,
    f"{_V1}/purge": _DO,
    f"{_V1}/warm": _DO,
    f"{_V1}/near-misses": _READ,
    f"{_V1}/near-misses/{{}}/promote": _DO,
    f"{_V1}/examples": _READ,
    f"{_V1}/examples/{{}}": {**_READ, "PATCH": Role.OPERATOR},
    f"{_V1}/replicas": _READ,
    f"{_V1}/routing": _READ,
    f"{_V1}/recommendations": _READ,
    f"{_V1}/recommendations/{{}}/apply": _DO,
}

_PARAMETER = re.compile(r"\{[^}]*\}")


_ROUTES = [(re.compile(re.escape(route).replace(r"\{\}", "[^/]+")), methods) for route, methods in ROLES.items()]


def needed(template: str, method: str) -> Role | None:
    """Return the least role for a route, its parameters by any names; None where nobody may ask this."""
    return ROLES.get(_PARAMETER.sub("{}", template), {}).get(method)


def methods_at(path: str) -> list[str]:
    """Return the methods that a path has; none where there is no such route."""
    return next(([*methods] for route, methods in _ROUTES if route.fullmatch(path)), [])
