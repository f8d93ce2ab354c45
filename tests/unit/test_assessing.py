"""What is found out beside the line: within bounds of number, time and money, and with no word on any failure."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy import settings
from cacheproxy.assessing import Assessing, Purse
from cacheproxy.augment.arms import Arm
from cacheproxy.errors import UpstreamBroken
from cacheproxy.model import Reply
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Price
from cacheproxy.ports import Call
from cacheproxy.rewarding import Came
from tests.support.augmented import CATEGORY, SECOND, SMALL, Line, body_of, words
from tests.support.backend import Told
from tests.support.openai_wire import completion
from tests.support.polling import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.augmenting import Attempt

JUDGED = msgspec.structs.replace(
    CATEGORY, augment_judge_rate=1.0, learning_calls_per_hour=1000, double_run_usd_per_day=1.0
)
CALL = Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}")


def learning(folder: Path, rules: Any = JUDGED, **learn: Any) -> Line:
    """Return a line that assesses its answers, with a price for every model."""
    line = Line(folder, categories={"default": rules}, learn=settings.Learn(shadow=True, **learn))
    price = Price(model="*", input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
    line.pack = msgspec.structs.replace(line.pack, prices=(price,))
    line.policy = Policy.of(line.pack)
    return line


def assessing(line: Line) -> Assessing:
    found = line.made.rewarding.assess
    assert isinstance(found, Assessing)
    return found


async def came(line: Line, body: dict[str, Any], *, arm: Arm = Arm.SMALL, other: Arm | None = None) -> Came:
    """Return an answer that came, whose arm, and whose runner-up, are told."""
    journey = line.journey()
    attempt = await line.made.offloading.attempt(journey)
    assert attempt is not None
    choice = replace(attempt.choice, arm=arm, sampled_runner_up=other, judge=False)
    return Came(
        journey=journey,
        attempt=replace(attempt, choice=choice),
        arm=arm,
        reply=Reply(body=body, source="body"),
        fill_ms=1.0,
        entry_id="",
        call=CALL,
        dialect=line.dialect,
    )


def judged(attempt: Attempt) -> Attempt:
    """Return an attempt whose answer a judge is asked about."""
    return replace(attempt, choice=replace(attempt.choice, judge=True))


async def done(line: Line) -> None:
    await eventually(lambda: assessing(line).pending == 0, "everything is assessed")


def rewards(line: Line, arm: str, source: str) -> float:
    return line.counted(f'cacheproxy_arm_rewards_total{{arm="{arm}",source="{source}"}}')


@pytest.mark.parametrize(("word", "came_of_it"), [("RIGHT", "right"), ("WRONG", "wrong"), ("Well...", "no_word")])
async def test_the_judges_word_is_learnt_and_no_word_is_not(tmp_path: Path, word: str, came_of_it: str) -> None:
    async with learning(tmp_path) as line:
        line.teach(Arm.SMALL)
        line.large.always(words(word))
        assert (await line.ask())[0] == "small"
        await done(line)
        assert line.counted(f'cacheproxy_arm_assessed_total{{came="{came_of_it}"}}') == 1
        assert rewards(line, "small", "judge") == (came_of_it != "no_word")


@pytest.mark.parametrize(
    "script",
    [Told(status=500), Told(steps=[UpstreamBroken("cut")]), Told(steps=[b"x"]), Told(before=[asyncio.Event()])],
    ids=["error", "cut", "nonsense", "never"],
)
async def test_a_judge_that_fails_says_nothing_and_holds_nobody_up(tmp_path: Path, script: Told) -> None:
    async with learning(tmp_path, timeout_s=0.05) as line:
        line.teach(Arm.SMALL)
        line.large.always(script)
        assert (await line.ask())[0] == "small"
        await done(line)
        assert rewards(line, "small", "judge") == 0
        assert line.supervisor.failures == 0


async def test_no_more_is_begun_than_may_wait(tmp_path: Path) -> None:
    async with learning(tmp_path, queue=2) as line:
        line.teach(Arm.SMALL)
        go = asyncio.Event()
        line.large.always(Told(before=[go]))
        for number in range(6):
            await line.ask(f"{SECOND} {number}")
        assert assessing(line).pending == 2
        go.set()
        await done(line)


async def test_judging_stays_within_its_calls(tmp_path: Path) -> None:
    async with learning(tmp_path, msgspec.structs.replace(JUDGED, learning_calls_per_hour=2)) as line:
        line.teach(Arm.SMALL)
        line.large.always(words("RIGHT"))
        for number in range(6):
            await line.ask(f"{SECOND} {number}")
        await done(line)
        assert len(line.large.calls) == 2


async def test_a_busy_large_model_is_spared(tmp_path: Path) -> None:
    async with learning(tmp_path) as line:
        line.teach(Arm.SMALL)
        object.__setattr__(line.parts, "load", lambda model: 0.6)
        await line.ask()
        await done(line)
        assert line.large.calls == []


@pytest.mark.parametrize(("code", "right"), [("print(1)", True), ("print(", False)])
async def test_code_that_does_not_parse_is_held_against_its_arm(tmp_path: Path, code: str, right: bool) -> None:
    async with learning(tmp_path, msgspec.structs.replace(JUDGED, augment_judge_rate=0.0)) as line:
        line.teach(Arm.SMALL)
        before = line.state.router._belief("default", Arm.SMALL)._products[0]
        line.little.always(words(f"So:\n```python\n{code}\n```", model=SMALL))
        await line.ask()
        await done(line)
        assert rewards(line, "small", "code") == 1
        assert (line.state.router._belief("default", Arm.SMALL)._products[0] > before) == right


@pytest.mark.parametrize(("answer", "said"), [('{"a": 1}', 1), ('{"a": 1', 1), ("a: 1", 0)])
async def test_json_that_is_none_is_held_against_its_arm(tmp_path: Path, answer: str, said: int) -> None:
    async with learning(tmp_path, msgspec.structs.replace(JUDGED, augment_judge_rate=0.0)) as line:
        line.teach(Arm.SMALL)
        line.little.always(words(answer, model=SMALL))
        await line.ask()
        await done(line)
        assert rewards(line, "small", "json") == said


async def test_a_judge_sees_what_the_system_prompt_asks_for(tmp_path: Path) -> None:
    async with learning(tmp_path) as line:
        line.large.always(words("RIGHT"))
        told = await came(line, completion("Paris"))
        told.journey.query = replace(told.journey.query, system="Answer in French.")
        line.made.rewarding.answered(replace(told, attempt=judged(told.attempt)))
        await done(line)
        assert b"Answer in French." in body_of(line.large.calls[0])


@pytest.mark.parametrize(
    ("small", "large", "found"),
    [("Paris", "paris.", "right"), ("yes", "No, never.", "wrong"), ("It is 12", "It is 13", "wrong")],
)
async def test_both_models_answers_are_compared(tmp_path: Path, small: str, large: str, found: str) -> None:
    async with learning(tmp_path) as line:
        line.large.always(words(large))
        line.made.rewarding.answered(await came(line, completion(small), other=Arm.LARGE))
        await done(line)
        assert line.counted(f'cacheproxy_arm_assessed_total{{came="{found}"}}') == 1
        assert rewards(line, "small", "compared") == rewards(line, "large", "compared") == 1  # on one scale
        assert len(line.large.calls) == 1


async def test_the_small_model_is_tried_beside_the_line_with_nobodys_key(tmp_path: Path) -> None:
    async with learning(tmp_path) as line:
        line.little.always(words("Paris", model=SMALL))
        line.made.rewarding.answered(await came(line, completion("Paris"), arm=Arm.LARGE, other=Arm.SMALL))
        await done(line)
        assert rewards(line, "small", "compared") == 1
        assert line.little.calls[0].upstream_key is None
        assert line.little.calls[0].charge is None
        assert line.large.calls == []


async def test_two_small_answers_are_not_compared(tmp_path: Path) -> None:
    async with learning(tmp_path, msgspec.structs.replace(JUDGED, augment_judge_rate=0.0)) as line:
        line.made.rewarding.answered(await came(line, completion("Paris"), other=Arm.AUGMENTED))
        await done(line)
        assert line.little.calls == line.large.calls == []


async def test_a_second_run_costs_no_more_than_its_budget(tmp_path: Path) -> None:
    rules = msgspec.structs.replace(JUDGED, double_run_usd_per_day=0.001, augment_judge_rate=0.0)
    async with learning(tmp_path, rules) as line:
        usage = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}
        line.large.always(words("Paris", usage=usage))
        for _ in range(5):
            line.made.rewarding.answered(await came(line, completion("Paris"), other=Arm.LARGE))
            await done(line)
        assert len(line.large.calls) == 1
        line.clock.advance(86_400.0)
        line.made.rewarding.answered(await came(line, completion("Paris"), other=Arm.LARGE))
        await done(line)
        assert len(line.large.calls) == 2


async def test_what_many_second_runs_at_once_will_cost_is_reserved(tmp_path: Path) -> None:
    rules = msgspec.structs.replace(JUDGED, double_run_usd_per_day=0.001, augment_judge_rate=0.0)
    async with learning(tmp_path, rules, queue=64) as line:
        line.large.always(Told(steps=[UpstreamBroken("cut")]))  # nobody tells what it cost
        for _ in range(10):
            line.made.rewarding.answered(await came(line, completion("word " * 400), other=Arm.LARGE))
        await done(line)
        assert 0 < len(line.large.calls) <= 4
        assert line.counted('cacheproxy_arm_assessed_total{came="no_budget"}') >= 6


async def test_a_large_answer_is_not_judged_by_the_model_that_gave_it(tmp_path: Path) -> None:
    async with learning(tmp_path) as line:
        line.made.rewarding.answered(await came(line, completion("Paris"), arm=Arm.LARGE))
        await done(line)
        assert line.large.calls == []


async def test_a_second_run_of_a_small_model_that_costs_is_paid_from_the_same_budget(tmp_path: Path) -> None:
    rules = msgspec.structs.replace(JUDGED, double_run_usd_per_day=0.001, augment_judge_rate=0.0)
    async with learning(tmp_path, rules) as line:
        usage = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}
        line.little.always(words("Paris", model=SMALL, usage=usage))
        for _ in range(5):
            line.made.rewarding.answered(await came(line, completion("Paris"), arm=Arm.LARGE, other=Arm.SMALL))
            await done(line)
        assert len(line.little.calls) == 1


STRANGE: list[dict[str, Any]] = [
    {},
    {"choices": None},
    {"choices": [None]},
    {"choices": [{"message": None}]},
    {"choices": [{"text": 7}]},
    {"output": None},
    {"output": [{"content": None}]},
    {"id": ["x"], "model": {"a": 1}, "usage": "free", "choices": []},
    completion("x", usage={"prompt_tokens": -1, "completion_tokens": "many"}),
]


@pytest.mark.parametrize("body", STRANGE, ids=lambda body: str(body)[:40])
@pytest.mark.parametrize("arm", [Arm.SMALL, Arm.LARGE])
async def test_no_answer_is_too_strange_to_be_learnt_of(tmp_path: Path, body: dict[str, Any], arm: Arm) -> None:
    async with learning(tmp_path) as line:
        line.large.always(words("RIGHT"))
        line.made.rewarding.answered(await came(line, body, arm=arm))
        await done(line)
        assert line.supervisor.failures == 0


def test_a_purse_fills_again_over_a_day() -> None:
    purse = Purse()
    assert purse.has("faq", 1.0, 0.0)
    purse.spend("faq", 1.5, 1.0, 0.0)
    assert not purse.has("faq", 1.0, 0.0)
    assert not purse.has("faq", 1.0, 40_000.0)
    assert purse.has("faq", 1.0, 50_000.0)
    assert purse.has("code", 1.0, 0.0)
    assert not purse.has("code", 0.0, 0.0)
