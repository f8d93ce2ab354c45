"""Aliases: a hit has a response id of its own, which no backend knows; here it is given back the backend's own.

Only for the tenant whose entry stands behind the id. An id that is not ours, of another tenant, or whose entry is gone
or holds another answer by now stays as it is, and the backend says what it says to an id that it does not know.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.dialect.ids import entry_of, made_of
from cacheproxy.errors import InvalidRequest, PartUnavailable
from cacheproxy.http.callers import scope_of

if TYPE_CHECKING:
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.route import Understood
    from cacheproxy.learn.feedback import Feedback
    from cacheproxy.model import Entry, Query
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.ports import Answer, Call, Upstream

log = structlog.get_logger()

_PREFIX = "/v1/responses/"
_ID = re.compile(r"[A-Za-z0-9._:~-]{1,512}")  # of a backend: it becomes part of a path
_GONE = (404, 410)


class Aliases:
    """Finds the backend's own id behind the id of a hit. A store that fails or is slow finds nothing."""

    def __init__(self, pipeline: Pipeline, feedback: Feedback, secret: bytes, *, timeout_s: float) -> None:
        self._pipeline = pipeline
        self._feedback = feedback
        self._secret = secret
        self._timeout_s = timeout_s

    async def body(self, understood: Understood[Query]) -> bytes:
        """Return the body to forward: with the backend's own id where it goes on from a hit, else as it came."""
        previous = understood.body.get("previous_response_id")
        if not isinstance(previous, str) or entry_of(previous) is None:
            return understood.raw
        entry = await self._behind(previous, understood.query.scope.tenant)
        own_id = _own_id(entry)
        return msgspec.json.encode({**understood.body, "previous_response_id": own_id}) if own_id else understood.raw

    async def upstream(self, exchange: Exchange, upstream: Upstream) -> Upstream:
        """Return the backend as a request to pass through should meet it.

        A path that names the response of a hit (`/v1/responses/{id}...`) is asked for under the backend's own id, and a
        response that is deleted takes its entry along.
        """
        if not exchange.path.startswith(_PREFIX):
            return upstream
        given_id, slash, _ = exchange.path.removeprefix(_PREFIX).partition("/")
        deletes = exchange.method == "DELETE" and not slash
        if entry_of(given_id) is None and not deletes:
            return upstream
        try:
            tenant = scope_of(exchange, self._secret).tenant
        except InvalidRequest:
            return upstream
        entry = await self._behind(given_id, tenant)
        own_id = _own_id(entry)
        if entry is None or not own_id:
            return upstream
        target = _PREFIX + own_id + exchange.target[len(_PREFIX + given_id) :]
        return _Renamed(upstream, target, _Deletion(pipeline=self._pipeline, entry_id=entry.id) if deletes else None)

    async def _behind(self, response_id: str, tenant: str) -> Entry | None:
        """Return the caller's own entry behind a response id: a hit's, or of late the live one's that made an entry."""
        entry_id = entry_of(response_id)
        if entry_id is None:
            serve = self._feedback.recall(tenant, response_id)
            entry_id = serve.entry_id if serve else None
        if entry_id is None or not tenant:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                entry = await self._pipeline.parts.store.get(entry_id)
        except (PartUnavailable, TimeoutError) as exc:
            log.warning("alias_not_resolved", reason=type(exc).__name__)
            return None
        if entry is None or entry.tenant != tenant:
            return None
        # After a refresh the entry holds another answer than the caller saw: nobody may go on from that one.
        return entry if made_of(response_id, entry.reply.body.get("id")) or _own_id(entry) == response_id else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deletion:
    """An entry that goes when the backend no longer has its response."""

    pipeline: Pipeline
    entry_id: str

    async def settle(self, status: int) -> None:
        """Forget the entry if this status says that the response is gone."""
        if status >= 300 and status not in _GONE:
            return
        try:
            await self.pipeline.forget([self.entry_id])
        except PartUnavailable as exc:
            log.warning("deleted_response_still_cached", entry=self.entry_id, reason=exc.message)


class _Renamed:
    """A backend asked for another target than the caller named."""

    def __init__(self, upstream: Upstream, target: str, deletion: _Deletion | None) -> None:
        self._upstream = upstream
        self._target = target
        self._deletion = deletion

    async def send(self, call: Call) -> Answer:
        """Send as the backend does, under the new target; a deletion is settled before the caller hears of it."""
        answer = await self._upstream.send(replace(call, target=self._target))
        if self._deletion is not None:
            async with AsyncExitStack() as stack:
                stack.push_async_exit(answer)
                await self._deletion.settle(answer.status)
                stack.pop_all()
        return answer


def _own_id(entry: Entry | None) -> str:
    own_id = entry.reply.body.get("id") if entry is not None else None
    return own_id if isinstance(own_id, str) and _ID.fullmatch(own_id) and own_id.strip(".") else ""
