"""What is said of answers, and how far anybody's words go."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.rewards import Source, said
from cacheproxy.augment.worth import UNKNOWN_QUALITY
from cacheproxy.model import Controls, Selector
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Price
from tests.support.augmented import FIRST, OTHER, SECOND, SMALL, TENANT, Line, words
from tests.support.backend import Told
from tests.support.openai_wire import DONE, chunk, event
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.rewarding import Sent


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line(tmp_path) as live:
        live.teach(Arm.SMALL)
        yield live


def weight(line: Line, arm: Arm = Arm.SMALL) -> float:
    return line.state.router._belief("default", arm).weight


async def answered(line: Line, text: str = SECOND, response_id: str = "r", **asked: Any) -> None:
    line.little.always(words("small", model=SMALL, id=response_id))
    assert (await line.ask(text, **asked))[0] == "small"


def remembered(line: Line, response_id: str = "r", tenant: str = TENANT) -> Sent | None:
    return line.made.rewarding._sent.get((tenant, response_id))


async def test_a_word_on_an_answer_is_learnt_of_its_arm(line: Line) -> None:
    await answered(line)
    before = weight(line)
    assert line.pipeline.heard(TENANT, "r", good=False)
    assert weight(line) == pytest.approx(before * math.exp(-0.5 / 1000) + 0.5)


@pytest.mark.parametrize(("tenant", "given_id"), [(OTHER, "r"), (TENANT, "another"), (TENANT, ""), ("", "r")])
async def test_a_word_on_another_tenants_answer_is_no_word(line: Line, tenant: str, given_id: str) -> None:
    await answered(line)
    before = weight(line)
    assert not line.pipeline.heard(tenant, given_id, good=False)
    assert weight(line) == before


async def test_a_word_comes_within_a_day_or_not_at_all(line: Line) -> None:
    await answered(line)
    line.clock.advance(86_401.0)
    assert not line.pipeline.heard(TENANT, "r", good=False)


async def test_a_flood_of_one_principal_moves_the_router_by_its_logarithm_at_most(line: Line) -> None:
    for number in range(40):  # whatever end users he names: they are as many as he likes
        await answered(line, f"{SECOND} {number}", f"r{number}", user=f"user {number}")
    before = weight(line)
    for turn in range(50):
        for number in range(40):
            line.pipeline.heard(TENANT, f"r{number}", good=bool(turn % 2))
    heard = 40 * 50
    bound = 0.5 * 10.0 * math.log1p((heard - 1) / 10.0) + 0.5
    assert weight(line) - before <= bound
    assert bound < 30


async def test_asking_again_is_a_word_once_and_only_for_the_asker(line: Line) -> None:
    await answered(line)
    before = weight(line)
    for _ in range(5):
        line.pipeline.set_out(line.query(SECOND, OTHER))
        await line.look_up(SECOND, OTHER, controls=Controls(no_cache=True))
    assert weight(line) == before
    for _ in range(5):
        await line.look_up(SECOND, controls=Controls(no_cache=True))
    assert 0.0 < weight(line) - before <= 0.2


async def test_looking_without_being_remembered_says_nothing(line: Line) -> None:
    await answered(line)
    before = weight(line)
    journey = line.journey(controls=Controls(no_cache=True))
    await line.pipeline.look_up(journey, remember=False)
    assert weight(line) == before


async def test_an_answer_that_was_cut_short_in_a_stream_is_held_against_its_arm(line: Line) -> None:
    def reliability() -> float:
        runs = line.state.router._runs.get(("default", Arm.SMALL))
        return 1.0 if runs is None else runs.share(line.clock.now())

    whole = [{"index": 0, "delta": {"role": "assistant", "content": "and then"}, "finish_reason": None}]
    end = [{"index": 0, "delta": {}, "finish_reason": "length"}]
    steps = [event(chunk(whole)), event(chunk(end)), DONE]
    line.little.always(Told(headers=(("content-type", "text/event-stream"),), steps=steps))
    by, _ = await line.ask(stream=True)
    assert by == "small"
    assert reliability() < 0.9


async def test_what_is_remembered_is_bounded_and_erased_with_its_owner(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.rewarding._MOST_SENT", 4)
    for number in range(6):
        await answered(line, f"{SECOND} {number}", f"r{number}")
    assert len(line.made.rewarding._sent) == 4
    assert line.made.rewarding.forget(Selector(tenant=OTHER), ()) == 0
    assert line.made.rewarding.forget(Selector(tenant=TENANT), ()) == 4
    assert not line.pipeline.heard(TENANT, "r5", good=True)


async def test_an_erased_example_takes_what_is_remembered_of_answers_made_with_it(tmp_path: Path) -> None:
    async with Line(tmp_path) as line:
        line.teach(Arm.AUGMENTED)
        kept = await line.keep(FIRST, "Open settings.")
        line.little.always(words("small", model=SMALL, id="r"))
        for number in range(20):
            if (await line.ask(f"{SECOND} {number}"))[0] == "augmented":
                break
        known = remembered(line)
        assert known is not None
        assert [entry_id for entry_id, _ in known.rows] == [kept.id]
        line.made.rewarding.forget(Selector(ids=(kept.id,)), [kept.id])
        assert not line.pipeline.heard(TENANT, "r", good=True)


async def test_good_answers_raise_the_worth_of_their_examples_and_bad_ones_do_not(tmp_path: Path) -> None:
    async with Line(tmp_path) as line:
        line.teach(Arm.AUGMENTED)
        kept = await line.keep(FIRST, "Open settings.")
        line.little.always(words("small", model=SMALL, id="r"))
        for number in range(20):
            if (await line.ask(f"{SECOND} {number}"))[0] == "augmented":
                break
        known, sent = line.state.standing(kept.id), remembered(line)
        assert known is not None
        assert sent is not None
        assert known.uses == 1.0
        line.made.rewarding.learn(sent, said(Source.JUDGE, good=False))
        assert line.state.standing(kept.id) == known
        line.made.rewarding.learn(sent, said(Source.JUDGE, good=True))
        better = line.state.standing(kept.id)
        assert better is not None
        assert better.offloads == known.offloads + 1.0


async def test_words_on_a_large_answer_count_before_it_is_an_example(tmp_path: Path) -> None:
    async with Line(tmp_path) as line:
        line.large.always(words("large", id="r"))
        assert (await line.ask())[0] == "large"
        assert list(line.state.standings()) == []
        assert line.pipeline.heard(TENANT, "r", good=False)
        [standing] = line.state.standings()
        assert (standing.tenant, standing.uses) == (TENANT, 0.0)
        assert standing.quality < UNKNOWN_QUALITY
        await line.made.forget(Selector(ids=(standing.entry_id,)), (standing.entry_id,))
        assert list(line.state.standings()) == []
        line.pipeline.heard(TENANT, "r", good=True)
        assert list(line.state.standings()) == []


async def test_no_text_is_remembered(line: Line) -> None:
    await answered(line, "a very secret question")
    told = repr(line.made.rewarding._sent) + repr(line.made.rewarding._asked)
    assert "secret" not in told
    assert msgspec.json.encode(FIRST).decode() not in told


async def test_an_answer_on_its_way_leaves_no_trace_of_an_example_that_was_erased_meanwhile(line: Line) -> None:
    line.teach(Arm.AUGMENTED)
    entry = await line.keep(FIRST, "the large answer")
    gate = asyncio.Event()
    line.little.always(replace(words("small", model=SMALL, id="r"), before=[gate]))
    asking = asyncio.create_task(line.ask())
    await eventually(lambda: bool(line.little.calls), "the small model is asked")
    await line.store.purge([entry.id])
    await line.made.forget(Selector(ids=(entry.id,)), (entry.id,))
    gate.set()
    assert (await asking)[0] == "augmented"
    assert line.state.standing(entry.id) is None


async def test_what_is_saved_is_told_without_the_examples_that_the_large_model_would_not_have_read(line: Line) -> None:
    price = Price(model="m", input_usd_per_mtok=1e6, output_usd_per_mtok=0.0)
    line.pack = msgspec.structs.replace(line.pack, prices=(price,))
    line.policy = Policy.of(line.pack)
    line.teach(Arm.AUGMENTED)
    await line.keep(FIRST, "the large answer")
    usage = {"prompt_tokens": 500, "completion_tokens": 1, "total_tokens": 501}
    line.little.always(words("small", model=SMALL, usage=usage))
    assert (await line.ask())[0] == "augmented"
    saved = line.counted("cacheproxy_offload_saved_usd_total")
    assert 300 < saved < 500
