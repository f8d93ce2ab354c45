"""The chat completions dialect: how an answer's bytes become a Reply, and a Reply becomes a body or a stream.

The canonical form is the non-stream body with every field it came with. A stream is folded into it by the rules clients
use: texts are concatenated, lists extended, tool calls merged by index, and of other fields the last value that is not
null counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.dialect import sse
from cacheproxy.dialect.ids import new_id
from cacheproxy.model import Reply, Wire
from cacheproxy.query import chat as query_chat
from cacheproxy.query.canonical import deeper_than

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cacheproxy.ports import Fold

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_PIECE = re.compile(r"\s*\S{1,64}(?:\s+\S+){0,5}|\s+", re.DOTALL)
_REASONING = ("reasoning_content", "reasoning")
_SET_ONCE = frozenset({"role", "id", "type", "name"})
_MAX_CHOICES = 128
_MAX_DEPTH = 128  # far below what the decoder takes, so that whatever is kept can be merged, written and sent again


class ChatDialect:
    """`POST /v1/chat/completions`."""

    name = query_chat.DIALECT

    def __init__(self, *, max_reply_bytes: int, ask_stream_usage: bool) -> None:
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
        content_type = next((value for name, value in headers if name.lower() == "content-type"), "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            return StreamFold(limit=self._max_reply_bytes, hide_usage=self._asks_for_usage(wire))
        return BodyFold(limit=self._max_reply_bytes, json=kind == "application/json")

    def render(self, reply: Reply, wire: Wire, *, entry_id: str, now_s: float) -> tuple[bytes, bytes]:
        """Return the content type and the bytes of a hit, in the form the caller wants."""
        response_id = new_id(reply.body.get("id"), entry_id, "chatcmpl-")
        if wire.stream:
            return b"text/event-stream; charset=utf-8", render_stream(reply, response_id, int(now_s), wire)
        return b"application/json", render_body(reply, response_id, int(now_s))

    def _asks_for_usage(self, wire: Wire) -> bool:
        return self._ask_stream_usage and wire.stream and not wire.include_usage


class BodyFold:
    """Reads a JSON body."""

    def __init__(self, *, limit: int, json: bool) -> None:
        self._parts: list[bytes] = []
        self._room = limit
        self._json = json

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; the caller gets them as they are."""
        self._room -= len(chunk)
        if self._room >= 0:
            self._parts.append(chunk)
        return chunk

    def flush(self) -> bytes:
        """Return nothing: no byte is held back."""
        return b""

    def reply(self) -> Reply | str:
        """Return the body as a Reply, or why it is none."""
        if self._room < 0:
            return "too_large"
        if not self._json:
            return "not_json"
        raw = b"".join(self._parts)
        try:
            body = _decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "malformed_body"
        if deeper_than(raw, _MAX_DEPTH):
            return "nested_too_deep"
        return Reply(body=body, source="body") if isinstance(body, dict) else "malformed_body"


