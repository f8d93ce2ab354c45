"""Which head may take the place of another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cacheproxy.policy.bound import share
from cacheproxy.policy.gate import Terms, Told, decide
from cacheproxy.policy.learnt import Learnt
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.watch import Watch

TERMS = Terms()


def told(n: int, *, noise_before: float, noise_after: float, seed: int = 0, category: str = "faq") -> Told:
    """Return pairs whose similarity tells right from wrong, the better the less noise there is."""
    random = np.random.default_rng(seed)
    right = random.random(n) < 0.5
    base = np.where(right, 0.8, 0.6)
    return Told(
        right=right,
        group=np.arange(n) // 2,
        category=[category] * n,
        before=base + random.normal(0, noise_before, n),
        after=base + random.normal(0, noise_after, n),
        threshold_before=np.full(n, 0.7),
        threshold_after=np.full(n, 0.7),
    )


def test_a_head_that_tells_better_passes() -> None:
    verdict = decide(told(400, noise_before=0.15, noise_after=0.05), None, TERMS)
    assert verdict.passed, verdict.problems
    assert verdict.low is not None
    assert verdict.low > 0
    assert verdict.gain is not None
    assert verdict.low < verdict.gain < (verdict.high or 0)
    assert (verdict.after["f05"] or 0) > (verdict.before["f05"] or 0)


def test_a_head_that_is_no_better_does_not() -> None:
    same = told(400, noise_before=0.1, noise_after=0.1)
    verdict = decide(replace(same, after=same.before), None, TERMS)
    assert [problem.split(":")[0] for problem in verdict.problems] == ["it is not better with confidence"]
    assert verdict.gain == 0.0


def test_by_chance_hardly_any_head_passes_that_is_no_better() -> None:
    passed = sum(
        decide(told(300, noise_before=0.1, noise_after=0.1, seed=seed), None, TERMS).passed for seed in range(100)
    )
    assert passed <= 6  # 2.5 % are beyond one end of the interval


@pytest.mark.parametrize("n", [0, 1, 99])
def test_without_enough_pairs_nothing_is_decided(n: int) -> None:
    verdict = decide(told(n, noise_before=0.2, noise_after=0.01), None, TERMS)
    assert verdict.problems[0].startswith(f"too few labelled pairs are held back: {n},")
    assert verdict.gain is None


def test_pairs_of_one_label_are_not_enough() -> None:
    one = told(400, noise_before=0.2, noise_after=0.01)
    assert "0 wrong" in decide(replace(one, right=np.ones(400, dtype=np.bool_)), None, TERMS).problems[0]


def test_one_question_asked_often_does_not_pass_for_many() -> None:
    pairs = told(400, noise_before=0.15, noise_after=0.01)
    apart = replace(pairs, after=np.where(np.arange(400) < 100, pairs.after, pairs.before))
    assert decide(apart, None, TERMS).passed
    rewordings = np.where(np.arange(400) < 100, 0, np.arange(400))  # the first hundred are of one question
    low = decide(replace(apart, group=rewordings), None, TERMS).low
    assert low is not None
    assert low <= 0


def test_many_pairs_of_few_questions_are_too_few() -> None:
    few = replace(told(400, noise_before=0.2, noise_after=0.01), group=np.arange(400) % 3)
    assert "3 questions" in decide(few, None, TERMS).problems[0]


def test_a_head_that_is_worse_in_one_category_does_not_pass() -> None:
    better, worse = told(600, noise_before=0.2, noise_after=0.02), told(60, noise_before=0.02, noise_after=0.15, seed=2)
    both = Told(
        right=np.concatenate([better.right, worse.right]),
        group=np.concatenate([better.group, worse.group + 10_000]),
        category=[*better.category, *["law"] * 60],
        before=np.concatenate([better.before, worse.before]),
        after=np.concatenate([better.after, worse.after]),
        threshold_before=np.full(660, 0.7),
        threshold_after=np.full(660, 0.7),
    )
    verdict = decide(both, None, TERMS)
    assert [problem.split(":")[0] for problem in verdict.problems] == ["it is worse in law"]
    few = replace(both, category=[*better.category, *(["law"] * 30 + ["other"] * 30)])
    assert decide(few, None, TERMS).passed  # of 30 pairs nothing is said


def test_a_head_that_forgets_the_probes_does_not_pass() -> None:
    probes = told(50, noise_before=0.01, noise_after=0.3, seed=3)
    verdict = decide(told(400, noise_before=0.2, noise_after=0.02), probes, TERMS)
    assert [problem.split(":")[0] for problem in verdict.problems] == ["it is worse on the pack's probes"]


def test_more_wrong_hits_are_not_bought_with_more_hits() -> None:
    n = 1000
    right = np.arange(n) % 2 == 0
    before = np.where(right, np.where(np.arange(n) % 4 == 0, 0.9, 0.1), 0.1)  # half of the right ones, no wrong one
    after = np.where(right, 0.9, np.where(np.arange(n) % 40 == 1, 0.9, 0.1))  # all of the right ones, one wrong in 20
    pairs = Told(
        right=right,
        group=np.arange(n),
        category=["faq"] * n,
        before=before,
        after=after,
        threshold_before=np.full(n, 0.7),
        threshold_after=np.full(n, 0.7),
    )
    verdict = decide(pairs, None, TERMS)
    assert [problem.split(":")[0] for problem in verdict.problems] == ["more hits would be wrong"]


# The watch


def test_a_head_goes_when_hits_are_wrong_beyond_chance() -> None:
    watch = Watch()
    assert watch.worse(share(30, 30)) == ""  # nothing was changed
    watch.start(share(5, 100))
    assert watch.worse(share(20, 29)) == ""
    assert watch.worse(share(5, 60)) == ""
    assert "20 of 60 labelled hits were wrong, before it 5 of 100" in watch.worse(share(20, 60))
    watch.stop()
    assert watch.worse(share(20, 60)) == ""


def test_without_words_from_before_only_what_nobody_tolerates_counts() -> None:
    watch = Watch()
    watch.start(share(0, 3))
    assert watch.worse(share(15, 40)) == ""
    assert watch.worse(share(35, 40)) != ""


# Thresholds


PACK = Pack(
    schema=1,
    name="x",
    description="",
    default_category="chat",
    categories={name: Category(ttl_s=60.0) for name in ("chat", "code", "law", "off")},
    encoders={
        "e": Encoder(fingerprint="base", calibrated_on="x", thresholds={"chat": 0.8, "code": 0.9, "law": 0.75}),
    },
)


@pytest.mark.parametrize(
    ("category", "threshold"),
    [("chat", 0.6), ("code", 0.72), ("law", 0.6), ("off", None)],
    ids=["its own", "as much harder as in the pack", "never easier than the others", "none in the pack"],
)
def test_a_category_keeps_its_distance_from_the_default_one(category: str, threshold: float | None) -> None:
    learnt = Learnt(base="base", thresholds={"chat": 0.6}, rest=0.62 if category == "code" else 0.6)
    found = learnt.threshold(PACK, category)
    assert found == (None if threshold is None else pytest.approx(threshold))
