from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from cacheproxy.access.gate import Caller, Gate, span
from cacheproxy.access.keyring import KeyRecord, new_id, new_key
from cacheproxy.errors import ConfigError, InvalidRequest, ModelNotAllowed, NotAuthenticated
from cacheproxy.query.scope import read_scope, tenant_of
from tests.support.clock import FakeClock
from tests.support.virtual_keys import KEY, SECRET, record, ring

Headers = list[tuple[bytes, bytes]]

BEARER = (b"authorization", b"Bearer " + KEY.encode())
OTHER = "sk-cp-" + "o" * 43


def gate(*records: KeyRecord, clock: FakeClock | None = None) -> Gate:
    return Gate(ring(*(records or (record(),))), clock or FakeClock())


@pytest.mark.parametrize(
    "headers",
    [
        [BEARER],
        [(b"authorization", b"bearer " + KEY.encode())],
        [(b"authorization", b" BEARER   " + KEY.encode() + b" ")],
        [(b"api-key", KEY.encode())],
        [(b"x-api-key", KEY.encode())],
        [BEARER, (b"api-key", KEY.encode())],
        [BEARER, (b"api-key", b"")],
        [(b"x-tenant", b"victim"), BEARER, (b"cookie", b"a=b")],
    ],
    ids=[
        "bearer",
        "lower case",
        "upper case, blanks",
        "api-key",
        "x-api-key",
        "one key twice",
        "an empty one",
        "others",
    ],
)
def test_a_known_key_is_admitted_however_it_is_carried(headers: Headers) -> None:
    caller = gate().admit(headers)
    assert (caller.key_id, caller.tenant) == ("k1", tenant_of("first", SECRET))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer  ")],
        [(b"authorization", b"Basic " + KEY.encode())],
        [(b"authorization", KEY.encode())],
        [(b"authorization", b"Bearer " + KEY.upper().encode())],
        [(b"authorization", b"Bearer " + KEY.encode() + b"k")],
        [(b"authorization", b"Bearer " + KEY[:-1].encode())],
        [(b"authorization", b"Bearer sk-live-of-the-backend")],
        [(b"authorization", b"Bearer " + record().hash.encode())],
        [(b"api-key", b"\xff\x00")],
        [(b"x-cacheproxy-key", KEY.encode())],
        [(b"x-tenant", b"first")],
    ],
    ids=range(14),
)
def test_anything_else_is_refused_without_quoting_it(headers: Headers) -> None:
    with pytest.raises(NotAuthenticated) as refusal:
        gate().admit(headers)
    assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")
    assert refusal.value.type == "invalid_request_error"
    assert "kkk" not in refusal.value.message
    assert "backend" not in refusal.value.message


@pytest.mark.parametrize(
    "headers",
    [
        [BEARER, BEARER],
        [(b"api-key", KEY.encode()), (b"api-key", OTHER.encode())],
        [BEARER, (b"api-key", OTHER.encode())],
        [(b"api-key", KEY.encode()), (b"x-api-key", OTHER.encode())],
    ],
)
def test_two_credentials_are_one_too_many(headers: Headers) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        gate(record(), record(OTHER, id="k2")).admit(headers)
    assert "sk-cp" not in refusal.value.message


def test_a_revoked_key_is_refused() -> None:
    with pytest.raises(NotAuthenticated, match="revoked"):
        gate(record(revoked=True)).admit([BEARER])


def test_a_key_works_through_the_last_second_of_its_last_day() -> None:
    clock = FakeClock(datetime(2030, 5, 17, 23, 59, 59, tzinfo=UTC).timestamp())
    door = gate(record(expires=date(2030, 5, 17)), clock=clock)
    assert door.admit([BEARER])
    clock.advance(1)
    with pytest.raises(NotAuthenticated, match="expired after 2030-05-17"):
        door.admit([BEARER])


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        ((), "gpt-4o", True),
        ((), "", True),
        (("gpt-4o",), "gpt-4o", True),
        (("gpt-4o",), "gpt-4o-mini", False),
        (("gpt-4o*",), "gpt-4o-mini", True),
        (("gpt-4o*",), "GPT-4o", False),
        (("gpt-4o*", "text-*"), "text-embedding-3-small", True),
        (("gpt-?",), "gpt-45", False),
        (("*",), "anything", True),
        (("*",), "", False),
        (("*",), "m" * 257, False),
        (("ft:gpt-4o:acme*",), "ft:gpt-4o:acme::1", True),
    ],
)
def test_a_key_is_for_the_models_its_patterns_name(patterns: tuple[str, ...], model: str, allowed: bool) -> None:
    caller = gate(record(models=patterns)).admit([BEARER])
    if allowed:
        caller.check_model(model)
        return
    with pytest.raises(ModelNotAllowed) as refusal:
        caller.check_model(model)
    assert (refusal.value.status, refusal.value.code) == (403, "model_not_allowed")


