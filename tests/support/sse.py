"""A strict reader of OpenAI's event streams, and a fold of chunks into what a caller ends up with."""

from __future__ import annotations

from typing import Any

import msgspec


class BadStream(AssertionError):
    """The bytes are not a well-formed stream of OpenAI events."""


def read_events(body: bytes) -> list[dict[str, Any]]:
    """Return the chunks of a whole stream. Raises BadStream unless each event is one JSON line and `[DONE]` is last."""
    if not body.endswith(b"\n\n"):
        raise BadStream(f"the last event is unfinished: {body[-80:]!r}")
    blocks = body.decode("utf-8").removesuffix("\n\n").split("\n\n")
    if blocks[-1] != "data: [DONE]":
        raise BadStream(f"the last event is {blocks[-1]!r}")
    return [_payload(block) for block in blocks[:-1]]


def fold(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answer that a caller collects from chunks: texts joined, lists by index, other fields as last told."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            kept = choices.setdefault(choice["index"], {} if "text" in choice else {"message": {}})
            if "text" in choice:
                kept["text"] = kept.get("text", "") + choice["text"]
            else:
                _merge(kept["message"], choice.get("delta") or {})
            if choice.get("logprobs") is not None:
                kept["logprobs"] = _collected(kept.get("logprobs") or {}, choice["logprobs"])
            _keep(kept, {key: value for key, value in choice.items() if key not in ("delta", "text", "logprobs")})
            if "logprobs" in choice:
                kept.setdefault("logprobs", None)
        _keep(whole, {key: value for key, value in chunk.items() if key != "choices"})
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _payload(block: str) -> dict[str, Any]:
    if not block.startswith("data: ") or "\n" in block or "\r" in block:
        raise BadStream(f"not one data line: {block[:80]!r}")
    payload = msgspec.json.decode(block.removeprefix("data: "))
    if not isinstance(payload, dict):
        raise BadStream(f"not an object: {block[:80]!r}")
    return payload


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = message.get(key)
        if key == "tool_calls" and value:
            message[key] = _calls(known or [], value)
        elif key == "function_call" and known and value:
            message[key] = _spoken(known, value)
        else:
            joined = _joined(known, value) if key != "role" else None
            if joined is not None:
                message[key] = joined
            elif value is not None or key not in message:
                message[key] = value


def _calls(known: list[dict[str, Any]], news: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = list(known)
    for delta in news:
        told = {key: value for key, value in delta.items() if key != "index"}
        if delta["index"] == len(calls):
            calls.append(told)
            continue
        call = calls[delta["index"]]
        for key, value in told.items():
            call = {**call, key: _spoken(call[key], value) if isinstance(value, dict) else value}
        calls[delta["index"]] = call
    return calls


def _spoken(known: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    text = {key: known.get(key, "") + value for key, value in news.items() if key in ("arguments", "input")}
    return {**known, **news, **text}


def _collected(known: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    return {key: known.get(key) if value is None else [*(known.get(key) or []), *value] for key, value in news.items()}


def _joined(known: object, value: object) -> str | list[Any] | None:
    match known, value:
        case str(), str():
            return known + value
        case list(), list():
            return [*known, *value]
    return None


def _keep(known: dict[str, Any], news: dict[str, Any]) -> None:
    known.update({key: value for key, value in news.items() if value is not None or key not in known})
