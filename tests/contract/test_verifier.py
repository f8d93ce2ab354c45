"""The contract of `ports.Verifier`, over every implementation."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import VerifierUnavailable
from cacheproxy.model import Asking
from cacheproxy.verify.verifier import ThreadedVerifier
from tests.support.verifiers import CosineVerifier, StepScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cacheproxy.ports import Verifier

EPOCH = "an-encoder"


@asynccontextmanager
async def scripted() -> AsyncIterator[Verifier]:
    yield CosineVerifier()


@asynccontextmanager
async def threaded() -> AsyncIterator[Verifier]:
    async with ThreadedVerifier(StepScorer(), [EPOCH], threads=1, timeout_s=5.0, queue=8) as verifier:
        yield verifier


@pytest.fixture(params=[scripted, threaded], ids=["scripted", "threaded"])
async def verifier(request: pytest.FixtureRequest) -> AsyncIterator[Verifier]:
    opened: Callable[[], AbstractAsyncContextManager[Verifier]] = request.param
    async with opened() as made:
        yield made


def asking(text: str) -> Asking:
    return Asking(text=text, vector=np.array([1.0, 0.0], dtype=np.float32))


async def test_every_kept_asking_gets_its_word_in_order(verifier: Verifier) -> None:
    kept = [(asking("How do I reset it?"), 0.99), (asking("What is a fjord? p0.1"), 0.1), (asking("How so?"), 0.95)]
    found = await verifier.verify(asking("How do I reset it now?"), kept)
    assert len(found) == 3
    assert found[1].probability < min(found[0].probability, found[2].probability)


async def test_a_probability_is_one(verifier: Verifier) -> None:
    found = await verifier.verify(asking("a"), [(asking("b"), cosine) for cosine in (-1.0, 0.0, 0.5, 1.0)])
    assert all(0.0 <= one.probability <= 1.0 and math.isfinite(one.probability) for one in found)
    assert all(isinstance(name, str) and math.isfinite(value) for one in found for name, value in one.steps)


async def test_nothing_to_verify_is_no_failure(verifier: Verifier) -> None:
    assert await verifier.verify(asking("a"), []) == []


async def test_the_same_pair_gets_the_same_word(verifier: Verifier) -> None:
    once, again = [await verifier.verify(asking("a"), [(asking("a b"), 0.9)]) for _ in range(2)]
    assert once == again


async def test_it_says_which_encoder_it_knows_and_what_it_is(verifier: Verifier) -> None:
    assert verifier.covers(EPOCH)
    assert verifier.fingerprint
    assert verifier.health() == ""


async def test_a_closed_verifier_is_unavailable() -> None:
    async with threaded() as verifier:
        pass
    with pytest.raises(VerifierUnavailable):
        await verifier.verify(asking("a"), [(asking("b"), 0.9)])
