from __future__ import annotations

from random import Random

import pytest

from cacheproxy.augment.arms import Arm, Choice, Reason, Router, Situation
from cacheproxy.augment.ledger import Ledger
from cacheproxy.augment.outlook import Quality, outlooks, together

EASY = Situation(max_similarity=0.95, mean_helpfulness=0.9, examples=4, question_tokens=12)
HARD = Situation(max_similarity=0.55, mean_helpfulness=0.2, examples=1, question_tokens=400)


def known(router: Router, category: str = "faq") -> dict[Arm, tuple[Quality, Quality]]:
    return {one.arm: (one.typical, one.given) for one in outlooks(router, category, 0.0)}


def test_before_anything_is_said_arms_are_as_good_as_expected_and_of_no_weight() -> None:
    for typical, given in known(Router()).values():
        assert typical == given
        assert typical.rewards == 0
        assert typical.low < typical.estimate < typical.high


def test_asking_leaves_no_trace() -> None:
    router = Router()
    router.reward("faq", Arm.SMALL, EASY, 1.0)
    before = router.to_bytes()
    outlooks(router, "faq", 0.0)
    outlooks(router, "never-heard-of", 0.0)
    router.scores("never-heard-of", EASY, Random(1), 0.0)
    assert router.to_bytes() == before
    assert Router.from_bytes(before).to_bytes() == before


def test_the_interval_narrows_and_comes_to_hold_what_is_told() -> None:
    router, widths = Router(), []
    for _ in range(3):
        for number in range(40):
            router.reward("faq", Arm.SMALL, EASY, float(number % 10 < 7))
        typical, _ = known(router)[Arm.SMALL]
        widths.append(typical.high - typical.low)
    assert widths == sorted(widths, reverse=True)
    assert typical.low < 0.7 < typical.high
    assert typical.estimate == pytest.approx(0.7, abs=0.05)


def test_arms_are_compared_at_one_question_though_each_got_others() -> None:
    """The small model got the easy questions only: of the others less is known."""
    router = Router()
    for number in range(200):
        router.reward("faq", Arm.SMALL, EASY, float(number % 10 < 9))
        router.reward("faq", Arm.LARGE, HARD, float(number % 10 < 9))
    small_typical, small_given = known(router)[Arm.SMALL]
    assert small_given.estimate == pytest.approx(0.9, abs=0.05)
    assert small_typical.high - small_typical.low > small_given.high - small_given.low


def test_quality_of_several_arms_is_weighed_by_what_was_said_of_each() -> None:
    some = Quality(estimate=0.9, low=0.8, high=1.0, rewards=30.0)
    others = Quality(estimate=0.5, low=0.3, high=0.7, rewards=10.0)
    both = together([some, others])
    assert both is not None
    assert both.estimate == pytest.approx(0.8)
    assert both.rewards == 40
    assert 0.3 < both.low < both.estimate < both.high < 1.0
    assert together([Quality(estimate=0.5, low=0.0, high=1.0, rewards=0.0)]) is None
    assert together([]) is None


def test_what_became_of_questions_is_counted_by_category() -> None:
    ledger, router = Ledger(), Router()
    score = router.scores("faq", EASY, Random(1), 0.0)
    choice = Choice(arm=Arm.SMALL, scores=score, reason=Reason.EXPLORED)
    ledger.answered("faq", Arm.SMALL, choice)
    ledger.failed("faq", "timeout")
    ledger.answered("faq", Arm.LARGE, choice)
    ledger.saved("faq", seconds=2.0, usd=-1.0)
    page = ledger.page("faq")
    assert (page.offloaded, page.ratio) == (1, 0.5)
    assert (page.answers[Arm.LARGE], page.reasons["explored"], page.failures["timeout"]) == (1, 2, 1)
    assert (page.saved_s, page.saved_usd) == (2.0, 0.0)
    assert page.regret == pytest.approx(2 * choice.regret)
    assert ledger.page("code").ratio is None
