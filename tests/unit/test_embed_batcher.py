"""How the micro-batcher schedules: batches under load, shared work, bounds, clean ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cacheproxy import settings
from cacheproxy.background import Cores
from cacheproxy.embed.batch import Flaw
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.errors import EmbedderUnavailable
from tests.support.encoders import HashEncoder
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Embedding


def config(threads: int = 1, max_batch: int = 32, queue: int = 4096, timeout_ms: int = 20_000) -> settings.Encoder:
    return settings.Encoder(threads=threads, max_batch=max_batch, queue=queue, timeout_ms=timeout_ms)


def start(embedder: MicroBatcher, texts: Iterable[str], scope: str = "") -> list[asyncio.Task[Embedding]]:
    return [asyncio.ensure_future(embedder.embed(text, scope=scope)) for text in texts]


async def hold(encoder: HashEncoder, embedder: MicroBatcher) -> asyncio.Task[Embedding]:
    """Occupy the only worker until the encoder's gate opens."""
    encoder.gate.clear()
    [task] = start(embedder, ["the worker is busy with this"])
    await eventually(lambda: len(encoder.calls) == 1, "the worker has begun")
    return task


async def test_an_idle_worker_takes_a_text_at_once() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        await embedder.embed("one")
        await embedder.embed("two")
    assert encoder.calls == [("one",), ("two",)]


async def test_texts_that_arrive_while_workers_are_busy_form_one_batch() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await hold(encoder, embedder)
        rest = start(embedder, (f"text {number}" for number in range(20)))
        await eventually(lambda: embedder.queued == 20, "all wait")
        encoder.gate.set()
        await asyncio.gather(first, *rest)
        assert embedder.stats.batches == 2
        assert embedder.stats.texts == 21


@pytest.mark.parametrize(("ours", "theirs"), [(4, 1024), (32, 4)])
async def test_a_batch_is_no_larger_than_the_setting_and_the_encoder_allow(ours: int, theirs: int) -> None:
    encoder = HashEncoder(max_batch=theirs)
    async with MicroBatcher(encoder, config(max_batch=ours)) as embedder:
        first = await hold(encoder, embedder)
        rest = start(embedder, (f"text {number:02}" for number in range(10)))
        await eventually(lambda: embedder.queued == 10, "all wait")
        encoder.gate.set()
        await asyncio.gather(first, *rest)
    assert [len(call) for call in encoder.calls[1:]] == [4, 4, 2]


async def test_what_is_ahead_of_a_new_text_is_told_by_what_texts_took_lately() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        assert embedder.ahead_s == 0, "nobody is before it"
        first = await hold(encoder, embedder)
        running_s = embedder.ahead_s
        rest = start(embedder, (f"text {number}" for number in range(20)))
        await eventually(lambda: embedder.queued == 20, "all wait")
        texts = [f"text {number}" for number in range(20)]
        waiting = sum(map(encoder.weigh, texts)) / encoder.weigh("the worker is busy with this")
        assert embedder.ahead_s == pytest.approx((1 + 2 * waiting) * running_s)  # of what runs a half
        await asyncio.sleep(0.1)
        encoder.gate.set()
        await asyncio.gather(first, *rest)
        encoder.gate.clear()
        assert embedder.ahead_s == 0, "a worker is idle"
        [again] = start(embedder, ["the worker is busy with that"])
        await eventually(lambda: embedder.running == 1, "the worker has begun")
        assert 1.2 * running_s < embedder.ahead_s < 4 * running_s, "they took longer, but what was odd is not all"
        encoder.gate.set()
        await again


async def test_workers_that_hang_are_not_waited_for() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config(threads=2, timeout_ms=100)) as embedder:
        hung = await hold(encoder, embedder)
        with pytest.raises(EmbedderUnavailable):
            await hung
        assert embedder.ahead_s == 0, "the other worker is idle"
        encoder.gate.set()


async def test_a_long_text_does_not_hold_up_the_short_ones_and_is_not_starved() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await hold(encoder, embedder)
        rest = start(embedder, ["short one", "long " * 300, "short two"])
        await eventually(lambda: embedder.queued == 3, "all wait")
        encoder.gate.set()
        await asyncio.gather(first, *rest)
    assert encoder.calls[1:] == [("short one", "short two"), ("long " * 300,)]


async def test_while_cores_are_claimed_one_batch_runs_and_the_next_waits_until_they_are_given_back() -> None:
    encoder, cores = HashEncoder(), Cores(2)
    async with MicroBatcher(encoder, config(threads=2), cores=cores) as embedder:
        cores.claim(2)
        first = await hold(encoder, embedder)
        rest = start(embedder, ["text 1", "text 2"])
        await eventually(lambda: embedder.queued == 2, "both wait")
        await asyncio.sleep(0.05)
        assert len(encoder.calls) == 1
        cores.claim(1)
        await asyncio.sleep(0.05)
        assert len(encoder.calls) == 1  # of two cores one is claimed, and one is busy
        cores.claim(0)
        await eventually(lambda: len(encoder.calls) == 2, "the other worker has begun")
        encoder.gate.set()
        await asyncio.gather(first, *rest)
    assert encoder.calls[1] == ("text 1", "text 2")


async def test_cores_that_are_claimed_for_good_do_not_stop_the_encoder() -> None:
    encoder, cores = HashEncoder(), Cores(2)
    async with MicroBatcher(encoder, config(threads=2), cores=cores) as embedder:
        cores.claim(64)
        found = await asyncio.gather(*start(embedder, (f"text {number}" for number in range(50))))
    assert len(found) == 50


