"""Row 15: no input makes a parser take more than 5 ms per KB. What is quadratic misses that by far at these sizes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from cacheproxy.dialect.bodies import larger_than
from cacheproxy.dialect.chat import CHAT
from cacheproxy.dialect.choices import fold_events
from cacheproxy.dialect.ids import entry_of, tail_of
from cacheproxy.dialect.responses_fold import fold_events as fold_response
from cacheproxy.dialect.splitter import ArraySplitter
from cacheproxy.dialect.sse import Splitter
from cacheproxy.errors import RequestError
from cacheproxy.http.headers import visible
from cacheproxy.model import Controls, Scope
from cacheproxy.query.canonical import canonical, decode
from cacheproxy.query.chat import read_chat
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.directives import read_directives, read_targeted
from cacheproxy.query.responses import read_responses
from tests.support.openai_wire import encode
from tests.support.proxy import chat

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER, BODY = 32 * 1024, 512 * 1024
MOST_MS_PER_KB = 5.0
SCOPE = Scope(tenant="t", namespace="")


def filled(unit: bytes, size: int, start: bytes = b"", end: bytes = b"") -> bytes:
    return start + unit * (size // len(unit)) + end


VALUES = {
    "commas": filled(b",", HEADER),
    "one directive again and again": filled(b"max-age=1,", HEADER),
    "many directives": b",".join(b"a%d=%d" % (n, n) for n in range(3000)),
    "an open quote": filled(b"a", HEADER, b'max-age="'),
    "many open quotes": filled(b'a="', HEADER),
    "escapes": filled(b"\\\\", HEADER, b'a="'),
    "escaped quotes": filled(b'\\"', HEADER, b'a="', b'"'),
    "blanks": filled(b" ", HEADER, b"max-age=1", b"x"),
    "blanks and commas": filled(b" ,", HEADER),
    "equal signs": filled(b"=", HEADER),
    "digits": filled(b"9", HEADER, b"max-age="),
    "parameters": filled(b";a", HEADER, b"a"),
    "inner lists": filled(b"(a ", HEADER, b"a="),
    "a long name": filled(b"a", HEADER),
    "stars": filled(b"*", HEADER),
}
TEXTS = {
    "open brackets": filled(b"[", BODY),
    "open objects": filled(b'{"a":', BODY),
    "quotes": filled(b'"', BODY),
    "backslashes": filled(b"\\", BODY, b'{"a":"', b'"}'),
    "escaped quotes": filled(b'\\"', BODY, b'{"a":"', b'"}'),
    "escapes": filled(b"\\u003a", BODY, b'{"a":"', b'"}'),
    "surrogates": filled(b"\\ud83d\\ude00", BODY, b'{"a":"', b'"}'),
    "open surrogates": filled(b"\\ud83d", BODY, b'{"a":"', b'"}'),
    "keys": b"{" + b",".join(b'"%d":1' % n for n in range(BODY // 10)) + b"}",
    "the same key": b"{" + b",".join([b'"a":1'] * (BODY // 6)) + b"}",
    "long keys": b"{" + b",".join(b'"' + b"a" * 5000 + b'%d":1' % n for n in range(100)) + b"}",
    "empty arrays": filled(b"[],", BODY, b'{"a":[', b"[]]}"),
    "digits": filled(b"9", BODY, b'{"a":', b"}"),
    "an exponent": filled(b"9", BODY, b'{"a":1e', b"}"),
    "blanks": filled(b" ", BODY, b"{", b"}"),
    "brackets in a text": filled(b"[{", BODY, b'{"a":"', b'"}'),
    "colons in a text": filled(b":", BODY, b'{"a":"\\u003a', b'"}'),
    "messages": encode({**chat(), "messages": [{"role": "user", "content": "x"}] * (BODY // 40)}),
    "parts": encode({**chat(), "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 15_000}]}),
    "letters": encode(chat("a" * BODY)),
    "other letters": encode(chat("\u0130\ufb03\u1112" * (BODY // 9))),
    "combining marks": encode(chat("a" + "\u0301" * (BODY // 2))),
    "blanks in a text": encode(chat(" \t\n" * (BODY // 3) + "x")),
    "tools": encode(chat(tools=[{"type": "function", "function": {"name": f"f{n}"}} for n in range(8000)])),
}
STREAMS = {
    "line feeds": filled(b"\n", BODY),
    "carriage returns": filled(b"\r", BODY),
    "an event without end": filled(b"data: a\n", BODY),
    "a line without end": filled(b"a", BODY, b"data: "),
    "comments": filled(b":\n\n", BODY),
    "empty data": filled(b"data\n\n", BODY),
    "chunks": filled(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', BODY),
    "calls": filled(
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"x"}}]}}]}\n\n', BODY
    ),
    "choices": b"".join(b'data: {"choices":[{"index":%d,"delta":{}}]}\n\n' % n for n in range(8000)),
}


SIZES = {
    "a text": ({"a": "x" * 999}, {"a": "x" * 1001}),
    "texts": (["x" * 98] * 10, ["x" * 101] * 10),
    "keys": ({"x" * 900: 1}, {"x" * 1100: 1}),
    "nested": ([[{"a": "x" * 900}]], [[{"a": "x" * 1001}]]),
    "numbers": ([1] * 100, [1] * 300),
    "empty objects": ([{}] * 900, [{}] * 1100),
}


@pytest.mark.parametrize(("small", "large"), SIZES.values(), ids=SIZES)
def test_what_is_large_is_told_from_what_is_small(small: object, large: object) -> None:
    assert not larger_than(small, 1000)
    assert larger_than(large, 1000)


def in_pieces(splitter: Callable[[bytes], object], data: bytes, size: int) -> None:
    for at in range(0, len(data), size):
        splitter(data[at : at + size])


def understand(data: bytes) -> None:
    body = decode(data, 64)
    canonical(body)
    read_chat(body, SCOPE, Controls(), b"")
    read_responses(body, SCOPE, Controls(), b"")


READERS: dict[str, tuple[Callable[[bytes], object], dict[str, bytes]]] = {
    "directives": (lambda data: read_directives([data.decode()]), VALUES),
    "directives, many values": (lambda data: read_directives(data.decode().split(",")), VALUES),
    "targeted directives": (lambda data: read_targeted([data.decode()]), VALUES),
    "controls": (lambda data: read_controls([(b"cache-control", data), (b"x-cacheproxy-tags", data)]), VALUES),
    "a body's controls": (lambda data: read_body_controls(Controls(), "", {"namespace": data.decode()}), VALUES),
    "ids": (lambda data: (tail_of(data.decode()), entry_of(data.decode())), VALUES),
    "header values": (lambda data: visible(data.decode()), VALUES),
    "bodies": (understand, TEXTS),
    "arrays": (lambda data: ArraySplitter("a").feed(data), TEXTS),
    "arrays in pieces": (lambda data: in_pieces(ArraySplitter("a").feed, data, 64), TEXTS),
    "streams": (lambda data: Splitter(1 << 20).feed(data), STREAMS),
    "streams in pieces": (lambda data: in_pieces(Splitter(1 << 20).feed, data, 16), STREAMS),
    "chat streams": (lambda data: fold_events(CHAT, Splitter(1 << 20).feed(data)), STREAMS),
    "response streams": (lambda data: fold_response(Splitter(1 << 20).feed(data)), STREAMS),
}
CASES = {
    f"{reader}: {name}": (reader, data) for reader, (_, inputs) in READERS.items() for name, data in inputs.items()
}


def test_what_is_held_of_an_event_is_not_copied_for_every_chunk() -> None:
    splitter = Splitter(1 << 20)
    splitter.feed(b"data: ")
    held = splitter._held
    for _ in range(1000):
        splitter.feed(b"a" * 64)
    assert splitter._held is held
    assert splitter.flush() == b"data: " + b"a" * 64_000


def cpu_ms(read: Callable[[bytes], object], data: bytes) -> float:
    began_s = time.thread_time()
    with contextlib.suppress(RequestError):
        read(data)
    return (time.thread_time() - began_s) * 1000


@pytest.mark.parametrize(("reader", "data"), CASES.values(), ids=CASES)
def test_reading_takes_time_linear_in_the_input(reader: str, data: bytes) -> None:
    most_ms = MOST_MS_PER_KB * len(data) / 1024
    # The least of three: the collector walks the whole suite's heap now and then, and that is not the reader's time.
    assert any(cpu_ms(READERS[reader][0], data) < most_ms for _ in range(3))
