"""On whose terms a small model answers: what a key lets an answer take, and under which model's name it comes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cacheproxy.augment.arms import Arm, Situation
from cacheproxy.augment.state import AugmentState
from cacheproxy.embed.open import open_encoder
from cacheproxy.small import FILE
from tests.integration.test_augment import FIRST, SMALL, pack, proxied, small, taught
from tests.support import openai_wire, responses_wire
from tests.support.admin import ask_admin
from tests.support.polling import eventually_true
from tests.support.proxy import COMPLETIONS, chat, complete, proxy_settings, started
from tests.support.sse import read_events
from tests.support.upstream import ScriptedUpstream, answer, stream
from tests.support.virtual_keys import KeyFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from tests.support.upstream import Received, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

__all__ = ["small"]  # the fixture of the neighbour
AS_ASKED = {"augment_model_name": '"asked"'}
RESPONSES = "/v1/responses"
ALONE = Situation(max_similarity=0.0, mean_helpfulness=0.0, examples=0, question_tokens=40)


@pytest.mark.parametrize(
    ("target", "body", "script"),
    [
        ("/v1/chat/completions", chat(FIRST), answer(openai_wire.completion("the answer", model=SMALL))),
        (
            COMPLETIONS,
            {**complete(FIRST), "model": openai_wire.MODEL},
            answer(
                {
                    "id": "cmpl-1",
                    "object": "text_completion",
                    "created": 1,
                    "model": SMALL,
                    "choices": [{"text": "the answer", "index": 0, "logprobs": None, "finish_reason": "stop"}],
                }
            ),
        ),
        (
            RESPONSES,
            {"model": openai_wire.MODEL, "input": FIRST, "store": False},
            answer(responses_wire.response(responses_wire.message("the answer"), model=SMALL)),
        ),
    ],
    ids=["chat", "completions", "responses"],
)
async def test_an_answer_bears_the_name_that_was_asked_for_live_and_kept_and_the_header_tells_the_truth(
    upstream: ScriptedUpstream,
    small: ScriptedUpstream,
    tmp_path: Path,
    key: str,
    target: str,
    body: dict[str, Any],
    script: Any,
) -> None:
    async with proxied(upstream, small, tmp_path, Arm.SMALL, key, **AS_ASKED) as proxy:
        small.always(script)
        for outcome in ("augment", "hit"):
            told = await proxy.ask(body, key=key, target=target)
            assert (told.status, told.outcome) == (200, outcome)
            assert "the answer" in told.body.decode()
            assert told.json()["model"] == openai_wire.MODEL
            assert SMALL not in told.body.decode()
            assert told.get("x-cacheproxy-model") == SMALL
        streamed = await proxy.ask({**body, "stream": True}, key=key, target=target)
        assert (streamed.outcome, streamed.streamed) == ("hit", True)
        assert SMALL not in streamed.body.decode()


async def test_every_event_of_a_stream_bears_it(
    upstream: ScriptedUpstream, small: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxied(upstream, small, tmp_path, Arm.SMALL, key, **AS_ASKED) as proxy:
        events = [openai_wire.event(one) for one in openai_wire.chunks("Well, it depends.", model=SMALL)]
        small.play(stream(*(piece for one in events for piece in (one[:20], one[20:])), openai_wire.DONE))
        told = await proxy.ask(chat(FIRST, stream=True), key=key)
        assert (told.outcome, told.content, told.get("x-cacheproxy-model")) == ("augment", "Well, it depends.", SMALL)
        assert {one["model"] for one in read_events(told.body)} == {openai_wire.MODEL}


async def test_by_default_an_answer_bears_the_small_models_name(
    upstream: ScriptedUpstream, small: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxied(upstream, small, tmp_path, Arm.SMALL, key) as proxy:
        small.play(answer(openai_wire.completion("the answer", model=SMALL)))
        assert (await proxy.ask(chat(FIRST), key=key)).json()["model"] == SMALL
        assert (await proxy.ask(chat(FIRST), key=key)).json()["model"] == SMALL


async def test_a_key_with_a_limit_is_answered_by_whoever_keeps_it(
    upstream: ScriptedUpstream, small: ScriptedUpstream, tmp_path: Path
) -> None:
    settings = proxy_settings(
        upstream.url,
        tmp_path / "data",
        policies={"pack": pack(tmp_path / "pack")},
        store={"url": "memory://"},
        small={"url": small.url, "model": SMALL},
        access={"mode": "keys"},
    )
    await taught(settings, Arm.LARGE)
    encoder = open_encoder(settings.encoder, settings.data.path())
    async with AugmentState(settings.data.path() / FILE, f"{SMALL}|{encoder.fingerprint}") as state:
        for _ in range(20):
            state.observed.note("default", Arm.SMALL, 0.2, 0.0, time.time())
            state.observed.note("default", Arm.LARGE, 20.0, 0.0, time.time())
        for _ in range(200):  # good enough, though the large one is better
            state.router.reward("default", Arm.SMALL, ALONE, 0.8)
    keys = KeyFile(settings.data.path())
    patient, hurried = keys.add(tenant="a"), keys.add(tenant="b", answer_ms=2000)
    async with started(settings) as proxy:
        assert (await proxy.ask(chat(FIRST), key=patient)).outcome == "miss"
        asked = await ask_admin(proxy, "POST", "/explain", {"request": chat(FIRST), "key": hurried})
        explained = asked.json()["augmentation"]
        assert (explained["arm"], explained["reason"], explained["limit_s"]) == ("small", "limit", 2.0)
        told = await proxy.ask(chat(FIRST), key=hurried)
        assert (told.outcome, told.get("x-cacheproxy-arm-reason")) == ("augment", "limit")


async def test_a_weak_example_is_asked_again_while_it_is_quiet_on_the_operators_account(
    upstream: ScriptedUpstream, small: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    def large(request: Received) -> Sequence[Step]:
        asked = request.body.decode()
        if "You check a cache of answers" in asked:
            return answer(openai_wire.completion("WRONG" if "the third tab" in asked else "RIGHT"))
        if openai_wire.last_user_text(request.json()) == FIRST:
            again.append(request)
        return answer(
            openai_wire.completion("Click on the third tab." if len(again) == 1 else "Open settings, then security.")
        )

    again: list[Received] = []
    settings = proxy_settings(
        upstream.url,
        tmp_path / "data",
        upstream={"api_key": "sk-operator"},
        policies={"pack": pack(tmp_path / "pack", augment_judge_rate="0.01")},
        store={"url": "memory://"},
        small={"url": small.url, "model": SMALL},
        learn={"shadow": True},
    )
    await taught(settings, Arm.AUGMENTED)
    async with started(settings) as proxy:
        upstream.always(large)
        small.play(answer({"error": {"message": "no"}}, status=500))
        await proxy.fill(chat(FIRST), key=key)
        small.always(answer(openai_wire.completion("as the example says", model=SMALL)))
        for number in range(20):
            await proxy.ask(chat(f"{FIRST} ({number})"), key=key)
        assert small.calls >= 18

        async def renewed() -> bool:
            told = await proxy.ask(chat(FIRST), key=key)
            return (told.outcome, told.content) == ("hit", "Open settings, then security.")

        await eventually_true(renewed, "the better answer is served", within_s=20)
        assert len(again) == 2
        assert again[1].json()["messages"] == chat(FIRST)["messages"]
        for request in upstream.requests:
            assert request.header("authorization") == "Bearer sk-operator"
            assert all(key not in value for _, value in request.headers)