async def test_a_worker_that_hangs_takes_no_core_from_the_others() -> None:
    encoder, cores = HashEncoder(), Cores(2)
    async with MicroBatcher(encoder, config(threads=2, timeout_ms=100), cores=cores) as embedder:
        cores.claim(2)
        first = await hold(encoder, embedder)
        with pytest.raises(EmbedderUnavailable, match="within encoder"):
            await first
        [second] = start(embedder, ["another text"])
        await eventually(lambda: len(encoder.calls) == 2, "the other worker has begun")
        encoder.gate.set()
        await second


async def test_those_who_got_their_embeddings_may_claim_cores_before_the_next_batch_begins() -> None:
    class Slow(HashEncoder):
        busy = 0
        seen: list[int]

        def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
            self.busy += 1
            self.seen.append(self.busy)
            time.sleep(0.2 if "slow" in texts else 0.0)
            self.busy -= 1
            return super().encode(texts)

    encoder, cores = Slow(), Cores(2)
    encoder.seen = []

    async def embedded_then_verified(embedder: MicroBatcher, text: str) -> None:
        await embedder.embed(text)
        cores.claim(2)

    async with MicroBatcher(encoder, config(threads=2, max_batch=1), cores=cores) as embedder:
        await asyncio.gather(*(embedded_then_verified(embedder, text) for text in ("slow", "quick", "next")))
    assert encoder.seen == [1, 2, 1]


async def test_equal_texts_in_flight_are_encoded_once() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await hold(encoder, embedder)
        same = start(embedder, ["the same question"] * 50)
        await eventually(lambda: embedder.stats.shared == 49, "all have joined")
        encoder.gate.set()
        await asyncio.gather(first, *same)
    assert encoder.calls[1:] == [("the same question",)]


async def test_a_recent_text_is_not_encoded_again() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await embedder.embed("again")
        assert await embedder.embed("again") is first
        assert embedder.stats.memo_hits == 1
    assert len(encoder.calls) == 1


async def test_the_memo_can_be_switched_off() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config(), memo=0) as embedder:
        await embedder.embed("again")
        await embedder.embed("again")
    assert len(encoder.calls) == 2


async def test_scopes_share_no_work_so_that_time_tells_nothing() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        await embedder.embed("a secret question", scope="tenant a")
        await embedder.embed("a secret question", scope="tenant b")
        first = await hold_again(encoder, embedder)
        tasks = start(embedder, ["in flight"], scope="tenant a") + start(embedder, ["in flight"], scope="tenant b")
        await eventually(lambda: embedder.queued == 2, "both wait")
        encoder.gate.set()
        await asyncio.gather(first, *tasks)
        assert (embedder.stats.memo_hits, embedder.stats.shared) == (0, 0)


async def hold_again(encoder: HashEncoder, embedder: MicroBatcher) -> asyncio.Task[Embedding]:
    calls = len(encoder.calls)
    encoder.gate.clear()
    [task] = start(embedder, ["busy once more"])
    await eventually(lambda: len(encoder.calls) == calls + 1, "the worker has begun")
    return task


async def test_a_scope_and_a_text_are_never_confused() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        await embedder.embed("bc", scope="a")
        await embedder.embed("c", scope="ab")
    assert encoder.calls == [("bc",), ("c",)]


async def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config(queue=3)) as embedder:
        first = await hold(encoder, embedder)
        rest = start(embedder, ["a", "b", "c"])
        await eventually(lambda: embedder.queued == 3, "the queue is full")
        with pytest.raises(EmbedderUnavailable, match="queue is full"):
            await embedder.embed("d")
        assert embedder.stats.failures == {Flaw.QUEUE_FULL: 1}
        encoder.gate.set()
        await asyncio.gather(first, *rest)
        await embedder.embed("d")


async def test_a_text_whose_callers_all_left_is_not_encoded() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await hold(encoder, embedder)
        gone = start(embedder, ["nobody waits", "nobody waits"])
        stays = start(embedder, ["somebody waits"])
        await eventually(lambda: embedder.queued == 2, "both texts wait")
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert embedder.stats.left == 1
        encoder.gate.set()
        await asyncio.gather(first, *stays)
    assert encoder.calls[1:] == [("somebody waits",)]


async def test_a_caller_who_leaves_does_not_take_the_text_from_another() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        first = await hold(encoder, embedder)
        leaves, stays = start(embedder, ["shared", "shared"])
        await eventually(lambda: embedder.queued == 1, "one text waits")
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        encoder.gate.set()
        await asyncio.gather(first, stays)
        assert embedder.stats.left == 0


async def test_work_happens_in_the_named_threads_and_they_end_with_the_block() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config(threads=2)) as embedder:
        await asyncio.gather(*start(embedder, (str(number) for number in range(20))))
    assert encoder.threads
    assert all(name.startswith("cacheproxy-embed") for name in encoder.threads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cacheproxy-embed")]


async def test_leaving_the_block_finishes_what_runs_and_refuses_what_waits() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config()) as embedder:
        running = await hold(encoder, embedder)
        [waiting] = start(embedder, ["still in the queue"])
        await eventually(lambda: embedder.queued == 1, "it waits")
        asyncio.get_running_loop().call_soon(encoder.gate.set)
    assert (await running).vector.shape == (encoder.dim,)
    with pytest.raises(EmbedderUnavailable, match="not running"):
        await waiting


async def test_threads_default_to_one_per_core_and_at_most_four() -> None:
    encoder = HashEncoder()
    async with MicroBatcher(encoder, config(threads=0)):
        started = [thread for thread in threading.enumerate() if thread.name.startswith("cacheproxy-embed")]
    assert 1 <= len(started) <= 4
