from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cacheproxy.dialect.chat import CHAT
from cacheproxy.dialect.choices import stream_fold
from cacheproxy.dialect.sse import Splitter, data_of, event, name_of
from tests.support.chunking import chunkings

if TYPE_CHECKING:
    from collections.abc import Iterable

UNLIMITED = 10**6
BOM = b"\xef\xbb\xbf"

ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff")).map(str.encode)
lines = st.one_of(
    st.just(b""),
    words.map(lambda word: b"data: " + word),
    words.map(lambda word: b"data:" + word),
    st.sampled_from([b"data", b"data:", b"event: error", b"id: 1", b"retry: 5", b": keep-alive", b":", b" data: x"]),
    words,
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Return lines with one kind of line end or with all of them mixed, from its start or broken off."""
    told = draw(st.lists(lines, max_size=12))
    end = draw(ends | st.none())
    stream = draw(st.sampled_from([b"", BOM])) + b"".join(line + (end or draw(ends)) for line in told)
    return stream + draw(st.just(b"") | words)


noise = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"d", b"data: x", b":", b"\xc3", b"\xa9"]), max_size=20).map(
    b"".join
)
bytestreams = streams() | noise | st.binary(max_size=60)


def cut(chunks: Iterable[bytes], limit: int = UNLIMITED) -> list[bytes]:
    splitter = Splitter(limit)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return [*events, splitter.flush()]


def as_the_standard_reads_it(stream: bytes) -> list[bytes | None]:
    """Return each event's data by the line-wise rules of the HTML standard, the unfinished last event's too."""
    told = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    found: list[bytes | None] = []
    data: list[bytes] = []
    for line in [*told, b""]:
        name, _, value = line.partition(b":")
        if not line and data:
            found.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return found


@given(data=st.data(), stream=bytestreams)
@settings(max_examples=300)
@example(data=None, stream=b"data: x\r\n\r\n\r\r\n\n\r")
def test_any_chunking_yields_the_same_bytes_and_the_same_events(data: st.DataObject | None, stream: bytes) -> None:
    whole = cut([stream])
    assert b"".join(whole) == stream
    singles = [stream[at : at + 1] for at in range(len(stream))]
    assert cut(singles) == whole
    if data is not None:
        assert cut(data.draw(chunkings(stream))) == whole


@given(stream=bytestreams)
@settings(max_examples=200)
def test_events_hold_the_data_that_the_standard_reads(stream: bytes) -> None:
    found = [data_of(event) for event in cut([stream])]
    assert [data for data in found if data is not None] == as_the_standard_reads_it(stream)


@given(stream=streams())
def test_an_event_holds_one_blank_line_at_its_end(stream: bytes) -> None:
    for whole in cut([stream])[:-1]:
        told = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert told.endswith(b"\n\n")
        assert b"\n\n" not in told[:-1]


@given(data=st.data(), stream=bytestreams, limit=st.integers(0, 30))
@settings(max_examples=200)
def test_no_more_than_the_limit_is_held_back_and_nothing_is_lost(
    data: st.DataObject, stream: bytes, limit: int
) -> None:
    splitter = Splitter(limit)
    fed, passed = b"", b""
    for chunk in data.draw(chunkings(stream)):
        fed += chunk
        passed += b"".join(splitter.feed(chunk))
        assert fed.startswith(passed)
        assert len(fed) - len(passed) <= limit
    assert passed + splitter.flush() == stream


@given(data=st.data(), stream=bytestreams)
def test_a_fold_passes_every_byte_on_in_order(data: st.DataObject, stream: bytes) -> None:
    fold = stream_fold(CHAT, limit=UNLIMITED, hide_usage=False)
    passed = b"".join(fold.feed(chunk) for chunk in data.draw(chunkings(stream)))
    assert passed + fold.flush() == stream


@given(payload=st.binary(max_size=40).filter(lambda told: b"\r" not in told and b"\n" not in told))
def test_what_is_written_as_an_event_is_read_back(payload: bytes) -> None:
    assert cut([event(payload)]) == [event(payload), b""]
    assert data_of(event(payload)) == payload
    assert name_of(event(payload)) == b""
    assert name_of(b"event: a\nevent: error\n" + event(payload)) == b"error"
