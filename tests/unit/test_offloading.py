"""A failing small model, or a flaw of our own, means that the large model answers; nobody is told anything worse."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.constraint import Limit
from cacheproxy.errors import (
    IndexUnavailable,
    StoreUnavailable,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamTimeout,
)
from cacheproxy.joining import Flown
from cacheproxy.model import Controls, Hit, Miss
from cacheproxy.offloading import as_offloaded
from cacheproxy.policy.active import Policy
from cacheproxy.ports import Call
from tests.support.augmented import CATEGORY, FIRST, SECOND, SMALL, TENANT, Line, body_of, said_in, words
from tests.support.backend import Told
from tests.support.openai_wire import DONE, chunk, completion, encode, event, events
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.support.backend import Step

STREAM = (("content-type", "text/event-stream"),)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line(tmp_path) as live:
        live.teach(Arm.SMALL)
        yield live


def streamed(content: str) -> Told:
    return Told(headers=STREAM, steps=events(content, include_usage=True))


def first_word(word: str = "Well") -> bytes:
    delta = {"role": "assistant", "content": word}
    return event(chunk([{"index": 0, "delta": delta, "finish_reason": None}]))


async def asked(line: Line, text: str = SECOND, **fields: Any) -> tuple[str, str]:
    by, told = await line.ask(text, **fields)
    return by, told if by == "hit" or fields.get("stream") else said_in(msgspec.json.decode(told))


async def test_the_small_model_answers_where_that_is_good_enough(line: Line) -> None:
    assert await asked(line) == ("small", "small")
    assert (len(line.little.calls), len(line.large.calls)) == (1, 0)
    sent = line.little.calls[0]
    assert msgspec.json.decode(body_of(sent))["model"] == SMALL
    assert not sent.repeatable
    assert not sent.elsewhere
    assert sent.upstream_key is None


NO_ANSWER: dict[str, Told] = {
    "refused": Told(status=400, steps=[b'{"error": {}}']),
    "broken": Told(status=500, steps=[b"oh"]),
    "redirected": Told(status=302),
    "no content": Told(status=204),
    "unreachable": Told(before=[UpstreamError("no")]),
    "late": Told(before=[UpstreamTimeout("no")]),
    "cut": Told(steps=[encode(completion("half"))[:40], UpstreamBroken("cut")]),
    "empty": Told(steps=[b""]),
    "no json": Told(steps=[b"<html>"]),
    "another type": Told(headers=(("content-type", "text/plain"),), steps=[encode(completion("x"))]),
    "an error with 200": Told(steps=[encode({"error": {"message": "overloaded"}})]),
    "null choices": Told(steps=[encode({"choices": None})]),
    "choices of nothing": Told(steps=[encode({"choices": [None]})]),
    "a message of nothing": Told(steps=[encode({"choices": [{"message": None, "finish_reason": "stop"}]})]),
    "choices by name": Told(steps=[encode({"choices": {"a": 1}})]),
    "output of nothing": Told(steps=[encode({"output": None})]),
    "no words": words("  "),
    "null words": words(None),
    "filtered": words("I must not", finish="content_filter"),
    "cut short": words("and then", finish="length"),
    "a stream instead": streamed("small"),
}


@pytest.mark.parametrize("script", NO_ANSWER.values(), ids=NO_ANSWER)
async def test_whatever_the_small_model_does_instead_the_large_one_answers(line: Line, script: Told) -> None:
    line.little.always(script)
    assert await asked(line) == ("large", "large")
    assert len(line.little.calls) == 1
    assert line.counted("cacheproxy_offload_failures_total{") == 1
    assert line.counted("cacheproxy_part_failures_total{") == 0
    assert line.little.open == 0


NO_STREAM: dict[str, Sequence[Step]] = {
    "nothing": [],
    "only its end": [DONE],
    "only a role": [event(chunk([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])), DONE],
    "an error": [event({"error": {"message": "x"}}), DONE],
    "nonsense": [b"data: {\n\n", DONE],
    "choices of nothing": [event({"choices": None}), DONE],
    "cut before a word": [event(chunk([])), UpstreamBroken("cut")],
}


@pytest.mark.parametrize("steps", NO_STREAM.values(), ids=NO_STREAM)
async def test_a_stream_without_a_word_is_answered_by_the_large_model(line: Line, steps: Sequence[Step]) -> None:
    line.little.always(Told(headers=STREAM, steps=steps))
    line.large.always(streamed("from the large one"))
    by, told = await line.ask(stream=True)
    assert by == "large"
    assert "large" in told


async def test_a_body_where_a_stream_was_asked_for_is_not_passed_on(line: Line) -> None:
    line.large.always(streamed("from the large one"))
    by, told = await line.ask(stream=True)
    assert (by, "[DONE]" in told) == ("large", True)


async def test_an_answer_that_is_as_long_as_its_caller_allows_is_one(line: Line) -> None:
    line.little.always(words("so far", finish="length", model=SMALL))
    journey, outcome = await line.look_up(max_tokens=2)
    assert isinstance(outcome, Miss)
    flown = await line.fly(journey, outcome)
    assert isinstance(flown, Flown)
    assert b"so far" in (flown.body or b"")
    flown.reader.leave()


async def test_a_small_model_that_says_nothing_in_time_is_not_waited_for(tmp_path: Path) -> None:
    async with Line(tmp_path) as line:
        line.teach(Arm.SMALL)
        line.made.offloading._small = replace(line.small, whole_answer_s=0.05, first_words_s=0.05)
        line.little.always(Told(before=[asyncio.Event()]))
        assert await asked(line) == ("large", "large")
        line.little.always(Told(headers=STREAM, steps=[event(chunk([])), asyncio.Event()]))
        line.large.always(streamed("large"))
        assert (await line.ask(FIRST, stream=True))[0] == "large"
        assert line.little.open == 0


async def test_a_small_model_that_is_busy_is_not_taken_for_a_broken_one(line: Line) -> None:
    line.little.always(Told(before=[UpstreamBusy("full", retry_after_s=1.0)]))
    before = line.state.router.reliability("default", Arm.SMALL, line.clock.now())
    assert await asked(line) == ("large", "large")
    assert line.state.router.reliability("default", Arm.SMALL, line.clock.now()) == before


async def test_nobody_waits_for_the_small_model_longer_than_his_limit(line: Line) -> None:
    line.little.always(Told(before=[asyncio.Event()]))
    journey, outcome = await line.look_up()
    assert isinstance(outcome, Miss)
    journey.limit = Limit(latency_s=0.05, least_quality=0.0)
    started = asyncio.get_running_loop().time()
    flown = await line.fly(journey, outcome)
    assert isinstance(flown, Flown)
    assert asyncio.get_running_loop().time() - started < 2.0
    assert line.little.open == 0
    flown.reader.leave()


@pytest.mark.parametrize("last", [UpstreamBroken("cut"), None], ids=["cut", "ended without an end"])
async def test_a_stream_that_breaks_off_is_not_kept_and_its_arm_pays(line: Line, last: Step | None) -> None:
    steps: list[Step] = [first_word(), *([last] if last is not None else [])]
    line.little.always(Told(headers=STREAM, steps=steps))
    journey, outcome = await line.look_up(stream=True)
    assert isinstance(outcome, Miss)
    flown = await line.fly(journey, outcome)
    assert not isinstance(flown, Hit)
    if last is None:
        assert b"Well" in await flown.reader.body()
    else:
        with pytest.raises(UpstreamBroken):
            await flown.reader.body()
    assert not (await line.pipeline.settlement(flown)).stored
    flown.reader.leave()
    assert line.counted("cacheproxy_offload_failures_total{") == 1
    assert line.large.calls == []


# Flaws of our own

FLAWS = [ValueError, KeyError, RecursionError, MemoryError, TypeError, UnicodeEncodeError]


def flawed(kind: type[Exception]) -> Exception:
    return kind("utf-8", "secret words", 0, 1, "x") if kind is UnicodeEncodeError else kind("secret words")


@pytest.mark.parametrize("kind", FLAWS)
@pytest.mark.parametrize(
    "place",
    [
        "cacheproxy.augmenting.why_not",
        "cacheproxy.augmenting.prompt_tokens",
        "cacheproxy.augmenting.select",
        "cacheproxy.augmenting.augmented",
        "cacheproxy.augmenting.features",
        "cacheproxy.augment.arms.Router.choose",
        "cacheproxy.augmenting.Augmenting.call",
        "cacheproxy.offloading.shortcoming",
        "cacheproxy.rewarding.Rewarding.answered",
        "cacheproxy.examples.told",
    ],
)
async def test_no_flaw_of_augmentation_is_a_failed_answer(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception], place: str
) -> None:
    await line.keep(FIRST, "an example")

    def fail(*_: object, **__: object) -> object:
        raise flawed(kind)

    monkeypatch.setattr(place, fail)
    by, told = await asked(line)
    assert told in ("small", "large")
    if not place.endswith("answered"):
        assert by == "large"
    assert line.counted('cacheproxy_part_failures_total{part="augment"}') >= 1
    assert "secret words" not in "".join(capsys.readouterr())


async def test_a_flaw_after_the_first_words_ends_the_answer_as_broken(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("secret words")

    monkeypatch.setattr("cacheproxy.offloading.pass_on", fail)
    line.little.always(Told(headers=STREAM, steps=[first_word(), DONE]))
    journey, outcome = await line.look_up(stream=True)
    assert isinstance(outcome, Miss)
    flown = await line.fly(journey, outcome)
    assert not isinstance(flown, Hit)
    with pytest.raises(UpstreamBroken):
        await flown.reader.body()
    flown.reader.leave()
    assert line.large.calls == []
    assert line.supervisor.failures == 0


@pytest.mark.parametrize("part", ["search", "get"])
async def test_a_part_that_fails_means_the_large_model(line: Line, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    await line.keep(FIRST, "an example")
    journey, outcome = await line.look_up()
    assert isinstance(outcome, Miss)

    async def fail(*_: object) -> None:
        raise IndexUnavailable("x") if part == "search" else StoreUnavailable("x")

    monkeypatch.setattr(line.index if part == "search" else line.store, part, fail)
    flown = await line.fly(journey, outcome)
    assert not isinstance(flown, Hit)
    assert type(flown.outcome) is Miss
    flown.reader.leave()


async def test_a_choice_that_takes_too_long_is_not_waited_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    journey, outcome = await line.look_up()
    assert isinstance(outcome, Miss)
    monkeypatch.setattr("cacheproxy.augmenting._LONGEST_S", 0.02)
    monkeypatch.setattr(line.index, "search", hang)
    flown = await line.fly(journey, outcome)
    assert not isinstance(flown, Hit)
    assert type(flown.outcome) is Miss
    flown.reader.leave()


# Several callers


async def begun(line: Line, **asking: Any) -> tuple[asyncio.Task[Hit | Flown], asyncio.Event]:
    """Have a caller wait for the small model, which waits for the event."""
    go = asyncio.Event()
    line.little.always(Told(before=[go], steps=[encode(completion("small", model=SMALL))]))
    journey, outcome = await line.look_up(**asking)
    assert isinstance(outcome, Miss)
    task = asyncio.create_task(line.fly(journey, outcome))
    await eventually(lambda: len(line.little.calls) == 1, "the small model is asked")
    return task, go


async def test_who_wants_no_answer_of_the_small_model_does_not_get_one_from_another_callers_flight(line: Line) -> None:
    leader, go = await begun(line)
    assert await asked(line, controls=Controls(augment=False)) == ("large", "large")
    go.set()
    flown = await leader
    assert not isinstance(flown, Hit)
    assert flown.body is not None
    assert b"small" in flown.body
    flown.reader.leave()


async def test_who_wants_none_joins_a_flight_that_the_large_model_answers(line: Line) -> None:
    line.little.always(Told(status=500))
    go = asyncio.Event()
    line.large.always(Told(before=[go], steps=[encode(completion("large"))]))
    first = asyncio.create_task(line.ask())
    await eventually(lambda: len(line.large.calls) == 1, "the large model is asked")
    second = asyncio.create_task(line.ask(controls=Controls(augment=False)))
    await asyncio.sleep(0.05)
    go.set()
    assert (await first)[0] == (await second)[0] == "large"
    assert len(line.large.calls) == 1


async def test_followers_of_a_small_model_that_fails_get_the_large_ones_answer(line: Line) -> None:
    leader, go = await begun(line)
    line.little.play(Told(status=500))
    others = [asyncio.create_task(line.ask()) for _ in range(3)]
    await asyncio.sleep(0.05)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    line.little.always(Told(status=500))
    go.set()
    assert {by for by, _ in await asyncio.gather(*others)} <= {"large", "small"}
    assert line.little.open == 0


async def test_a_caller_who_leaves_ends_the_small_models_call(line: Line) -> None:
    leader, _ = await begun(line)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    await eventually(lambda: line.flights.aloft == 0, "the flight has landed")
    assert line.large.calls == []
    assert line.supervisor.failures == 0
    assert await line.store.get("") is None


async def test_a_caller_who_wants_another_form_gets_the_kept_answer_in_it(line: Line) -> None:
    leader, go = await begun(line)
    other = asyncio.create_task(line.ask(stream=True))
    await asyncio.sleep(0.05)
    go.set()
    flown = await leader
    assert not isinstance(flown, Hit)
    flown.reader.leave()
    assert (await other) == ("hit", "small")
    assert len(line.little.calls) == 1


# What is kept of it


async def test_its_answer_is_kept_for_a_short_time_for_the_very_same_request_and_never_stale(tmp_path: Path) -> None:
    rules = msgspec.structs.replace(CATEGORY, max_stale_s=10_000.0, stale_while_revalidate_s=5_000.0)
    async with Line(tmp_path, categories={"default": rules}) as line:
        line.teach(Arm.SMALL)
        assert (await line.ask())[0] == "small"
        assert (await line.ask())[0] == "hit"
        assert await line.made.examples.near(line.journey(FIRST)) == []
        line.clock.advance(61.0)
        line.large.always(words("large"))
        line.little.always(Told(status=500))
        assert (await line.ask())[0] == "large"


async def test_its_answer_is_not_served_to_who_wants_none(line: Line) -> None:
    assert (await line.ask())[0] == "small"
    assert await asked(line, controls=Controls(augment=False)) == ("large", "large")
    assert await asked(line, controls=Controls(augment=False)) == ("hit", "large")


async def test_it_is_filed_as_the_small_models(line: Line) -> None:
    filed = as_offloaded(line.journey())
    assert (filed.origin, filed.plan.ttl_s, filed.plan.embed, filed.plan.shared) == ("augmented", 60.0, False, None)
    assert filed.plan.stale.cap_s == 0.0


async def test_a_policy_that_changes_meanwhile_keeps_nothing_of_it(line: Line) -> None:
    leader, go = await begun(line)
    rules = msgspec.structs.replace(CATEGORY, allow_caching=False, augment="off", semantic=False)
    line.policy = Policy.of(msgspec.structs.replace(line.pack, categories={"default": rules}))
    go.set()
    flown = await leader
    assert not isinstance(flown, Hit)
    assert not (await line.pipeline.settlement(flown)).stored
    flown.reader.leave()


# Who pays


async def test_nobody_is_charged_for_what_he_did_not_get(line: Line) -> None:
    spent: list[int] = []
    line.little.always(Told(status=500))
    journey, outcome = await line.look_up()
    assert isinstance(outcome, Miss)
    call = Call(method="POST", target="/v1/chat/completions", headers=(), body=b"{}", tenant=TENANT)
    flown = await line.pipeline.fly(journey, outcome, replace(call, charge=spent.append), line.dialect)
    assert not isinstance(flown, Hit)
    flown.reader.leave()
    assert spent == []


async def test_where_the_index_knows_an_earlier_answer_the_small_models_is_not_served_by_similarity(
    tmp_path: Path,
) -> None:
    rules = msgspec.structs.replace(CATEGORY, max_stale_s=10_000.0)
    async with Line(tmp_path, categories={"default": rules}) as line:
        line.teach(Arm.SMALL)
        encoder = msgspec.structs.replace(line.pack.encoders["hash"], thresholds={"default": 0.8})
        line.policy = Policy.of(msgspec.structs.replace(line.pack, encoders={"hash": encoder}))
        await line.keep(FIRST, "of the large one", stale_until_s=line.clock.now() + 10_000.0)
        assert await asked(line, SECOND) == ("hit", "of the large one")
        line.clock.advance(1001.0)
        assert await asked(line, FIRST) == ("small", "small")
        assert await asked(line, FIRST) == ("hit", "small")
        assert (await line.ask(SECOND))[0] != "hit"


async def test_its_answer_does_not_take_the_place_of_one_that_the_large_model_gave(line: Line) -> None:
    line.large.always(words("large"))
    assert await asked(line, FIRST, controls=Controls(augment=False)) == ("large", "large")
    line.clock.advance(100.0)
    assert await asked(line, FIRST, controls=Controls(max_age_s=50.0)) == ("small", "small")
    assert await asked(line, FIRST) == ("hit", "large")
