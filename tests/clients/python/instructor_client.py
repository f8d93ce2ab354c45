"""instructor: answers in shapes, by tools, by JSON mode and by JSON schema; parts and lists of them as they come."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from pydantic import BaseModel
from steps import MODEL, ask, run, step


class Thing(BaseModel):
    """An answer in a shape."""

    name: str
    uses: list[str]
    weight: float


def client(mode: instructor.Mode = instructor.Mode.TOOLS, **more: Any) -> Any:
    return instructor.from_openai(openai.OpenAI(**{"max_retries": 0, "timeout": 20, **more}), mode=mode)


def asking(name: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": ask(name)}], "max_retries": 0}


@step
def tools(name: str) -> Any:
    return client().chat.completions.create(response_model=Thing, **asking(name))


@step
def json_mode(name: str) -> Any:
    return client(instructor.Mode.JSON_SCHEMA).chat.completions.create(response_model=Thing, **asking(name))


@step
def with_completion(name: str) -> Any:
    create = client(instructor.Mode.JSON_SCHEMA).chat.completions.create_with_completion
    thing, completion = create(response_model=Thing, **asking(name))
    return thing, completion.usage.total_tokens, completion.model


@step
def partial(name: str) -> Any:
    parts = client(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(response_model=Thing, **asking(name))
    return list(parts)[-1]


@step
def partial_tools(name: str) -> Any:
    return list(client().chat.completions.create_partial(response_model=Thing, **asking(name)))[-1]


@step
def several(name: str) -> Any:
    return list(
        client(instructor.Mode.JSON_SCHEMA).chat.completions.create_iterable(response_model=Thing, **asking(name))
    )


@step
def unshaped(name: str) -> Any:
    return client().chat.completions.create(response_model=None, **asking(name))


@step
def unshaped_stream(name: str) -> Any:
    chunks = client().chat.completions.create(response_model=None, stream=True, **asking(name))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@step
async def async_json(name: str) -> Any:
    inner = openai.AsyncOpenAI(max_retries=0, timeout=20)
    other = instructor.from_openai(inner, mode=instructor.Mode.JSON_SCHEMA)
    return await other.chat.completions.create(response_model=Thing, **asking(name))


@step
def rate_limited(name: str) -> Any:
    retrying = client(instructor.Mode.JSON_SCHEMA, max_retries=2)
    return retrying.chat.completions.create(response_model=Thing, **asking(name))


@step
def bad_request(name: str) -> Any:
    return client().chat.completions.create(response_model=Thing, **asking(name))


@step
def unauthorized(name: str) -> Any:
    return client(api_key="sk-wrong").chat.completions.create(response_model=Thing, **asking(name))


if __name__ == "__main__":
    run()
