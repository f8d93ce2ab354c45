"""An answer passed on under another model's name: its other bytes as they came, and what is read of it untouched."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.dialect.completions import CompletionsDialect
from cacheproxy.dialect.renaming import Renamed, renamed
from cacheproxy.dialect.responses import ResponsesDialect
from cacheproxy.model import Reply, Wire
from tests.support import openai_wire, responses_wire
from tests.support.sse import read_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy.ports import Dialect

JSON, STREAM = (("content-type", "application/json"),), (("content-type", "text/event-stream"),)
CHAT = ChatDialect(max_reply_bytes=100_000, ask_stream_usage=True)


def shown(dialect: Dialect, chunks: Sequence[bytes], *, stream: bool, model: str = "big") -> tuple[bytes, Reply | str]:
    headers = STREAM if stream else JSON
    wire = Wire(stream=stream)
    fold = Renamed(dialect.fold(wire, headers, altered=False), model, headers)
    told = b"".join([*(fold.feed(chunk) for chunk in chunks), fold.flush()])
    return told, fold.reply()


def test_a_body_bears_the_other_name_and_nothing_else_changes() -> None:
    raw = b'{"id": "x",  "seed":123456789012345678901234567890, "model" : "tiny", "n": 1.50, "choices":[{"model":"m"}]}'
    told, reply = shown(CHAT, [raw[:30], raw[30:]], stream=False)
    assert told == (
        b'{"id":"x","seed":123456789012345678901234567890,"model":"big","n":1.50,"choices":[{"model":"m"}]}'
    )
    assert isinstance(reply, Reply)
    assert reply.body["model"] == "tiny"


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_every_event_of_a_stream_bears_it_however_it_is_cut(cuts: list[int]) -> None:
    raw = b"".join([*map(openai_wire.event, openai_wire.chunks("Well, it depends.", model="tiny")), openai_wire.DONE])
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    told, reply = shown(CHAT, [raw[a:b] for a, b in pairwise(places)], stream=True)
    assert told == raw.replace(b'"model":"tiny"', b'"model":"big"')
    assert isinstance(reply, Reply)
    assert reply.body["model"] == "tiny"


def test_the_response_within_a_typed_event_bears_it_and_the_event_keeps_its_name() -> None:
    dialect = ResponsesDialect(max_reply_bytes=100_000)
    whole = responses_wire.response(responses_wire.message("Well."), model="tiny")
    _, raw = dialect.render(Reply(body=whole, source="body"), Wire(stream=True), tail="t", now_s=1.0)
    told, reply = shown(dialect, [raw], stream=True)
    assert told == raw.replace(b'"model":"tiny"', b'"model":"big"')
    assert b"event: response.created\n" in told
    assert isinstance(reply, Reply)
    assert reply.body["model"] == "tiny"


def test_a_legacy_completion_bears_it() -> None:
    dialect = CompletionsDialect(max_reply_bytes=100_000, ask_stream_usage=True)
    body = {"id": "x", "object": "text_completion", "model": "tiny", "choices": [{"text": "Well", "index": 0}]}
    told, _ = shown(dialect, [msgspec.json.encode(body)], stream=False)
    assert msgspec.json.decode(told) == {**body, "model": "big"}


@pytest.mark.parametrize("raw", [b"", b"no json", b"[1]", b'{"model":', b'{"error":{"message":"x"}}', b"\xff"])
def test_what_bears_no_name_passes_as_it_came(raw: bytes) -> None:
    assert shown(CHAT, [raw], stream=False)[0] == raw


def test_what_is_no_event_of_a_model_passes_as_it_came() -> None:
    raw = b': a "model" comment\n\nid: 1\r\ndata: {"model" \r\n\r\ndata: [DONE]\n\ndata: {"model":"tiny"'
    assert shown(CHAT, [raw], stream=True)[0] == raw


def test_other_fields_of_an_event_stay() -> None:
    told, _ = shown(CHAT, [b'id: 7\nevent: x\ndata: {"model":\ndata: "tiny"}\n\n'], stream=True)
    assert told == b'id: 7\nevent: x\ndata: {"model":"big"}\n\n'


def test_a_name_is_written_as_json() -> None:
    told, _ = shown(CHAT, [b'{"model":"tiny"}'], stream=False, model='a"b\u2028\\')
    assert msgspec.json.decode(told) == {"model": 'a"b\u2028\\'}


def test_an_endless_event_is_not_held_back() -> None:
    told, _ = shown(CHAT, [b"data: " + b"x" * 1_100_000, b"y"], stream=True)
    assert told == b"data: " + b"x" * 1_100_000 + b"y"


def test_a_kept_reply_is_renamed_in_a_copy() -> None:
    reply = Reply(body={"model": "tiny", "id": "x"}, source="body")
    assert (renamed(reply, "big").body, reply.body["model"]) == ({"model": "big", "id": "x"}, "tiny")
    assert renamed(Reply(body={"id": "x"}, source="body"), "big").body == {"id": "x"}
    assert read_events(openai_wire.event({"model": "m"}) + openai_wire.DONE)
