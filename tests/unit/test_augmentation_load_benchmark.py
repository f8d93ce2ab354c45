"""The replay under load: nothing is lost, nobody waits without a reason, and a rule gets what it asks for."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from cacheproxy.augment.arms import Arm, Situation
from tests.benchmarks import augmentation_load as load
from tests.benchmarks.augmentation_load import (
    SLOTS,
    TASKS,
    Fixed,
    Known,
    figures,
    large_s,
    rules,
    run,
    small_s,
    trace,
    weighted,
)
from tests.benchmarks.augmentation_routing import Seen

ROWS = [{"t": float(at), "in": 300.0, "out": 100.0 + at % 7} for at in range(600)]
ALIKE = "all six tasks alike"


def known(task: str, right: float) -> Known:
    situation = Situation(max_similarity=0.9, mean_helpfulness=0.6, examples=3, question_tokens=20, agreement=right)
    return Known(task=task, seen=Seen(situation=situation, augmented=right, small=0.0), like=right)


POOLS = {name: [known(name, 1.0), known(name, 1.0)] if at < 3 else [known(name, 0.0)] for at, name in enumerate(TASKS)}
LESSONS = {name: [one.seen for one in POOLS[name]] * 30 for name in TASKS}


def test_the_trace_brings_the_work_that_is_asked_for_in_its_own_rhythm() -> None:
    requests = trace(ROWS, POOLS, ALIKE, 0.5, Random(1))
    work = sum(large_s(one.lengths) for one in requests)
    assert work / (requests[-1].at_s * SLOTS) == pytest.approx(0.5)
    assert [one.at_s for one in requests] == sorted(one.at_s for one in requests)


def test_the_large_model_alone_answers_everything_and_is_right() -> None:
    requests = trace(ROWS, POOLS, ALIKE, 0.5, Random(1))
    record = run(Fixed(rule=lambda known: Arm.LARGE), requests, 1)
    assert len(record.latency_s) == len(requests)
    assert min(record.latency_s) >= min(large_s(one.lengths) for one in requests) - 1e-9
    told = figures(record, requests)
    assert (told["quality"], told["offloaded"]) == (1.0, 0.0)


def test_beyond_its_limit_requests_wait_and_the_small_model_helps() -> None:
    requests = trace(ROWS, POOLS, ALIKE, 3.0, Random(1))
    large = figures(run(Fixed(rule=lambda known: Arm.LARGE), requests, 1), requests)
    both = figures(run(Fixed(rule=load.small), requests, 1), requests)
    assert large["mean_s"] > 5 * large_s(requests[0].lengths)
    assert both["throughput"] > 1.3 * large["throughput"]
    assert both["offloaded"] < 1.0, "what finds no place goes to the large model"
    assert small_s(requests[0].lengths, Arm.AUGMENTED) > small_s(requests[0].lengths, Arm.SMALL)


def test_the_router_offloads_what_its_lessons_say_and_more_under_load() -> None:
    requests = trace(ROWS, POOLS, ALIKE, 3.0, Random(1))
    ours = rules(LESSONS, POOLS, ALIKE)["router"]
    record = run(ours, requests, 1)
    told = figures(record, requests)
    assert told["offloaded_right"] > 0.95
    assert told["offloaded"] > 0.3


def test_the_similarity_rule_sends_no_larger_share_than_the_router_and_the_likelier_ones() -> None:
    made = rules(LESSONS, POOLS, ALIKE)
    chosen = {name: made["similarity (RouteLLM-like)"].choose(POOLS[name][0], 0.0, Random(1)) for name in TASKS}
    assert {chosen[name] for name in TASKS[3:]} == {Arm.LARGE}


def test_lessons_alike_weigh_more() -> None:
    right = np.array([1.0, 0.0])
    assert weighted(np.array([0.9, 0.1], dtype=np.float32), right) > 0.8
    assert weighted(np.array([0.5, 0.5], dtype=np.float32), right) == pytest.approx(0.5)
    assert 0.0 <= weighted(np.array([-0.5, -0.9], dtype=np.float32), right) <= 1.0
