from __future__ import annotations

import math
from typing import Any

import pytest

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Controls, Tier
from cacheproxy.query.controls import read_body_controls, read_controls

NONE = frozenset[Tier]()
EXACT = frozenset({Tier.EXACT})


def controls(*headers: tuple[str, str]) -> Controls:
    return read_controls((name.encode(), value.encode("latin-1")) for name, value in headers)[0]


def asked(cache: object, before: Controls | None = None) -> Controls:
    return read_body_controls(before or Controls(), "", cache)[0]


DIRECTIVES = {
    "": Controls(),
    "no-store": Controls(no_store=True),
    "No-Store": Controls(no_store=True),
    "no-cache": Controls(no_cache=True),
    'no-cache="x"': Controls(no_cache=True),
    "only-if-cached": Controls(only_if_cached=True),
    "max-age=60": Controls(max_age_s=60.0),
    'max-age="60"': Controls(max_age_s=60.0),
    "max-age=0": Controls(max_age_s=0.0, no_cache=True),
    "min-fresh=5": Controls(min_fresh_s=5.0),
    "min-fresh=99999999999999999999": Controls(min_fresh_s=float(2**31)),
    "no-cache, no-store ,max-age=1": Controls(no_cache=True, no_store=True, max_age_s=1.0),
    "max-age=9, max-age=5": Controls(max_age_s=5.0),
    "min-fresh=5, min-fresh=9": Controls(min_fresh_s=9.0),
    "max-age": Controls(),
    "max-age=": Controls(),
    "max-age=-1": Controls(),
    "max-age=1.5": Controls(),
    "max-age=1e3": Controls(),
    "max-age=\xb2": Controls(),
    "max-stale=60": Controls(max_stale_s=60.0),
    "max-stale": Controls(max_stale_s=math.inf),
    "max-stale, max-stale=5": Controls(max_stale_s=5.0),
    "max-stale=": Controls(),
    "max-stale=soon": Controls(),
    "stale-if-error": Controls(stale_if_error_s=math.inf),
    "stale-if-error=60": Controls(stale_if_error_s=60.0),
    'x="a, no-store"': Controls(),
    'x="a, no-store': Controls(no_store=True),
    "no-store=1": Controls(no_store=True),
    "private, immutable, x=1": Controls(),
    ",,=,;": Controls(),
}


@pytest.mark.parametrize(("value", "expected"), DIRECTIVES.items(), ids=map(repr, DIRECTIVES))
def test_cache_control_is_read_as_rfc_9111_says(value: str, expected: Controls) -> None:
    assert controls(("cache-control", value)) == expected


def test_of_two_cache_control_headers_the_stricter_counts() -> None:
    found = controls(("cache-control", "max-age=5, min-fresh=9"), ("cache-control", "max-age=7, min-fresh=3, no-store"))
    assert found == Controls(max_age_s=5.0, min_fresh_s=9.0, no_store=True)


def test_pragma_no_cache_is_an_old_no_cache() -> None:
    assert controls(("pragma", "No-Cache")) == Controls(no_cache=True)
    assert controls(("pragma", "other")) == Controls()


OWN = {
    ("category", "code"): Controls(category="code"),
    ("ttl", "60"): Controls(ttl_s=60.0),
    ("ttl", "0"): Controls(ttl_s=0.0),
    ("threshold", "0.95"): Controls(threshold=0.95),
    ("threshold", "0"): Controls(threshold=0.0),
    ("tier", "exact"): Controls(tiers=EXACT),
    ("tier", "semantic"): Controls(),
    ("tier", "off"): Controls(tiers=NONE, no_store=True),
    ("tags", "a, b,,c:1"): Controls(tags=("a", "b", "c:1")),
    ("tags", ""): Controls(),
    ("augment", "off"): Controls(augment=False),
    ("augment", "auto"): Controls(),
}


