"""Which backends a model's requests go to."""

from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.configure import load
from cacheproxy.errors import ConfigError
from cacheproxy.model import Destination
from cacheproxy.query.peek import peek_model
from cacheproxy.settings import Settings
from cacheproxy.upstream.route import Routes


def settings(aliases: dict[str, str] | None = None, /, **upstreams: Any) -> Settings:
    tables = {
        name: {"url": f"http://{name}.test/v1", **(spec if isinstance(spec, dict) else {"models": spec})}
        for name, spec in upstreams.items()
    }
    return load(None, environ={}, flags={"upstreams": tables, "aliases": aliases or {}})


PATTERNS = {
    "everything": ["*"],
    "llamas": ["llama-*"],
    "big_llamas": ["llama-*-70b"],
    "one_llama": ["llama-3-70b"],
    "pair_a": ["mistral-*", "shared"],
    "pair_b": ["mistral-*"],
    "classes": ["o[13]-mini"],
}


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        ("llama-3-70b", ["one_llama"]),
        ("llama-2-70b", ["big_llamas"]),
        ("llama-2-7b", ["llamas"]),
        ("mistral-7b", ["pair_a", "pair_b"]),
        ("shared", ["pair_a"]),
        ("o1-mini", ["classes"]),
        ("o2-mini", ["everything"]),
        ("LLAMA-2-7b", ["everything"]),
        ("line\nbreak", ["everything"]),
        ("", ["everything"]),
    ],
)
def test_the_most_specific_pattern_chooses(model: str, candidates: list[str]) -> None:
    assert Routes(settings(**PATTERNS)).candidates(model) == tuple(candidates)


def test_a_model_that_no_pattern_names_goes_to_the_default_backend() -> None:
    routes = Routes(settings(b=["b-*"]))
    assert routes.resolve("gpt-4o") == Destination(model="gpt-4o", name="")
    assert routes.resolve("b-1") == Destination(model="b-1", name="b")


def test_without_tables_every_request_goes_to_the_default_backend_as_it_is() -> None:
    routes = Routes(Settings())
    assert routes.trivial
    assert routes.resolve("anything") == Destination(model="anything")


def test_aliases_are_followed_to_their_end_before_patterns_are_matched() -> None:
    routes = Routes(settings({"fast": "small", "small": "b-1", "renamed": "gpt-4o"}, b=["b-*", "fast"]))
    assert routes.resolve("fast") == Destination(model="b-1", name="b")
    assert routes.resolve("renamed") == Destination(model="gpt-4o", name="")
    assert routes.aliases == {"fast": "b-1", "small": "b-1", "renamed": "gpt-4o"}


def test_backends_that_share_a_pattern_share_a_route() -> None:
    assert Routes(settings(z=["m*"], a=["m*"])).resolve("m1").name == "a,z"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (settings({"a": "b", "b": "c", "c": "a"}), ("aliases.a", "a -> b -> c -> a")),
        (settings({"a": "a"}), ("aliases.a",)),
        (settings(b=[]), ("upstreams.b.models",)),
        (settings(b=["x", ""]), ("upstreams.b.models",)),
        (settings(b={"models": ["m", "n"], "weight": 0}, c={"models": ["n"]}), ("upstreams.b.weight", "'m'")),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_key(wrong: Settings, named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refusal:
        Routes(wrong)
    assert all(name in refusal.value.message for name in named)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "m", "messages": []}', "m"),
        (b'{"messages": [{"model": "inner"}], "model": "m"}', "m"),
        (b'{"model": 1}', ""),
        (b'{"model": null}', ""),
        (b"{}", ""),
        (b"[]", ""),
        (b"", ""),
        (b'{"model": "m"', ""),
        (b'{"model": "\xff"}', ""),
        (b'{"model": "' + b"m" * 257 + b'"}', ""),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "model": "m"}', ""),
    ],
)
def test_a_bodys_model_is_read_without_ever_failing(body: bytes, model: str) -> None:
    assert peek_model(body) == model
