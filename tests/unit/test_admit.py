from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from cacheproxy.model import Plan, Reply, Staleness
from cacheproxy.policy.admit import Keep, Lifetime, Refuse, admit, lifetime

PLAN = Plan(
    category="default",
    exact=True,
    semantic=True,
    store=True,
    embed=True,
    threshold=0.8,
    ttl_s=100.0,
    candidates=4,
)
MESSAGE: dict[str, Any] = {"role": "assistant", "content": "Hello."}


def choice(finish: object = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": MESSAGE | message, "finish_reason": finish}


def reply(*choices: Any, **fields: Any) -> Reply:
    return Reply(body={"choices": list(choices), **fields}, source="body")


GOOD = reply(choice())


def ttl_s(*headers: tuple[str, str]) -> float | str:
    """How long an ordinary answer with these headers is kept, or why it is not."""
    found = admit("chat", 200, headers, GOOD, PLAN)
    return found.life.ttl_s if isinstance(found, Keep) else found.reason


def test_a_whole_ordinary_answer_is_kept_for_the_plans_ttl() -> None:
    headers = [("Content-Type", "application/json")]
    assert admit("chat", 200, headers, GOOD, PLAN) == Keep(reply=GOOD, life=Lifetime(ttl_s=100.0))


KEPT = {
    "two choices": reply(choice(), {**choice(), "index": 1}),
    "reasoning beside content": reply(choice(reasoning_content="hm")),
    "empty companions": reply(choice(tool_calls=[], function_call=None, refusal="", audio=None), error=None),
    "blanks around": reply(choice(content="\n Hello ")),
}


@pytest.mark.parametrize("told", KEPT.values(), ids=KEPT)
def test_ordinary_variations_are_kept(told: Reply) -> None:
    assert isinstance(admit("chat", 200, [], told, PLAN), Keep)


REFUSED: dict[str, tuple[Reply, str]] = {
    "error object": (reply(choice(), error={"message": "x"}), "error_object"),
    "error text": (reply(choice(), error="x"), "error_object"),
    "no choices": (reply(), "no_choices"),
    "choices null": (Reply(body={"choices": None}, source="body"), "no_choices"),
    "choices an object": (Reply(body={"choices": {"0": choice()}}, source="body"), "no_choices"),
    "choices absent": (Reply(body={}, source="body"), "no_choices"),
    "choice null": (reply(None), "no_message"),
    "message null": (reply({"message": None, "finish_reason": "stop"}), "no_message"),
    "message text": (reply({"message": "Hello.", "finish_reason": "stop"}), "no_message"),
    "cut at the limit": (reply(choice("length")), "finish_length"),
    "filtered": (reply(choice("content_filter")), "finish_content_filter"),
    "tools called": (reply(choice("tool_calls")), "finish_tool_calls"),
    "function called": (reply(choice("function_call")), "finish_function_call"),
    "unknown finish": (reply(choice("eos\r\nx: y")), "finish_unknown"),
    "finish that is no text": (reply(choice(["stop"])), "finish_unknown"),
    "no finish": (reply(choice(None)), "finish_missing"),
    "second choice cut": (reply(choice(), choice("length")), "finish_length"),
    "tool calls that claim to stop": (reply(choice(tool_calls=[{}])), "tool_calls"),
    "function call that claims to stop": (reply(choice(function_call={"name": "f"})), "tool_calls"),
    "refusal": (reply(choice(refusal="No.")), "refusal"),
    "audio": (reply(choice(audio={"id": "a"})), "audio"),
    "a choice with an error": (reply({**choice(), "error": {"message": "x"}}), "error_object"),
    "two choices under one index": (reply(choice(), choice()), "repeated_index"),
    "content null": (reply(choice(content=None)), "no_content"),
    "content empty": (reply(choice(content="")), "no_content"),
    "content blank": (reply(choice(content=" \n")), "no_content"),
    "content in parts": (reply(choice(content=[{"type": "text", "text": "x"}])), "no_content"),
    "second choice empty": (reply(choice(), choice(content="")), "no_content"),
}


@pytest.mark.parametrize(("told", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_answer_that_is_not_whole_or_not_ordinary_is_refused(told: Reply, reason: str) -> None:
    assert admit("chat", 200, [], told, PLAN) == Refuse(reason=reason)


@pytest.mark.parametrize("status", [100, 199, 201, 202, 203, 204, 206, 301, 400, 429, 500])
def test_only_status_200_is_kept(status: int) -> None:
    assert admit("chat", status, [], GOOD, PLAN) == Refuse(reason=f"status_{status}")


def test_bytes_that_made_no_reply_are_refused_for_their_own_reason() -> None:
    assert admit("chat", 200, [], "stream_not_finished", PLAN) == Refuse(reason="stream_not_finished")


DIRECTIVES: dict[str, tuple[list[tuple[str, str]], float | str]] = {
    "none": ([], 100.0),
    "no-store": ([("Cache-Control", "no-store")], "upstream_cache_control"),
    "private": ([("cache-control", "max-age=60, Private")], "upstream_cache_control"),
    "no-cache, as every event stream says": ([("cache-control", "no-cache, must-revalidate")], 100.0),
    "in a second header": ([("cache-control", "x"), ("CACHE-CONTROL", "no-store")], "upstream_cache_control"),
    "max-age": ([("cache-control", "max-age=60")], 60.0),
    "max-age beyond the plan": ([("cache-control", "max-age=6000")], 100.0),
    "max-age of 0": ([("cache-control", "max-age=0")], "zero_ttl"),
    "max-age that is nonsense": ([("cache-control", "max-age=soon")], "zero_ttl"),
    "s-maxage before max-age": ([("cache-control", "max-age=5, s-maxage=60")], 60.0),
    "two of max-age": ([("cache-control", "max-age=5"), ("cache-control", "max-age=60")], 5.0),
    "must-revalidate": ([("cache-control", "must-revalidate")], 100.0),
    "harmless vary": ([("vary", "Accept-Encoding, Origin"), ("Vary", "Authorization,")], 100.0),
    "vary by a header": ([("vary", "accept-encoding, x-user")], 100.0),
    "vary by everything": ([("vary", "*")], "upstream_vary"),
    "an encoding nobody asked for": ([("Content-Encoding", "br")], "upstream_encoding"),
    "no encoding by name": ([("content-encoding", " Identity ")], 100.0),
    "set-cookie": ([("set-cookie", "a=b")], 100.0),
}


@pytest.mark.parametrize(("headers", "expected"), DIRECTIVES.values(), ids=DIRECTIVES)
def test_the_backends_directives_only_ever_narrow(headers: list[tuple[str, str]], expected: float | str) -> None:
    assert ttl_s(*headers) == expected


CAP_S = 60.0
LIVES: dict[str, tuple[list[tuple[str, str]], Lifetime]] = {
    "nothing said": ([], Lifetime(ttl_s=100.0, stale_s=60.0)),
    "its own windows": (
        [("cache-control", "stale-while-revalidate=20, stale-if-error=30")],
        Lifetime(ttl_s=100.0, stale_s=60.0, revalidate_s=20.0, on_error_s=30.0),
    ),
    "windows beyond the cap": (
        [("cache-control", "stale-while-revalidate=200, stale-if-error=300")],
        Lifetime(ttl_s=100.0, stale_s=60.0, revalidate_s=60.0, on_error_s=60.0),
    ),
    "malformed windows": (
        [("cache-control", "stale-while-revalidate, stale-if-error=x")],
        Lifetime(ttl_s=100.0, stale_s=60.0),
    ),
    "must-revalidate": ([("cache-control", "must-revalidate, stale-if-error=30")], Lifetime(ttl_s=100.0)),
    "proxy-revalidate": ([("cache-control", "proxy-revalidate")], Lifetime(ttl_s=100.0)),
    "no-cache": ([("cache-control", "no-cache")], Lifetime(ttl_s=100.0)),
    "no-cache of some fields": ([("cache-control", 'no-cache="set-cookie"')], Lifetime(ttl_s=100.0)),
    "s-maxage": ([("cache-control", "s-maxage=50")], Lifetime(ttl_s=50.0)),
    "s-maxage with windows": (
        [("cache-control", "s-maxage=50, stale-while-revalidate=20")],
        Lifetime(ttl_s=50.0, revalidate_s=20.0),
    ),
    "an age": ([("age", "30")], Lifetime(ttl_s=70.0, age_s=30.0, stale_s=60.0)),
    "an age within max-age": (
        [("age", "30"), ("cache-control", "max-age=50")],
        Lifetime(ttl_s=20.0, age_s=30.0, stale_s=60.0),
    ),
    "names to vary by": (
        [("Vary", "X-B, accept"), ("vary", "x-a,x-b")],
        Lifetime(ttl_s=100.0, stale_s=60.0, vary=("x-a", "x-b")),
    ),
    "targeted": (
        [("cache-control", "no-store"), ("CacheProxy-Cache-Control", "max-age=9, must-revalidate")],
        Lifetime(ttl_s=9.0),
    ),
    "targeted false": ([("CacheProxy-Cache-Control", "no-store=?0, max-age=9")], Lifetime(ttl_s=9.0, stale_s=60.0)),
    "Expires with a Date": (
        [("expires", "Sun, 06 Nov 1994 08:50:07 GMT"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")],
        Lifetime(ttl_s=30.0, stale_s=60.0),
    ),
    "Expires in the oldest form": (
        [("expires", "Sun Nov  6 08:50:07 1994"), ("date", "Sunday, 06-Nov-94 08:49:37 GMT")],
        Lifetime(ttl_s=30.0, stale_s=60.0),
    ),
}


@pytest.mark.parametrize(("headers", "expected"), LIVES.values(), ids=LIVES)
def test_a_life_is_what_headers_leave_of_the_plan(headers: list[tuple[str, str]], expected: Lifetime) -> None:
    plan = replace(PLAN, stale=Staleness(cap_s=CAP_S))
    assert lifetime(headers, plan, now_s=784_111_777.0) == expected


def test_expires_counts_from_now_where_no_date_is_told() -> None:
    headers = [("expires", "Sun, 06 Nov 1994 08:50:07 GMT")]
    assert lifetime(headers, PLAN, now_s=784_111_777.0) == Lifetime(ttl_s=30.0)
    assert lifetime(headers, PLAN) == Refuse(reason="zero_ttl")


@pytest.mark.parametrize(
    "vary", ["*", "x-a, *", "x a", "x:", ",".join(f"x-{number}" for number in range(17)), "x" * 65]
)
def test_an_answer_that_cannot_be_told_from_its_variants_is_not_kept(vary: str) -> None:
    assert lifetime([("vary", vary)], PLAN) == Refuse(reason="upstream_vary")


def test_a_request_that_asked_for_no_time_keeps_nothing() -> None:
    plan = Plan(category="c", exact=True, semantic=False, store=True, embed=False, threshold=0, ttl_s=0, candidates=1)
    assert admit("chat", 200, [], GOOD, plan) == Refuse(reason="zero_ttl")


# Answers that call tools

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "python", "input": "1"}}
KEEPING = dataclasses.replace(PLAN, semantic=False, embed=False, keep_tool_calls=True)


def without(source: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key not in names}


CALLS: dict[str, tuple[Reply, str]] = {
    "a call": (reply(choice("tool_calls", content=None, tool_calls=[CALL])), ""),
    "calls beside content": (reply(choice("tool_calls", tool_calls=[CALL, CUSTOM])), ""),
    "a call without content": (
        reply({"message": {"tool_calls": [CALL]}, "finish_reason": "tool_calls"}),
        "",
    ),
    "a forced call": (reply(choice("stop", content=None, tool_calls=[CALL])), ""),
    "a call without a type": (reply(choice("tool_calls", content=None, tool_calls=[without(CALL, "type")])), ""),
    "a function call": (reply(choice("function_call", content=None, function_call=CALL["function"])), ""),
    "beside an ordinary choice": (reply(choice(), {**choice("tool_calls", tool_calls=[CALL]), "index": 1}), ""),
    "an ordinary answer": (GOOD, ""),
    "no call": (reply(choice("tool_calls", content=None)), "finish_tool_calls"),
    "an empty list of calls": (reply(choice("tool_calls", content=None, tool_calls=[])), "finish_tool_calls"),
    "cut": (reply(choice("length", tool_calls=[CALL])), "finish_length"),
    "filtered": (reply(choice("content_filter", tool_calls=[CALL])), "finish_content_filter"),
    "no finish": (reply(choice(None, tool_calls=[CALL])), "finish_missing"),
    "beside a refusal": (reply(choice("tool_calls", tool_calls=[CALL], refusal="No.")), "refusal"),
    "no id": (reply(choice("tool_calls", tool_calls=[without(CALL, "id")])), "finish_tool_calls"),
    "an empty id": (reply(choice("tool_calls", tool_calls=[CALL | {"id": ""}])), "finish_tool_calls"),
    "no function": (reply(choice("tool_calls", tool_calls=[without(CALL, "function")])), "finish_tool_calls"),
    "no name": (
        reply(choice("tool_calls", tool_calls=[CALL | {"function": {"arguments": "{}"}}])),
        "finish_tool_calls",
    ),
    "no arguments": (
        reply(choice("tool_calls", tool_calls=[CALL | {"function": {"name": "f"}}])),
        "finish_tool_calls",
    ),
    "arguments that are no text": (
        reply(choice("tool_calls", tool_calls=[CALL | {"function": {"name": "f", "arguments": {}}}])),
        "finish_tool_calls",
    ),
    "a second call that is none": (reply(choice("tool_calls", tool_calls=[CALL, None])), "finish_tool_calls"),
    "a broken call that claims to stop": (reply(choice(tool_calls=[{}])), "tool_calls"),
    "content in parts": (reply(choice("tool_calls", content=[], tool_calls=[CALL])), "no_content"),
}


@pytest.mark.parametrize(("told", "reason"), CALLS.values(), ids=CALLS)
def test_calls_of_tools_are_kept_by_policy_when_every_one_is_whole(told: Reply, reason: str) -> None:
    found = admit("chat", 200, [], told, KEEPING)
    assert (found.reason if isinstance(found, Refuse) else "") == reason


# Legacy completions


def text(told: object = "four.", finish: object = "stop", **more: Any) -> dict[str, Any]:
    return {"text": told, "index": 0, "logprobs": None, "finish_reason": finish, **more}


COMPLETED: dict[str, tuple[Reply, str]] = {
    "one": (reply(text()), ""),
    "two": (reply(text(), text("five.", index=1)), ""),
    "blanks around": (reply(text("\n four\n")), ""),
    "error object": (reply(text(), error={"message": "x"}), "error_object"),
    "no choices": (reply(), "no_choices"),
    "choices null": (Reply(body={"choices": None}, source="body"), "no_choices"),
    "choice null": (reply(None), "no_content"),
    "a message instead of a text": (reply(choice()), "no_content"),
    "text null": (reply(text(None)), "no_content"),
    "text empty": (reply(text("")), "no_content"),
    "text blank": (reply(text(" \n")), "no_content"),
    "cut": (reply(text(finish="length")), "finish_length"),
    "filtered": (reply(text(finish="content_filter")), "finish_content_filter"),
    "unknown finish": (reply(text(finish="eos")), "finish_unknown"),
    "no finish": (reply(text(finish=None)), "finish_missing"),
    "second choice cut": (reply(text(), text(finish="length", index=1)), "finish_length"),
}


@pytest.mark.parametrize(("told", "reason"), COMPLETED.values(), ids=COMPLETED)
def test_a_completion_is_kept_when_every_choice_stopped_with_text(told: Reply, reason: str) -> None:
    found = admit("completions", 200, [], told, PLAN)
    assert (found.reason if isinstance(found, Refuse) else "") == reason
