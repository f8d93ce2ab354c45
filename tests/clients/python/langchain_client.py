"""LangChain: chat, streams, tools, structured output, and embeddings by langchain-openai."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from steps import MODEL, PIXEL, ask, run, step

chatter = ChatOpenAI(model=MODEL, max_retries=0, timeout=20)


class Thing(BaseModel):
    """An answer in a shape."""

    name: str
    uses: list[str]


@tool
def weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"{days} days of sun in {city}"


def told(message: Any) -> Any:
    """What a user reads of a message."""
    return {
        "content": message.content,
        "calls": [{"name": call["name"], "args": call["args"]} for call in getattr(message, "tool_calls", [])],
        "usage": message.usage_metadata,
        "metadata": message.response_metadata,
    }


@step
def chat(name: str) -> Any:
    return told(chatter.invoke(ask(name)))


@step
def system(name: str) -> Any:
    return told(chatter.bind(temperature=0).invoke([SystemMessage("Be brief."), HumanMessage(ask(name))]))


@step
def turns(name: str) -> Any:
    history = [HumanMessage("Where is Cape Canaveral?"), AIMessage("In Florida."), HumanMessage(ask(name))]
    return told(chatter.invoke(history))


@step
def stream(name: str) -> Any:
    chunks = list(chatter.stream(ask(name)))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return told(whole)


@step
def stream_without_usage(name: str) -> Any:
    plain = ChatOpenAI(model=MODEL, max_retries=0, stream_usage=False)
    return "".join(str(chunk.content) for chunk in plain.stream(ask(name)))


@step
async def async_chat(name: str) -> Any:
    return told(await ChatOpenAI(model=MODEL, max_retries=0).ainvoke(ask(name)))


@step
async def async_stream(name: str) -> Any:
    return "".join([str(chunk.content) async for chunk in ChatOpenAI(model=MODEL, max_retries=0).astream(ask(name))])


@step
def chain(name: str) -> Any:
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in {language}."), ("user", "{question}")])
    return (prompt | chatter | StrOutputParser()).invoke({"language": "French", "question": ask(name)})


@step
def batch(name: str) -> Any:
    asked = [ask(name, "Why do zebras have stripes?"), ask(name, "How much does a litre of mercury weigh?")]
    return [told(one) for one in chatter.batch(asked)]


@step
def tools(name: str) -> Any:
    able = chatter.bind_tools([weather])
    messages: list[Any] = [HumanMessage(ask(name))]
    asked = able.invoke(messages)
    results = [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in asked.tool_calls]
    return told(asked), told(able.invoke([*messages, asked, *results]))


@step
def tools_stream(name: str) -> Any:
    chunks = list(chatter.bind_tools([weather]).stream(ask(name)))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return told(whole)


@step
def structured(name: str) -> Any:
    return chatter.with_structured_output(Thing).invoke(ask(name))


@step
def structured_tools(name: str) -> Any:
    return chatter.with_structured_output(Thing, method="function_calling").invoke(ask(name))


@step
def vision(name: str) -> Any:
    parts = [{"type": "text", "text": ask(name)}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    return told(chatter.invoke([HumanMessage(parts)]))


@step
def logprobs(name: str) -> Any:
    return told(chatter.bind(logprobs=True, top_logprobs=1).invoke(ask(name)))


@step
def two(name: str) -> Any:
    result = ChatOpenAI(model=MODEL, n=2, max_retries=0).generate([[HumanMessage(ask(name))]])
    return [one.text for one in result.generations[0]]


@step
def responses(name: str) -> Any:
    other = ChatOpenAI(model=MODEL, use_responses_api=True, store=False, max_retries=0)
    return other.invoke(ask(name)).text


@step
def responses_stream(name: str) -> Any:
    other = ChatOpenAI(model=MODEL, use_responses_api=True, store=False, max_retries=0)
    return "".join(chunk.text for chunk in other.stream(ask(name)))


@step
def completions(name: str) -> Any:
    return OpenAI(model="gpt-3.5-turbo-instruct", temperature=0, max_retries=0).invoke(ask(name))


@step
def completions_stream(name: str) -> Any:
    return "".join(OpenAI(model="gpt-3.5-turbo-instruct", temperature=0, max_retries=0).stream(ask(name)))


@step
def embed(name: str) -> Any:
    # Its tokeniser would be fetched from the network; texts go as they are.
    embedder = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False, dimensions=8)
    return embedder.embed_query(ask(name)), embedder.embed_documents([ask(name, "a"), ask(name, "b")])


@step
def unauthorized(name: str) -> Any:
    return ChatOpenAI(model=MODEL, api_key="sk-wrong", max_retries=0).invoke(ask(name))


@step
def bad_request(name: str) -> Any:
    return chatter.invoke(ask(name))


@step
def server_error(name: str) -> Any:
    return chatter.invoke(ask(name))


@step
def rate_limited(name: str) -> Any:
    return told(ChatOpenAI(model=MODEL, max_retries=2).invoke(ask(name)))


@step
def slow(name: str) -> Any:
    return ChatOpenAI(model=MODEL, timeout=0.3, max_retries=0).invoke(ask(name))


@step
def endless(name: str) -> Any:
    chunks = chatter.stream(ask(name))
    seen = [next(chunks).content for _ in range(3)]
    chunks.close()
    return seen


if __name__ == "__main__":
    run()
