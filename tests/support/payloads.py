"""Answers of every kind that backends give, each as a body and as the stream of the same answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.openai_wire import DONE, encode, event
from tests.support.proxy import CHAT, COMPLETIONS, chat, complete
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.upstream import Received, Script, Step

_CUT_BYTES = 5  # events and characters are cut anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One answer. `ask` is the request for it, `whole` its body, `parts` what its stream tells of the choices."""

    target: str
    ask: dict[str, Any]
    whole: dict[str, Any]
    parts: list[dict[str, Any]]

    def events(self, *, include_usage: bool) -> bytes:
        """Return its stream, with usage placed as OpenAI places it."""
        piece = "chat.completion.chunk" if self.target == CHAT else "text_completion"
        envelope = {key: value for key, value in self.whole.items() if key not in ("choices", "usage")}
        envelope["object"] = piece
        silent: dict[str, Any] = {"usage": None} if include_usage else {}
        told = [event({**envelope, "choices": [part], **silent}) for part in self.parts]
        if include_usage:
            told.append(event({**envelope, "choices": [], "usage": self.whole["usage"]}))
        return b"".join([*told, DONE])

    def script(self) -> Script:
        """Answer with it, in the form that was asked for."""

        def play(received: Received) -> Sequence[Step]:
            body = received.json()
            if not body.get("stream"):
                return answer(encode(self.whole))
            raw = self.events(include_usage=bool((body.get("stream_options") or {}).get("include_usage")))
            return stream(*(raw[at : at + _CUT_BYTES] for at in range(0, len(raw), _CUT_BYTES)))

        return play


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "total_tokens": 46,
    "completion_tokens_details": {"reasoning_tokens": 30},
    "vendor_cost": 0.00012,
}
CITATION = {"type": "url_citation", "url_citation": {"url": "https://x.test", "title": "X", "start_index": 0}}
FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
UNICODE = ["It is 4 — ▲ 東京 ", "\U0001f5fc\U0001f469\u200d\U0001f680", "\u2028\u2029\x85", ' \u0000 "q" \\ </script>']


def _whole(kind: str, *choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-live" if kind == "chat.completion" else "cmpl-live",
        "object": kind,
        "created": 1_700_000_000,
        "model": "vendor/model-2024",
        "choices": list(choices),
        "usage": USAGE,
        "system_fingerprint": "fp_1",
        **fields,
    }


def _part(delta: dict[str, Any], *, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}


def _choice(message: dict[str, Any], *, finish: str = "stop", index: int = 0, **more: Any) -> dict[str, Any]:
    told = {"role": "assistant", "refusal": None, **message}
    return {"index": index, "message": told, "logprobs": None, "finish_reason": finish, **more}


def _said(
    message: dict[str, Any],
    *deltas: dict[str, Any],
    finish: str = "stop",
    top: dict[str, Any] | None = None,
    **ask: Any,
) -> Payload:
    """One choice with this message, streamed as these deltas after the role and before the finish."""
    first = {"role": "assistant", "content": "" if message["content"] is not None else None, "refusal": None}
    return Payload(
        target=CHAT,
        ask=chat(**ask),
        whole=_whole("chat.completion", _choice(message, finish=finish), **(top or {})),
        parts=[_part(first), *map(_part, deltas), _part({}, finish=finish)],
    )


def _content(*pieces: str) -> list[dict[str, Any]]:
    return [{"content": piece} for piece in pieces]


