from __future__ import annotations

import contextlib
import gc
import json
import time

import pytest

from cacheproxy.errors import BodyTooLarge, InvalidRequest
from cacheproxy.query.canonical import canonical, decode, deeper_than

DEPTH = 64

REFUSED = {
    "empty": (b"", "is empty"),
    "blank": (b" \r\n\t", "is empty"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), ""),
    "NUL": (b"\x00", "not valid JSON"),
    "invalid UTF-8 in a value": (b'{"a": "\xff"}', "UTF-8 (byte 0xff)"),
    "invalid UTF-8 in a key": (b'{"\xc3\x28": 1}', "UTF-8"),
    "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "UTF-8"),
    "surrogate as UTF-8": (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
    "high surrogate alone": (rb'{"a": "\ud800"}', "surrogate"),
    "low surrogate alone": (rb'{"a": "\udc00"}', "surrogate"),
    "two high surrogates": (rb'{"a": "\ud800\ud800"}', "surrogate"),
    "surrogate in a key": (rb'{"\udfff": 1}', "surrogate"),
    "NaN": (b'{"a": NaN}', "not valid JSON"),
    "infinity": (b'{"a": Infinity}', "not valid JSON"),
    "number out of range": (b'{"a": 1e999}', "out of range"),
    "integer of 5,000 digits": (b'{"a": ' + b"1" * 5000 + b"}", "out of range"),
    "leading zero": (b'{"a": 01}', "not valid JSON"),
    "trailing comma": (b'{"a": 1,}', "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "comment": (b'{"a": 1} // x', "not valid JSON"),
    "control byte in a string": (b'{"a": "\n"}', "not valid JSON"),
    "two documents": (b"{}{}", "not valid JSON"),
    "half a document": (b'{"a": {"b": 1}', "not valid JSON"),
    "array": (b"[]", "got an array"),
    "string": (b'"x"', "got a string"),
    "number": (b"1", "got a number"),
    "boolean": (b"true", "got a boolean"),
    "null": (b"null", "got null"),
    "1,000 levels": (b'{"a":' * 1000 + b"1" + b"}" * 1000, "deeper than 64"),
    "100,000 levels": (b"[" * 100_000 + b"]" * 100_000, "deeper than 64"),
    "100,000 levels without end": (b'{"a":' * 100_000, "deeper than 64"),
    "repeated key": (b'{"a": 1, "a": 1}', "repeats a key"),
    "repeated key below": (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "repeats a key"),
    "repeated key, once escaped": (rb'{"a": 1, "\u0061": 2}', "repeats a key"),
    "repeated key, balanced by an escaped colon": (rb'{"a": 1, "a": "\u003a"}', "repeats a key"),
    "repeated key, balanced by an upper-case escape": (rb'{"a": "\u003A", "a": 1, "b": "\u003A"}', "repeats a key"),
    "repeated key that is a colon": (rb'{":": 1, "\u003a": 2}', "repeats a key"),
    "repeated empty key": (b'{"": 1, "": 2}', "repeats a key"),
    "repeated key after an escaped quote": (rb'{"x": "\": \\", "a": 1, "a": "\u003a\u003a"}', "repeats a key"),
}


@pytest.mark.parametrize(("body", "told"), REFUSED.values(), ids=REFUSED)
def test_a_body_that_parsers_may_read_differently_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(body, DEPTH)
    assert told in refusal.value.message
    assert len(refusal.value.message) < 200


ACCEPTED: dict[str, bytes] = {
    "colons in strings": b'{"a:b": "::", "c": [":"]}',
    "escaped colon": rb'{"a": "\u003a", "\u003A": 1}',
    "same key in different objects": b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}',
    "keys that differ in case": b'{"a": 1, "A": 2}',
    "keys that differ in normalisation": '{"é": 1, "e\u0301": 2}'.encode(),
    "escaped quotes and backslashes": rb'{"a\"": "\\", "b": "\\\"{[", "c": "\\\\"}',
    "brackets in strings": b'{"a": "' + b"[{" * 500 + b'"}',
    "wide": b'{"a": [' + b"[{}]," * 1000 + b"0]}",
    "surrogate pair": rb'{"a": "\ud83d\ude00"}',
    "NUL and noncharacters": rb'{"a": "\u0000\uFFFE\uffff"}',
    "right-to-left, zero width, four bytes": '{"a": "\u202e\u200b\U0010ffff"}'.encode(),
    "big integer": b'{"a": 18446744073709551617}',
    "depth at the limit": b'{"a":' + b"[" * 63 + b"]" * 63 + b"}",
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED)
def test_an_unambiguous_object_is_read_as_the_standard_library_reads_it(body: bytes) -> None:
    assert decode(body, DEPTH) == json.loads(body)


