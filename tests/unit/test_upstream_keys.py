"""Which key goes to which backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheproxy.configure import load
from cacheproxy.ports import Call
from cacheproxy.settings import Secret
from cacheproxy.upstream.keys import Keys, keyed, operators_own
from cacheproxy.upstream.open import clients

CALLERS = (("Authorization", "Bearer sk-caller"), ("API-Key", "sk-caller"), ("OpenAI-Project", "p"), ("accept", "*/*"))
ACCEPT = ("accept", "*/*")


def sent(
    keys: Keys, *, upstream_key: str = "", headers: tuple[tuple[str, str], ...] = CALLERS
) -> list[tuple[str, str]]:
    assigned = Secret(upstream_key) if upstream_key else None
    call = Call(method="GET", target="/v1/models", headers=headers, body=b"", upstream_key=assigned)
    return keyed(call, keys)


@pytest.mark.parametrize(
    ("keys", "upstream_key", "expected"),
    [
        (Keys(callers=True, assigned=True), "", [*CALLERS]),
        (Keys(own=Secret("sk-own"), callers=True, assigned=True), "", [ACCEPT, ("authorization", "Bearer sk-own")]),
        (
            Keys(own=Secret("sk-own"), callers=True, assigned=True),
            "sk-assigned",
            [ACCEPT, ("authorization", "Bearer sk-assigned")],
        ),
        (Keys(own=Secret("sk-own")), "sk-assigned", [ACCEPT, ("authorization", "Bearer sk-own")]),
        (Keys(), "sk-assigned", [ACCEPT]),
        (Keys(), "", [ACCEPT]),
    ],
    ids=["callers'", "own", "assigned", "assigned to another", "assigned to another, none of its own", "none"],
)
def test_a_backend_gets_the_key_that_is_meant_for_it(
    keys: Keys, upstream_key: str, expected: list[tuple[str, str]]
) -> None:
    assert sent(keys, upstream_key=upstream_key) == expected


def test_the_embedded_model_is_sent_nobodys_key() -> None:
    settings = load(None, environ={}, flags={"upstream": {"url": "local", "api_key": "sk-own"}})
    local = clients(settings, Path("model.sock"))["default"]
    assert sent(local.keys, upstream_key="sk-assigned") == [ACCEPT]


def test_a_named_backend_is_sent_no_key_of_the_default_one() -> None:
    flags: dict[str, dict[str, object]] = {
        "upstream": {"api_key": "sk-default"},
        "upstreams": {"eu": {"url": "https://eu.example/v1", "models": ["eu-*"]}},
    }
    assert sent(clients(load(None, environ={}, flags=flags))["eu"].keys, upstream_key="sk-assigned") == [ACCEPT]


@pytest.mark.parametrize(
    ("sections", "names", "own"),
    [
        ({}, ["default"], False),
        ({"upstream": {"api_key": "sk-own"}}, ["default"], True),
        ({"upstream": {"url": "local"}}, ["default"], True),
        (
            {"upstream": {"api_key": "sk-own"}, "upstreams": {"gpu": {"url": "http://x/v1", "models": "m"}}},
            ["gpu"],
            False,
        ),
        ({"upstreams": {"gpu": {"url": "http://x/v1", "models": "m", "api_key": "sk-gpu"}}}, ["gpu"], True),
        ({"upstreams": {"gpu": {"url": "http://x/v1", "models": "m", "pass_key": True}}}, ["gpu"], False),
        ({"upstreams": {"gpu": {"url": "http://x/v1", "models": "m", "api_key": "sk-gpu"}}}, ["gpu", "default"], False),
    ],
    ids=["callers'", "own", "embedded", "named without", "named with", "callers' passed", "one of two"],
)
def test_nobody_pays_for_what_nobody_asked_unless_the_key_is_the_operators(
    sections: dict[str, dict[str, object]], names: list[str], own: bool
) -> None:
    assert operators_own(load(None, environ={}, flags=sections), names) is own
