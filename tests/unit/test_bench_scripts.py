"""What the benchmark scripts are made of; what they measure is not run here."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from cacheproxy.bench.questions import askings
from tests.benchmarks import scale_index
from tests.benchmarks.memory import COMPONENTS
from tests.benchmarks.peers import SCENARIOS, render, requests_of, unlike
from tests.benchmarks.scale_index import Case, grown, measure


def unit(count: int, dim: int = 16) -> np.ndarray[Any, np.dtype[np.float32]]:
    found = np.random.default_rng(3).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


async def test_an_index_of_a_few_entries_over_some_scopes_finds_all_before_and_after_churn() -> None:
    found = await measure(Case(unit(560), entries=60, scopes=3), "float32", churn=2)
    assert (found["entries"], found["scopes"], found["real"]) == (60, 3, 60)
    for looked in (found["lookup"], found["after_churn"]):
        assert (looked["recall_at_1"], looked["recall_at_4"], looked["lost"]) == (1.0, 1.0, 0.0)
    machine = {"cores": 2, "python": "3", "load_average": [1.25, 0.5, 0.1]}
    told = scale_index.render({"machine": machine, "cases": [found]})
    assert "load average 1.2 at the start" in told
    assert told.count("| 60 | 3 | float32 |") == 2


def test_more_entries_than_real_vectors_are_real_ones_moved_a_little() -> None:
    real = unit(20)
    found = grown(real, 50)
    assert found.shape == (50, 16)
    assert np.array_equal(found[:20], real)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.all(np.sum(found[20:40] * real, axis=1) > 0.95)


def test_every_peer_is_asked_the_same_and_misses_are_unlike_each_other() -> None:
    for scene in SCENARIOS:
        asked = list(islice(requests_of(scene, 7), 20))
        assert asked == list(islice(requests_of(scene, 7), 20))
        assert all(b'"temperature": 0' in one for one in asked)
    assert len(set(islice(unlike(1), 500))) == 500


def run(peer: str, per_s: float) -> dict[str, Any]:
    figure = {"median": per_s, "min": per_s, "max": per_s}
    keys = ("per_s", "cpu_ms", "p50_ms", "p99_ms", "hits")
    return {
        "scenario": "miss",
        "connections": 1,
        "peer": peer,
        "failed": 0,
        "bypassed": 0,
        **dict.fromkeys(keys, figure),
    }


def test_ratios_come_before_figures_and_caveats_with_them() -> None:
    told = render(
        {
            "machine": {"cores": 2, "load_average": [1.0], "python": "3.11"},
            "method": {"rounds": 1, "seconds": 1.0},
            "caveats": ["One machine."],
            "absent": {"GPTCache, default engine": "no hub"},
            "runs": [run("cacheproxy", 50.0), run("cacheproxy, int8 encoder", 70.0), run("LiteLLM", 10.0)],
        }
    )
    assert told.index("| LiteLLM | miss | 1 | 5.0 | 5.00 | 5.00 | 7.0 |") < told.index("requests/s")
    assert "| cacheproxy, int8 encoder | miss | 1 | 1" not in told, "it is no peer"
    assert "- GPTCache, default engine is absent: no hub" in told
    assert told.endswith("- One machine.\n")


def test_questions_that_repeat_come_in_peoples_own_words() -> None:
    questions = askings()
    assert len(questions) > 1000
    assert all(question.wordings for question in questions)


@pytest.mark.parametrize("count", [5, 20])
def test_fewer_entries_than_real_vectors_are_the_first_of_them(count: int) -> None:
    assert np.array_equal(grown(unit(20), count), unit(20)[:count])


@pytest.mark.parametrize("name", ["index, flat, ten entries a scope", "store, memory://", "remembered embedding"])
async def test_every_component_can_be_filled_and_weighed(name: str) -> None:
    grown_bytes = await COMPONENTS[name](2000)
    assert grown_bytes < 2000 * 20_000
