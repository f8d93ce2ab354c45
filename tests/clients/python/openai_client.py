"""The official `openai` client: everything of the API that the backend speaks, synchronous and asynchronous."""

from __future__ import annotations

import io
import json
from typing import Any

import openai
from pydantic import BaseModel
from steps import MODEL, PIXEL, ask, run, step

client = openai.OpenAI(max_retries=0, timeout=20)
INSTRUCT, EMBED = "gpt-3.5-turbo-instruct", "text-embedding-3-small"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
TIME = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}
FLAT_WEATHER = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"], "strict": False}


class Thing(BaseModel):
    """An answer in a shape."""

    name: str
    uses: list[str]
    weight: float


def user(name: str, question: str = "") -> list[Any]:
    return [{"role": "user", "content": ask(name, question)}]


def create(name: str, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": user(name), **more})


def folded(chunks: list[Any]) -> dict[str, Any]:
    """What a user collects from a stream."""
    told: dict[str, Any] = {"text": {}, "finish": {}, "calls": {}, "logprobs": {}, "reasoning": "", "usage": None}
    for chunk in chunks:
        told["model"], told["fingerprint"] = chunk.model, chunk.system_fingerprint
        if chunk.usage:
            told["usage"] = chunk.usage.model_dump(exclude_unset=True)
        for choice in chunk.choices:
            at, delta = str(choice.index), choice.delta
            told["text"][at] = told["text"].get(at, "") + (delta.content or "")
            told["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            if choice.logprobs:
                told["logprobs"].setdefault(at, []).extend(one.model_dump() for one in choice.logprobs.content)
            if choice.finish_reason:
                told["finish"][at] = choice.finish_reason
            for call in delta.tool_calls or []:
                known = told["calls"].setdefault(str(call.index), {"name": "", "arguments": ""})
                known["name"] += call.function.name or ""
                known["arguments"] += call.function.arguments or ""
    return told


@step
def chat(name: str) -> Any:
    return create(name)


@step
def system(name: str) -> Any:
    return create(name, messages=[{"role": "system", "content": "Be brief."}, *user(name)], temperature=0, seed=7)


@step
def turns(name: str) -> Any:
    first = create(name, messages=user(name, "Where is Cape Canaveral?"))
    told = [*user(name, "Where is Cape Canaveral?"), first.choices[0].message.model_dump(exclude_unset=True)]
    return create(name, messages=[*told, *user(name)])


@step
def stream(name: str) -> Any:
    return folded(list(create(name, stream=True)))


@step
def stream_usage(name: str) -> Any:
    return folded(list(create(name, stream=True, stream_options={"include_usage": True})))


@step
def stream_helper(name: str) -> Any:
    with client.chat.completions.stream(model=MODEL, messages=user(name)) as events:
        kinds = {event.type for event in events}
        return sorted(kinds), events.get_final_completion()


@step
async def async_chat(name: str) -> Any:
    async with openai.AsyncOpenAI(max_retries=0, timeout=20) as other:
        return await other.chat.completions.create(model=MODEL, messages=user(name))


@step
async def async_stream(name: str) -> Any:
    async with openai.AsyncOpenAI(max_retries=0, timeout=20) as other:
        chunks = await other.chat.completions.create(model=MODEL, messages=user(name), stream=True)
        return folded([chunk async for chunk in chunks])


@step
def raw_response(name: str) -> Any:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user(name))
    return raw.status_code, raw.headers["content-type"], raw.parse()


@step
def tools(name: str) -> Any:
    asked = create(name, tools=[WEATHER, TIME])
    message = asked.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"got": json.loads(call.function.arguments)})}
        for call in message.tool_calls
    ]
    answered = create(name, tools=[WEATHER, TIME], messages=[*user(name), message, *results])
    return asked, answered


@step
def tools_stream(name: str) -> Any:
    return folded(list(create(name, tools=[WEATHER, TIME], stream=True)))


@step
def tools_none(name: str) -> Any:
    return create(name, tools=[WEATHER], tool_choice="none")


@step
def json_object(name: str) -> Any:
    return create(name, response_format={"type": "json_object"})


@step
def parse(name: str) -> Any:
    parsed = client.chat.completions.parse(model=MODEL, messages=user(name), response_format=Thing)
    return parsed.choices[0].message.parsed, parsed.usage


@step
def parse_stream(name: str) -> Any:
    with client.chat.completions.stream(model=MODEL, messages=user(name), response_format=Thing) as events:
        return events.get_final_completion().choices[0].message.parsed


