"""Known requests: what is held, for how long, and what stands for a request."""

from __future__ import annotations

import itertools

import pytest

from cacheproxy.query.known import Known, key_of

KEY, SECRET = b"k" * 16, b"s" * 32


def test_what_was_put_is_found_until_it_is_dropped() -> None:
    known = Known[str]()
    known.put(KEY, "understood", 10)
    assert known.get(KEY, 0) == "understood"
    known.drop(KEY)
    assert known.get(KEY, 0) is None


def test_a_purge_ends_all_that_was_known_before_it() -> None:
    known = Known[str]()
    known.put(KEY, "understood", 10)
    assert known.get(KEY, 1) is None
    assert len(known) == 0
    known.put(KEY, "anew", 10)
    assert known.get(KEY, 1) == "anew"


@pytest.mark.parametrize(("most", "most_bytes"), [(2, 1000), (100, 20)], ids=["by number", "by bytes"])
def test_the_least_recently_used_goes_first(most: int, most_bytes: int) -> None:
    known = Known[str](most, most_bytes)
    for name in ("a", "b"):
        known.put(name.encode(), name, 10)
    assert known.get(b"a", 0)
    known.put(b"c", "c", 10)
    assert [known.get(name, 0) for name in (b"a", b"b", b"c")] == ["a", None, "c"]


def test_one_that_is_put_again_counts_once() -> None:
    known = Known[str](100, 20)
    for _ in range(5):
        known.put(b"a", "a", 10)
    known.put(b"b", "b", 10)
    assert known.get(b"a", 0) == "a"


def test_clearing_tells_how_many_there_were() -> None:
    known = Known[str]()
    known.put(KEY, "understood", 10)
    assert known.clear() == 1
    assert known.get(KEY, 0) is None


def test_no_two_requests_have_one_key() -> None:
    asked = [
        ((b"/a", b"q", b"body"), ()),
        ((b"/aq", b"", b"body"), ()),
        ((b"/a", b"", b"qbody"), ()),
        ((b"/a", b"q", b"body"), ((b"authorization", b"one"),)),
        ((b"/a", b"q", b"body"), ((b"authorization", b"on"), (b"e", b""))),
        ((b"/a", b"q", b"body", b"authorization", b"one"), ()),
        ((b"/a", b"q", b"body"), ((b"authorizationo", b"ne"),)),
    ]
    keys = {key_of(parts, headers, secret) for (parts, headers), secret in itertools.product(asked, (SECRET, b"t"))}
    assert len(keys) == 2 * len(asked)
