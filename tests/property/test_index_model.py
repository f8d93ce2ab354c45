"""The index against a dictionary and brute force, under any order of adding, removing, saving and restarting."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cacheproxy.index.partitioned import PartitionedIndex
from tests.support.index_world import DIM, EPOCH, Rows, graphs_from, levels, partition, scan, settled

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Partition

PARTITIONS = [partition("a"), partition("b"), partition("a", b"d" * 32)]
VECTORS = levels(40)  # that int8 codes hold exactly
places = st.sampled_from(PARTITIONS)
names = st.integers(0, 30).map(lambda i: f"e{i}")
vectors = st.integers(0, len(VECTORS) - 1).map(lambda i: VECTORS[i])


class IndexMachine(RuleBasedStateMachine):
    """Graphs may miss; nothing in an answer may be removed, foreign, of another similarity, out of order or twice."""

    flat_limit: ClassVar[int]
    kept_as: ClassVar[str] = "float32"
    exact: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.model: Rows = {}

    def run_async(self, work: Coroutine[object, object, object]) -> None:
        self.loop.run_until_complete(work)

    @initialize()
    def open(self) -> None:
        self.index = PartitionedIndex(graphs_from(self.flat_limit, vectors=self.kept_as), dim=DIM, epoch=EPOCH)
        self.run_async(self.index.__aenter__())

    @rule(where=places, name=names, vector=vectors)
    def add(self, where: Partition, name: str, vector: NDArray[np.float32]) -> None:
        self.index.add(where, name, vector)
        self.model[name] = (where, vector)

    @rule(where=places, first=st.integers(0, 20), count=st.integers(2, 20))
    def add_many(self, where: Partition, first: int, count: int) -> None:
        for i in range(first, first + count):
            self.index.add(where, f"e{i}", VECTORS[i])
            self.model[f"e{i}"] = (where, VECTORS[i])

    @rule(gone=st.sets(names, max_size=12))
    def remove(self, gone: set[str]) -> None:
        self.index.remove(gone)
        for name in gone:
            self.model.pop(name, None)

    @rule(turns=st.integers(1, 5))
    def let_upkeep_run_a_little(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.0005)

        self.run_async(turn())

    @rule()
    def let_upkeep_finish(self) -> None:
        self.run_async(settled(self.index))

    @rule()
    def save(self) -> None:
        self.run_async(self.index.save(Path(self.directory.name)))

    @rule()
    def restart(self) -> None:
        self.run_async(self.index.aclose())
        self.open()
        self.run_async(self.index.restore(Path(self.directory.name), scan(self.model)))

    @rule(where=places, vector=vectors, k=st.integers(1, 40))
    def search(self, where: Partition, vector: NDArray[np.float32], k: int) -> None:
        found = self.loop.run_until_complete(self.index.search(where, vector, k))
        here = {name: float(row @ vector) for name, (home, row) in self.model.items() if home == where}
        similarities = [c.similarity for c in found]
        assert len({c.entry_id for c in found}) == len(found) <= k
        assert similarities == sorted(similarities, reverse=True)
        assert {c.entry_id for c in found} <= here.keys()
        for candidate in found:
            assert abs(candidate.similarity - here[candidate.entry_id]) <= 1e-5
        if self.exact:
            assert similarities == pytest.approx(sorted(here.values(), reverse=True)[:k], abs=1e-6)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == len(self.model) == self.index.stats().live
            assert self.index.stats().partitions == len({home for home, _ in self.model.values()})
            assert self.index.stats().failures == 0
            assert self.index.stats().snapshot_refused == 0

    def teardown(self) -> None:
        self.run_async(self.index.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.directory.cleanup()


class FlatMachine(IndexMachine):
    flat_limit, exact = 10_000, True


class GraphMachine(IndexMachine):
    flat_limit, exact = 4, False


class CodedFlatMachine(FlatMachine):
    kept_as = "int8"


class CodedGraphMachine(GraphMachine):
    kept_as = "int8"


for machine in (FlatMachine, GraphMachine, CodedFlatMachine, CodedGraphMachine):
    machine.TestCase.settings = settings(
        max_examples=40 if machine.kept_as == "float32" else 20,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
TestFlat = FlatMachine.TestCase
TestGraph = GraphMachine.TestCase
TestCodedFlat = CodedFlatMachine.TestCase
TestCodedGraph = CodedGraphMachine.TestCase
