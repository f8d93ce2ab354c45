"""`POST /v1/cache/feedback`: a caller says that an answer it got was good or bad."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from cacheproxy.dialect.ids import entry_of, made_of, question_of, tail_of
from cacheproxy.errors import FeedbackUnavailable, InvalidRequest, MethodNotAllowed, PartUnavailable, RouteNotFound
from cacheproxy.http import problems
from cacheproxy.http.callers import scope_of
from cacheproxy.learn.feedback import Said
from cacheproxy.learn.serves import Serve
from cacheproxy.learn.verdicts import Word
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.learn.feedback import Feedback
    from cacheproxy.model import Entry
    from cacheproxy.pipeline import Pipeline

PATH = "/v1/cache/feedback"
_MAX_BODY_BYTES = 16 * 1024
_MAX_DEPTH = 8


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. `id` is a response's id, or the entry id of its `x-cacheproxy-entry` header."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    verdict: Literal["good", "bad"]
    comment: Annotated[str, msgspec.Meta(max_length=2000)] | None = None


class FeedbackRoute:
    """Takes words on answers, in the caller's own scope.

    A bad word on a similarity hit quarantines the entry for that question; on any other answer it removes the entry,
    which answered its very own question wrongly. An answer that a newer one replaced since is not known any more: a
    word on it must not count against the newer one.
    """

    def __init__(self, pipeline: Pipeline, feedback: Feedback, secret: bytes) -> None:
        self._pipeline = pipeline
        self._feedback = feedback
        self._secret = secret

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises RequestError, and FeedbackUnavailable when the word could not be kept."""
        if exchange.method != "POST":
            raise MethodNotAllowed(f"{PATH} answers POST", allow="POST")
        request = _read(await exchange.body(_MAX_BODY_BYTES))
        said = Said(
            tenant=scope_of(exchange, self._secret).tenant,
            given_id=request.id,
            word=Word(request.verdict),
            comment=request.comment or "",
        )
        body = await self._take(said)
        self._pipeline.parts.telemetry.feedback.labels(request.verdict).inc()
        await exchange.send_whole(200, [problems.JSON, (b"cache-control", b"no-store")], msgspec.json.encode(body))

    async def _take(self, said: Said) -> dict[str, Any]:
        taught = self._pipeline.heard(said.tenant, said.given_id, good=said.word is Word.GOOD)
        serve = self._feedback.recall(said.tenant, tail_of(said.given_id) or said.given_id)
        entry_id = serve.entry_id if serve else entry_of(said.given_id) or said.given_id
        entry = await self._entry(said, entry_id, must_know=serve is None and not taught)
        own = serve.similarity is None if serve else not question_of(said.given_id)
        if own and entry is not None and _replaced(said.given_id, entry):
            raise _unknown()
        if serve is None:
            if entry is None:
                if taught:  # it was not kept, but who answered it learns
                    return _answer(said, entry_id="", action="noted", standing=0)
                raise _unknown()
            serve = _told_by(said.given_id, entry)
        bad = said.word is Word.BAD
        removes = bad and serve.similarity is None
        try:
            await self._feedback.judge(said, serve, entry)
        finally:
            if removes and entry is not None:
                await self._remove(entry.id)
        return _answer(
            said,
            entry_id=serve.entry_id,
            action="removed" if removes else "quarantined" if bad else "noted",
            standing=self._feedback.standing(said.tenant, serve.entry_id),
        )

    async def _remove(self, entry_id: str) -> None:
        try:
            await self._pipeline.forget([entry_id])
        except PartUnavailable as exc:
            raise FeedbackUnavailable("the verdict holds, but its entry could not be removed; see the log") from exc

    async def _entry(self, said: Said, entry_id: str, *, must_know: bool) -> Entry | None:
        """Return the entry if it is the caller's own: another tenant's is as good as none.

        A store that fails has none. Raises FeedbackUnavailable where nothing else tells what the word is about.
        """
        try:
            entry = await self._pipeline.parts.store.get(entry_id)
        except PartUnavailable as exc:
            if must_know:
                raise FeedbackUnavailable("the store cannot say what this id stands for; send it again later") from exc
            return None
        return entry if entry is not None and said.tenant and entry.tenant == said.tenant else None


def _answer(said: Said, *, entry_id: str, action: str, standing: int) -> dict[str, Any]:
    return {
        "object": "cache.feedback",
        "id": said.given_id,
        "entry": entry_id,
        "verdict": said.word.value,
        "action": action,
        "standing": standing,
    }


def _replaced(given_id: str, entry: Entry) -> bool:
    """Whether the answer of this id is not the one that the entry holds now."""
    original = entry.reply.body.get("id")
    return given_id not in (entry.id, original) and not made_of(given_id, original)


def _unknown() -> RouteNotFound:
    return RouteNotFound(
        "no answer with this id is known for your key; give a recent response's id, or its x-cacheproxy-entry header",
        param="id",
    )


def _told_by(given_id: str, entry: Entry) -> Serve:
    """Return the serve that an id tells by itself: of another question, whose text is not known, or of its own."""
    other = question_of(given_id)
    return Serve(
        tenant=entry.tenant,
        entry_id=entry.id,
        question=other or entry.fingerprint,
        text="" if other else entry.text,
        category=entry.partition.category,
        similarity=math.nan if other else None,
        user=entry.user,
    )


def _read(raw: bytes) -> FeedbackRequest:
    try:
        return msgspec.convert(decode(raw, _MAX_DEPTH), FeedbackRequest)
    except msgspec.ValidationError as exc:
        form = '{"id": response or entry id, "verdict": "good" or "bad", "comment": optional text}'
        # msgspec's own words may quote what was sent.
        raise InvalidRequest(f"the body is not what feedback takes; send {form}") from exc
