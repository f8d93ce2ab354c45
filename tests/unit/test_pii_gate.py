"""The gate for personal data, with the real recognisers."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import PiiUnavailable
from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.privacy.gate import MOST_CHARS, PresidioGate

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD = {
    "CREDIT_CARD": "My card is 4095-2609-9393-4932.",
    "CRYPTO": "Send it to 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ please",
    "EMAIL_ADDRESS": "Write to anna.b@example.co.uk, she knows.",
    "IBAN_CODE": "The account is CH93 0076 2011 6238 5295 7.",
    "IP_ADDRESS": "The host is 192.168.17.4 as you know",
    "PHONE_NUMBER": "Call me at +41 79 123 45 67 tomorrow",
    "MEDICAL_LICENSE": "DEA number BB1388568 it is",
    "UK_NHS": "My NHS number is 401-023-2137.",
    "UK_NINO": "my national insurance number is AA 12 34 56 B",
    "US_ITIN": "my tax id is 911-70-1234",
    "US_SSN": "ssn 536-90-4399",
}
CLEAN = [
    "How do I reset my password?",
    "What is 12345 * 678?",
    "The capital of France is Paris. It has 2,102,650 inhabitants (2023).",
    "def f(x): return x[1:3] @ y",
    "Version 3.11.4 was released on 2023-06-06 at 12:30:45.",
]


@pytest.fixture(scope="module")
def gate() -> Iterator[PresidioGate]:
    made = PresidioGate()
    asyncio.run(made.prepare(PII_KINDS))
    yield made
    made.close()


def test_every_kind_on_offer_is_tried_here() -> None:
    assert set(HELD) == set(PII_KINDS)


@pytest.mark.parametrize("kind", HELD)
async def test_personal_data_is_found_in_a_question(gate: PresidioGate, kind: str) -> None:
    assert kind in await gate.find(HELD[kind], PII_KINDS)


@pytest.mark.parametrize("kind", HELD)
async def test_personal_data_is_found_deep_in_an_answer(gate: PresidioGate, kind: str) -> None:
    answer = {"choices": [{"message": {"content": "Sure. " * 4000 + HELD[kind], "n": 1, "x": None}}]}
    assert kind in await gate.find(("Hi", answer), [kind])


@pytest.mark.parametrize("text", CLEAN)
async def test_plain_text_holds_none(gate: PresidioGate, text: str) -> None:
    assert await gate.find(text, ["CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "US_SSN", "PHONE_NUMBER"]) == frozenset()


async def test_only_what_is_asked_for_is_told(gate: PresidioGate) -> None:
    assert await gate.find(HELD["EMAIL_ADDRESS"], ["IBAN_CODE"]) == frozenset()


async def test_what_is_too_long_to_look_through_is_refused(gate: PresidioGate) -> None:
    with pytest.raises(PiiUnavailable, match="longer"):
        await gate.find("a" * (MOST_CHARS + 1), ["EMAIL_ADDRESS"])


async def test_every_kind_has_a_recogniser_and_needs_no_network(
    gate: PresidioGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fresh = PresidioGate()
    assert "EMAIL_ADDRESS" in await fresh.find(" ".join(HELD.values()), PII_KINDS)
    fresh.close()


async def test_an_unknown_kind_is_named(gate: PresidioGate) -> None:
    with pytest.raises(PiiUnavailable, match="NAME"):
        await gate.find("x", ["NAME"])
