"""The performance report: sections of a page, goals from raw figures, parts that are ended when their time is over."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks import goals, overhead, report
from tests.benchmarks.__main__ import PARTS, ROOT, Part, run, update
from tests.benchmarks.page import section, written

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "Before.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nAfter.\n"


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def peer(name: str, scenario: str, per_s: float, connections: int = 16) -> dict[str, Any]:
    figures = {"per_s": spread(per_s), "cpu_ms": spread(1000 / per_s)}
    return {"peer": name, "scenario": scenario, "connections": connections, **figures}


def path(scenario: str, connections: int, per_s: float) -> dict[str, Any]:
    """Return a run of the hot path."""
    figures = {key: spread(1.5) for key in ("cpu_ms", "p50_ms", "p99_ms", "first_p50_ms")}
    asked = {"scenario": scenario, "connections": connections, "outcomes": {"200 miss": 7}}
    return {**asked, **figures, "per_s": spread(per_s), "lag_p99_ms": 2.0}


def hot(per_s: float, batched_per_s: float) -> dict[str, Any]:
    encoder = {"short texts (semantic hit)": {"alone_ms": 4.0, "batched_per_s": batched_per_s}}
    return {
        "machine": {"cpu": "x", "cores": 2, "python": "3"},
        "method": {"rounds": 3, "seconds": 3.0, "seed": 1},
        "encoder": encoder,
        "rss_mb_at_start": 300,
        "rss_mb_at_end": 400,
        "runs": [path("semantic hit", 64, per_s)],
    }


def added(kind: str, added_ms: float) -> dict[str, Any]:
    """Return a run of `overhead`."""
    times = ("time_ms", "encoder_ms", "verifier_ms", "added_ms", "added_without_verifier_ms")
    figures = {name: {"p10": added_ms, "p50": added_ms, "p90": added_ms} for name in times}
    cpu = {"cpu_ms": 1.0, "cpu_added_ms": 1.0, "over_encoder_alone_ms": 1.0, "stages_ms": {"read": 0.1}}
    return {"checkout": "now", "kind": kind, "pause_ms": 0, "requests": 10, **figures, **cpu}


def row(reports: goals.Reports, goal: str) -> goals.Row:
    [found] = [one for one in goals.rows(reports) if one.goal.startswith(goal)]
    return found


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = written(PAGE, "a", "\nnew\n\n")
    assert page == PAGE.replace("old", "new")
    assert written(page, "a", "new") == page
    assert section(page, "a") == "new"


@pytest.mark.parametrize("page", ["", PAGE.replace("end a", "end b"), PAGE.replace("begin a", "begin")])
def test_a_page_without_markers_is_not_written(page: str) -> None:
    with pytest.raises(ValueError, match="begin a"):
        written(page, "a", "new")


def test_every_part_has_its_place_on_the_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in (*PARTS, "goals"):
        assert section(page, name)


def test_sections_are_made_of_the_figures_that_are_there(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (tmp_path / "benchmarks.md").write_text(page, encoding="utf-8")
    report = {"entries": 7, "bytes": {"index, one graph": 4321}}
    (tmp_path / PARTS["memory"].file).write_text(json.dumps(report), encoding="utf-8")
    update(tmp_path)
    after = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert section(after, "memory").endswith("| index, one graph | 4,321 |")
    assert section(after, "hot") == section(page, "hot")


def test_of_nothing_nothing_is_claimed() -> None:
    assert {one.met for one in goals.rows({})} == {None}
    assert {one.measured for one in goals.rows({})} == {goals.NOT_MEASURED}


def test_a_ratio_must_hold_at_every_number_of_connections() -> None:
    runs = [peer("cacheproxy", "exact hit", 6000), peer("LiteLLM", "exact hit", 80)]
    assert row({"peers": {"runs": runs, "absent": {}}}, "exact hit >= 50x").met
    runs += [peer("cacheproxy", "exact hit", 2500, 1), peer("LiteLLM", "exact hit", 80, 1)]
    found = row({"peers": {"runs": runs, "absent": {}}}, "exact hit >= 50x")
    assert (found.met, found.measured) == (False, "31.2x at 1, 75.0x at 16")


def test_an_engine_that_cannot_be_loaded_is_named() -> None:
    absent = {"GPTCache, default engine": "OSError: no connection. More words"}
    found = row({"peers": {"runs": [], "absent": absent}}, "semantic hit >= 5x GPTCache's, default")
    assert (found.met, found.measured, found.why) == (None, goals.NOT_MEASURED, "absent: OSError: no connection")


def test_goals_of_an_overload_are_those_that_its_report_judged() -> None:
    told = {"goal": "<= 50", "measured": 61.5, "unit": "ms", "met": False}
    found = row({"overload": {"the proxy is the bottleneck": {"goals": {"shed answers, p99": told}}}}, "10x overload")
    assert (found.met, found.measured) == (False, "61.5 ms")


def test_what_the_int8_encoder_does_on_the_hot_path_stands_below_and_no_goal_is_judged_on_it() -> None:
    alone = hot(200, 800)
    both = {**alone, "int8": {"encoder": hot(0, 1100)["encoder"], "runs": [path("semantic hit", 64, 900)]}}
    told = report.render(both)
    assert told.startswith(report.render(alone))
    below = told.removeprefix(report.render(alone))
    assert 'With the int8 encoder** (`encoder.precision = "int8"`)' in below
    assert "| semantic hit | 64 | 900 " in below
    assert "| short texts (semantic hit) | 4.00 | 1100 |" in below
    assert "- semantic hit, 64: 200 miss 7" in below
    assert goals.rows({"hot": both}) == goals.rows({"hot": alone})
    assert row({"hot": both}, "64 clients").measured == "200/s of 800/s: 25 %"


def test_what_is_added_to_the_int8_encoder_stands_below_and_no_goal_is_judged_on_it() -> None:
    alone = {"load_average": 1.0, "encoder_alone_ms": {"thirty tokens": 6.5}, "runs": [added("miss", 3.0)]}
    both = {**alone, "int8": {"encoder_alone_ms": {"thirty tokens": 3.25}, "runs": [added("miss", 0.5)]}}
    told = overhead.render(both)
    assert told.startswith(overhead.render(alone))
    below = told.removeprefix(overhead.render(alone))
    assert "With the int8 encoder" in below
    assert "thirty tokens 3.25 ms" in below
    assert "| miss | 0 ms | now | 10 | 0.50 [0.50, 0.50] " in below
    assert goals.rows({"overhead": both}) == goals.rows({"overhead": alone})
    assert not row({"overhead": both}, "a miss adds").met


def test_a_part_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    part = Part(module="backend", file="none.json", within_s=1, render=str)  # it serves without an end
    began_s = time.monotonic()
    assert run(part, tmp_path / "none.json", 1, [], smoke=False) == "ended after 1 s"
    assert time.monotonic() - began_s < 20


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    part = Part(module="scale", file="none.json", within_s=60, render=str, words=("--entries", "many"))
    assert run(part, tmp_path / "none.json", 60, [], smoke=False) == "exit code 2"
