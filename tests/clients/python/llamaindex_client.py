"""LlamaIndex: its OpenAI and OpenAI-like models, streams, tools, structured output, and embeddings."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from steps import KEY, MODEL, PIXEL, URL, ask, run, step

MORE: dict[str, Any] = {"api_base": URL, "api_key": KEY, "max_retries": 0, "timeout": 20}
chatter = OpenAI(model=MODEL, temperature=0, **MORE)
alike = OpenAILike(model="gpt-4o-mini", is_chat_model=True, is_function_calling_model=True, context_window=9000, **MORE)


class Thing(BaseModel):
    """An answer in a shape."""

    name: str
    uses: list[str]


def weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"{days} days of sun in {city}"


def user(name: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=ask(name))]


def told(response: Any) -> Any:
    """What a user reads of an answer."""
    usage = getattr(response.raw, "usage", None)
    return response.message.content, usage.model_dump(exclude_unset=True) if usage else None


@step
def complete(name: str) -> Any:
    return chatter.complete(ask(name)).text


@step
def chat(name: str) -> Any:
    return told(chatter.chat([ChatMessage(role="system", content="Be brief."), *user(name)]))


@step
def turns(name: str) -> Any:
    first = chatter.chat(user(name)).message
    return told(chatter.chat([*user(name), first, ChatMessage(role="user", content=ask(name, "Are you sure?"))]))


@step
def stream(name: str) -> Any:
    return [*chatter.stream_chat(user(name))][-1].message.content


@step
def stream_complete(name: str) -> Any:
    return "".join(one.delta for one in chatter.stream_complete(ask(name)))


@step
async def async_chat(name: str) -> Any:
    return told(await OpenAI(model=MODEL, **MORE).achat(user(name)))


@step
async def async_stream(name: str) -> Any:
    return "".join([one.delta async for one in await OpenAI(model=MODEL, **MORE).astream_chat(user(name))])


@step
def like_chat(name: str) -> Any:
    return told(alike.chat(user(name)))


@step
def like_stream(name: str) -> Any:
    return "".join(one.delta for one in alike.stream_chat(user(name)))


@step
def like_completions(name: str) -> Any:
    model = OpenAILike(model="gpt-3.5-turbo-instruct", is_chat_model=False, **MORE)
    return model.complete(ask(name)).text, "".join(one.delta for one in model.stream_complete(ask(name)))


@step
def tools(name: str) -> Any:
    answered = chatter.predict_and_call([FunctionTool.from_defaults(weather)], ask(name))
    return answered.response


@step
def tools_stream(name: str) -> Any:
    parts = list(chatter.stream_chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=ask(name)))
    calls = chatter.get_tool_calls_from_response(parts[-1])
    return [(call.tool_name, call.tool_kwargs) for call in calls]


@step
def structured(name: str) -> Any:
    return chatter.as_structured_llm(Thing).chat(user(name)).raw


@step
def vision(name: str) -> Any:
    blocks = [TextBlock(text=ask(name)), ImageBlock(url=PIXEL)]
    return told(chatter.chat([ChatMessage(role="user", blocks=blocks)]))


@step
def logprobs(name: str) -> Any:
    answered = OpenAI(model=MODEL, logprobs=True, top_logprobs=1, **MORE).chat(user(name))
    return answered.message.content, [[one.token for one in place] for place in answered.logprobs or []]


@step
def responses(name: str) -> Any:
    return OpenAIResponses(model=MODEL, store=False, **MORE).chat(user(name)).message.content


@step
def responses_stream(name: str) -> Any:
    return "".join(one.delta or "" for one in OpenAIResponses(model=MODEL, store=False, **MORE).stream_chat(user(name)))


@step
def embed(name: str) -> Any:
    embedder = OpenAIEmbedding(model="text-embedding-3-small", dimensions=8, **MORE)
    return embedder.get_text_embedding(ask(name)), embedder.get_text_embedding_batch([ask(name, "a"), ask(name, "b")])


@step
def unauthorized(name: str) -> Any:
    return OpenAI(model=MODEL, **{**MORE, "api_key": "sk-wrong"}).chat(user(name))


@step
def bad_request(name: str) -> Any:
    return chatter.chat(user(name))


@step
def server_error(name: str) -> Any:
    return chatter.chat(user(name))


@step
def rate_limited(name: str) -> Any:
    return told(OpenAI(model=MODEL, **{**MORE, "max_retries": 2}).chat(user(name)))


@step
def slow(name: str) -> Any:
    return OpenAI(model=MODEL, **{**MORE, "timeout": 0.3}).chat(user(name))


@step
def endless(name: str) -> Any:
    chunks = chatter.stream_chat(user(name))
    seen = [next(chunks).delta for _ in range(3)]
    chunks.close()
    return seen


if __name__ == "__main__":
    run()
