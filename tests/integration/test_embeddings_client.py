"""The official client embeds through the proxy as it does without it, in either encoding, sync and async."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from tests.support.embeddings_wire import MODEL, vector

if TYPE_CHECKING:
    import openai
    from openai.types import CreateEmbeddingResponse

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["the first", "a second one", "the first"]
TOKENS = [[1, 2, 3], [4, 5]]
Encoding = Literal["float", "base64"]


def expected(*values: str | list[int], dimensions: int = 8) -> list[list[float]]:
    return [vector(MODEL, value, dimensions).tolist() for value in values]


def listed(response: CreateEmbeddingResponse) -> list[list[float]]:
    """Return the vectors as float32: a list of numbers and decoded base64 differ in how they are written only."""
    assert [item.index for item in response.data] == list(range(len(response.data)))
    return [np.array(item.embedding, dtype=np.float32).tolist() for item in response.data]


async def test_its_default_is_decoded_alike_from_every_round(
    openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    for _ in range(3):
        assert listed(await openai_client.embeddings.create(model=MODEL, input=TEXTS)) == expected(*TEXTS)
    assert upstream.calls == 1
    assert upstream.requests[0].json()["encoding_format"] == "base64"


@pytest.mark.parametrize("first", ["float", "default"])
async def test_floats_and_the_default_share_their_entries(
    openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream, first: str
) -> None:
    async def as_floats() -> list[list[float]]:
        created = await openai_client.embeddings.create(model=MODEL, input=TEXTS[:2], encoding_format="float")
        return listed(created)

    async def by_default() -> list[list[float]]:
        return listed(await openai_client.embeddings.create(model=MODEL, input=TEXTS[:2]))

    ways = [as_floats, by_default] if first == "float" else [by_default, as_floats]
    assert [await way() for way in (*ways, *ways)] == [expected(*TEXTS[:2])] * 4
    assert upstream.calls == 1


@pytest.mark.parametrize(
    ("value", "inputs"),
    [("alone", ["alone"]), (TOKENS[0], TOKENS[:1]), (TOKENS, TOKENS), (["alone"], ["alone"])],
    ids=repr,
)
async def test_every_shape_of_input(
    openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream, value: Any, inputs: list[Any]
) -> None:
    live = await openai_client.embeddings.create(model=MODEL, input=value, dimensions=5)
    hit = await openai_client.embeddings.create(model=MODEL, input=value, dimensions=5)
    assert listed(live) == listed(hit) == expected(*inputs, dimensions=5)
    assert live.usage == hit.usage
    assert upstream.calls == 1


async def test_a_partial_hit_is_whole(openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    await openai_client.embeddings.create(model=MODEL, input="the first")
    raw = await openai_client.embeddings.with_raw_response.create(model=MODEL, input=TEXTS)
    assert listed(raw.parse()) == expected(*TEXTS)
    assert raw.headers["x-cacheproxy-reason"] == "some_items_missing"
    assert upstream.requests[1].json()["input"] == ["a second one"]


async def test_vectors_go_into_numpy(openai_client: openai.AsyncOpenAI) -> None:
    for _ in range(2):
        created = await openai_client.embeddings.create(model=MODEL, input=TEXTS)
        matrix = np.array(listed(created), dtype=np.float32)
        assert np.array_equal(matrix, np.stack([vector(MODEL, text) for text in TEXTS]))


async def test_the_synchronous_client_gets_hits_too(
    sync_openai_client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    def create() -> list[list[float]]:
        return listed(sync_openai_client.embeddings.create(model=MODEL, input=TEXTS))

    for _ in range(2):
        assert await asyncio.to_thread(create) == expected(*TEXTS)
    assert upstream.calls == 1
