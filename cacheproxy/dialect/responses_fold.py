"""Reads a stream of typed Responses events: the terminal event holds the answer, all events before it must agree.

Nothing but the texts that callers assemble from deltas is kept on the way, so a long answer told in many small events
takes no more room here than its text.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import read_object
from cacheproxy.dialect.merge import Malformed
from cacheproxy.model import Reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TERMINAL = {
    "response.completed": "",
    "response.incomplete": "response_incomplete",
    "response.failed": "response_failed",
    "response.cancelled": "response_cancelled",
    "error": "error_event",
}
"""Events that end a stream, with the reason why such a stream is not kept."""

# Texts told in deltas: which index of the event says where in its item, and the field that holds the whole.
_TOLD = {
    "response.output_text": ("content", "content_index", "text"),
    "response.refusal": ("content", "content_index", "refusal"),
    "response.reasoning_text": ("content", "content_index", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "text"),
    "response.function_call_arguments": ("", "", "arguments"),
    "response.custom_tool_call_input": ("", "", "input"),
}

_PLACE_BYTES = 256  # what one more place costs here, about: many empty ones must not fill memory either

_Place = tuple[int, str, int, str]
"""Where a text belongs in the output: item, list within it ("" for the item itself), position there, field."""


class StreamFold:
    """Reads a server-sent event stream; every byte passes through at once, as it came.

    Events are read once they were passed on: those of one chunk when the next one comes, or somebody asks.
    """

    def __init__(self, *, limit: int) -> None:
        self._splitter = sse.Splitter(limit)
        self._account = Account(limit)
        self._unread: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; the caller gets them as they are."""
        self._read()
        self._unread = self._splitter.feed(chunk)
        if self._splitter.overflowed:
            self._account.refuse("too_large")
        return chunk

    def flush(self) -> bytes:
        """Return nothing: no byte is held back. An unfinished event counts as a cut."""
        self._read()
        if self._splitter.flush().strip():
            self._account.refuse("stream_not_finished")
        return b""

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was read."""
        self._read()
        return self._account.spoken

    def reply(self) -> Reply | str:
        """Return the whole response, or why the stream makes none."""
        self._read()
        return self._account.reply()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        self._account.extend(unread)


def fold_events(events: Iterable[bytes], limit: int = 1 << 20) -> Reply | str:
    """Fold raw events into a Reply, or say why they make none."""
    account = Account(limit)
    account.extend(events)
    return account.reply()


class Account:
    """What a stream has told so far; the first thing wrong with it is why it is not kept."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._limit = limit
        self._flaw = ""
        self._ended = False
        self._marked_done = False
        self._last_number: int | None = None
        self._response_id: object = None
        self._texts: dict[_Place, StringIO] = {}
        self._item_types: dict[int, object] = {}
        self._response: Mapping[str, Any] = {}

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was told."""
        return any(told.tell() for told in self._texts.values())

    def refuse(self, reason: str) -> None:
        """Note why this stream is not kept, unless something was wrong before."""
        self._flaw = self._flaw or reason

    def extend(self, events: Iterable[bytes]) -> None:
        """Take raw events in order."""
        for raw in events:
            if self._flaw:
                return
            try:
                self._take(raw)
            except Malformed:
                self.refuse("malformed_event")

    def reply(self) -> Reply | str:
        """Return the whole response, or why there is none."""
        if self._flaw:
            return self._flaw
        if not self._ended:
            return "no_terminal_event" if self._marked_done else "stream_not_finished"
        return Reply(body=self._response, source="stream") if self._agrees() else "inconsistent_stream"

    def _take(self, raw: bytes) -> None:
        data = sse.data_of(raw)
        if data is None:
            return
        if data.strip() == b"[DONE]":  # not part of this dialect, but some servers end every stream with it
            self._marked_done = True
        elif self._ended or self._marked_done:
            self.refuse("data_after_done")
        elif len(data) > self._limit:
            self.refuse("too_large")
        else:
            event = read_object(data, "malformed_event")
            if isinstance(event, str):
                self.refuse(event)
            else:
                self._take_event(event, sse.name_of(raw))

    def _take_event(self, event: Mapping[str, Any], name: bytes) -> None:
        kind = event.get("type")
        if event.get("error") is not None or kind == "error" or name == b"error":
            self.refuse("error_event")
            return
        if not isinstance(kind, str) or (name and name != kind.encode()):
            raise Malformed
        self._check_number(event.get("sequence_number"))
        family, _, step = kind.rpartition(".")
        if family in _TOLD and step in ("delta", "done"):
            self._take_text(event, family, step)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._take_item(event)
        elif isinstance(event.get("response"), dict):
            self._take_response(event["response"], kind)
        elif kind in _TERMINAL:
            raise Malformed

    def _take_text(self, event: Mapping[str, Any], family: str, step: str) -> None:
        where, index_name, field = _TOLD[family]
        text = event.get("delta" if step == "delta" else field)
        place = (_index(event, "output_index"), where, _index(event, index_name) if where else 0, field)
        if not isinstance(text, str):
            raise Malformed
        if step == "delta":
            if place not in self._texts:
                self._texts[place] = StringIO()
                self._spend(_PLACE_BYTES)
            self._texts[place].write(text)
            self._spend(len(text))
        elif place in self._texts and self._texts[place].getvalue() != text:
            self.refuse("inconsistent_stream")

    def _take_item(self, event: Mapping[str, Any]) -> None:
        item, index = event.get("item"), _index(event, "output_index")
        if not isinstance(item, dict):
            raise Malformed
        if index not in self._item_types:
            self._item_types[index] = item.get("type")
            self._spend(_PLACE_BYTES)
        elif self._item_types[index] != item.get("type"):
            self.refuse("inconsistent_stream")

    def _take_response(self, response: Mapping[str, Any], kind: str) -> None:
        self._response_id = self._response_id or response.get("id")
        if response.get("id") != self._response_id:
            self.refuse("inconsistent_stream")  # the official client gives up on such a stream
        if kind in _TERMINAL:
            self._ended = True
            self._response = response
            if _TERMINAL[kind]:
                self.refuse(_TERMINAL[kind])

    def _check_number(self, number: object) -> None:
        if number is None:
            return
        if not isinstance(number, int):
            raise Malformed
        if self._last_number is not None and number <= self._last_number:
            self.refuse("inconsistent_stream")
        self._last_number = number

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            self.refuse("too_large")

    def _agrees(self) -> bool:
        """Whether the response at the end holds exactly what the events before it told."""
        output = self._response.get("output")
        if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
            return not self._texts and not self._item_types
        return (
            all(_text_at(output, place) == told.getvalue() for place, told in self._texts.items())
            and all(_item_at(output, index).get("type") == kind for index, kind in self._item_types.items())
            and all(place in self._texts for place in _visible_texts(output))
        )


def _index(event: Mapping[str, Any], name: str) -> int:
    index = event.get(name)
    if not isinstance(index, int) or index < 0:
        raise Malformed
    return index


def _item_at(items: list[Any], index: int) -> Mapping[str, Any]:
    item = items[index] if index < len(items) else None
    return item if isinstance(item, dict) else {}


def _text_at(output: list[Any], place: _Place) -> object:
    item_index, where, index, field = place
    holder = _item_at(output, item_index)
    if where:
        parts = holder.get(where)
        holder = _item_at(parts, index) if isinstance(parts, list) else {}
    return holder.get(field)


def _visible_texts(output: list[Any]) -> list[_Place]:
    """Return where the output holds text that callers read: it must have been told in deltas too."""
    return [
        (at, "content", index, "text")
        for at, item in enumerate(output)
        if item.get("type") == "message" and isinstance(item.get("content"), list)
        for index, part in enumerate(item["content"])
        if isinstance(part, dict) and part.get("type") == "output_text" and part.get("text")
    ]
