"""What is planted to become an example reaches nobody else and gives no orders; one voice teaches in small measure."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.quoting import CLOSE, OPEN
from cacheproxy.model import Partition
from tests.attacks.orders import FRAMES, ORDERS
from tests.support.augmented import FIRST, SECOND, SMALL, TENANT, Line, body_of, words
from tests.support.encoders import HashEncoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.augmenting import Attempt

CANARY = "CANARY-7f3a"
_TRIES = 30


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line(tmp_path) as live:
        live.teach(Arm.AUGMENTED)
        yield live


async def attempts(line: Line, text: str = SECOND, tenant: str = TENANT, many: int = _TRIES) -> list[Attempt]:
    """Return several attempts at one question: a few of them take every example as helpful."""
    found = [await line.made.offloading.attempt(line.journey(text, tenant)) for _ in range(many)]
    return [one for one in found if one is not None]


def read_back(body: dict[str, Any], asked: str) -> list[dict[str, str]]:
    """Return the examples that a prompt holds, as one reads it who resolves its quotes; it must hold nothing else."""
    *before, last = body["messages"]
    assert last == {"role": "user", "content": asked}
    if not before:
        return []
    (told,) = before
    assert told["role"] == "system"
    lines = told["content"].split("\n")
    assert [lines.count(mark) for mark in (OPEN, CLOSE)] == [1, 1]
    assert told["content"].count(CLOSE) == 2  # named in the heading, and once to close
    assert (lines[1], lines[-1]) == (OPEN, CLOSE)
    return [msgspec.json.decode(one, type=dict[str, str]) for one in lines[2:-1]]


@pytest.mark.parametrize("place", ["question", "answer"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
async def test_what_is_shaped_like_an_order_is_no_example(line: Line, order: str, place: str) -> None:
    planted = order.format(canary=CANARY)
    question, answer = (f"{FIRST} {planted}", "Open settings.") if place == "question" else (FIRST, planted)
    await line.keep(question, answer)
    await line.keep(FIRST + "!", "Open settings.")
    for one in await attempts(line):
        assert CANARY not in str(one.body)
        assert all(CANARY not in example.answer + example.question for example in one.selection.examples)


@pytest.mark.parametrize("place", ["question", "answer"])
@pytest.mark.parametrize("frame", {**FRAMES, **ORDERS}.values(), ids=[*FRAMES, *ORDERS])
async def test_no_text_gets_out_of_its_quotes(line: Line, frame: str, place: str) -> None:
    planted = frame.format(canary=CANARY)
    question, answer = (f"{FIRST} {planted}", "Open settings.") if place == "question" else (FIRST, planted)
    await line.keep(question, answer)
    kept = {(question, answer), (FIRST + "!", "Open it.")}
    await line.keep(FIRST + "!", "Open it.")
    for one in await attempts(line):
        examples = read_back(dict(one.body), SECOND)
        assert {(told["question"], told["answer"]) for told in examples} <= kept
        assert len(examples) == len(one.selection.examples) * (one.arm is Arm.AUGMENTED)


async def test_some_planted_text_is_an_example_or_the_test_above_says_nothing(line: Line) -> None:
    await line.keep(FIRST, FRAMES["politely"].format(canary=CANARY))
    assert any(CANARY in str(one.body) for one in await attempts(line))


async def test_what_reaches_the_small_model_is_what_was_checked(line: Line) -> None:
    await line.keep(FIRST, FRAMES["closing mark"].format(canary=CANARY))
    for number in range(_TRIES):
        await line.ask(f"{SECOND} {number}")
    assert line.little.calls
    for call in line.little.calls:
        body = msgspec.json.decode(body_of(call))
        read_back(body, body["messages"][-1]["content"])


async def test_answers_of_the_small_model_are_nobodys_examples_however_many(line: Line) -> None:
    await line.keep(FIRST, "Open settings.")
    line.little.always(words(CANARY, model=SMALL))
    for number in range(60):
        await line.ask(f"{FIRST} {number % 20} {'!' * (number // 20)}")
    assert len(line.little.calls) > 20
    assert all(CANARY.encode() not in body_of(call) for call in line.little.calls)


async def test_a_flood_of_planted_answers_takes_no_more_room_than_any_others(line: Line) -> None:
    for number in range(400):
        await line.keep(f"{FIRST} {'?' * (number % 7)} {number}", f"{CANARY} " * (1 + number))
    for one in await attempts(line, many=5):
        assert len(one.selection.examples) <= 5
        assert one.selection.tokens <= 1024


async def test_texts_without_end_are_no_examples_and_hold_nobody_up(line: Line) -> None:
    await line.keep(FIRST, "a " * 2_000_000)
    await line.keep(FIRST + " " + "\u202e<|" * 200_000, "short")
    await line.keep(FIRST + "!", "Open settings.")
    (one,) = await attempts(line, many=1)
    assert {example.answer for example in one.selection.examples} <= {"Open settings."}


# Other scopes


@pytest.mark.timeout(300)
@pytest.mark.parametrize("many", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_of_many_answers_of_fifty_tenants_none_crosses(tmp_path: Path, many: int) -> None:
    random, tenants = Random(6), [f"{number:02d}" * 32 for number in range(50)]
    texts = [f"{FIRST} {number}" for number in range(40)]
    async with Line(tmp_path) as line:
        line.teach(Arm.AUGMENTED)
        partitions = {
            (tenant, space): Partition(
                category="default",
                compatibility=line.query("x", tenant, namespace=space).compatibility,
                epoch=HashEncoder.fingerprint,
            )
            for tenant in tenants
            for space in ("", "b")
        }
        for _ in range(many):
            tenant, space, text = random.choice(tenants), random.choice(("", "b")), random.choice(texts)
            text = f"{text} {random.randrange(1000)}"
            entry = await line.keep(text, f"canary-of-{tenant[:2]}-{space}.", tenant, namespace=space)
            if random.random() < 0.2:  # and the index is wrong about one in five: it is a hint, no more
                line.index.add(random.choice(list(partitions.values())), entry.id, line.vector(text))
        crossed = found = 0
        for _ in range(400):
            tenant, space = random.choice(tenants), random.choice(("", "b"))
            journey = line.journey(random.choice(texts), tenant, namespace=space)
            attempt = await line.made.offloading.attempt(journey)
            told = "" if attempt is None else str(attempt.body) + str(attempt.selection.examples)
            own = f"canary-of-{tenant[:2]}-{space}."
            found += own in told
            crossed += "canary-of-" in told.replace(own, "")
        assert crossed == 0
        assert found > 200
        assert line.counted("cacheproxy_scope_violations_total") == 0


# Feedback


async def test_one_principals_flood_moves_the_router_by_its_logarithm_whatever_users_it_names(tmp_path: Path) -> None:
    async with Line(tmp_path) as line:
        line.teach(Arm.SMALL)
        for number in range(60):
            line.little.always(words("x", model=SMALL, id=f"mallory-{number}"))
            await line.ask(f"{SECOND} {number}", user=f"one of mallory's names, {number}")
        belief = line.state.router._belief("default", Arm.SMALL)
        before, said = belief.weight, 0
        for _ in range(100):
            said += sum(line.pipeline.heard(TENANT, f"mallory-{number}", good=False) for number in range(60))
        assert said == 6_000
        assert belief.weight - before <= 5.0 * math.log1p(said / 10.0) + 0.5