class StreamFold:
    """Reads a server-sent event stream, passing it on event by event."""

    def __init__(self, *, limit: int, hide_usage: bool) -> None:
        self._splitter = sse.Splitter(limit)
        self._events: list[bytes] = []
        self._room = limit
        self._hide_usage = hide_usage
        self._unfinished = False

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return those of whole events, without the usage that only the cache asked for."""
        events = self._splitter.feed(chunk)
        if self._room >= 0:
            self._room -= len(chunk)
            self._events.extend(events)
        if self._hide_usage and not self._splitter.overflowed:
            events = [_without_usage(event) if b'"usage"' in event else event for event in events]
        return b"".join(events)

    def flush(self) -> bytes:
        """Return the bytes of an unfinished event."""
        held = self._splitter.flush()
        self._unfinished = bool(held.strip())
        return held

    def reply(self) -> Reply | str:
        """Return the folded Reply, or why the stream makes none."""
        if self._room < 0 or self._splitter.overflowed:
            return "too_large"
        if self._unfinished:
            return "stream_not_finished"
        return fold_events(self._events)


def fold_events(events: Iterable[bytes]) -> Reply | str:
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
        reason = _fold_chunk(data, body, choices)
        if reason:
            return reason
    if not done:
        return "stream_not_finished"
    body["object"] = "chat.completion"
    body["choices"] = [choices[index] for index in sorted(choices)]
    if "usage" in body:
        body["usage"] = body.pop("usage")  # where a body has it: last
    return Reply(body=body, source="stream")


class _Malformed(Exception):  # an event that no client could make sense of
    pass


def _fold_chunk(data: bytes, body: dict[str, Any], choices: dict[int, dict[str, Any]]) -> str:
    try:
        chunk = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "malformed_event"
    if not isinstance(chunk, dict):
        return "malformed_event"
    if deeper_than(data, _MAX_DEPTH):
        return "nested_too_deep"
    if chunk.get("error") is not None:
        return "error_event"
    for key, value in chunk.items():
        if key not in ("choices", "obfuscation") and (value is not None or key not in body):
            body[key] = value
    body.setdefault("choices", [])
    try:
        for part in _listed(chunk.get("choices", [])):
            _fold_choice(part, choices)
    except _Malformed:
        return "malformed_event"
    return ""


def _fold_choice(part: Mapping[str, Any], choices: dict[int, dict[str, Any]]) -> None:
    index, delta = part.get("index", 0), part.get("delta")
    if not isinstance(delta, dict | None) or not isinstance(index, int) or not 0 <= index < _MAX_CHOICES:
        raise _Malformed
    choice = choices.setdefault(index, {"index": index, "message": {}})
    delta = delta or {}
    if choice.get("finish_reason") is not None and any(told for key, told in delta.items() if key != "role"):
        raise _Malformed  # words after the end
    if not isinstance(delta.get("content"), str | None):
        raise _Malformed
    _merge_message(choice["message"], delta)
    for key, value in part.items():
        if key not in ("index", "delta"):
            old = choice.get(key)
            choice[key] = _merged(old, value) if isinstance(old, dict | list) else old if value is None else value


def _merge_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls" and value is not None:
            _merge_tool_calls(message.setdefault(key, []), _listed(value))
        elif key in _SET_ONCE and isinstance(value, str) and message.get(key):
            continue
        else:
            message[key] = _merged(message.get(key), value)


def _merged(old: Any, new: Any) -> Any:
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        old.extend(new)
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        _merge_message(old, new)
        return old
    return new


def _merge_tool_calls(calls: list[Any], deltas: list[Any]) -> None:
    for delta in deltas:
        index = delta.get("index", len(calls))
        if not isinstance(index, int) or not 0 <= index <= len(calls):
            raise _Malformed
        if index == len(calls):
            calls.append({})
        _merge_message(calls[index], {key: value for key, value in delta.items() if key != "index"})


def _listed(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _Malformed
    return value


def _without_usage(event: bytes) -> bytes:
    data = sse.data_of(event)
    try:
        chunk = _decode(data) if data is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return event
    if not isinstance(chunk, dict) or "usage" not in chunk:
        return event
    if chunk["usage"] is None:
        del chunk["usage"]
        return sse.event(_encode(chunk))
    return b"" if chunk.get("choices") == [] else event


def render_body(reply: Reply, response_id: str, created_s: int) -> bytes:
    """Return the body of a hit: the live answer's fields in their order, with a new id and `created`."""
    return _encode({**reply.body, "id": response_id, "created": created_s})


def render_stream(reply: Reply, response_id: str, created_s: int, wire: Wire) -> bytes:
    """Return a hit as server-sent events, in a live stream's deltas: role, texts in pieces, finish, usage if asked."""
    envelope = {key: value for key, value in reply.body.items() if key not in ("choices", "usage")}
    envelope |= {"id": response_id, "object": "chat.completion.chunk", "created": created_s}
    silent = {"usage": None} if wire.include_usage else {}
    events = [
        sse.event(_encode({**envelope, "choices": [choice], **silent}))
        for position, source in enumerate(reply.body["choices"])
        for choice in _choice_deltas(source, position)
    ]
    if wire.include_usage:
        events.append(sse.event(_encode({**envelope, "choices": [], "usage": reply.body.get("usage")})))
    events.append(sse.DONE)
    return b"".join(events)


def _choice_deltas(choice: Mapping[str, Any], position: int) -> Iterator[dict[str, Any]]:
    index, message, logprobs = choice.get("index", position), choice["message"], choice.get("logprobs")
    closing = {key: value for key, value in choice.items() if key not in ("index", "message", "logprobs")}
    open_choice = {"logprobs": None} if "logprobs" in choice else {}
    first: dict[str, Any] = {"role": message.get("role", "assistant")}
    texts: dict[str, str] = {}
    for key, value in message.items():
        if key == "tool_calls" and isinstance(value, list):
            first[key] = [{"index": number, **call} for number, call in enumerate(value)]
        elif isinstance(value, str) and key not in _SET_ONCE:
            texts[key] = value
            if key == "content" or not value:
                first[key] = ""
        else:
            first[key] = value

    def part(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, **open_choice, "finish_reason": None, **more}

    yield part(first)
    for key in sorted(texts, key=lambda name: name not in _REASONING):
        whole = logprobs is not None and key == "content"
        for piece in [texts[key]] if whole else _PIECE.findall(texts[key]):
            yield part({key: piece}, **({"logprobs": logprobs} if whole else {}))
    yield {"index": index, "delta": {}, **open_choice, **closing}