@pytest.mark.parametrize(("header", "expected"), OWN.items(), ids=map(repr, OWN))
def test_own_headers_are_read(header: tuple[str, str], expected: Controls) -> None:
    assert controls((f"x-cacheproxy-{header[0]}", header[1])) == expected


WRONG = [
    ("nocache", "1"),
    ("", "1"),
    ("Tier", "exact"),
    ("tier", "fast"),
    ("tier", "Exact"),
    ("ttl", "-1"),
    ("ttl", "soon"),
    ("ttl", "nan"),
    ("ttl", "inf"),
    ("ttl", "1e999"),
    ("ttl", ""),
    ("threshold", "1.01"),
    ("threshold", "-0.1"),
    ("threshold", "nan"),
    ("category", ""),
    ("category", "a b"),
    ("category", "\xe9"),
    ("category", "a" * 65),
    ("category", "-a"),
    ("category", "a\r\nb"),
    ("namespace", "a,b"),
    ("namespace", "../x\x00"),
    ("tags", "a,b c"),
    ("augment", "on"),
    ("augment", "Off"),
    ("augment", ""),
]


@pytest.mark.parametrize("header", WRONG, ids=map(repr, WRONG))
def test_a_misspelt_restriction_is_refused_by_name(header: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        controls((f"x-cacheproxy-{header[0]}", header[1]))
    assert refusal.value.param == f"x-cacheproxy-{header[0]}"
    assert refusal.value.message.startswith((f"x-cacheproxy-{header[0]}", "unknown request header"))


def test_a_refusal_does_not_repeat_an_endless_name() -> None:
    with pytest.raises(InvalidRequest) as of_header:
        controls(("x-cacheproxy-" + "a" * 5000, "1"))
    with pytest.raises(InvalidRequest) as of_body:
        asked({"a" * 5000: 1})
    for refusal in (of_header.value, of_body.value):
        assert len(refusal.message) < 200
        assert len(refusal.param or "") < 100


def test_a_repeated_header_only_ever_narrows() -> None:
    found = controls(
        ("x-cacheproxy-threshold", "0.99"),
        ("x-cacheproxy-threshold", "0.1"),
        ("x-cacheproxy-ttl", "5"),
        ("x-cacheproxy-ttl", "500"),
        ("x-cacheproxy-tier", "exact"),
        ("x-cacheproxy-tier", "semantic"),
    )
    assert found == Controls(threshold=0.99, ttl_s=5.0, tiers=EXACT)
    assert controls(("x-cacheproxy-tier", "off"), ("x-cacheproxy-tier", "semantic")).tiers == NONE
    for values in (("off", "auto"), ("auto", "off")):
        assert controls(*(("x-cacheproxy-augment", value) for value in values)) == Controls(augment=False)


def test_repeated_tags_add_up() -> None:
    assert controls(("x-cacheproxy-tags", "a"), ("x-cacheproxy-tags", "b, c")).tags == ("a", "b", "c")


def test_the_namespace_comes_back_by_itself() -> None:
    assert read_controls([(b"x-cacheproxy-namespace", b" team-1 ")]) == (Controls(), "team-1")
    assert read_body_controls(Controls(), "", {"namespace": "body"}) == (Controls(), "body")
    assert read_body_controls(Controls(), "header", {}) == (Controls(), "header")


def test_a_body_and_a_header_name_one_namespace_or_are_refused() -> None:
    assert read_body_controls(Controls(), "team", {"namespace": "team"}) == (Controls(), "team")
    with pytest.raises(InvalidRequest, match=r"cache\.namespace was given twice with different values") as refusal:
        read_body_controls(Controls(), "header", {"namespace": "body"})
    assert refusal.value.param == "cache.namespace"


def test_other_headers_are_none_of_our_business() -> None:
    assert controls(("x-request-id", "1"), ("x-cacheprox-tier", "off"), ("content-type", "\xff")) == Controls()


BODY: list[tuple[dict[str, Any] | None, Controls]] = [
    ({}, Controls()),
    ({"no-cache": True}, Controls(no_cache=True)),
    (None, Controls()),
    ({"s-max-age": 5}, Controls(max_age_s=5)),
    ({"no-cache": False, "no-store": False, "use-cache": True}, Controls()),
    ({"no-store": True}, Controls(no_store=True)),
    ({"use-cache": False}, Controls(tiers=NONE, no_store=True)),
    ({"ttl": 60, "s-maxage": 30.5}, Controls(ttl_s=60.0, max_age_s=30.5)),
    ({"ttl": "60"}, Controls(ttl_s=60.0)),
]


@pytest.mark.parametrize(("cache", "expected"), BODY)
def test_the_bodys_cache_object_is_read_as_litellm_writes_it(cache: dict[str, Any] | None, expected: Controls) -> None:
    assert asked(cache) == expected


def test_the_body_can_only_narrow_what_the_headers_said() -> None:
    before = Controls(no_cache=True, no_store=True, ttl_s=5.0, max_age_s=7.0, tiers=EXACT, threshold=0.9)
    widening = {"no-cache": False, "no-store": False, "ttl": 50, "s-maxage": 70, "use-cache": True}
    assert asked(widening, before) == before


WRONG_BODY: list[Any] = [
    True,
    "no-cache",
    ["no-cache"],
    {"no-cache": 1},
    {"no-cache": "true"},
    {"no-store": None},
    {"use-cache": 0},
    {"ttl": -1},
    {"ttl": True},
    {"ttl": None},
    {"ttl": [1]},
    {"ttl": "soon"},
    {"ttl": 10**400},
    {"s-maxage": "inf"},
    {"namespace": 5},
    {"namespace": ""},
    {"namespace": "a\nb"},
    {"nocache": True},
    {"": True},
]


@pytest.mark.parametrize("cache", WRONG_BODY, ids=lambda cache: repr(cache)[:40])
def test_a_wrong_cache_object_is_refused(cache: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        asked(cache)
    assert (refusal.value.param or "").startswith("cache")


FOREIGN = {
    ("cf-aig-skip-cache", "true"): Controls(no_cache=True),
    ("cf-aig-skip-cache", "false"): Controls(),
    ("cf-aig-cache-ttl", "60"): Controls(ttl_s=60.0),
    ("cf-aig-cache-ttl", "soon"): Controls(),
    ("x-portkey-cache-force-refresh", "True"): Controls(no_cache=True),
    ("x-portkey-cache-force-refresh", "1"): Controls(),
}


@pytest.mark.parametrize(("header", "expected"), FOREIGN.items(), ids=map(repr, FOREIGN))
def test_other_gateways_headers_only_narrow_and_are_never_refused(header: tuple[str, str], expected: Controls) -> None:
    assert controls(header) == expected


def test_pragma_counts_only_without_cache_control() -> None:
    assert controls(("pragma", "no-cache"), ("cache-control", "max-age=60")) == Controls(max_age_s=60.0)
    assert controls(("pragma", "x, no-cache")) == Controls(no_cache=True)


@pytest.mark.parametrize("name", ["namespace", "category"])
def test_two_names_for_one_thing_are_refused(name: str) -> None:
    header = f"x-cacheproxy-{name}"
    assert controls((header, "a"), (header, "a")) == controls((header, "a"))
    with pytest.raises(InvalidRequest, match="twice"):
        controls((header, "a"), (header, "b"))


def test_an_age_of_zero_is_a_refresh_in_a_body_too() -> None:
    assert asked({"s-maxage": 0}) == Controls(max_age_s=0.0, no_cache=True)


def test_own_headers_and_directives_narrow_together_in_any_order() -> None:
    both = [("x-cacheproxy-tier", "off"), ("cache-control", "max-age=5")]
    assert controls(*both) == controls(*reversed(both)) == Controls(tiers=NONE, no_store=True, max_age_s=5.0)