def test_more_values_than_any_model_reads_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(BodyTooLarge, match="values"):
        decode(b'{"a":[' + b"1," * 1_000_001 + b"1]}", DEPTH)


def test_nesting_counts_arrays_and_objects_alike() -> None:
    body = b'{"a":[' * 32 + b"]}" * 32
    assert decode(body, 64)
    with pytest.raises(InvalidRequest, match="deeper than 63 levels"):
        decode(body, 63)


@pytest.mark.parametrize(
    ("document", "depth"),
    [(b"1", 0), (b'"[[["', 0), (b"[]", 1), (b"[[],[],{}]", 2), (rb'{"\"[": {"\\": []}}', 3), (b"[[[]],[[[]]]]", 4)],
)
def test_depth_is_that_of_the_deepest_branch(document: bytes, depth: int) -> None:
    assert not deeper_than(document, depth)
    assert depth == 0 or deeper_than(document, depth - 1)


def test_big_integers_stay_apart() -> None:
    one, other = decode(b'{"a": 18446744073709551617}', DEPTH), decode(b'{"a": 18446744073709551616}', DEPTH)
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}'),
        (b'{"a": {"y": [1, 2], "x": null}}', b'{"a":{"x":null,"y":[1,2]}}'),
        (rb'{"a": "\u00e9\/"}', '{"a": "é/"}'.encode()),
        (b'{"a": 1e2}', b'{"a": 100.0}'),
    ],
    ids=["key order", "key order below", "escapes", "number spelling"],
)
def test_spelling_does_not_change_the_canonical_form(one: bytes, other: bytes) -> None:
    assert canonical(decode(one, DEPTH)) == canonical(decode(other, DEPTH))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1}', b'{"a": 1.0}'),
        (b'{"a": 1}', b'{"a": true}'),
        (b'{"a": 0}', b'{"a": false}'),
        (b'{"a": 1}', b'{"a": "1"}'),
        (b'{"a": null}', b"{}"),
        (b'{"a": ""}', b'{"a": null}'),
        (b'{"a": []}', b'{"a": {}}'),
        (b'{"a": [1, 2]}', b'{"a": [2, 1]}'),
        (b'{"a": "x "}', b'{"a": "x"}'),
        ('{"a": "é"}'.encode(), '{"a": "e\u0301"}'.encode()),
    ],
)
def test_meaning_changes_the_canonical_form(one: bytes, other: bytes) -> None:
    assert canonical(decode(one, DEPTH)) != canonical(decode(other, DEPTH))


HOSTILE = {
    "many small arrays": lambda n: b'{"a":[' + b"[]," * (n // 3) + b"[]]}",
    "many trees at the limit": lambda n: b'{"a":[' + (b"[" * 60 + b"]" * 60 + b",") * (n // 121) + b"0]}",
    "many numbers and a few brackets": lambda n: (
        b'{"a":[' + b"1," * (n // 2) + b"1]," + b'"b":[' + b"[]," * 100 + b"0]}"
    ),
    "one key again and again": lambda n: b"{" + b'"a":1,' * (n // 6) + b'"a":1}',
    "escaped quotes": lambda n: rb'{"a":"\u003a' + rb"\"" * (n // 2) + b'"}',
    "backslashes": lambda n: rb'{"a":"\u003a' + b"\\\\" * (n // 2) + b'"}',
    "a string without end": lambda n: b'{"a":"' + rb"\"" * (n // 2),
    "brackets without end": lambda n: b'{"a":' + b"[" * n,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_take_time_in_proportion_to_their_size(hostile: object) -> None:
    assert callable(hostile)
    small_s, large_s = (_seconds(hostile(size)) for size in (20_000, 320_000))
    # Sixteen times the size: a quadratic step would take 256 times as long. The constant forgives a busy machine.
    assert large_s < 64 * small_s + 0.25


def _seconds(body: bytes) -> float:
    best_s = 10.0
    gc.disable()  # its share depends on everything else this process holds
    try:
        for _ in range(3):
            start_s = time.thread_time()
            with contextlib.suppress(InvalidRequest):
                decode(body, DEPTH)
            best_s = min(best_s, time.thread_time() - start_s)
    finally:
        gc.enable()
    return best_s
