"""The live verifier keeps its deadline, counts what is stuck, and turns every failure into "unavailable"."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from cacheproxy.background import Cores
from cacheproxy.errors import VerifierUnavailable
from cacheproxy.model import Asking, Verification
from cacheproxy.verify.verifier import ThreadedVerifier
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cacheproxy.verify.scorer import PairScorer

KEPT = [(Asking(text="kept"), 0.9)]


class GatedScorer:
    """Answers once its gate is open; `fails` is raised instead."""

    fingerprint = "gated"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self.fails: BaseException | None = None

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        self.asked.append(asked)
        self.threads.add(threading.current_thread().name)
        self.gate.wait(timeout=30)
        if self.fails is not None:
            raise self.fails
        return [Verification(probability=cosine, veto="") for _, cosine in kept]


@pytest.fixture
def scorer() -> Iterator[GatedScorer]:
    scorer = GatedScorer()
    yield scorer
    scorer.gate.set()


@pytest.fixture
def make(scorer: GatedScorer) -> Callable[..., ThreadedVerifier]:
    def made(timeout_s: float = 10.0, threads: int = 1, queue: int = 1, cores: Cores | None = None) -> ThreadedVerifier:
        real = cast("PairScorer", scorer)
        return ThreadedVerifier(real, ["one"], threads=threads, timeout_s=timeout_s, queue=queue, cores=cores)

    return made


def asked(verifier: ThreadedVerifier, text: str = "asked") -> asyncio.Task[list[Verification]]:
    return asyncio.create_task(verifier.verify(Asking(text=text), KEPT))


async def at_work(scorer: GatedScorer, lookups: int = 1) -> None:
    await eventually(lambda: len(scorer.asked) >= lookups, "at work")


async def test_a_lookup_is_answered_in_order_on_a_thread_of_its_own(scorer: GatedScorer, make: Any) -> None:
    async with make() as verifier:
        kept = [(Asking(text=str(number)), number / 10) for number in range(5)]
        found = await verifier.verify(Asking(text="asked"), kept)
        assert [one.probability for one in found] == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert scorer.threads != {threading.current_thread().name}
        assert verifier.health() == ""
        assert verifier.fingerprint == "gated"
        assert verifier.covers("one")
        assert not verifier.covers("two")


async def test_beyond_the_deadline_it_is_unavailable_and_the_loop_goes_on(scorer: GatedScorer, make: Any) -> None:
    async with make(timeout_s=0.02) as verifier:
        scorer.gate.clear()
        with pytest.raises(VerifierUnavailable, match="longer than its budget"):
            await verifier.verify(Asking(text="asked"), KEPT)
        scorer.gate.set()
        await eventually(lambda: verifier.health() == "", "room again")


async def test_what_comes_to_its_turn_as_its_deadline_passes_is_unavailable(scorer: GatedScorer, make: Any) -> None:
    async with make(timeout_s=0.5) as verifier:
        scorer.gate.clear()
        first = asked(verifier, "first")
        await at_work(scorer)
        second = asked(verifier, "second")
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()

        def between() -> None:
            # In the same turn of the loop as both deadlines, before either task hears of them: the thread goes on.
            scorer.gate.set()
            time.sleep(0.1)

        loop.call_later(0.501, between)
        loop.call_soon(time.sleep, 0.6)  # so that all three are due at once
        assert [word.probability for word in await first] == [0.9]
        with pytest.raises(VerifierUnavailable, match="longer than its budget"):
            await second
        assert scorer.asked == ["first"]


async def test_a_stuck_thread_shows_in_health_and_the_next_lookup_fails_at_once(scorer: GatedScorer, make: Any) -> None:
    async with make(timeout_s=0.02, threads=1, queue=1) as verifier:
        scorer.gate.clear()
        for _ in range(2):
            with pytest.raises(VerifierUnavailable, match="longer"):
                await verifier.verify(Asking(text="asked"), KEPT)
        assert verifier.health() == "overloaded"
        for _ in range(50):
            with pytest.raises(VerifierUnavailable, match="too many"):
                await verifier.verify(Asking(text="asked"), KEPT)
        scorer.gate.set()
        await eventually(lambda: verifier.health() == "", "room again")
        assert len(scorer.asked) == 1  # nobody waited for the second one any more: it was not scored


async def test_lookups_beyond_the_queue_are_refused(scorer: GatedScorer, make: Any) -> None:
    async with make(threads=2, queue=3) as verifier:
        scorer.gate.clear()
        waiting = [asked(verifier) for _ in range(5)]
        await at_work(scorer, 2)
        assert verifier.health() == "overloaded"
        with pytest.raises(VerifierUnavailable, match="too many"):
            await verifier.verify(Asking(text="asked"), KEPT)
        scorer.gate.set()
        assert [len(one) for one in await asyncio.gather(*waiting)] == [1] * 5


async def test_it_claims_a_core_for_each_thread_that_somebody_waits_for(scorer: GatedScorer, make: Any) -> None:
    cores = Cores(8)
    async with make(threads=2, queue=3, cores=cores) as verifier:
        scorer.gate.clear()
        first = asked(verifier, "first")
        await at_work(scorer)
        assert cores.left == 7
        others = [asked(verifier) for _ in range(4)]
        await at_work(scorer, 2)
        assert cores.left == 6
        scorer.gate.set()
        await asyncio.gather(first, *others)
        assert cores.left is None


async def test_it_claims_no_core_for_what_hangs_and_nobody_awaits(scorer: GatedScorer, make: Any) -> None:
    cores = Cores(8)
    async with make(timeout_s=0.02, threads=2, queue=8, cores=cores) as verifier:
        scorer.gate.clear()
        found = await asyncio.gather(*(asked(verifier) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(one, VerifierUnavailable) for one in found)
        assert cores.left is None
        left = asked(verifier)
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert cores.left is None


async def test_a_caller_that_leaves_frees_its_place_when_its_thread_is_done(scorer: GatedScorer, make: Any) -> None:
    async with make(threads=1, queue=0) as verifier:
        scorer.gate.clear()
        task = asked(verifier)
        await at_work(scorer)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert verifier.health() == "overloaded"
        scorer.fails = RuntimeError("nobody hears this")
        scorer.gate.set()
        await eventually(lambda: verifier.health() == "", "room again")
        scorer.fails = None
        assert len(await verifier.verify(Asking(text="next"), KEPT)) == 1


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, MemoryError, RuntimeError, UnicodeError, OSError])
async def test_every_failure_is_unavailable_and_says_nothing_of_the_question(
    scorer: GatedScorer, make: Any, error: type[Exception]
) -> None:
    async with make() as verifier:
        scorer.fails = error("my secret question")
        with pytest.raises(VerifierUnavailable) as caught:
            await verifier.verify(Asking(text="my secret question"), KEPT)
        assert caught.value.message == f"the verifier failed ({error.__name__})"
        scorer.fails = None
        assert len(await verifier.verify(Asking(text="next"), KEPT)) == 1
        assert verifier.health() == ""


async def test_what_the_scorer_itself_finds_unavailable_is_told_as_it_is(scorer: GatedScorer, make: Any) -> None:
    async with make() as verifier:
        scorer.fails = VerifierUnavailable("the cross-encoder failed (Fail)")
        with pytest.raises(VerifierUnavailable, match=r"the cross-encoder failed \(Fail\)"):
            await verifier.verify(Asking(text="asked"), KEPT)


async def test_closing_while_lookups_wait_makes_them_unavailable_not_cancelled(scorer: GatedScorer, make: Any) -> None:
    scorer.gate.clear()
    async with make(threads=1, queue=4) as verifier:
        first, *waiting = [asked(verifier) for _ in range(4)]
        await at_work(scorer)
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, VerifierUnavailable) for one in found)
    scorer.gate.set()
    assert len(await first) == 1
    with pytest.raises(VerifierUnavailable, match="closed"):
        await verifier.verify(Asking(text="late"), KEPT)
    await eventually(lambda: verifier.health() == "", "room again")


async def test_closing_does_not_wait_for_a_stuck_thread(scorer: GatedScorer, make: Any) -> None:
    scorer.gate.clear()
    async with asyncio.timeout(5):
        async with make(timeout_s=0.01) as verifier:
            with pytest.raises(VerifierUnavailable):
                await verifier.verify(Asking(text="asked"), KEPT)


async def test_a_lookup_cancelled_while_it_waits_is_not_scored(scorer: GatedScorer, make: Any) -> None:
    async with make(threads=1, queue=2) as verifier:
        scorer.gate.clear()
        first = asked(verifier, "first")
        await at_work(scorer)
        second = asked(verifier, "second")
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        scorer.gate.set()
        await first
        assert len(await verifier.verify(Asking(text="third"), KEPT)) == 1
        assert scorer.asked == ["first", "third"]
