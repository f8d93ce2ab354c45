"""OpenAI's responses as a real backend writes them: bodies, typed stream events, and a deterministic default answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.json import decode

from tests.support.openai_wire import MODEL, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATH = "/v1/responses"
CREATED_S = 1_700_000_000


def text_part(text: str, **fields: Any) -> dict[str, Any]:
    """Return one text of a message."""
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text, **fields}


def message(*parts: Mapping[str, Any] | str, item_id: str = "msg_upstream", **fields: Any) -> dict[str, Any]:
    """Return a finished message of the assistant."""
    content = [text_part(part) if isinstance(part, str) else dict(part) for part in parts]
    return {"id": item_id, "type": "message", "status": "completed", "content": content, "role": "assistant", **fields}


def reasoning(*summary: str, item_id: str = "rs_upstream", **fields: Any) -> dict[str, Any]:
    """Return a reasoning item with a summary."""
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        **fields,
    }


def function_call(name: str, arguments: str, *, item_id: str = "fc_upstream", **fields: Any) -> dict[str, Any]:
    """Return a finished call of the caller's function."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": "completed",
        "arguments": arguments,
        "call_id": f"call_{item_id}",
        "name": name,
        **fields,
    }


def response(*output: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a whole response; `fields` replace or add top-level fields."""
    return {
        "id": "resp_upstream",
        "object": "response",
        "created_at": CREATED_S,
        "status": "completed",
        "background": False,
        "completed_at": CREATED_S + 3,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": MODEL,
        "output": [dict(item) for item in output],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage("", ""),
        "user": None,
        "metadata": {},
        **fields,
    }


def usage(prompt: str, content: str) -> dict[str, Any]:
    """Return token counts that depend on both texts."""
    asked, answered = len(prompt.split()) + 3, len(content.split()) + 1
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + answered,
    }


def typed(payload: Mapping[str, Any]) -> bytes:
    """Return one event under its own name."""
    return b"event: %b\ndata: %b\n\n" % (str(payload["type"]).encode(), encode(payload))


def events(whole: Mapping[str, Any], *, obfuscated: bool = False) -> list[bytes]:
    """Return a response as the events of a live stream, a word a delta."""
    return [typed(payload) for payload in payloads(whole, obfuscated=obfuscated)]


def payloads(whole: Mapping[str, Any], *, obfuscated: bool = False) -> list[dict[str, Any]]:
    """Return the payloads of those events, numbered."""
    told = [*_told(whole)]
    noise = {"obfuscation": "x7Qp"} if obfuscated else {}
    return [
        {"type": kind, **fields, **(noise if kind.endswith(".delta") else {}), "sequence_number": number}
        for number, (kind, fields) in enumerate(told)
    ]


def read_typed(body: bytes) -> list[dict[str, Any]]:
    """Return the payloads of a whole stream: each event named by its type, numbered from 0, the last one terminal."""
    assert body.endswith(b"\n\n"), f"the last event is unfinished: {body[-80:]!r}"
    found = []
    for block in body.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = block.split(b"\n")
        found.append(decode(data.removeprefix(b"data: ")))
        assert name == b"event: " + str(found[-1]["type"]).encode()
    assert [payload["sequence_number"] for payload in found] == list(range(len(found)))
    assert found[-1]["type"] in ("response.completed", "response.incomplete", "response.failed")
    return found


def outline(payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a stream tells, however it cuts its texts: deltas joined, without numbers, noise, ids and times."""
    told: list[dict[str, Any]] = []
    for payload in payloads:
        fields = {key: value for key, value in payload.items() if key not in ("sequence_number", "obfuscation")}
        if "response" in fields:
            fields["response"] = timeless(fields["response"])
        if "delta" in fields:
            fields.pop("logprobs", None)
            if told and {**told[-1], "delta": ""} == {**fields, "delta": ""}:
                fields["delta"] = told.pop()["delta"] + fields["delta"]
        told.append(fields)
    return told


def timeless(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response without what is new in every one."""
    return {name: value for name, value in whole.items() if name not in ("id", "created_at", "completed_at")}


def _told(whole: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(whole["output"]):
        place = {"item_id": item["id"], "output_index": index}
        empty: dict[str, Any] = {name: "" for name in ("arguments", "input") if name in item}
        empty |= {name: [] for name in ("content", "summary") if name in item}
        started = {"status": "in_progress"} if "status" in item else {}
        yield "response.output_item.added", {"output_index": index, "item": {**item, **started, **empty}}
        for at, part in enumerate(item.get("summary", ())):
            here = {**place, "summary_index": at}
            yield "response.reasoning_summary_part.added", {**here, "part": {**part, "text": ""}}
            for word in _words(part["text"]):
                yield "response.reasoning_summary_text.delta", {**here, "delta": word}
            yield "response.reasoning_summary_text.done", {**here, "text": part["text"]}
            yield "response.reasoning_summary_part.done", {**here, "part": part}
        for at, part in enumerate(item.get("content", ())):
            yield from _part_told(part, {**place, "content_index": at})
        for name, family in (
            ("arguments", "response.function_call_arguments"),
            ("input", "response.custom_tool_call_input"),
        ):
            if name in item:
                for word in _words(item[name]):
                    yield f"{family}.delta", {**place, "delta": word}
                named = {"name": item["name"]} if name == "arguments" else {}
                yield f"{family}.done", {**place, **named, name: item[name]}
        yield "response.output_item.done", {"output_index": index, "item": item}
    status = str(whole["status"])
    yield f"response.{status}", {"response": whole}


def _part_told(part: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    field = "refusal" if part["type"] == "refusal" else "text"
    family = f"response.{part['type']}"
    silent: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
    sure: dict[str, Any] = {"logprobs": part["logprobs"]} if silent else {}
    blank: dict[str, list[Any]] = {name: [] for name in ("annotations", "logprobs") if name in part}
    yield "response.content_part.added", {**here, "part": {**part, **blank, field: ""}}
    for word in _words(part[field]):
        yield f"{family}.delta", {**here, "delta": word, **silent}
    for at, annotation in enumerate(part.get("annotations", ())):
        yield "response.output_text.annotation.added", {**here, "annotation_index": at, "annotation": annotation}
    yield f"{family}.done", {**here, field: part[field], **sure}
    yield "response.content_part.done", {**here, "part": part}


def _words(text: str) -> list[str]:
    first, *others = text.split(" ")
    return [word for word in (first, *(f" {word}" for word in others)) if word]


def question_of(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message, "" when there is none."""
    given = body.get("input")
    if isinstance(given, str):
        return given
    for item in reversed(given if isinstance(given, list) else []):
        if isinstance(item, dict) and item.get("role") == "user":
            content = item.get("content")
            parts = content if isinstance(content, list) else []
            return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in parts)
    return ""


def default_response(body: Mapping[str, Any], call: int) -> dict[str, Any]:
    """Return the answer to a request: it tells the question and the number of the call, and echoes its parameters."""
    question = question_of(body)
    content = f"Answer {call} to: {question[:200]}"
    text = body.get("text")
    told = text.get("format") if isinstance(text, dict) else None
    if isinstance(told, dict) and told.get("type", "text") != "text":
        content = encode({"answer": question[:200], "call": call}).decode()
    echoed = {
        name: body[name]
        for name in ("instructions", "metadata", "previous_response_id", "temperature", "text", "tools", "tool_choice")
        if body.get(name) is not None
    }
    whole = response(message(content, item_id=f"msg_call{call}"), id=f"resp_call{call}", usage=usage(question, content))
    times = {"created_at": CREATED_S + call, "completed_at": CREATED_S + call + 3}
    return {**whole, "model": str(body.get("model") or MODEL), **times, **echoed}


def default_answer(body: Mapping[str, Any], call: int) -> tuple[bytes | None, list[bytes]]:
    """Answer a request: the whole body, or (None, the events) when a stream was asked."""
    whole = default_response(body, call)
    options = body.get("stream_options")
    plain = isinstance(options, dict) and options.get("include_obfuscation") is False
    return (None, events(whole, obfuscated=not plain)) if body.get("stream") is True else (encode(whole), [])
