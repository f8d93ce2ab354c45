"""Counts under differential privacy: noise on what leaves a node, and a threshold from sums that are mostly noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cacheproxy_federated import client_app, local, wire
from cacheproxy_federated.client_app import Node
from cacheproxy_federated.exchange import RunEnded
from cacheproxy_federated.guard import Asked, Guard
from cacheproxy_federated.noisy import BINS, EDGES, bounded, found, histogram, noised
from cacheproxy_federated.privacy import APART, composed, delta_at, epsilon
from cacheproxy_federated.thresholds import GRID, counted
from flwr.app import ConfigRecord, Context, Message, RecordDict

from cacheproxy.embed.head import Head
from tests.federated.fleet import BASE, LABELS, Fleet, course, rows
from tests.federated.topics import DIM, pairs

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy_federated.pairs import Pairs
    from numpy.typing import NDArray

PRIVATE = {"rounds": 1, "dp_clip": 0.05, "dp_noise": 4.0}
MOST = 100


def told(fleet: Fleet, record: str) -> list[RecordDict]:
    """Return the replies that hold a record."""
    return [reply.content for reply in fleet.passed[1::2] if reply.has_content() and record in reply.content]


def test_a_histogram_holds_each_of_the_first_pairs_once() -> None:
    given = pairs(300, 1)
    found_ = histogram(Head.identity(DIM), given, MOST)
    assert found_.shape == (2, BINS)
    assert found_.sum(axis=1).tolist() == [int(given.right[:MOST].sum()), int((~given.right[:MOST]).sum())]


def test_sums_over_bins_are_the_counts_of_thresholds() -> None:
    given, head = pairs(80, 2), Head.identity(DIM)
    table = counted(head, given)["faq"]
    bins = histogram(head, given, 1000)
    for at, edge in enumerate(EDGES):
        exact = table[int(np.flatnonzero(np.isclose(GRID, edge))[0])]
        assert bins[:, at + 1 :].sum(axis=1).tolist() == exact[:2].tolist()


def test_histograms_of_any_two_nodes_are_no_further_apart_than_is_reckoned_with() -> None:
    one, other = (np.zeros((2, BINS), dtype=np.int64) for _ in range(2))
    one[0, 3], other[1, 7] = MOST, MOST
    assert np.linalg.norm(one - other) == pytest.approx(APART * MOST)
    for seed in range(20):
        a, b = (histogram(Head.identity(DIM), pairs(400, seed + shift), MOST) for shift in (0, 50))
        assert np.linalg.norm(a - b) <= APART * MOST


def test_what_leaves_a_node_has_the_noise_that_is_promised_and_nothing_exact_besides(tmp_path: Path) -> None:
    fleet = Fleet()
    artefact = fleet.run(tmp_path, course(**PRIVATE))
    sent = [wire.noisy_of(content) for content in told(fleet, wire.NOISY)]
    assert len(sent) == len(LABELS), "the last head alone is counted"
    exact = [histogram(artefact.head, _held(seed), MOST) for seed in LABELS]
    noise = np.concatenate([(one - true).ravel() for one, true in zip(sent, exact, strict=True)])
    assert noise.std() == pytest.approx(4.0 * MOST, rel=0.2)
    assert not told(fleet, wire.COUNTS)
    assert not [content for content in told(fleet, wire.NOISY) if wire.NUMBERS in content]
    assert {wire.examples_of(content) for content in told(fleet, wire.HEAD)} == {1}


def test_the_epsilon_told_is_that_of_updates_and_counts_together(tmp_path: Path) -> None:
    artefact = Fleet().run(tmp_path, course(**PRIVATE))
    assert artefact.manifest.metrics["dp_epsilon"] == pytest.approx(composed(4.0, 1, 1, 1e-5))
    assert composed(4.0, 1, 1, 1e-5) > composed(4.0, 1, 0, 1e-5) == pytest.approx(epsilon(4.0, 1, 1e-5))
    assert composed(4.0, 0, 0, 1e-5) == 0.0


def test_the_composed_epsilon_is_where_the_delta_of_one_mechanism_of_both_is_met() -> None:
    mu = math.sqrt(10 * 2.0**2 + 3 * 2.0) / 2.0
    assert delta_at(composed(2.0, 10, 3, 1e-5), mu) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("bad", [(0.0, 1, 1, 1e-5), (1.0, -1, 1, 1e-5), (1.0, 1, -1, 1e-5), (1.0, 1, 1, 0.0)])
def test_numbers_without_meaning_have_no_composed_epsilon(bad: tuple[float, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no epsilon"):
        composed(*bad)


def test_a_node_with_noise_of_its_own_counts_nothing_in_a_run_without(tmp_path: Path) -> None:
    with pytest.raises(RunEnded, match=r"3 node\(s\): has a dp-noise of its own, and counts nothing in a run without"):
        Fleet(config={"dp-clip": 0.05, "dp-noise": 1.0}).run(tmp_path, course(retries=0))


@pytest.mark.parametrize(("own", "alone"), [({}, False), ({"dp-clip": 0.05, "dp-noise": 1.0}, True)])
def test_a_node_with_noise_of_its_own_never_tells_how_many_pairs_it_trained_on(
    tmp_path: Path, own: dict[str, float], *, alone: bool
) -> None:
    fleet = Fleet()
    fleet.run(tmp_path, course(rounds=1))
    asked = next(one for one in fleet.passed[0::2] if one.metadata.message_type == "train")
    reply = local.node(client_app.made(lambda *_: rows(1)), asked.metadata.dst_node_id, own)(asked)
    assert reply is not None
    assert (wire.examples_of(reply.content) == 1) is alone


def test_counts_of_few_nodes_make_no_threshold_and_nothing_is_served(tmp_path: Path) -> None:
    artefact = Fleet().run(tmp_path, course(**PRIVATE))
    assert artefact.manifest.thresholds == {"*": 1.0}
    assert artefact.manifest.verify_from is None
    assert "f05" not in artefact.manifest.metrics
    for seed in range(50):
        assert found(_many(10, 400.0, seed), 400.0).threshold == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_very_many_nodes_make_a_threshold_near_that_of_exact_ones(seed: int) -> None:
    made = found(_many(3000, 100.0, seed), 100.0)
    exact = found(_many(3000, 0.0, seed), 0.0)
    assert abs(made.threshold - exact.threshold) <= 0.1
    assert made.metrics["f05"] == pytest.approx(exact.metrics["f05"], abs=0.1)


def test_sums_that_noise_made_negative_are_no_counts() -> None:
    assert found([np.full((2, BINS), -500.0)], 1.0).threshold == 1.0
    mixed = np.full((2, BINS), -500.0)
    mixed[0, -4:] = 1000.0
    assert found([mixed], 1.0).threshold >= EDGES[BINS - 5]


def test_one_node_that_lies_is_cut_where_noise_ends() -> None:
    asked = Asked(base=BASE, number=1, parent="0", matrix=Head.identity(DIM).matrix)
    lie = RecordDict({wire.NOISY: wire.noisy_record(np.full((2, BINS), -(1 << 39)))})
    lie[wire.ECHO] = ConfigRecord({**asked.echo})
    [counts] = Guard(course(**PRIVATE), asked).noisy([Message(lie, 1, "evaluate")])
    assert (counts == -6 * 400.0).all()
    assert (bounded(np.full((2, BINS), 1 << 39), MOST, 400.0) == MOST + 6 * 400.0).all()


@pytest.mark.parametrize(
    "record",
    [
        {"right": [0] * BINS},
        {"right": [0] * BINS, "wrong": [0] * (BINS - 1)},
        {"right": [0] * BINS, "wrong": [0.5] * BINS},
        {"right": [0] * BINS, "wrong": [1 << 41] * BINS},
        {"right": [0] * BINS, "wrong": 3},
        {"right": [0] * BINS, "wrong": [0] * BINS, "more": [0]},
    ],
)
def test_noisy_counts_of_another_form_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(wire.Unreadable, match="counts"):
        wire.noisy_of(RecordDict({wire.NOISY: ConfigRecord(record)}))


def _many(nodes: int, deviation: float, seed: int) -> list[NDArray[np.float64]]:
    """Return the noisy counts of nodes with 100 pairs, half of them right around 0.8 and half wrong around 0.5."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(nodes):
        near = (random.normal(0.8, 0.08, MOST // 2), random.normal(0.5, 0.1, MOST // 2))
        bins = np.stack([np.bincount(np.searchsorted(EDGES, one, side="right"), minlength=BINS) for one in near])
        made.append(noised(bins, deviation, random).astype(np.float64))
    return made


def _held(seed: int) -> Pairs:
    kept = rows(seed)
    node = Node(Context(run_id=0, node_id=seed, node_config={}, state=RecordDict(), run_config={}), kept)
    return node.held(5000)
