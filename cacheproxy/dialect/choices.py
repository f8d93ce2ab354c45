"""The envelope that chat and legacy completions share: `choices`, chunks of them, usage only if asked, `[DONE]`.

The canonical form is the non-stream body with every field it came with. A stream is folded into it; what one chunk adds
to one choice is the dialect's own (`Shape`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import BodyFold, media_type, read_object
from cacheproxy.dialect.ids import new_id
from cacheproxy.dialect.merge import Malformed, Texts, listed
from cacheproxy.dialect.streams import StreamFold
from cacheproxy.model import PLAIN_STREAM, Reply, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cacheproxy.ports import Fold

_encode = msgspec.json.Encoder().encode

_MAX_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What sets one such dialect apart.

    `whole` and `piece` are the values of `object` in a body and in a chunk. `join` adds a chunk's part to a choice, or
    raises Malformed. `split(choice, index)` yields the parts that a live stream would have sent for it.
    """

    name: str
    whole: str
    piece: str
    id_prefix: str
    join: Callable[[dict[str, Any], Mapping[str, Any], Texts], None]
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

    def fold(self, wire: Wire, headers: Iterable[tuple[str, str]], *, altered: bool = True) -> Fold:
        """Start reading an answer with these headers, to the body that `request` returned if `altered`."""
        kind = media_type(headers)
        if kind == "text/event-stream":
            hide = altered and self._asks_for_usage(wire)
            asked = hide or not wire.stream or wire.include_usage  # a stream instead of a body is all there is
            return stream_fold(self._shape, limit=self._max_reply_bytes, hide_usage=hide, usage_asked=asked)
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


def stream_fold(shape: Shape, *, limit: int, hide_usage: bool, usage_asked: bool = True) -> StreamFold:
    """Start reading a stream; `hide_usage` takes out the usage that only the cache asked for."""
    return StreamFold(
        _Account(shape, usage_asked=usage_asked), limit=limit, show=_without_usage if hide_usage else None
    )


def fold_events(shape: Shape, events: Iterable[bytes]) -> Reply | str:
    """Fold raw events into a Reply, or say why they make none: each must be sound and the last one `[DONE]`."""
    account = _Account(shape)
    for raw in events:
        account.take(raw)
    return account.reply()


class _Account:
    """What a stream has told so far; the first thing wrong with it is why it is not kept."""

    def __init__(self, shape: Shape, *, usage_asked: bool = True) -> None:
        self._shape = shape
        self._usage_asked = usage_asked
        self._flaw = ""
        self._done = False
        self._body: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._texts = Texts()

    @property
    def spoken(self) -> bool:
        """Whether something of a choice's text was told."""
        choices = self._choices.values()
        return any((choice.get("message") or {}).get("content") or choice.get("text") for choice in choices)

    def take(self, raw: bytes) -> None:
        """Take the next raw event."""
        if not self._flaw:
            self._flaw = self._fold(raw)

    def reply(self) -> Reply | str:
        """Return the whole answer, or why there is none."""
        if self._flaw or not self._done:
            return self._flaw or "stream_not_finished"
        self._texts.join()
        body = {**self._body, "object": self._shape.whole}
        body["choices"] = [self._choices[index] for index in sorted(self._choices)]
        if "usage" in body:
            body["usage"] = body.pop("usage")  # where a body has it: last
        told = self._usage_asked or body.get("usage") is not None
        return Reply(body=body, source="stream" if told else PLAIN_STREAM)

    def _fold(self, raw: bytes) -> str:
        if b"error" in sse.name_of(raw):
            return "error_event"
        data = sse.data_of(raw)
        if data is None:
            return ""
        if self._done:
            return "data_after_done"
        if data.strip() == b"[DONE]":
            self._done = True
            return ""
        chunk = read_object(data, "malformed_event")
        if isinstance(chunk, str):
            return chunk
        return "error_event" if chunk.get("error") is not None else self._fold_chunk(chunk)

    def _fold_chunk(self, chunk: Mapping[str, Any]) -> str:
        body = self._body
        for key, value in chunk.items():
            if key not in ("choices", "obfuscation") and (value is not None or key not in body):
                body[key] = value
        body.setdefault("choices", [])
        try:
            for part in listed(chunk.get("choices", [])):
                index = _index(part)
                self._shape.join(self._choices.setdefault(index, {"index": index}), part, self._texts)
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
    """Return a hit as server-sent events, as a live stream has them: the choices' parts, then usage if asked.

    A backend that told no usage when it was asked would not tell any now.
    """
    with_usage = wire.include_usage and "usage" in reply.body
    envelope = {key: value for key, value in reply.body.items() if key not in ("choices", "usage")}
    envelope |= {"id": response_id, "object": shape.piece, "created": created_s}
    # What all events share is written once: a large answer has thousands of them.
    head = _encode(envelope)[:-1] + b',"choices":['
    end = b'],"usage":null}' if with_usage else b"]}"
    events = [
        sse.event(head + _encode(part) + end)
        for position, choice in enumerate(reply.body["choices"])
        for part in shape.split(choice, choice.get("index", position))
    ]
    if with_usage:
        events.append(sse.event(_encode({**envelope, "choices": [], "usage": reply.body["usage"]})))
    events.append(sse.DONE)
    return b"".join(events)
