"""pydantic-ai: agents with tools, shaped output and streams, over chat completions and over responses."""

from __future__ import annotations

from typing import Any

import openai
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from steps import KEY, MODEL, PIXEL, URL, ask, run, step


class Thing(BaseModel):
    """An answer in a shape."""

    name: str
    uses: list[str]


def model(key: str = KEY, **more: Any) -> OpenAIChatModel:
    client = openai.AsyncOpenAI(base_url=URL, api_key=key, **{"max_retries": 0, "timeout": 20, **more})
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))


def responding() -> OpenAIResponsesModel:
    client = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    settings = OpenAIResponsesModelSettings(openai_store=False)
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=client), settings=settings)


def told(result: Any) -> Any:
    """What a user reads of a run."""
    usage = result.usage() if callable(result.usage) else result.usage
    return result.output, usage.requests, usage.input_tokens, usage.output_tokens


@step
async def chat(name: str) -> Any:
    return told(await Agent(model()).run(ask(name)))


@step
def synchronous(name: str) -> Any:
    return told(Agent(model(), instructions="Be brief.").run_sync(ask(name)))


@step
async def turns(name: str) -> Any:
    agent = Agent(model())
    first = await agent.run(ask(name))
    return told(await agent.run(ask(name, "Are you sure?"), message_history=first.all_messages()))


@step
async def stream(name: str) -> Any:
    async with Agent(model()).run_stream(ask(name)) as result:
        text = "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])
        return text, result.usage.output_tokens


@step
async def tools(name: str) -> Any:
    agent = Agent(model())

    @agent.tool_plain
    def weather(city: str, days: int) -> str:
        return f"{days} days of sun in {city}"

    return told(await agent.run(ask(name)))


@step
async def tools_stream(name: str) -> Any:
    agent = Agent(model())

    @agent.tool_plain
    def weather(city: str, days: int) -> str:
        return f"{days} days of sun in {city}"

    async with agent.run_stream(ask(name)) as result:
        return await result.get_output()


@step
async def shaped_by_tool(name: str) -> Any:
    return told(await Agent(model(), output_type=Thing).run(ask(name)))


@step
async def shaped_by_schema(name: str) -> Any:
    return told(await Agent(model(), output_type=NativeOutput(Thing)).run(ask(name)))


@step
async def shaped_stream(name: str) -> Any:
    async with Agent(model(), output_type=NativeOutput(Thing)).run_stream(ask(name)) as result:
        return await result.get_output()


@step
async def vision(name: str) -> Any:
    return told(await Agent(model()).run([ask(name), BinaryContent.from_data_uri(PIXEL)]))


@step
async def responses(name: str) -> Any:
    return told(await Agent(responding()).run(ask(name)))


@step
async def responses_stream(name: str) -> Any:
    async with Agent(responding()).run_stream(ask(name)) as result:
        return await result.get_output()


@step
async def rate_limited(name: str) -> Any:
    return told(await Agent(model(max_retries=2)).run(ask(name)))


@step
async def unauthorized(name: str) -> Any:
    return told(await Agent(model("sk-wrong")).run(ask(name)))


@step
async def bad_request(name: str) -> Any:
    return told(await Agent(model()).run(ask(name)))


@step
async def slow(name: str) -> Any:
    return told(await Agent(model(timeout=0.3)).run(ask(name)))


if __name__ == "__main__":
    run()
