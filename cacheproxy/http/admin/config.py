"""The settings in force, secrets masked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import get

from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.settings import Secret

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated

MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `config`."""

    @get("/admin/v1/config", sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def config() -> dict[str, Any]:
        shown: dict[str, Any] = masked(house.settings)
        return shown

    return [config]


def masked(value: object) -> Any:
    """Return settings as plain values: a secret that is set is `***`, and so is what stands before `@` in a URL."""
    if isinstance(value, Secret):
        return MASK if value.reveal() else ""
    if isinstance(value, msgspec.Struct):
        return {field: masked(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: masked(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(held) for held in value]
    return _CREDENTIALS.sub(f"{MASK}@", value) if isinstance(value, str) else value