@step
def vision(name: str) -> Any:
    parts = [{"type": "text", "text": ask(name)}, {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]
    return create(name, messages=[{"role": "user", "content": parts}])


@step
def logprobs(name: str) -> Any:
    return create(name, logprobs=True, top_logprobs=2)


@step
def logprobs_stream(name: str) -> Any:
    return folded(list(create(name, logprobs=True, top_logprobs=2, stream=True)))


@step
def two(name: str) -> Any:
    return create(name, n=2)


@step
def two_stream(name: str) -> Any:
    return folded(list(create(name, n=2, stream=True)))


@step
def reasoning(name: str) -> Any:
    return create(name), folded(list(create(name, stream=True)))


@step
def hot(name: str) -> Any:
    return create(name, temperature=1.5)


@step
def completions(name: str) -> Any:
    return client.completions.create(model=INSTRUCT, prompt=ask(name), max_tokens=20)


@step
def completions_many(name: str) -> Any:
    return client.completions.create(model=INSTRUCT, prompt=[ask(name), ask(name, "Second")], n=2, temperature=0)


@step
def completions_stream(name: str) -> Any:
    chunks = client.completions.create(model=INSTRUCT, prompt=ask(name), stream=True)
    told = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(choice.text for choice in told), told[-1].finish_reason


@step
def responses(name: str) -> Any:
    answered = client.responses.create(model=MODEL, input=ask(name), instructions="Be brief.", store=False)
    return answered.output_text, answered


@step
def responses_default(name: str) -> Any:
    return client.responses.create(model=MODEL, input=[{"role": "user", "content": ask(name)}])


@step
def responses_stream(name: str) -> Any:
    events = list(client.responses.create(model=MODEL, input=ask(name), stream=True, store=False))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return sorted({event.type for event in events}), text, events[-1].response


@step
def responses_helper(name: str) -> Any:
    with client.responses.stream(model=MODEL, input=ask(name), text_format=Thing, store=False) as events:
        list(events)
        return events.get_final_response().output_parsed


@step
def responses_parse(name: str) -> Any:
    return client.responses.parse(model=MODEL, input=ask(name), text_format=Thing, store=False).output_parsed


@step
def responses_tools(name: str) -> Any:
    told: list[Any] = [{"role": "user", "content": ask(name)}]
    asked = client.responses.create(model=MODEL, input=told, tools=[FLAT_WEATHER], store=False)
    call = asked.output[0]
    told += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}]
    return asked, client.responses.create(model=MODEL, input=told, tools=[FLAT_WEATHER], store=False)


@step
def responses_chained(name: str) -> Any:
    first = client.responses.create(model=MODEL, input=ask(name, "First"), store=True)
    return client.responses.create(model=MODEL, input=ask(name, "Second"), previous_response_id=first.id).output_text


@step
def embed(name: str) -> Any:
    return client.embeddings.create(model=EMBED, input=ask(name))


@step
def embed_list(name: str) -> Any:
    return client.embeddings.create(model=EMBED, input=[ask(name, "a"), ask(name, "b"), ask(name, "a"), ask(name, "c")])


@step
def embed_float(name: str) -> Any:
    return client.embeddings.create(model=EMBED, input=[ask(name, "a")], encoding_format="float", dimensions=8)


@step
def embed_base64(name: str) -> Any:
    return client.embeddings.create(model=EMBED, input=[ask(name, "a")], encoding_format="base64", dimensions=8)


@step
def models(_: str) -> Any:
    return [model.id for model in client.models.list()], client.models.retrieve(MODEL)


@step
def files(name: str) -> Any:
    stored = client.files.create(
        file=("a b.jsonl", io.BytesIO(ask(name).encode() + bytes(range(256)))), purpose="batch"
    )
    content = client.files.content(stored.id).read()
    read = client.files.retrieve(stored.id)
    return stored, content, read, list(client.files.list(limit=3)), client.files.delete(stored.id)


@step
def speech(name: str) -> Any:
    with client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=ask(name)) as told:
        streamed = b"".join(told.iter_bytes())
    return client.audio.speech.create(model="tts-1", voice="alloy", input=ask(name)).content, streamed


@step
def transcription(name: str) -> Any:
    def heard(**more: Any) -> Any:
        return client.audio.transcriptions.create(model="whisper-1", file=("a.wav", bytes(range(256)) * 999), **more)

    return heard(), heard(response_format="text")


@step
def images(name: str) -> Any:
    return client.images.generate(model="gpt-image-1", prompt=ask(name), n=2)


@step
def moderations(name: str) -> Any:
    return client.moderations.create(input=[ask(name), "b"])


@step
def batches(name: str) -> Any:
    made = client.batches.create(
        input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": ask(name)}
    )
    return made, client.batches.retrieve(made.id), client.batches.cancel(made.id), list(client.batches.list())


@step
def extras(name: str) -> Any:
    more = {"extra_body": {"top_k": 40, "vendor": {"a": [1, None]}}, "extra_headers": {"x-vendor": "1"}}
    return create(name, extra_query={"api-version": "1"}, **more)


@step
def unauthorized(name: str) -> Any:
    return client.with_options(api_key="sk-wrong").chat.completions.create(model=MODEL, messages=user(name))


@step
def bad_request(name: str) -> Any:
    return create(name)


@step
def server_error(name: str) -> Any:
    return create(name)


@step
def rate_limited(name: str) -> Any:
    return client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=user(name))


@step
def not_found(_: str) -> Any:
    return client.get("/no/such/route", cast_to=object)


@step
def slow(name: str) -> Any:
    return client.with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=user(name))


@step
def endless(name: str) -> Any:
    chunks = create(name, stream=True)
    seen = [next(chunks).choices[0].delta.content for _ in range(3)]
    chunks.close()
    return seen


@step
async def async_many(name: str) -> Any:
    import asyncio

    async with openai.AsyncOpenAI(max_retries=0, timeout=20) as other:
        asked = (other.chat.completions.create(model=MODEL, messages=user(name)) for _ in range(8))
        return await asyncio.gather(*asked)


if __name__ == "__main__":
    run()
