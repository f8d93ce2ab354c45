"""Nodes that lie: one of them must neither end a run nor move what comes of it far."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from cacheproxy_federated import wire
from cacheproxy_federated.guard import Asked, Guard
from cacheproxy_federated.thresholds import GRID, chosen, shared, verified_from, verify_from
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from cacheproxy.embed.head import Head
from tests.federated.fleet import BASE, Fleet, course
from tests.federated.topics import DIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy_federated.thresholds import Counts
    from numpy.typing import NDArray


def packed(shape: tuple[int, ...], dtype: str, body: bytes) -> bytes:
    """Return a numpy file whose header says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + body


def header(text: str) -> bytes:
    """Return a numpy file of which the header is any text."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


WHOLE = packed((DIM, DIM), "<f4", bytes(DIM * DIM * 4))
HOSTILE: dict[str, tuple[str, tuple[int, ...], str, bytes]] = {
    "form": ("float32", (DIM, DIM), "numpy.ndarray", header("{'descr': ((((((")),
    "huge": ("float32", (10**14,), "numpy.ndarray", packed((10**14,), "<f4", b"")),
    "huge_matrix": ("float32", (10**9, 10**9), "numpy.ndarray", packed((10**9, 10**9), "<f4", b"")),
    "overflow": ("float32", (1 << 80, 2), "numpy.ndarray", packed((1 << 80, 2), "<f4", b"")),
    "nested": ("float32", (DIM, DIM), "numpy.ndarray", header("(" * 9000)),
    "text": ("<U2", (DIM, DIM), "numpy.ndarray", packed((DIM, DIM), "<U2", b"ab\x00\x00\x00\x00\x00\x00" * DIM**2)),
    "void": ("|V4", (DIM, DIM), "numpy.ndarray", packed((DIM, DIM), "|V4", bytes(DIM * DIM * 4))),
    "object": ("object", (DIM, DIM), "numpy.ndarray", packed((DIM, DIM), "|O", b"")),
    "claims": ("float64", (DIM, DIM), "numpy.ndarray", WHOLE),
    "no_type": ("no type", (DIM, DIM), "numpy.ndarray", WHOLE),
    "cut": ("float32", (DIM, DIM), "numpy.ndarray", WHOLE[:-1]),
    "longer": ("float32", (DIM, DIM), "numpy.ndarray", WHOLE + b"\0"),
    "pickled": ("float32", (DIM, DIM), "torch", WHOLE),
    "empty": ("float32", (DIM, DIM), "numpy.ndarray", b""),
}


def sends(record: str, array: tuple[str, tuple[int, ...], str, bytes]) -> Callable[[Message, Message], Message]:
    def lie(message: Message, reply: Message) -> Message:
        if record in reply.content:
            dtype, shape, stype, data = array
            made = Array(dtype=dtype, shape=shape, stype=stype, data=data)
            reply.content[record] = ArrayRecord({wire.MATRIX: made})
        return reply

    return lie


@pytest.mark.parametrize("array", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("record", [wire.HEAD, wire.MOMENT])
def test_no_array_that_a_node_makes_up_ends_a_run(
    record: str, array: tuple[str, tuple[int, ...], str, bytes], tmp_path: Path
) -> None:
    told = course(rounds=1, dim_out=8)
    without = Fleet(seeds=(1, 2)).run(tmp_path / "without", told)
    artefact = Fleet(instead={3: sends(record, array)}).run(tmp_path / "with", told)
    if record == wire.MOMENT:
        assert artefact.head.dim == 8
    lines = [msgspec.json.decode(line) for line in (tmp_path / "with" / "progress.jsonl").read_bytes().splitlines()]
    refused = [line["refused"] for line in lines if line.get("refused")]
    assert len(refused) == 1
    assert sum(refused[0].values()) == 1
    assert set(refused[0]) <= {"form", "shape"}
    assert without.manifest.round == artefact.manifest.round


def test_whatever_reading_a_reply_raises_is_a_refusal() -> None:
    class Broken(RecordDict):
        def get(self, *told: Any) -> Any:
            raise MemoryError

    guard = Guard(course(), asked())
    reply = Message(RecordDict(), 1, "train")
    reply.content = Broken()
    assert guard.updates([reply]) == []
    assert guard.refused == {"form": 1}


def asked(dim: int = DIM) -> Asked:
    return Asked(base=BASE, number=1, parent="0", matrix=Head.identity(dim).matrix)


def echo() -> ConfigRecord:
    return ConfigRecord({**asked().echo})


def moved(by: float, dim: int = DIM, pairs: int = 100, seed: int = 0) -> Message:
    """Return an update of some Frobenius norm."""
    change = np.random.default_rng(seed).normal(size=(dim, dim))
    matrix = Head.identity(dim).matrix + (change * by / np.linalg.norm(change)).astype(np.float32)
    made = RecordDict({wire.HEAD: wire.head_record(matrix), wire.NUMBERS: wire.numbers(pairs)})
    made[wire.ECHO] = echo()
    return Message(made, 1, "train")


def norms(guard: Guard, *replies: Message) -> list[float]:
    start = guard.asked.matrix
    return sorted(float(np.linalg.norm(update.matrix - start)) for update in guard.updates(replies))


def test_an_update_far_longer_than_the_others_is_clipped_to_three_times_their_median() -> None:
    guard = Guard(course(), asked())
    found = norms(guard, *(moved(2.0, seed=seed) for seed in range(4)), moved(50.0))
    assert found == pytest.approx([2.0, 2.0, 2.0, 2.0, 6.0], rel=1e-4)


def test_an_honest_update_of_a_node_with_many_pairs_is_as_it_was() -> None:
    assert norms(Guard(course(), asked()), moved(18.0), moved(25.0), moved(42.7))[-1] == pytest.approx(42.7, rel=1e-4)


@pytest.mark.parametrize("over_norm", ["clip", "refuse"])
def test_the_noise_of_differential_privacy_is_not_taken_for_a_long_update(over_norm: str) -> None:
    dim, told = 384, course(dim=384, dp_clip=0.5, dp_noise=2.0, over_norm=over_norm)
    noise = 0.5 * 2.0 * dim
    guard = Guard(told, asked(dim))
    found = norms(guard, *(moved(noise, dim, seed=seed) for seed in range(3)))
    assert found == pytest.approx([noise] * 3, rel=1e-4)
    assert guard.refused == {}


def counts(right: float, wrong: float, pairs: int, category: str = "faq") -> Counts:
    """Return the counts of half right and half wrong pairs around two cosines."""
    served = [
        (np.random.default_rng(seed).normal(at, 0.08, pairs // 2)[None, :] >= GRID[:, None]).sum(axis=1)
        for seed, at in ((pairs, right), (pairs + 1, wrong))
    ]
    half = pairs // 2
    return {category: np.stack([served[0], served[1], half - served[0], half - served[1]], axis=1).astype(np.int64)}


def told_by(*many: Counts) -> list[Counts]:
    """Return what a guard lets through."""

    def reply(one: Counts) -> Message:
        made = RecordDict({wire.COUNTS: wire.counts_record(one)})
        made[wire.ECHO] = echo()
        return Message(made, 1, "evaluate")

    return [tally.counts for tally in Guard(course(), asked()).tallies(map(reply, many))]


def flat(right_at: float, wrong_at: float, pairs: int, category: str = "faq") -> Counts:
    """Return the counts of a node all of whose right and wrong pairs have one cosine each."""
    half = pairs // 2
    tp: NDArray[np.int64] = np.where(right_at >= GRID, half, 0)
    fp: NDArray[np.int64] = np.where(wrong_at >= GRID, half, 0)
    return {category: np.stack([tp, fp, half - tp, half - fp], axis=1).astype(np.int64)}


def test_one_node_of_twenty_cannot_move_where_verifying_begins() -> None:
    honest = [counts(0.85, 0.5, 100 + 2 * seed) for seed in range(19)]
    lied = {"*": np.tile(np.array([200, 0, 0, 0], dtype=np.int64), (101, 1))}
    lied["*"][1:] = (0, 0, 200, 0)
    before, after = verified_from(told_by(*honest)), verified_from(told_by(*honest, lied))
    assert before is not None
    assert after is not None
    assert abs(before - after) <= 0.05
    assert verify_from(shared(told_by(*honest, lied), 3)) == 0.0, "of the sums, it would be anywhere"


@pytest.mark.parametrize(("right_at", "wrong_at"), [(1.0, 0.99), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.31, 0.3)])
def test_one_node_with_many_pairs_moves_the_thresholds_little(right_at: float, wrong_at: float) -> None:
    honest = [counts(0.85, 0.5, 120 + 2 * seed) for seed in range(5)]
    before = chosen(shared(told_by(*honest), 3))
    after = chosen(shared(told_by(*honest, flat(right_at, wrong_at, 600)), 3))
    assert set(after) == {"*", "faq"}
    for name, threshold in before.items():
        assert abs(after[name] - threshold) <= 0.08


def test_a_category_that_few_nodes_have_gets_no_threshold_of_its_own() -> None:
    honest = [counts(0.85, 0.5, 120 + 2 * seed) for seed in range(5)]
    made_up = flat(0.0, 0.0, 400, "code")
    summed_up = shared(told_by(*honest, made_up, made_up), 3)
    assert set(chosen(summed_up)) == {"*", "faq"}
    assert set(chosen(shared(told_by(*honest, made_up, made_up, made_up), 3))) == {"*", "faq", "code"}


def test_counts_that_name_a_category_of_few_pairs_are_refused() -> None:
    both = [counts(0.85, 0.5, 100) | counts(0.85, 0.5, 20, "code") for _ in range(2)]
    assert len(told_by(*both, counts(0.85, 0.5, 100) | counts(0.85, 0.5, 18, "code"))) == 2
    assert len(told_by(*both, {"*": flat(0.8, 0.3, 10)["faq"]})) == 3
    assert len(told_by(*both, {"*": flat(0.8, 0.3, 0)["faq"]})) == 2


def test_a_node_with_most_of_a_category_counts_there_for_the_median_and_with_the_rest_without_a_name() -> None:
    both = [counts(0.85, 0.5, 100) | counts(0.85, 0.5, 20, "code") for _ in range(5)]
    found = told_by(*both, counts(0.85, 0.5, 20) | counts(0.85, 0.5, 100, "code"))[-1]
    assert {name: int(table[0].sum()) for name, table in found.items()} == {"*": 80, "code": 20, "faq": 20}


def test_where_verifying_begins_is_the_median_nodes_by_right_pairs() -> None:
    three = [flat(at, 0.1, pairs) for at, pairs in ((0.3, 10), (0.6, 20), (0.9, 20))]
    assert verified_from(three) == 0.6
    assert verified_from([]) is None
    below = {"faq": np.tile(np.array([0, 0, 40, 40], dtype=np.int64), (101, 1))}
    assert verified_from([below, below, three[1]]) is None
