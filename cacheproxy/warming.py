"""Warming: answers that an operator already has are kept as if the backend had just given them.

They take the way of live answers: the same plan, the same admission, the same check for personal data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from cacheproxy.dialect.bodies import larger_than
from cacheproxy.errors import InvalidRequest, PartUnavailable, RequestError
from cacheproxy.explain import reader_of
from cacheproxy.model import Reply, Scope
from cacheproxy.policy.admit import Keep, Refuse, admit
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.scope import read_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.access.names import Names
    from cacheproxy.journey import Journey
    from cacheproxy.model import Query
    from cacheproxy.pipeline import Pipeline

_JSON = (("content-type", "application/json"),)
_UNKNOWN_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

Text = Annotated[str, msgspec.Meta(max_length=1_048_576)]
Label = Annotated[str, msgspec.Meta(max_length=256)]


class WarmItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer. The question is a whole `request`, or `messages` or a `text` with a `model`.

    `answer` is the text, or the whole body that the backend gave. Whose it is: a `tenant` (label or hex), or the `key`
    that callers send.
    """

    answer: Text | dict[str, Any]
    request: dict[str, Any] | None = None
    messages: list[dict[str, Any]] | None = None
    text: Text | None = None
    model: Label = ""
    tenant: Label = ""
    key: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    category: Label = ""
    namespace: Label = ""
    ttl: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None
    tags: Annotated[list[Label], msgspec.Meta(max_length=16)] = []

    def __repr__(self) -> str:
        """Show neither text nor key."""
        return f"WarmItem(model={self.model!r}, category={self.category!r})"