def test_tenants_of_keys_are_their_labels_and_no_credential_can_forge_one() -> None:
    door = gate(record(), record(OTHER, id="k2"), record("sk-cp-3", id="k3", tenant="third"))

    def tenant(key: str) -> str:
        return door.admit([(b"api-key", key.encode())]).tenant

    assert tenant(KEY) == tenant(OTHER) != tenant("sk-cp-3")
    forged = [b"virtual-tenant=first", b"first", b"virtual-key=" + KEY.encode()]
    for name in (b"authorization", b"api-key", b"x-api-key"):
        for value in forged:
            assert read_scope([(name, b"Bearer " + value)], SECRET).tenant != tenant(KEY)
            assert read_scope([(name, value)], SECRET).tenant != tenant(KEY)


def test_another_ring_counts_from_the_next_request_on() -> None:
    door = gate(record())
    door.replace(ring(record(OTHER, id="k2")))
    with pytest.raises(NotAuthenticated):
        door.admit([BEARER])
    assert door.admit([(b"api-key", OTHER.encode())]).key_id == "k2"


BACKENDS = [
    (b"x-ratelimit-limit-requests", b"500"),
    (b"X-RateLimit-Limit-Tokens", b"30000"),
    (b"x-request-id", b"req_1"),
]


def told(caller: Caller) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in caller.headers(list(BACKENDS))}


def test_limits_are_told_as_openai_tells_its_own_in_place_of_the_backends() -> None:
    caller = gate(record(requests_per_minute=60, tokens_per_minute=6000)).admit([BEARER])
    caller.count_request()
    assert caller.charge is not None
    caller.charge(100)
    assert told(caller) == {
        "x-request-id": "req_1",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5900",
        "x-ratelimit-reset-tokens": "1s",
    }


def test_without_limits_the_backends_own_stay() -> None:
    caller = gate().admit([BEARER])
    assert caller.headers(list(BACKENDS)) == BACKENDS
    assert caller.charge is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.017, "17ms"), (0.9999, "1s"), (1, "1s"), (8.64, "8.64s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_spans_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_keys_are_long_random_and_named_apart() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-cp-") and len(key) == 49 for key in keys)
    taken = {new_id(set()) for _ in range(100)}
    assert new_id(taken) not in taken


def test_an_upstream_key_comes_from_the_environment_and_shows_nowhere() -> None:
    found = ring(record(upstream_key_env="BACKEND_KEY"), environ={"BACKEND_KEY": "sk-secret"}).find(KEY.encode())
    assert found is not None
    assert found.upstream_key is not None
    assert found.upstream_key.reveal() == "sk-secret"
    assert "sk-secret" not in repr(found)
    assert found.record.hash not in repr(found)
    assert found.tenant not in repr(found)


def test_an_environment_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"k1 .*upstream_key_env.*BACKEND_KEY"):
        ring(record(upstream_key_env="BACKEND_KEY"))
    assert ring(record(upstream_key_env="BACKEND_KEY", revoked=True))


@pytest.mark.parametrize("value", ["sk-canary\n", "sk canary", "sk-\x7f", "sk-ä", "\tsk"])
def test_an_upstream_key_of_the_environment_that_no_header_can_hold_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"k1 .*upstream_key_env.*BACKEND_KEY") as refused:
        ring(record(upstream_key_env="BACKEND_KEY"), environ={"BACKEND_KEY": value})
    assert value.strip() not in str(refused.value)
