from __future__ import annotations

import gc
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from cacheproxy.model import Entry, Reply
from cacheproxy.store.codec import VERSION, Decoded, RecordError, decode, decode_vector, encode
from tests.support.entries import BODY, EPOCH, entry_id, make_entry, same


def test_an_entry_comes_back_as_it_was() -> None:
    entry = make_entry("paris")
    encoded = encode(entry)
    assert same(decode(encoded.record, encoded.vector, entry.id).entry, entry)
    assert same(encoded.entry, entry)


def test_an_entry_without_a_vector_comes_back_as_it_was() -> None:
    entry = make_entry("paris", dim=0)
    encoded = encode(entry)
    assert encoded.vector is None
    assert same(decode(encoded.record, None, entry.id).entry, entry)


@pytest.mark.parametrize(
    "value",
    [
        2**53 + 1,
        2**64 + 1,
        -(2**63) - 1,
        10**40,
        1.0,
        -0.0,
        0.1,
        5e-324,
        1.7976931348623157e308,
        1e16,
        True,
        None,
        "",
        "\x00\u2028\U0001f5fc",
        [],
        {},
        [{"z": 1, "a": [1, 1.0, None]}],
    ],
    ids=repr,
)
def test_every_json_value_keeps_its_type_and_digits(value: Any) -> None:
    entry = make_entry("paris", body={"z": value, "a": value})
    encoded = encode(entry)
    body = decode(encoded.record, encoded.vector, entry.id).entry.reply.body
    assert list(body) == ["z", "a", "key", "version"]
    assert repr(body["z"]) == repr(value)


def test_a_record_of_the_first_version_is_an_entry_that_is_never_stale_and_suits_all() -> None:
    entry = replace(make_entry("paris"), stale_until_s=0.0, revalidate_s=0.0, on_error_s=0.0, vary=(), variant=b"")
    assert same(_as_version(1, 15, entry), entry)
    assert entry.gone_s == entry.expires_s


def test_a_record_of_the_second_version_is_an_entry_of_nobody_in_particular() -> None:
    entry = replace(make_entry("paris"), namespace="n", model="m", user="u", second="s")
    assert same(_as_version(3, 24, entry), entry)
    assert same(_as_version(2, 20, entry), replace(entry, namespace="", model="", user="", second=""))


def test_a_record_of_the_third_version_is_an_entry_of_a_question_that_stands_alone() -> None:
    entry = replace(make_entry("paris"), chain=("What is the capital of France?", "Paris."))
    assert same(_as_version(4, 25, entry), entry)
    assert same(_as_version(3, 24, entry), replace(entry, chain=()))


def test_an_entry_knows_where_its_answer_is_from() -> None:
    entry = replace(make_entry("paris"), origin="shared", policy=7, principals=("a" * 32, "b" * 32))
    assert same(_as_version(4, 28, entry), entry)
    assert same(_as_version(4, 25, entry), replace(entry, origin="backend", policy=0, principals=()))


def _as_version(version: int, fields: int, entry: Entry) -> Entry:
    """Return what is read from a record with the first `fields` parts of this build's."""
    encoded = encode(entry)
    payload = msgspec.msgpack.encode(msgspec.msgpack.decode(encoded.record[9:])[:fields])
    record = b"cpxe" + bytes([version]) + zlib.crc32(payload, version).to_bytes(4, "little") + payload
    return decode(record, encoded.vector, entry.id).entry