class Warmed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one item: `stored`, `refused` (by policy), `invalid` (by its form), or `failed` (try again)."""

    outcome: str
    reason: str
    entry: str = ""
    category: str = ""


class Warming:
    """Keeps answers that did not come from the backend just now."""

    def __init__(
        self,
        pipeline: Pipeline,
        identify: Callable[[list[tuple[bytes, bytes]]], Scope],
        names: Names,
        secret: bytes,
        *,
        max_answer_bytes: int,
    ) -> None:
        self._pipeline = pipeline
        self._identify = identify
        self._names = names
        self._secret = secret
        self._max_answer_bytes = max_answer_bytes

    async def warm(self, item: WarmItem, *, dry_run: bool = False) -> Warmed:
        """Keep one answer, replacing an entry for the same question. A dry run stops before it is looked through."""
        fence = self._pipeline.parts.store.fence
        try:
            journey, answer = self._understood(item)
            if not journey.settled and journey.plan.store and await self._pipeline.tiers.classify(journey):
                return Warmed(outcome="failed", reason="embedder_unavailable")
        except RequestError as exc:
            return Warmed(outcome="invalid", reason=exc.message)
        plan, now_s = journey.plan, self._pipeline.parts.clock.now()
        if not plan.store:
            return Warmed(outcome="refused", reason=plan.reason, category=plan.category)
        reply = _reply(answer, journey.query, now_s)
        if larger_than(reply.body, self._max_answer_bytes):
            return Warmed(outcome="refused", reason="too_large", category=plan.category)
        match admit(journey.query.dialect, 200, _JSON, reply, plan, now_s=now_s):
            case Refuse(reason=reason):
                return Warmed(outcome="refused", reason=reason, category=plan.category)
            case Keep() as kept if not dry_run:
                return await self._keep(journey, kept, fence)
        return Warmed(outcome="stored", reason="dry_run", category=plan.category)

    async def _keep(self, journey: Journey, kept: Keep, fence: int) -> Warmed:
        try:
            # No time is known: figures count none as saved, and eviction takes an estimate (policy/evict.py).
            settled = await self._pipeline.tiers.keep(journey, kept, fence=fence, fill_ms=0.0)
        except PartUnavailable as exc:
            return Warmed(outcome="failed", reason=self._pipeline.parts.failed(exc))
        category = journey.plan.category
        if settled.stored:
            return Warmed(outcome="stored", reason=settled.reason, entry=settled.entry_id, category=category)
        again = settled.reason.endswith("_unavailable") or settled.reason == "purged_meanwhile"
        return Warmed(outcome="failed" if again else "refused", reason=settled.reason, category=category)

    def _understood(self, item: WarmItem) -> tuple[Journey, str | dict[str, Any]]:
        """Plan an item as its request would be planned. Raises RequestError."""
        body = _body(item)
        headers = [(b"x-cacheproxy-tags", ",".join(item.tags).encode())] if item.tags else []
        if item.category:
            headers.append((b"x-cacheproxy-category", item.category.encode("utf-8", "replace")))
        if item.namespace:
            headers.append((b"x-cacheproxy-namespace", item.namespace.encode("utf-8", "replace")))
        if item.ttl is not None:
            headers.append((b"x-cacheproxy-ttl", b"%d" % item.ttl))
        controls, namespace = read_controls(headers)
        if "cache" in body:
            controls, namespace = read_body_controls(controls, namespace, body.pop("cache"))
        scope = replace(self._scope(item), namespace=namespace)
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidRequest("name the model that was asked", param="model")
        variant = self._pipeline.parts.resolve(model).variant(model)
        query = reader_of(body)(body, scope, controls, variant)
        journey = self._pipeline.set_out(query, (), read_user(body, self._secret))
        journey.origin = "warmed"
        return journey, item.answer

    def _scope(self, item: WarmItem) -> Scope:
        if bool(item.key) == bool(item.tenant):
            raise InvalidRequest("say whose answer it is: a tenant or a key, one of the two", param="tenant")
        if item.tenant:
            return Scope(tenant=self._names.tenant(item.tenant))
        try:
            return self._identify([(b"authorization", b"Bearer " + item.key.encode("ascii"))])
        except UnicodeEncodeError as exc:
            raise InvalidRequest("a key is visible ASCII", param="key") from exc


def _body(item: WarmItem) -> dict[str, Any]:
    given = [value for value in (item.request, item.messages, item.text) if value is not None]
    if len(given) != 1:
        raise InvalidRequest("give one of request, messages and text", param="request")
    if item.request is not None:
        if item.model:
            raise InvalidRequest("a request names its own model", param="model")
        return dict(item.request)
    messages = item.messages if item.messages is not None else [{"role": "user", "content": item.text}]
    return {"model": item.model, "messages": messages}


def _reply(answer: str | dict[str, Any], query: Query, now_s: float) -> Reply:
    """Return a whole body for an answer: its own, or an ordinary one around its text. Nobody knows its tokens."""
    if not isinstance(answer, str):
        return Reply(body=answer, source="body")
    made = query.fingerprint[16:28].hex()  # the same for the same question: warming again changes nothing
    envelope: dict[str, Any] = {"created": int(now_s), "model": query.model}
    if query.dialect == "responses":
        part = {"type": "output_text", "text": answer, "annotations": []}
        message = {"id": f"msg_{made}", "type": "message", "role": "assistant", "status": "completed"}
        body = {
            "id": f"resp_{made}",
            "object": "response",
            "created_at": int(now_s),
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": query.model,
            "output": [{**message, "content": [part]}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
    elif query.dialect == "completions":
        choice = {"index": 0, "text": answer, "logprobs": None, "finish_reason": "stop"}
        body = {"id": f"cmpl-{made}", "object": "text_completion", **envelope, "choices": [choice]}
        body["usage"] = dict(_UNKNOWN_USAGE)
    else:
        spoken = {"role": "assistant", "content": answer, "refusal": None}
        choice = {"index": 0, "message": spoken, "logprobs": None, "finish_reason": "stop"}
        body = {"id": f"chatcmpl-{made}", "object": "chat.completion", **envelope, "choices": [choice]}
        body["usage"] = dict(_UNKNOWN_USAGE)
    return Reply(body=body, source="body")
