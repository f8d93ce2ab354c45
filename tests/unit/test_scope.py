from __future__ import annotations

import pytest

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Scope
from cacheproxy.query.scope import read_scope, read_user, user_of

SECRET = b"s" * 32
KEY = b"sk-live-0123456789"

Headers = list[tuple[bytes, bytes]]


def tenant(*headers: tuple[bytes, bytes], secret: bytes = SECRET) -> str:
    return read_scope(headers, secret).tenant


def bearer(key: bytes = KEY) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + key


@pytest.mark.parametrize(
    "spelling",
    [b"Bearer " + KEY, b"bearer " + KEY, b"BEARER  " + KEY, b"  Bearer " + KEY + b"  "],
    ids=["as usual", "lower case", "upper case and two blanks", "blanks around"],
)
def test_one_key_is_one_tenant_however_its_scheme_is_written(spelling: bytes) -> None:
    assert tenant((b"authorization", spelling)) == tenant(bearer())


DIFFERENT: dict[str, Headers] = {
    "the key": [bearer()],
    "another key": [bearer(b"sk-live-0123456780")],
    "the key in upper case": [bearer(KEY.upper())],
    "a longer key": [bearer(KEY + b"0")],
    "another scheme": [(b"authorization", b"Basic " + KEY)],
    "another header": [(b"api-key", KEY)],
    "a third header": [(b"x-api-key", KEY)],
    "a fourth header": [(b"x-goog-api-key", KEY)],
    "a dummy and one Google key": [bearer(b"none"), (b"x-goog-api-key", KEY)],
    "a dummy and another Google key": [bearer(b"none"), (b"x-goog-api-key", KEY + b"0")],
    "an organisation": [bearer(), (b"openai-organization", b"org-1")],
    "another organisation": [bearer(), (b"openai-organization", b"org-2")],
    "a project": [bearer(), (b"openai-project", b"org-1")],
    "an organisation and a project": [bearer(), (b"openai-organization", b"org-1"), (b"openai-project", b"p")],
    "two credentials": [bearer(), (b"api-key", b"k")],
    "a credential that spells another": [bearer(KEY + b"\napi-key=k")],
    "a credential that spells another with its length": [bearer(KEY + b"api-key=1:k")],
}


def test_whoever_may_pay_another_bill_is_another_tenant() -> None:
    assert len({tenant(*headers) for headers in DIFFERENT.values()}) == len(DIFFERENT)


def test_the_order_of_headers_does_not_count() -> None:
    headers = DIFFERENT["an organisation and a project"]
    assert tenant(*headers) == tenant(*reversed(headers))


def test_other_headers_name_nobody() -> None:
    assert tenant(bearer(), (b"x-tenant", b"victim"), (b"cookie", b"a=b")) == tenant(bearer())


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer  ")],
        [(b"authorization", KEY)],
        [(b"api-key", b" ")],
        [(b"openai-organization", b"org-1")],
    ],
    ids=["none", "empty", "scheme alone", "scheme and blanks", "no scheme", "blank key", "account alone"],
)
def test_without_a_credential_there_is_no_tenant(headers: Headers) -> None:
    assert read_scope(headers, SECRET, "ns") == Scope(tenant="", namespace="ns")


@pytest.mark.parametrize(
    "name",
    [b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"openai-organization", b"openai-project"],
)
def test_a_header_that_names_the_caller_comes_once(name: bytes) -> None:
    with pytest.raises(InvalidRequest, match=name.decode()) as refusal:
        read_scope([(name, b"Bearer one"), (name, b"Bearer one")], SECRET)
    assert "one" not in refusal.value.message.replace("send one credential", "")


def test_the_tenant_is_a_digest_under_the_installs_secret() -> None:
    found = tenant(bearer())
    assert len(found) == 64
    assert bytes.fromhex(found)
    assert found != tenant(bearer(), secret=b"t" * 32)


def test_the_namespace_is_kept_beside_the_tenant() -> None:
    assert read_scope([bearer()], SECRET, "team") == Scope(tenant=tenant(bearer()), namespace="team")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"user": "alice"}, "alice"),
        ({"safety_identifier": "a1"}, "a1"),
        ({"safety_identifier": "a1", "user": "alice"}, "a1"),
        ({"safety_identifier": "  ", "user": " alice "}, "alice"),
        ({"safety_identifier": 7, "user": "alice"}, "alice"),
        ({"safety_identifier": None, "user": ["alice"]}, ""),
        ({}, ""),
    ],
)
def test_an_end_user_is_named_by_the_safety_identifier_or_else_by_user(body: dict[str, object], name: str) -> None:
    assert read_user(body, SECRET) == user_of(name, SECRET)
    assert bool(read_user(body, SECRET)) == bool(name)