def test_every_flipped_bit_is_refused() -> None:
    entry = make_entry("paris")
    encoded = encode(entry)
    assert encoded.vector is not None
    for blob, others in ((encoded.record, encoded.vector), (encoded.vector, encoded.record)):
        for position in range(len(blob) * 8):
            damaged = bytearray(blob)
            damaged[position // 8] ^= 1 << position % 8
            record, vector = (bytes(damaged), others) if blob is encoded.record else (others, bytes(damaged))
            with pytest.raises(RecordError):
                decode(record, vector, entry.id)


def test_every_shortened_or_lengthened_blob_is_refused() -> None:
    entry = make_entry("paris")
    encoded = encode(entry)
    assert encoded.vector is not None
    for end in range(len(encoded.record)):
        with pytest.raises(RecordError):
            decode(encoded.record[:end], encoded.vector, entry.id)
    for end in range(len(encoded.vector)):
        with pytest.raises(RecordError):
            decode(encoded.record, encoded.vector[:end], entry.id)
    with pytest.raises(RecordError):
        decode(encoded.record + b"\0", encoded.vector, entry.id)
    with pytest.raises(RecordError):
        decode(encoded.record, encoded.vector + b"\0\0\0\0", entry.id)


@pytest.mark.parametrize("value", [None, 1, 1.5, "text"])
def test_what_is_not_bytes_is_refused(value: object) -> None:
    encoded = encode(make_entry("paris"))
    with pytest.raises(RecordError):
        decode(value, encoded.vector, entry_id("paris"))
    with pytest.raises(RecordError):
        decode(encoded.record, value, entry_id("paris"))


def test_a_record_under_another_id_is_refused() -> None:
    encoded = encode(make_entry("paris"))
    with pytest.raises(RecordError, match="another entry's"):
        decode(encoded.record, encoded.vector, entry_id("rome"))


def test_another_entrys_vector_is_refused() -> None:
    paris, rome = encode(make_entry("paris")), encode(make_entry("rome"))
    with pytest.raises(RecordError):
        decode(paris.record, rome.vector, entry_id("paris"))


def test_a_vector_under_another_partition_is_refused() -> None:
    entry = make_entry("paris")
    vector = encode(entry).vector
    assert decode_vector(vector, entry.partition, entry.id).tobytes() == np.asarray(entry.vector).tobytes()
    for partition in (
        replace(entry.partition, category="other"),
        replace(entry.partition, compatibility=b"other"),
        replace(entry.partition, epoch=EPOCH + "x"),
    ):
        with pytest.raises(RecordError):
            decode_vector(vector, partition, entry.id)


def test_a_record_of_another_version_is_refused_although_its_checksum_is_right() -> None:
    encoded = encode(make_entry("paris"))
    payload = encoded.record[9:]
    newer = VERSION + 1
    record = encoded.record[:4] + bytes([newer]) + zlib.crc32(payload, newer).to_bytes(4, "little") + payload
    with pytest.raises(RecordError, match=f"version {newer}; this build reads version {VERSION}"):
        decode(record, encoded.vector, entry_id("paris"))


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"id": 1})])
def test_a_payload_of_another_form_is_refused_although_its_checksum_is_right(payload: bytes) -> None:
    head = encode(make_entry("paris")).record[:5]
    record = head + zlib.crc32(payload, VERSION).to_bytes(4, "little") + payload
    with pytest.raises(RecordError):
        decode(record, None, entry_id("paris"))


@pytest.mark.parametrize("value", [object(), "\ud800", iter((1, 2))], ids=["object", "surrogate", "iterator"])
def test_an_answer_that_is_not_json_is_refused_without_naming_its_text(value: object) -> None:
    entry = replace(make_entry("paris"), reply=Reply(body={"secret": value}, source="body"))
    with pytest.raises(RecordError, match="not JSON") as caught:
        encode(entry)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "vector",
    [np.zeros((1, 8)), np.zeros(0), np.array([1.0, np.nan]), np.array([np.inf])],
    ids=["2d", "0", "nan", "inf"],
)
def test_a_vector_that_is_not_a_row_of_finite_numbers_is_refused(vector: Any) -> None:
    with pytest.raises(RecordError):
        encode(replace(make_entry("paris"), vector=vector))


def test_a_kept_vector_does_not_keep_the_batch_it_came_from() -> None:
    batch = np.ones((1000, 8), dtype=np.float32)
    kept = encode(replace(make_entry("paris"), vector=batch[3])).entry.vector
    assert kept is not None
    assert not np.shares_memory(kept, batch)
    assert not kept.flags.writeable


def _logprobs(count: int) -> dict[str, Any]:
    top = [{"token": "word", "logprob": -0.25, "bytes": [119, 111]}] * 5
    return _answer("word " * count) | {
        "logprobs": {"content": [{"token": "word", "logprob": -0.5, "top_logprobs": top}] * count}
    }


def _answer(content: str) -> dict[str, Any]:
    return {**BODY, "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


@pytest.mark.parametrize(
    "body",
    [
        _answer("yes"),
        _answer("ascii words " * 350),
        _answer("слова кириллицей " * 250),
        _answer("words " * 700 + "\U0001f5fc"),
        _logprobs(100),
    ],
    ids=["small", "ascii", "cyrillic", "emoji", "logprobs"],
)
def test_the_estimated_footprint_is_near_what_an_entry_occupies(body: dict[str, Any]) -> None:
    encoded = encode(make_entry("paris", body=body, dim=384))
    decode(encoded.record, encoded.vector, entry_id("paris"))
    kept: list[Decoded] = []
    tracemalloc.start()
    try:
        for _ in range(50):
            kept.append(decode(encoded.record, bytes(bytearray(encoded.vector or b"")), entry_id("paris")))
        gc.collect()
        occupied = tracemalloc.get_traced_memory()[0] / 50
    finally:
        tracemalloc.stop()
    assert 0.9 < kept[0].footprint_bytes / occupied < 2.5
