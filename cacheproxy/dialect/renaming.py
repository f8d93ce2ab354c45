"""Renaming: an answer passed on under another model's name, while what is read of it keeps the name it came with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import media_type

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Reply
    from cacheproxy.ports import Fold

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_MOST_EVENT_BYTES = 1024 * 1024
"""Of one event; a larger one, and what follows it, passes as it came."""


class Renamed:
    """A Fold that shows what another one shows under another name: a stream event by event, a body at its end.

    `headers` are the answer's. All other values stay as they were written, to the byte.
    """

    def __init__(self, fold: Fold, model: str, headers: Iterable[tuple[str, str]]) -> None:
        self._fold = fold
        self._name = msgspec.Raw(_encode(model))
        streams = media_type(headers) == "text/event-stream"
        self._splitter = sse.Splitter(_MOST_EVENT_BYTES) if streams else None
        self._body: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; of a body the caller gets nothing before its end."""
        shown = self._fold.feed(chunk)
        if self._splitter is None:
            self._body.append(shown)
            return b""
        return self._events(self._splitter, shown)

    def flush(self) -> bytes:
        """Return what was held back. An unfinished event stays as it came."""
        rest = self._fold.flush()
        if self._splitter is None:
            return _renamed(b"".join((*self._body, rest)), self._name)
        return self._events(self._splitter, rest) + self._splitter.flush()

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was read."""
        return self._fold.spoken

    def reply(self) -> Reply | str:
        """Return the reply under the name that it came with."""
        return self._fold.reply()

    def _events(self, splitter: sse.Splitter, shown: bytes) -> bytes:
        events = splitter.feed(shown)
        return b"".join(events if splitter.overflowed else (_event(raw, self._name) for raw in events))


def renamed(reply: Reply, model: str) -> Reply:
    """Return a kept reply under another model's name."""
    return replace(reply, body={**reply.body, "model": model}) if "model" in reply.body else reply


def _event(raw: bytes, name: msgspec.Raw) -> bytes:
    data = sse.data_of(raw) if b'"model"' in raw else None
    if data is None:
        return raw
    told = _renamed(data, name)
    return raw if told is data else sse.with_data(raw, told)


def _renamed(data: bytes, name: msgspec.Raw) -> bytes:
    """Return an object with the name in its `model`, and in that of its `response`; other bytes as they are."""
    try:
        body = _decode(data)
        inner = body.get("response")
        told = _decode(inner) if inner is not None and bytes(inner).lstrip().startswith(b"{") else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return data
    if "model" not in body and "model" not in told:
        return data
    if "model" in told and inner is not None:
        body["response"] = msgspec.Raw(_encode({**told, "model": name}))
    if "model" in body:
        body["model"] = name
    return _encode(body)
