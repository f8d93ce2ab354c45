"""What the demo asks, what it makes of the answers, and the demo itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cacheproxy.demo import GOAL_SPEEDUP, Ask, Told, asks, speedup, summary, verdict

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ROOT / "cacheproxy" / "demo_questions.toml"
MISS_MS = 1000.0
HIT_MS = MISS_MS / GOAL_SPEEDUP


def told(kind: str, outcome: str, *, tier: str = "", ms: float = MISS_MS, text: str = "q") -> Told:
    return Told(
        ask=Ask(kind=kind, text=text, stream=False),
        outcome=outcome,
        tier=tier,
        similarity="",
        category="default",
        ms=ms,
    )


NEW = told("new", "miss")
REPEAT = told("repeat", "hit", tier="exact", ms=HIT_MS)
REPHRASED = told("rephrased", "hit", tier="semantic", ms=HIT_MS)
REPHRASED_MISSED = told("rephrased", "miss")
TRAP = told("trap", "miss")

SLOW = [f"hits were only {GOAL_SPEEDUP - 1:.0f} times faster than misses, not {GOAL_SPEEDUP:.0f}"]
NOTHING_FAST = [f"hits were only 0 times faster than misses, not {GOAL_SPEEDUP:.0f}"]


@pytest.mark.parametrize(
    ("answers", "problems"),
    [
        ([NEW, REPEAT, REPHRASED, TRAP], []),
        ([NEW, REPEAT], []),
        ([NEW, REPEAT, REPHRASED, REPHRASED_MISSED], []),
        ([NEW, REPEAT, REPHRASED, REPHRASED_MISSED, REPHRASED_MISSED], ["only 1 of 3 rephrasings were served"]),
        ([NEW, REPEAT, REPHRASED_MISSED], ["only 0 of 1 rephrasings were served"]),
        ([NEW, REPEAT, told("repeat", "miss", text="again")], ["repeat was not a hit: again"]),
        ([NEW, REPEAT, told("repeat", "bypass", text="again")], ["repeat was not a hit: again"]),
        (
            [NEW, REPEAT, told("repeat", "hit", tier="semantic", ms=HIT_MS, text="again")],
            ["repeat was not a hit: again"],
        ),
        (
            [NEW, REPEAT, told("trap", "hit", tier="semantic", ms=HIT_MS, text="trap")],
            ["trap was served from the cache: trap"],
        ),
        ([NEW, told("repeat", "hit", tier="exact", ms=MISS_MS / (GOAL_SPEEDUP - 1))], SLOW),
        ([NEW], NOTHING_FAST),
        ([], NOTHING_FAST),
    ],
)
def test_the_verdict_names_what_went_wrong(answers: list[Told], problems: list[str]) -> None:
    assert verdict(answers) == problems


@pytest.mark.parametrize(
    ("hits_ms", "misses_ms", "factor"),
    [
        ([5.0], [100.0], 20.0),
        ([1.0, 2.0, 90.0], [100.0], 50.0),
        ([2.0], [10.0, 100.0, 9000.0], 50.0),
        ([1.0, 3.0], [100.0, 300.0], 100.0),
        ([], [100.0], 0.0),
        ([1.0], [], 0.0),
    ],
)
def test_speedup_is_the_ratio_of_medians(hits_ms: list[float], misses_ms: list[float], factor: float) -> None:
    answers = [told("repeat", "hit", ms=ms) for ms in hits_ms] + [told("new", "miss", ms=ms) for ms in misses_ms]
    assert speedup(answers) == factor


def test_a_bypass_is_neither_hit_nor_miss() -> None:
    answers = [told("new", "bypass", ms=1e9), NEW, REPEAT]
    assert speedup(answers) == GOAL_SPEEDUP
    assert summary(answers)[0].startswith("3 requests: 1 hits, 1 misses")


def test_the_summary_gives_the_medians() -> None:
    assert summary([NEW, REPEAT, REPHRASED, TRAP]) == [
        "4 requests: 2 hits, 2 misses",
        "median hit 50.0 ms, median miss 1000 ms: 20 times faster",
    ]


def test_the_summary_of_misses_alone_claims_no_speed() -> None:
    assert summary([NEW, TRAP]) == ["2 requests: 0 hits, 2 misses"]


TOPIC = {"question": "What is gravity?", "paraphrase": "What exactly is gravity?"}
TRAPPED = {"question": "What do sharks eat?", "paraphrase": "What food do sharks eat?", "trap": "What do horses eat?"}


def test_every_question_is_asked_before_anything_may_be_served_from_it() -> None:
    planned = list(asks({"topics": [TOPIC, TRAPPED]}))
    assert [(ask.kind, ask.text) for ask in planned] == [
        ("new", TOPIC["question"]),
        ("new", TRAPPED["question"]),
        ("repeat", TOPIC["question"]),
        ("rephrased", TOPIC["paraphrase"]),
        ("repeat", TRAPPED["question"]),
        ("rephrased", TRAPPED["paraphrase"]),
        ("trap", TRAPPED["trap"]),
    ]


def test_a_repeat_comes_in_the_other_form_than_its_question() -> None:
    planned = list(asks({"topics": [TOPIC, TRAPPED]}))
    form = {ask.text: ask.stream for ask in planned if ask.kind == "new"}
    assert set(form.values()) == {True, False}
    assert all(ask.stream is not form[ask.text] for ask in planned if ask.kind == "repeat")


def script() -> dict[str, Any]:
    return tomllib.loads(QUESTIONS.read_text(encoding="utf-8"))


def test_the_shipped_questions_make_a_demo() -> None:
    planned = list(asks(script()))
    kinds = {ask.kind for ask in planned}
    assert kinds == {"new", "repeat", "rephrased", "trap"}
    assert 24 <= len(planned) <= 100
    texts = [ask.text for ask in planned if ask.kind != "repeat"]
    assert len(set(texts)) == len(texts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_succeeds_without_a_key_or_a_network(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    ran = subprocess.run(
        [sys.executable, "-m", "cacheproxy", "demo", "--data-dir", str(ROOT / ".cacheproxy")],
        cwd=tmp_path,
        env={**kept, **unreachable, "HOME": str(tmp_path), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    planned = list(asks(script()))
    for ask in planned:
        assert ask.text in ran.stdout
    assert f"{len(planned)} requests: " in ran.stdout
