from __future__ import annotations

from time import perf_counter

import pytest

from cacheproxy.stages import BOUNDS_S, NAMES, Stage, Stages
from cacheproxy.telemetry import Telemetry


def test_a_stage_counts_what_it_took_and_tells_when_the_next_one_begins() -> None:
    stage = Stage()
    began_s = perf_counter() - 0.02
    now_s = stage.since(began_s)
    assert stage.total_s == pytest.approx(now_s - began_s)
    assert sum(stage.counts) == 1
    assert stage.counts[BOUNDS_S.index(0.025)] == 1


def test_what_is_beyond_every_bound_is_counted_too() -> None:
    stage = Stage()
    stage.since(perf_counter() - 60)
    assert stage.counts[-1] == 1


def test_stages_are_exported_as_a_histogram_whose_buckets_add_up() -> None:
    telemetry = Telemetry()
    telemetry.stages.embed.since(perf_counter() - 0.003)
    telemetry.stages.embed.since(perf_counter() - 0.3)
    text = telemetry.render().decode()
    assert '_bucket{le="0.0025",stage="embed"} 0.0' in text
    assert '_bucket{le="0.005",stage="embed"} 1.0' in text
    assert '_bucket{le="+Inf",stage="embed"} 2.0' in text
    assert '_count{stage="embed"} 2.0' in text
    assert {name for name in NAMES if f'stage="{name}"' in text} == set(NAMES)


def test_every_stage_is_named() -> None:
    assert set(NAMES) == {name for name, one in vars(Stages()).items() if isinstance(one, Stage)}
