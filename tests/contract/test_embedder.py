"""What every Embedder promises, run over the micro-batcher with each encoder."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio

from cacheproxy import settings
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import EmbedderUnavailable
from tests.support.encoders import HashEncoder, real_encoder
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.ports import Embedder

SUBJECTS = ("Paris", "tea", "a password", "my order", "the moon", "gravity", "a contract", "the budget")
TEXTS = [f"How do I find out about {subject} in {year}?" for subject in SUBJECTS for year in range(2020, 2024)]


@pytest.fixture(params=["hash", "onnx-fp32", pytest.param("onnx-int8", marks=pytest.mark.slow)])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    kind: str = request.param
    return HashEncoder() if kind == "hash" else real_encoder(kind.removeprefix("onnx-"))


@pytest_asyncio.fixture
async def embedder(encoder: Encoder) -> AsyncIterator[MicroBatcher]:
    # A long deadline: the suite checks what is promised, not how fast a busy machine is.
    async with MicroBatcher(encoder, settings.Encoder(timeout_ms=60_000)) as running:
        yield running


async def test_an_embedding_is_a_float32_unit_vector_of_the_promised_length(embedder: Embedder) -> None:
    embedding = await embedder.embed("What is the capital of France?")
    assert embedding.vector.dtype == np.float32
    assert embedding.vector.shape == (embedder.dim,)
    assert np.linalg.norm(embedding.vector) == pytest.approx(1.0, abs=1e-3)
    assert embedding.unseen == b""


async def test_a_dropped_text_is_embedded_anew_for_its_scope_alone(embedder: MicroBatcher) -> None:
    before = [await embedder.embed("My own affair", scope=scope) for scope in ("one", "two")]
    embedder.drop("My own affair", scope="one")
    embedder.drop("never seen", scope="one")
    texts = embedder.stats.texts
    for scope, known in zip(("one", "two"), before, strict=True):
        assert (await embedder.embed("My own affair", scope=scope)).vector @ known.vector == pytest.approx(1, abs=1e-4)
    assert embedder.stats.texts == texts + 1


async def test_the_epoch_is_a_name(embedder: Embedder) -> None:
    assert embedder.epoch
    assert embedder.epoch == embedder.epoch.strip()


async def test_an_empty_text_has_an_embedding(embedder: Embedder) -> None:
    embedding = await embedder.embed("")
    assert np.linalg.norm(embedding.vector) == pytest.approx(1.0, abs=1e-3)
    assert embedding.unseen == b""


async def test_concurrent_callers_each_get_the_vector_of_their_own_text(encoder: Encoder, embedder: Embedder) -> None:
    embeddings = await asyncio.gather(*(embedder.embed(text) for text in TEXTS))
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        [alone], _ = encoder.encode([text])
        assert embedding.vector @ alone == pytest.approx(1.0, abs=1e-5)


async def test_different_texts_have_different_vectors(embedder: Embedder) -> None:
    first, second = await asyncio.gather(embedder.embed("How to boil an egg?"), embedder.embed("Who wrote Hamlet?"))
    assert first.vector @ second.vector < 0.9


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "word " * 100_000, "\u6c34" * 200_000], ids=["word", "tokens", "cjk"]
)
async def test_a_huge_text_is_embedded_and_its_unseen_part_is_admitted(embedder: Embedder, text: str) -> None:
    embedding = await embedder.embed(text)
    assert np.isfinite(embedding.vector).all()
    assert len(embedding.unseen) == 16


async def test_long_texts_that_differ_only_in_the_middle_differ_in_unseen(embedder: Embedder) -> None:
    filler = "the same words again and again " * 200
    first, second = await asyncio.gather(
        embedder.embed(f"{filler} 41 {filler}"), embedder.embed(f"{filler} 42 {filler}")
    )
    assert first.vector @ second.vector == pytest.approx(1.0, abs=1e-4)
    assert first.unseen != second.unseen


async def test_a_returned_vector_cannot_be_written_to(embedder: Embedder) -> None:
    embedding = await embedder.embed("shared by everybody who asks the same")
    with pytest.raises(ValueError, match="read-only"):
        embedding.vector[0] = 0.0


async def test_cancelling_a_caller_leaves_the_others_and_the_embedder_usable(embedder: Embedder) -> None:
    doomed = [asyncio.ensure_future(embedder.embed(text)) for text in TEXTS]
    kept = asyncio.ensure_future(embedder.embed(TEXTS[0]))
    await asyncio.sleep(0)
    for task in doomed:
        task.cancel()
    results = await asyncio.gather(*doomed, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert (await kept).vector.shape == (embedder.dim,)
    assert (await embedder.embed("afterwards")).vector.shape == (embedder.dim,)


async def test_a_running_embedder_is_healthy(embedder: Embedder) -> None:
    await embedder.embed("hello")
    assert embedder.health() == ""


async def test_a_stopped_embedder_refuses_and_says_so(encoder: Encoder) -> None:
    async with MicroBatcher(encoder, settings.Encoder()) as embedder:
        pass
    assert "not running" in embedder.health()
    with pytest.raises(EmbedderUnavailable, match="not running"):
        await embedder.embed("too late")


async def test_everything_is_idle_after_the_last_answer(embedder: MicroBatcher) -> None:
    await asyncio.gather(*(embedder.embed(text) for text in TEXTS))
    await eventually(lambda: embedder.running == 0, "no batch runs")
    assert embedder.queued == 0
