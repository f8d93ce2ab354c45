"""Who answers a miss, by what prompt, and who is never asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy import settings
from cacheproxy.augment.arms import Arm
from cacheproxy.model import Controls
from cacheproxy.policy.pack import Price
from cacheproxy.ports import Call
from tests.support.augmented import CATEGORY, FIRST, OTHER, SECOND, SMALL, TENANT, Line, body_of
from tests.support.backend import Told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.augmenting import Attempt
    from cacheproxy.journey import Journey


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line(tmp_path) as live:
        live.teach(Arm.AUGMENTED)
        yield live


async def attempt(line: Line, journey: Journey) -> Attempt | None:
    return await line.made.offloading.attempt(journey)


async def tried(line: Line, journey: Journey, times: int = 20) -> Attempt:
    """Return the first attempt with an example: what is thought helpful is drawn by chance now and then."""
    for _ in range(times):
        found = await attempt(line, journey)
        assert found is not None
        if found.selection.examples:
            return found
    raise AssertionError("no example was taken")


async def test_the_prompt_has_the_callers_words_last_and_the_examples_before(line: Line) -> None:
    await line.keep(FIRST, "Open settings.")
    found = await tried(line, line.journey())
    assert found.arm is Arm.AUGMENTED
    messages = found.body["messages"]
    assert messages[-1] == {"role": "user", "content": SECOND}
    assert "Open settings." in messages[0]["content"]
    assert found.body["model"] == SMALL
    assert [one for one, _ in found.rows] == list(found.offload.examples)


@pytest.mark.parametrize("shadow", [True, False])
async def test_a_double_run_is_drawn_only_where_answers_are_compared(tmp_path: Path, shadow: bool) -> None:
    rules = msgspec.structs.replace(CATEGORY, double_run_usd_per_day=1.0)
    async with Line(tmp_path, categories={"default": rules}, learn=settings.Learn(shadow=shadow)) as line:
        found = await attempt(line, line.journey())
        assert found is not None
        assert found.situation.double_run is shadow


async def test_the_callers_own_request_is_not_changed(line: Line) -> None:
    await line.keep(FIRST, "Open settings.")
    journey = line.journey()
    before = msgspec.json.encode(journey.body)
    await tried(line, journey)
    assert msgspec.json.encode(journey.body) == before


async def test_the_call_carries_neither_key_nor_second_tries(line: Line) -> None:
    journey = line.journey()
    found = await attempt(line, journey)
    assert found is not None
    call = Call(
        method="POST", target="/v1/chat/completions", headers=(), body=b"{}", repeatable=True, elsewhere=True, model="m"
    )
    asked = line.made.offloading._augmenting.call(found, call, journey, line.dialect)
    assert (asked.model, asked.repeatable, asked.elsewhere, asked.upstream_key) == (SMALL, False, False, None)
    assert msgspec.json.decode(body_of(asked)) == found.body


async def test_with_routing_off_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = msgspec.structs.replace(CATEGORY, augment="off")
    async with Line(tmp_path, categories={"default": off}) as line:
        touched: list[str] = []
        monkeypatch.setattr(line.store, "get", lambda *_: touched.append("store"))
        monkeypatch.setattr(line.index, "search", lambda *_: touched.append("index"))
        assert await attempt(line, line.journey()) is None
        assert touched == []
        assert line.counted("cacheproxy_not_augmented_total{") == 0


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"unheard_of": 1}, "unknown_field"),
        ({"messages": None}, "unrecognised_shape"),
        ({"messages": [None]}, "unrecognised_shape"),
        ({"messages": [{"content": "x"}]}, "unrecognised_shape"),
        ({"messages": [{"role": {}, "content": "x"}]}, "unrecognised_shape"),
        ({"messages": [{"role": "user", "content": [{"type": [], "text": "x"}]}]}, "unrecognised_shape"),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, "too_long"),
        ({"messages": [{"role": "user", "content": "a b " * 5_000}]}, "too_long"),
        ({"max_tokens": 10**9}, "too_long"),
    ],
    ids=str,
)
async def test_what_the_small_model_cannot_be_asked_says_why(line: Line, asked: dict[str, Any], reason: str) -> None:
    journey = line.journey()
    journey.body = {"model": "m", "messages": [{"role": "user", "content": SECOND}], **asked}
    assert await attempt(line, journey) is None
    assert line.counted(f'cacheproxy_not_augmented_total{{reason="{reason}"}}') == 1
    assert line.counted("cacheproxy_part_failures_total{") == 0


async def test_a_text_that_could_never_fit_is_not_even_counted(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(*_: object, **__: object) -> int:
        raise AssertionError("counted")

    journey = line.journey()
    journey.body = {"model": "m", "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    monkeypatch.setattr("cacheproxy.augmenting.prompt_tokens", count)
    assert await attempt(line, journey) is None
    assert line.counted('cacheproxy_not_augmented_total{reason="too_long"}') == 1


async def test_examples_take_no_more_than_the_window_leaves(tmp_path: Path) -> None:
    async with Line(tmp_path, context_tokens=500) as line:
        line.teach(Arm.AUGMENTED)
        for number in range(6):
            await line.keep(f"{FIRST} {number}", "word " * 60)
        journey = line.journey()
        journey.body = {**(journey.body or {}), "max_tokens": 100}
        found = await tried(line, journey)
        assert 0 < found.selection.tokens <= 500 - 100 - found.situation.question_tokens


@pytest.mark.parametrize("controls", [Controls(augment=False), Controls(no_cache=True), Controls(no_store=True)])
async def test_a_caller_who_takes_no_kept_answer_gets_none_made_of_them(line: Line, controls: Controls) -> None:
    assert await attempt(line, line.journey(controls=controls)) is None


# Whose key is known


async def test_the_small_model_answers_nobody_whom_the_large_one_has_not(tmp_path: Path) -> None:
    async with Line(tmp_path, checked=False) as line:
        line.teach(Arm.SMALL)
        line.large.always(Told(status=401, steps=[b"{}"]))
        for _ in range(3):
            assert (await line.ask())[0] == "large"
        assert line.little.calls == []


async def test_who_was_answered_once_is_known_until_his_key_is_refused(tmp_path: Path) -> None:
    async with Line(tmp_path, checked=False) as line:
        line.teach(Arm.SMALL)
        await line.keep(FIRST, "of a key that was good once")
        assert await attempt(line, line.journey()) is not None
        assert await attempt(line, line.journey(tenant=OTHER)) is None
        line.large.always(Told(status=401, steps=[b"{}"]))
        await line.ask("Something else?", controls=Controls(no_cache=True))
        assert await attempt(line, line.journey()) is None
        line.made.offloading.known(TENANT, answered=True)
        assert await attempt(line, line.journey()) is not None
        line.clock.advance(3_601.0)
        assert await attempt(line, line.journey()) is None  # a key may have been revoked since


async def test_those_who_are_known_are_bounded(tmp_path: Path) -> None:
    async with Line(tmp_path, checked=False) as line:
        for number in range(10_001):
            line.made.offloading.known(str(number), answered=True)
        assert await attempt(line, line.journey(tenant="0")) is None
        assert await attempt(line, line.journey(tenant="10000")) is not None


async def test_another_arm_is_asked_for_the_same_question(line: Line) -> None:
    await line.keep(FIRST, "Open settings.")
    journey = line.journey()
    found = await tried(line, journey)
    alone = line.made.offloading._augmenting.otherwise(found, Arm.SMALL, journey)
    assert alone.arm is Arm.SMALL
    assert "Open settings." not in str(alone.body)
    assert alone.offload.examples == ()
    assert replace(found, choice=alone.choice, body=alone.body) == alone


@pytest.mark.parametrize(
    ("small", "large", "told"), [(0.5, 5.0, 0.1), (5.0, 5.0, 1.0), (0.0, 5.0, 0.0), (1.0, 0.0, None), (None, 5.0, None)]
)
async def test_the_pack_tells_what_the_small_model_costs_beside_the_large_one(
    line: Line, small: float | None, large: float, told: float | None
) -> None:
    both = ((SMALL, small), ("m", large))
    prices = tuple(
        Price(model=name, input_usd_per_mtok=usd, output_usd_per_mtok=usd) for name, usd in both if usd is not None
    )
    journey = line.journey()
    pack = msgspec.structs.replace(journey.policy.pack, prices=prices)
    journey.policy = replace(journey.policy, pack=pack)
    found = await line.made.offloading.attempt(journey)
    assert found is not None
    assert found.situation.small_cost == told
