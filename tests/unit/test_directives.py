from __future__ import annotations

import time
from itertools import pairwise

import pytest

from cacheproxy.query.directives import LONGEST_S, delta_seconds, read_directives, read_targeted

GENERAL: dict[str, dict[str, list[str | None]]] = {
    "": {},
    " , ,": {},
    ",,=,;": {},
    "max-age=5,no-store": {"max-age": ["5"], "no-store": [""]},
    ' Max-Age="5" ': {"max-age": ["5"]},
    "a=1,a=2": {"a": ["1", "2"]},
    'a="1, no-store", b': {"a": ["1, no-store"], "b": [""]},
    r'a="\", no-store", b': {"a": ['", no-store'], "b": [""]},
    'a="1, no-store': {"a": [None], "no-store": [""]},
    'a"1, no-store"': {"a": [None], "no-store": [None]},
    "max-age = 5": {"max-age": [None]},
    "max-age=": {"max-age": [None]},
    "max-age=5 6": {"max-age": [None]},
    "no-store;x=1": {"no-store": [None]},
    "no-storeroom": {"no-storeroom": [""]},
    "no_store, NO-STORE": {"no_store": [""], "no-store": [""]},
    "\xa0no-store": {"no-store": [""]},
}


@pytest.mark.parametrize(("value", "expected"), GENERAL.items(), ids=map(repr, GENERAL))
def test_directives_are_names_with_arguments(value: str, expected: dict[str, list[str | None]]) -> None:
    assert read_directives([value]).arguments == expected


def test_repeated_fields_are_one_list() -> None:
    assert read_directives(["a=1, b", "a=2"]).arguments == {"a": ["1", "2"], "b": [""]}


TARGETED: dict[str, dict[str, list[str | None]] | None] = {
    "": None,
    "  ": None,
    "max-age=5": {"max-age": ["5"]},
    "max-age=5, no-store": {"max-age": ["5"], "no-store": [""]},
    "no-store=?1, private=?0": {"no-store": [""]},
    "max-age=5;a=1;b": {"max-age": ["5"]},
    "max-age=5.0, x=-3, y=tok, z=:YQ==:": {"max-age": [None], "x": [None], "y": [None], "z": [None]},
    'x=(a "b";c 3), no-store': {"x": [None], "no-store": [""]},
    "max-age=1, max-age=2": {"max-age": ["1", "2"]},
    "Max-Age=5": None,
    "max-age=5,": None,
    "max-age=5 no-store": None,
    "max-age=5  , \tno-store": {"max-age": ["5"], "no-store": [""]},
    'max-age="5': None,
    "max-age=1234567890123456": None,
    "max-age=": None,
    "=5": None,
    "x=(a": None,
    "no-store, \x00": None,
}


@pytest.mark.parametrize(("value", "expected"), TARGETED.items(), ids=map(repr, TARGETED))
def test_a_targeted_field_is_a_structured_dictionary_or_nothing(
    value: str, expected: dict[str, list[str | None]] | None
) -> None:
    found = read_targeted([value])
    assert (None if found is None else found.arguments) == expected


@pytest.mark.parametrize(
    ("argument", "seconds"),
    [
        ("0", 0.0),
        ("007", 7.0),
        ("2147483648", LONGEST_S),
        ("9" * 5000, LONGEST_S),
        ("", None),
        ("1.0", None),
        ("+1", None),
        ("0" * 5000 + "7", 7.0),
        ("\xb2", None),
        ("\u0665", None),
    ],
    ids=["0", "007", "2**31", "5,000 digits", "empty", "1.0", "+1", "5,000 zeros", "superscript", "arabic"],
)
def test_delta_seconds_are_whole_and_capped(argument: str, seconds: float | None) -> None:
    assert delta_seconds(argument) == seconds


def test_of_two_limits_the_stricter_counts() -> None:
    found = read_directives(["a=5, a=9, a=x, a"])
    assert (found.least("a"), found.most("a")) == (5.0, 9.0)
    assert (found.least("a", bare=1.0), found.least("a", nonsense=0.0)) == (1.0, 0.0)
    assert found.least("b") is found.most("b") is None


HOSTILE = ['="', '="\\', 'a="b",', ",", "a=(", "a=(b ", "a;b", "a;", '"', 'a="\\"', "a=(b;c ", "a,", "a=?", '%"']


@pytest.mark.parametrize("unit", HOSTILE, ids=map(repr, HOSTILE))
def test_reading_takes_time_linear_in_the_value(unit: str) -> None:
    def took_s(size: int) -> float:
        value, best = unit * (size // len(unit)), 1.0
        for _ in range(3):
            started = time.perf_counter()
            read_directives([value])
            read_targeted([value])
            best = min(best, time.perf_counter() - started)
        return best

    sizes = (16_000, 64_000, 256_000)
    for (small, small_s), (large, large_s) in pairwise((size, took_s(size)) for size in sizes):
        assert large_s < 0.01 or large_s / small_s < 3 * large / small  # quadratic would be 16 times
