"""The envelope that chat and legacy completions share: `choices`, chunks of them, usage only if asked, `[DONE]`.

The canonical form is the non-stream body with every field it came with. A stream is folded into it; what one chunk adds
to one choice is the dialect's own (`Shape`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import BodyFold, media_type, read_object
from cacheproxy.dialect.ids import new_id
from cacheproxy.dialect.merge import Malformed, listed
from cacheproxy.dialect.streams import StreamFold
from cacheproxy.model import Reply, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cacheproxy.ports import Fold

_encode = msgspec.json.Encoder().encode

_MAX_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What sets one such dialect apart.

    `whole` and `piece` are the values of `object` in a body and in a chunk. `join(choice, part)` adds a chunk's part to
    a choice, or raises Malformed. `split(choice, index)` yields the parts that a live stream would have sent for it.
    """

    name: str
    whole: str
    piece: str
    id_prefix: str
    join: Callable[[dict[str, Any], Mapping[str, Any]], None]
    split: Callable[[Mapping[str, Any], int], Iterator[dict[str, Any]]]


class ChoicesDialect:
    """A dialect of that envelope."""

    def __init__(self, shape: Shape, *, max_reply_bytes: int, ask_stream_usage: bool) -> None:
        self.name = shape.name
        self._shape = shape
        self._max_reply_bytes = max_reply_bytes
        self._ask_stream_usage = ask_stream_usage

    def request(self, body: Mapping[str, Any], wire: Wire) -> bytes | None:
        """Return the body to send upstream, or None when the caller's own bytes serve.

        A cacheable stream asks for usage, so that the entry can serve every form; `fold` hides it from a caller who did
        not.
        """
        options = body.get("stream_options")
        if not self._asks_for_usage(wire) or not isinstance(options, dict | None):
            return None
        return _encode({**body, "stream_options": {**(options or {}), "include_usage": True}})

    def fold(self, wire: Wire, headers: Iterable[tuple[str, str]]) -> Fold:
        """Start reading an answer with these headers."""
        kind = media_type(headers)
        if kind == "text/event-stream":
            return stream_fold(self._shape, limit=self._max_reply_bytes, hide_usage=self._asks_for_usage(wire))
        return BodyFold(limit=self._max_reply_bytes, json=kind == "application/json")

    def render(self, reply: Reply, wire: Wire, *, tail: str, now_s: float) -> tuple[bytes, bytes]:
        """Return the content type and the bytes of a hit, in the form the caller wants."""
        response_id = new_id(reply.body.get("id"), tail, self._shape.id_prefix)
        if wire.stream:
            stream = render_stream(self._shape, reply, response_id, int(now_s), wire)
            return b"text/event-stream; charset=utf-8", stream
        return b"application/json", render_body(reply, response_id, int(now_s))

    def _asks_for_usage(self, wire: Wire) -> bool:
        return self._ask_stream_usage and wire.stream and not wire.include_usage


def stream_fold(shape: Shape, *, limit: int, hide_usage: bool) -> StreamFold:
    """Start reading a stream; `hide_usage` takes out the usage that only the cache asked for."""
    return StreamFold(limit=limit, read=partial(fold_events, shape), show=_without_usage if hide_usage else None)


def fold_events(shape: Shape, events: Iterable[bytes]) -> Reply | str:
    """Fold raw events into a Reply, or say why they make none: each must be sound and the last one `[DONE]`."""
    body: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    done = False
    for raw in events:
        if b"error" in sse.name_of(raw):
            return "error_event"
        data = sse.data_of(raw)
        if data is None:
            continue
        if done:
            return "data_after_done"
        if data.strip() == b"[DONE]":
            done = True
            continue
        reason = _fold_chunk(shape, data, body, choices)
        if reason:
            return reason
    if not done:
        return "stream_not_finished"
    body["object"] = shape.whole
    body["choices"] = [choices[index] for index in sorted(choices)]
    if "usage" in body:
        body["usage"] = body.pop("usage")  # where a body has it: last
    return Reply(body=body, source="stream")


def _fold_chunk(shape: Shape, data: bytes, body: dict[str, Any], choices: dict[int, dict[str, Any]]) -> str:
    chunk = read_object(data, "malformed_event")
    if isinstance(chunk, str):
        return chunk
    if chunk.get("error") is not None:
        return "error_event"
    for key, value in chunk.items():
        if key not in ("choices", "obfuscation") and (value is not None or key not in body):
            body[key] = value
    body.setdefault("choices", [])
    try:
        for part in listed(chunk.get("choices", [])):
            index = _index(part)
            shape.join(choices.setdefault(index, {"index": index}), part)
    except Malformed:
        return "malformed_event"
    return ""


def _index(part: Mapping[str, Any]) -> int:
    index = part.get("index", 0)
    if not isinstance(index, int) or not 0 <= index < _MAX_CHOICES:
        raise Malformed
    return index


def _without_usage(event: bytes) -> bytes:
    data = sse.data_of(event) if b'"usage"' in event else None
    chunk = read_object(data, "") if data is not None else ""
    if isinstance(chunk, str) or "usage" not in chunk:
        return event
    if chunk["usage"] is None:
        del chunk["usage"]
        return sse.event(_encode(chunk))
    return b"" if chunk.get("choices") == [] else event


def render_body(reply: Reply, response_id: str, created_s: int) -> bytes:
    """Return the body of a hit: the live answer's fields in their order, with a new id and `created`."""
    return _encode({**reply.body, "id": response_id, "created": created_s})


def render_stream(shape: Shape, reply: Reply, response_id: str, created_s: int, wire: Wire) -> bytes:
    """Return a hit as server-sent events, as a live stream has them: the choices' parts, then usage if asked."""
    envelope = {key: value for key, value in reply.body.items() if key not in ("choices", "usage")}
    envelope |= {"id": response_id, "object": shape.piece, "created": created_s}
    silent = {"usage": None} if wire.include_usage else {}
    events = [
        sse.event(_encode({**envelope, "choices": [part], **silent}))
        for position, choice in enumerate(reply.body["choices"])
        for part in shape.split(choice, choice.get("index", position))
    ]
    if wire.include_usage:
        events.append(sse.event(_encode({**envelope, "choices": [], "usage": reply.body.get("usage")})))
    events.append(sse.DONE)
    return b"".join(events)
