"""How many tokens an answer cost, read from its bytes as they pass; nothing is held up and nothing altered."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheproxy.ports import Answer, Call, Upstream

TAIL_BYTES = 64 * 1024
"""Most bytes of one answer that are kept: usage is told at its end."""
BYTES_PER_TOKEN = 4
"""For answers that do not tell: about what English text takes in the tokenizers in use."""
_MOST_TOKENS = 10**9  # beyond it, what a backend says is nonsense
_MOST_REQUEST = 1024 * 1024  # of a request's bytes, for an estimate
_KEPT_BYTES, _PIECE_BYTES = TAIL_BYTES // 2, TAIL_BYTES // 4
_MOST_TRIES = 16
_GENERATES = ("/completions", "/responses")
# The strings in which dialects carry generated text. The bytes of a string: quotes inside it are escaped.
_TEXT = re.compile(rb'"(?:content|text|delta|arguments|reasoning|reasoning_content|refusal)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_BINARY = re.compile(rb"base64,[A-Za-z0-9+/=]+")
_decode = json.JSONDecoder().raw_decode


class Meter:
    """Counts the tokens of one successful answer. Feed it every piece, then ask."""

    def __init__(self, content_type: str, path: str) -> None:
        self._streams = content_type.lower().startswith("text/event-stream")
        self._generates = path.rstrip("/").endswith(_GENERATES)
        self._tail = bytearray()
        self._bytes = 0
        self._text_bytes = 0
        self._counted = 0  # how much of the tail has had its text counted

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._bytes += len(chunk)
        for start in range(0, len(chunk), _PIECE_BYTES):
            self._tail += chunk[start : start + _PIECE_BYTES]
            if len(self._tail) > TAIL_BYTES - _PIECE_BYTES:
                self._count_text()
                dropped = len(self._tail) - _KEPT_BYTES
                del self._tail[:dropped]
                self._counted = max(0, self._counted - dropped)

    def tokens(self, request: bytes) -> int:
        """Return the tokens: what the answer says last, else an estimate from the bytes of its text and the request.

        An answer that neither tells nor holds generated text (a file, a picture, a list) costs nothing.
        """
        told = _usage(bytes(self._tail))
        if told is not None:
            return told
        if not self._streams and not self._generates:
            return 0
        self._count_text()
        answered = self._text_bytes if self._streams else self._bytes
        asked = len(_BINARY.sub(b"", request[:_MOST_REQUEST]))
        return -(-(asked + answered) // BYTES_PER_TOKEN)

    def _count_text(self) -> None:
        """Count the text of every string that is whole; an unfinished one is counted with what follows."""
        if not self._streams:
            return
        for found in _TEXT.finditer(bytes(self._tail), self._counted):
            self._text_bytes += found.end(1) - found.start(1)
            self._counted = found.end()


class MeteredUpstream:
    """A backend whose answers are charged to whoever asked, where the call says so."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def send(self, call: Call) -> Answer:
        """Send, as `ports.Upstream` promises."""
        answer = await self._upstream.send(call)
        if call.charge is None:
            return answer
        return _MeteredAnswer(answer, call, call.charge)


class _MeteredAnswer:
    """An answer that is charged once, when it is left: whole, broken off, or given up by its reader."""

    def __init__(self, answer: Answer, call: Call, charge: Callable[[int], None]) -> None:
        self._answer = answer
        self._request = call.body if isinstance(call.body, bytes) else b""
        self._charge = charge
        self.status = answer.status
        self.headers = answer.headers
        kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
        # What is fetched a second time (GET) was paid when it was made.
        pays = call.method == "POST" and 200 <= answer.status < 300
        self._meter = Meter(kind, call.target.partition("?")[0]) if pays else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, as `ports.Answer` promises."""
        meter = self._meter
        async for chunk in self._answer.chunks():
            if meter is not None:
                meter.feed(chunk)
            yield chunk

    async def __aenter__(self) -> Answer:
        await self._answer.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            self._charge(meter.tokens(self._request))
        await self._answer.__aexit__(*exc)


def _usage(tail: bytes) -> int | None:
    """Return the tokens of the last `usage` object, or None. In text the quotes of such words are escaped."""
    end, tries = len(tail), 0
    while tries < _MOST_TRIES and (start := tail.rfind(b'"usage"', 0, end)) >= 0:
        end = start
        opening = tail[start + 7 : start + 64].lstrip(b" \t\r\n").removeprefix(b":").lstrip(b" \t\r\n")
        if not opening.startswith(b"{"):
            continue  # null, in the events of a stream before its last
        tries += 1
        try:
            usage, _ = _decode(tail[tail.index(b"{", start) :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        found = _sum(usage)
        if found is not None:
            return found
    return None


def _sum(usage: dict[str, Any]) -> int | None:
    def count(key: str) -> int | None:
        value = usage.get(key)
        return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None

    if (total := count("total_tokens")) is not None:
        return total
    for first, second in (("input_tokens", "output_tokens"), ("prompt_tokens", "completion_tokens")):
        if (a := count(first)) is not None:
            return a + (count(second) or 0)
    return None
