"""GET /v1/models over several backends: one list of what callers may ask for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import CacheProxyError, UpstreamTimeout
from cacheproxy.upstream.route import DEFAULT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from cacheproxy.ports import Answer, Call
    from cacheproxy.upstream.route import Routes

    Ask = Callable[[Call, Sequence[str]], Awaitable[Answer]]

_LONGEST_WAIT_S = 3.0
_MAX_BYTES = 4 * 1024 * 1024
_OF_THE_BODY = frozenset({"content-length", "content-encoding", "content-md5", "etag", "last-modified", "digest"})

_Entry = dict[str, Any]


class _Listed(msgspec.Struct):
    data: list[_Entry]


def lists_models(call: Call) -> bool:
    """Whether a call asks for the list of models."""
    return call.method == "GET" and call.target.partition("?")[0] == "/v1/models"


class Whole:
    """An answer that is here already."""

    def __init__(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        yield self.body

    async def __aenter__(self) -> Whole:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


async def merge(call: Call, ask: Ask, routes: Routes) -> Answer:
    """Return one list: the default backend's, then what others list of the models that go to them, then the aliases.

    A backend that fails, or takes long, is left out. When the default one answers with anything but a list, that is the
    answer. Raises its UpstreamError, or InvalidRequest, when it does not answer.
    """
    call = replace(call, max_answer_bytes=_MAX_BYTES)
    async with asyncio.TaskGroup() as group:
        others = {
            name: group.create_task(_fetch(call, ask, name, _LONGEST_WAIT_S))
            for name in routes.weights
            if name != DEFAULT
        }
        default = await _fetch(call, ask, DEFAULT, None)
    if isinstance(default, CacheProxyError):
        raise default
    listed = _entries(default)
    if listed is None:
        return default
    models = dict(listed)
    for name, task in others.items():
        for model, entry in (_entries(task.result()) or {}).items():
            if name in routes.candidates(model):
                models.setdefault(model, entry)
    for alias, model in routes.aliases.items():
        models[alias] = {**models.get(model, {"object": "model", "created": 0, "owned_by": "cacheproxy"}), "id": alias}
    body = msgspec.json.encode({**msgspec.json.decode(default.body), "data": [*models.values()]})
    headers = tuple(pair for pair in default.headers if pair[0].lower() not in _OF_THE_BODY)
    return Whole(default.status, headers, body)


async def _fetch(call: Call, ask: Ask, name: str, timeout_s: float | None) -> Whole | CacheProxyError:
    try:
        async with asyncio.timeout(timeout_s), await ask(call, (name,)) as answer:
            body = b"".join([chunk async for chunk in answer.chunks()])
            return Whole(answer.status, answer.headers, body)
    except CacheProxyError as exc:  # raised inside the group, the default's own would come out in a group of errors
        return exc
    except TimeoutError:
        return UpstreamTimeout(f"the list of models took longer than {timeout_s} s")


def _entries(answer: Whole | CacheProxyError) -> dict[str, _Entry] | None:
    """Return a list's entries by id; None when it is no list."""
    if isinstance(answer, CacheProxyError) or answer.status != 200:
        return None
    try:
        listed = msgspec.json.decode(answer.body, type=_Listed).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return {entry["id"]: entry for entry in listed if isinstance(entry.get("id"), str)}
