"""Legacy completions: which may be answered by similarity, and which answers are kept. Replays: test_replay_matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import DONE, encode, event
from tests.support.payloads import COMPLETIONS_PAYLOADS
from tests.support.proxy import COMPLETIONS, PARAPHRASE, QUESTION, UNRELATED, complete
from tests.support.upstream import CUT, Send, answer, stream

if TYPE_CHECKING:
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = COMPLETIONS_PAYLOADS["text"]
PROBE = {"cache-control": "no-store"}


@pytest.fixture(autouse=True)
def completing(upstream: ScriptedUpstream) -> None:
    """The backend answers every completion with the same whole text, in the form asked for."""
    upstream.always(WHOLE.script())


async def ask(proxy: Proxy, body: dict[str, Any], key: str | None, **headers: str) -> Answered:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await proxy.ask(body, key=key, target=COMPLETIONS, headers=named)


async def assert_forgotten(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    """Nothing may answer the prompt or its paraphrase: checked after a later answer has been kept."""
    upstream.always(WHOLE.script())
    await proxy.fill(complete(UNRELATED), key=key, target=COMPLETIONS)
    for prompt in (QUESTION, PARAPHRASE):
        assert not await proxy.cached(complete(prompt), key=key, target=COMPLETIONS)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_rephrased_prompt_is_answered_by_similarity(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    live = await proxy.fill(complete(**form), key=key, target=COMPLETIONS)
    for prompt, tier in ((QUESTION, "exact"), ([QUESTION], "exact"), (PARAPHRASE, "semantic")):
        hit = await ask(proxy, complete(prompt, **form), key, **PROBE)
        assert (hit.outcome, hit.tier) == ("hit", tier)
        assert hit.whole["choices"] == live.whole["choices"]
    assert (await ask(proxy, complete(UNRELATED), key, **PROBE)).outcome == "miss"
    assert upstream.calls == 2


EXACT_ONLY: dict[str, tuple[dict[str, Any], str]] = {
    "several prompts": ({"prompt": [QUESTION, "And why?"]}, "prompts"),
    "token ids": ({"prompt": [1, 2, 3]}, "no_text"),
    "several lists of token ids": ({"prompt": [[1, 2], [3]]}, "no_text"),
    "no prompt": ({"prompt": None}, "no_text"),
    "n": ({"n": 2}, "n"),
    "best_of": ({"best_of": 3}, "best_of"),
    "logprobs": ({"logprobs": 5}, "logprobs"),
    "logprobs of nothing else": ({"logprobs": 0}, "logprobs"),
    "echo": ({"echo": True}, "echo"),
    "suffix": ({"suffix": " Thank you."}, "suffix"),
    "a schema": ({"response_format": {"type": "json_object"}}, "response_format"),
}


@pytest.mark.parametrize(("fields", "reason"), EXACT_ONLY.values(), ids=EXACT_ONLY)
async def test_the_very_same_request_alone_is_answered(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], reason: str
) -> None:
    body = complete() | fields
    first = await proxy.fill(body, key=key, target=COMPLETIONS)
    assert first.reason == reason
    hit = await ask(proxy, body, key, **PROBE)
    assert (hit.outcome, hit.tier) == ("hit", "exact")
    near = complete(PARAPHRASE) | {name: value for name, value in fields.items() if name != "prompt"}
    for other in (complete(), near):
        assert (await ask(proxy, other, key, **PROBE)).outcome == "miss"


BYPASSED: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 1.2}, "temperature"),
    "state": ({"store": True}, "stateful"),
    "a prompt that is a number": ({"prompt": 5}, "unrecognised_shape"),
    "a stream that is text": ({"stream": "yes"}, "unrecognised_shape"),
}


@pytest.mark.parametrize(("fields", "reason"), BYPASSED.values(), ids=BYPASSED)
async def test_the_cache_takes_no_part(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], reason: str
) -> None:
    for _ in range(2):
        answered = await ask(proxy, complete() | fields, key)
        assert (answered.outcome, answered.reason) == ("bypass", reason)
    assert upstream.calls == 2


async def test_a_caller_without_a_key_is_not_answered_from_the_cache(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    assert [(await ask(proxy, complete(), None)).reason for _ in range(2)] == ["anonymous", "anonymous"]
    assert upstream.calls == 2


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "other"},
    "max_tokens": {"max_tokens": 5},
    "stop": {"stop": ["\n"]},
    "seed": {"seed": 8},
    "suffix": {"suffix": "."},
    "best_of": {"best_of": 2},
    "echo": {"echo": True},
    "logprobs": {"logprobs": 0},
    "user": {"user": "u-2"},
    "an unknown field": {"min_p": 0.1},
    "an unknown field that is null": {"min_p": None},
}


@pytest.mark.parametrize("fields", CHANGES.values(), ids=CHANGES)
async def test_any_other_request_is_another_question(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any]
) -> None:
    await proxy.fill(complete(), key=key, target=COMPLETIONS)
    for prompt in (QUESTION, PARAPHRASE):
        assert (await ask(proxy, complete(prompt), key, **PROBE)).outcome == "hit"
        assert (await ask(proxy, complete(prompt) | fields, key, **PROBE)).outcome == "miss"


async def test_tenants_and_dialects_share_nothing(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    body = complete() | {"messages": [{"role": "user", "content": QUESTION}]}
    await proxy.fill(body, key=key, target=COMPLETIONS)
    assert not await proxy.cached(body, key=other_key, target=COMPLETIONS)
    assert not await proxy.cached(body, key=key)


# Which answers are kept


def choice(**fields: Any) -> dict[str, Any]:
    return {"text": " four.", "index": 0, "logprobs": None, "finish_reason": "stop", **fields}


def body(*choices: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": list(choices), **fields}


UNFINISHED = ["length", "content_filter", "tool_calls", "eos", "", None]
ERROR = {"error": {"message": "overloaded", "type": "server_error", "param": None, "code": None}}

BODIES: dict[str, bytes] = {
    **{f"finish {reason!r}": encode(body(choice(finish_reason=reason))) for reason in UNFINISHED},
    "second choice cut short": encode(body(choice(), choice(index=1, finish_reason="length"))),
    "no choices": encode(body()),
    "choices null": encode(body() | {"choices": None}),
    "choice null": encode(body(None)),
    "text null": encode(body(choice(text=None))),
    "text empty": encode(body(choice(text=""))),
    "error object": encode(ERROR),
    "error beside choices": encode(body(choice(), **ERROR)),
    "HTML": b"<html></html>",
    "half of it": encode(body(choice()))[:-9],
    "an array": encode([body(choice())]),
}


@pytest.mark.parametrize("told", BODIES.values(), ids=BODIES)
async def test_an_unusual_body_reaches_the_caller_and_is_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes
) -> None:
    upstream.always(answer(told))
    live = await ask(proxy, complete(), key)
    assert (live.status, live.body, live.complete) == (200, told, True)
    await assert_forgotten(proxy, upstream, key)


async def test_a_body_under_another_type_is_forgotten(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(encode(body(choice())), content_type="text/html"))
    assert (await ask(proxy, complete(), key)).get("content-type") == "text/html"
    await assert_forgotten(proxy, upstream, key)


def ended(**fields: Any) -> list[bytes]:
    parts = [choice(finish_reason=None), choice(text="", **fields)]
    return [*(event(body(part)) for part in parts), DONE]


STREAMS: dict[str, list[bytes | Send]] = {
    **{f"finish {reason!r}": [*ended(finish_reason=reason)] for reason in UNFINISHED},
    "no finish": [ended()[0], DONE],
    "no DONE": [*ended()[:-1]],
    "only DONE": [DONE],
    "error event": [ended()[0], event(ERROR), DONE],
    "error named": [ended()[0], b"event: error\n" + event(ERROR), *ended()[1:]],
    "text after the finish": [*ended()[:-1], event(body(choice(text=" More."))), DONE],
    "text that is no text": [event(body(choice(text=5))), *ended()],
    "second choice cut short": [
        event(body(choice(index=1, finish_reason=None))),
        *ended()[:-1],
        event(body(choice(index=1, text="", finish_reason="length"))),
        DONE,
    ],
    "second choice unfinished": [event(body(choice(index=1, finish_reason=None))), *ended()],
    "not JSON": [b"data: {\n\n", *ended()],
}


@pytest.mark.parametrize("told", STREAMS.values(), ids=STREAMS)
async def test_an_unusual_stream_reaches_the_caller_and_is_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: list[bytes]
) -> None:
    upstream.always(stream(*told))
    live = await ask(proxy, complete(stream=True), key)
    assert (live.status, live.body, live.complete) == (200, b"".join(told), True)
    await assert_forgotten(proxy, upstream, key)


async def test_a_cut_stream_is_seen_and_forgotten(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    raw = b"".join(ended())
    for end in range(1, len(raw), 13):
        upstream.always(stream(raw[:end], CUT))
        live = await ask(proxy, complete(stream=True), key)
        assert (live.complete, raw.startswith(live.body)) == (False, True)
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize("asked", [{"stream": True}, {}], ids=["a stream, got a body", "a body, got a stream"])
async def test_the_backend_may_answer_in_the_other_form(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, asked: dict[str, Any]
) -> None:
    told = answer(body(choice())) if asked else stream(*ended())
    upstream.always(told)
    assert (await proxy.fill(complete(**asked), key=key, target=COMPLETIONS)).whole["choices"][0]["text"] == " four."
    for form in ({}, {"stream": True}):
        hit = await ask(proxy, complete(**form), key)
        assert (hit.outcome, hit.streamed) == ("hit", bool(form))
        assert hit.whole["choices"][0]["text"] == " four."