def _call(number: int, name: str, *arguments: str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A tool call, whole and as deltas."""
    head: dict[str, Any] = {"id": f"call_{number}", "type": "function", **more}
    first = {"index": number, **head, "function": {"name": name, "arguments": ""}}
    rest = [{"index": number, "function": {"arguments": piece}} for piece in arguments]
    whole = {**head, "function": {"name": name, "arguments": "".join(arguments)}}
    return whole, [{"tool_calls": [told]} for told in (first, *rest)]


ONE_CALL, ONE_CALL_DELTAS = _call(0, "weather", '{"ci', 'ty": "東', '京"}')
NEXT_CALL, NEXT_CALL_DELTAS = _call(1, "weather", '{"city":', '"Wien"}', vendor={"x": 1})
BARE_CALL, BARE_CALL_DELTAS = _call(2, "now")


def _token(word: str, place: int) -> dict[str, Any]:
    return {"token": word, "logprob": -0.5 * place, "bytes": list(word.encode()), "top_logprobs": []}


_TOKENS = [_token(word, place) for place, word in enumerate(("It", " is", " 4"))]


def _with_logprobs() -> Payload:
    parts = [_part({"content": one["token"]}) | {"logprobs": {"content": [one], "refusal": None}} for one in _TOKENS]
    choice = _choice({"content": "It is 4"}) | {"logprobs": {"content": _TOKENS, "refusal": None}}
    return Payload(
        target=CHAT,
        ask=chat(logprobs=True, top_logprobs=0),
        whole=_whole("chat.completion", choice),
        parts=[_part({"role": "assistant", "content": "", "refusal": None}), *parts, _part({}, finish="stop")],
    )


def _two_choices() -> Payload:
    first = {"role": "assistant", "content": "", "refusal": None}
    return Payload(
        target=CHAT,
        ask=chat(n=2),
        whole=_whole("chat.completion", _choice({"content": "a b"}), _choice({"content": "c d"}, index=1)),
        parts=[
            _part(first),
            _part(first, index=1),
            _part({"content": "c "}, index=1),
            _part({"content": "a "}),
            _part({"content": "b"}),
            _part({}, finish="stop"),
            _part({"content": "d"}, index=1),
            _part({}, finish="stop", index=1),
        ],
    )


def _vendor() -> Payload:
    beside: dict[str, Any] = {"content_filter_results": FILTERED}
    closing: dict[str, Any] = {
        "native_finish_reason": "end_turn",
        "vendor_choice": {"scores": [0.1, 1e-9, 12345678901234567]},
    }
    told = {"deep": [1, 2.5, None, True, {"x": "y"}]}
    message = {"content": "Yes.", "vendor_message": told, "empty": []}
    return Payload(
        target=CHAT,
        ask=chat(),
        whole=_whole(
            "chat.completion",
            _choice(message, **beside, **closing),
            provider="Vendor",
            citations=["https://x.test"],
            x_vendor={"a": None, "b": []},
            service_tier=None,
        ),
        parts=[
            _part({"role": "assistant", "content": "", "refusal": None}, **beside),
            _part({"content": "Yes.", "vendor_message": told}, **beside),
            _part({"empty": []}),
            _part({}, finish="stop", **beside, **closing),
        ],
    )


_THOUGHT = ["Two and two.", "\n\nHence", " four."]
CHAT_PAYLOADS: dict[str, Payload] = {
    "text": _said({"content": "It is four."}, *_content("It", " is", " four.")),
    "reasoning_content": _said(
        {"content": "Four.", "reasoning_content": "".join(_THOUGHT)},
        *({"reasoning_content": piece} for piece in _THOUGHT),
        *_content("Four."),
    ),
    "reasoning": _said(
        {"content": "Four.", "reasoning": "".join(_THOUGHT), "reasoning_details": [{"type": "x", "text": "y"}]},
        *({"reasoning": piece} for piece in _THOUGHT),
        {"reasoning_details": [{"type": "x", "text": "y"}]},
        *_content("Four."),
    ),
    "annotations": _said({"content": "X.", "annotations": [CITATION]}, *_content("X."), {"annotations": [CITATION]}),
    "tool call": _said(
        {"content": None, "tool_calls": [ONE_CALL]}, *ONE_CALL_DELTAS, finish="tool_calls", tools=[WEATHER]
    ),
    "tool calls": _said(
        {"content": "Let me see.", "tool_calls": [ONE_CALL, NEXT_CALL, BARE_CALL]},
        *_content("Let me", " see."),
        *ONE_CALL_DELTAS,
        *NEXT_CALL_DELTAS,
        *BARE_CALL_DELTAS,
        finish="tool_calls",
        tools=[WEATHER],
    ),
    "forced tool call": _said(
        {"content": None, "tool_calls": [ONE_CALL]}, *ONE_CALL_DELTAS, tools=[WEATHER], tool_choice="required"
    ),
    "custom tool call": _said(
        {"content": None, "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "py", "input": "1 + 1"}}]},
        {"tool_calls": [{"index": 0, "id": "c", "type": "custom", "custom": {"name": "py", "input": ""}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": "1 +"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": " 1"}}]},
        finish="tool_calls",
        tools=[{"type": "custom", "custom": {"name": "py"}}],
    ),
    "function call": _said(
        {"content": None, "function_call": {"name": "weather", "arguments": '{"city": "Wien"}'}},
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": '{"city":'}},
        {"function_call": {"arguments": ' "Wien"}'}},
        finish="function_call",
        functions=[WEATHER["function"]],
    ),
    "tools offered, not called": _said({"content": "Sunny."}, *_content("Sunny."), tools=[WEATHER]),
    "JSON schema": _said({"content": '{"answer": 4}'}, *_content('{"', 'answer"', ": 4}"), response_format=SCHEMA),
    "logprobs": _with_logprobs(),
    "two choices": _two_choices(),
    "unicode": _said({"content": "".join(UNICODE)}, *_content(*UNICODE)),
    "white space": _said({"content": "\n\n  Hi\t\r\n"}, *_content("\n\n", "", "  ", "Hi", "\t", "\r\n")),
    "vendor fields": _vendor(),
}


def _text(text: str, *, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish, **more}


def _completed(*pieces: str, prompt: object = "Two and two is", **ask: Any) -> Payload:
    return Payload(
        target=COMPLETIONS,
        ask=complete(prompt, **ask),
        whole=_whole("text_completion", _text("".join(pieces), finish="stop")),
        parts=[*map(_text, pieces), _text("", finish="stop")],
    )


def _several(*, prompt: object = "Two and two is", **ask: Any) -> Payload:
    return Payload(
        target=COMPLETIONS,
        ask=complete(prompt, **ask),
        whole=_whole("text_completion", _text("a b", finish="stop"), _text("c d", index=1, finish="stop")),
        parts=[
            _text("c", index=1),
            _text("a"),
            _text(" b"),
            _text("", finish="stop"),
            _text(" d", index=1, finish="stop"),
        ],
    )


def _tokens(*tokens: str, **ask: Any) -> Payload:
    def told(words: tuple[str, ...], start: int) -> dict[str, Any]:
        return {
            "tokens": list(words),
            "token_logprobs": [-0.5] * len(words),
            "top_logprobs": [{word: -0.5} for word in words] if ask["logprobs"] else None,
            "text_offset": [start + place for place in range(len(words))],
        }

    parts = [_text(word) | {"logprobs": told((word,), place)} for place, word in enumerate(tokens)]
    return Payload(
        target=COMPLETIONS,
        ask=complete("Two and two is", **ask),
        whole=_whole("text_completion", _text("".join(tokens), finish="stop") | {"logprobs": told(tokens, 0)}),
        parts=[*parts, _text("", finish="stop")],
    )


def _completed_by_vendor() -> Payload:
    closing: dict[str, Any] = {"stop_reason": 7, "content_filter_results": FILTERED}
    top: dict[str, Any] = {"provider": "Vendor", "x_vendor": {"a": None, "b": []}}
    return Payload(
        target=COMPLETIONS,
        ask=complete("Two and two is"),
        whole=_whole("text_completion", _text("four", finish="stop", vendor={"x": [1]}, **closing), **top),
        parts=[
            _text("fo", content_filter_results=FILTERED),
            _text("ur", vendor={"x": [1]}),
            _text("", finish="stop", **closing),
        ],
    )


COMPLETIONS_PAYLOADS: dict[str, Payload] = {
    "text": _completed(" four", ".", " That is"),
    "a prompt in a list": _completed(" four.", prompt=["Two and two is"]),
    "several prompts": _several(prompt=["Two and two is", "Two and three is"]),
    "token ids": _completed(" four.", prompt=[7571, 290, 734]),
    "several lists of token ids": _several(prompt=[[7571], [290, 734]]),
    "two choices": _several(n=2),
    "best of three": _completed(" four.", best_of=3),
    "echo": _completed("Two and two is", " four.", echo=True),
    "suffix": _completed(" two is", suffix=" four."),
    "logprobs": _tokens(" four", ".", logprobs=2),
    "logprobs of nothing else": _tokens(" four", ".", logprobs=0),
    "JSON schema": _completed('{"answer"', ": 4}", response_format=SCHEMA),
    "unicode": _completed(*UNICODE),
    "white space": _completed("\n\n", "", "  ", "Hi", "\t", "\r\n"),
    "vendor fields": _completed_by_vendor(),
}
