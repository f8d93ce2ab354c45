"""The responses dialect: how an answer's bytes become a Reply, and a Reply becomes a body or a stream of typed events.

The canonical form is the `response` object with every field it came with: the whole body, or what the terminal event of
a stream holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import BodyFold, media_type
from cacheproxy.dialect.ids import new_id
from cacheproxy.dialect.pieces import pieces
from cacheproxy.dialect.responses_fold import StreamFold
from cacheproxy.query import responses as query_responses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cacheproxy.model import Reply, Wire
    from cacheproxy.ports import Fold

_encode = msgspec.json.Encoder().encode

_LONGEST_S = 10**9  # a response that took longer has nonsense for times
# The field of a part that is told in deltas, and the family of the events that tell it.
_PARTS = {
    "output_text": ("text", "response.output_text"),
    "reasoning_text": ("text", "response.reasoning_text"),
    "refusal": ("refusal", "response.refusal"),
}
_CALLS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
_BEGUN: dict[str, Any] = {"status": "in_progress", "output": [], "usage": None, "completed_at": None}

_Told = tuple[str, dict[str, Any]]
"""An event's type and its fields, before it is numbered."""


class ResponsesDialect:
    """`POST /v1/responses`."""

    name = query_responses.DIALECT

    def __init__(self, *, max_reply_bytes: int) -> None:
        self._max_reply_bytes = max_reply_bytes

    def request(self, body: Mapping[str, Any], wire: Wire) -> bytes | None:
        """Return None: the caller's own bytes serve."""
        return None

    def fold(self, wire: Wire, headers: Iterable[tuple[str, str]], *, altered: bool = True) -> Fold:
        """Start reading an answer with these headers."""
        kind = media_type(headers)
        if kind == "text/event-stream":
            return StreamFold(limit=self._max_reply_bytes)
        return BodyFold(limit=self._max_reply_bytes, json=kind == "application/json")

    def render(self, reply: Reply, wire: Wire, *, tail: str, now_s: float) -> tuple[bytes, bytes]:
        """Return the content type and the bytes of a hit, in the form the caller wants."""
        response = fresh(reply.body, new_id(reply.body.get("id"), tail, "resp_"), int(now_s))
        if wire.stream:
            return b"text/event-stream; charset=utf-8", render_stream(response)
        return b"application/json", _encode(response)


def fresh(body: Mapping[str, Any], response_id: str, created_s: int) -> dict[str, Any]:
    """Return a kept response as a new one: its id and times are new, ids of its items and all else as they came."""
    response = {**body, "id": response_id, "created_at": created_s}
    completed = body.get("completed_at")
    if isinstance(completed, int | float):
        created = body.get("created_at")
        took_s = completed - created if isinstance(created, int | float) else 0
        response["completed_at"] = created_s + (took_s if 0 <= took_s <= _LONGEST_S else 0)
    return response


def render_stream(response: Mapping[str, Any]) -> bytes:
    """Return a response as server-sent events: all that a live stream tells, numbered from 0, texts in pieces."""
    return b"".join(
        b"event: %b\n" % kind.encode() + sse.event(_encode({"type": kind, "sequence_number": number, **fields}))
        for number, (kind, fields) in enumerate(_events(response))
    )


def _events(response: Mapping[str, Any]) -> Iterator[_Told]:
    begun = {**response, **{name: value for name, value in _BEGUN.items() if name in response}}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response["output"]):
        opened, told = _item_told(item, {"item_id": item.get("id"), "output_index": index})
        yield "response.output_item.added", {"output_index": index, "item": opened}
        yield from told
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield "response.completed", {"response": response}


def _item_told(item: Mapping[str, Any], place: Mapping[str, Any]) -> tuple[dict[str, Any], list[_Told]]:
    """Return an item as it is when it is added, still empty, and the events that fill it."""
    opened = dict(item)
    told: list[_Told] = []
    if "status" in item:
        opened["status"] = "in_progress"
    kind = str(item.get("type"))
    if kind in _CALLS:
        field, family = _CALLS[kind]
        text = item.get(field)
        if isinstance(text, str):
            opened[field] = ""
            named = {"name": item["name"]} if kind == "function_call" and "name" in item else {}
            told += [(f"{family}.delta", {**place, "delta": piece}) for piece in pieces(text)]
            told.append((f"{family}.done", {**place, **named, field: text}))
    for name, parts_told in (("summary", _summary_told), ("content", _content_told)):
        parts = item.get(name)
        if kind in ("message", "reasoning") and isinstance(parts, list):
            opened[name] = []
            for index, part in enumerate(parts):
                told += parts_told(part, {**place, f"{name}_index": index})
    return opened, told


def _summary_told(part: Any, place: Mapping[str, Any]) -> Iterator[_Told]:
    text = part.get("text") if isinstance(part, dict) else None
    family = "response.reasoning_summary"
    yield f"{family}_part.added", {**place, "part": {**part, "text": ""} if isinstance(text, str) else part}
    if isinstance(text, str):
        for piece in pieces(text):
            yield f"{family}_text.delta", {**place, "delta": piece}
        yield f"{family}_text.done", {**place, "text": text}
    yield f"{family}_part.done", {**place, "part": part}


def _content_told(part: Any, place: Mapping[str, Any]) -> Iterator[_Told]:
    field, family = _PARTS.get(str(part.get("type")), ("", "")) if isinstance(part, dict) else ("", "")
    text = part.get(field) if field else None
    if not isinstance(text, str):
        yield "response.content_part.added", {**place, "part": part}
        yield "response.content_part.done", {**place, "part": part}
        return
    blank: dict[str, list[Any]] = {name: [] for name in ("annotations", "logprobs") if isinstance(part.get(name), list)}
    yield "response.content_part.added", {**place, "part": {**part, **blank, field: ""}}
    logprobs = {"logprobs": part.get("logprobs") or []} if family == "response.output_text" else {}
    # Which piece a token's logprobs belong to is not known any more: then all come with the whole text.
    for piece in [text] if any(logprobs.values()) else pieces(text):
        yield f"{family}.delta", {**place, "delta": piece, **logprobs}
    for index, annotation in enumerate(part["annotations"] if "annotations" in blank else ()):
        told = {**place, "annotation_index": index, "annotation": annotation}
        yield "response.output_text.annotation.added", told
    yield f"{family}.done", {**place, field: text, **logprobs}
    yield "response.content_part.done", {**place, "part": part}
