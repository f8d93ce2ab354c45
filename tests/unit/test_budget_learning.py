"""What the error budget keeps, for each delta and each verifier, and what of it an erasure removes."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from cacheproxy.learn.budget import Budget, Label
from cacheproxy.model import Plan, Selector, Verification
from cacheproxy.policy.budget import FEWEST
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

LIKELY = Verification(probability=0.97)


def plan(delta: float = 0.05, **fields: Any) -> Plan:
    told = {"category": "c", "exact": True, "semantic": True, "store": True, "embed": True, "threshold": 0.5}
    told |= {"ttl_s": 10.0, "candidates": 4, "verify": True, "min_probability": 0.65}
    return Plan(**{**told, "delta": delta, **fields})


def label(number: int, *, right: bool = True, **fields: Any) -> Label:
    told = {"source": "shadow", "tenant": "t", "category": "c", "probability": 0.97, "user": "u"}
    told |= {"entry_id": f"e{number}", "question": number.to_bytes(32)}
    return Label(**{**told, "right": right, **fields})


def taught(budget: Budget, count: int = 2 * FEWEST) -> None:
    for number in range(count):
        budget.saw(plan(), Verification(probability=0.5 + 0.499 * number / count))
        budget.label(label(number, right=number % 20 != 0), plan())


def rows(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.execute("SELECT entry, verifier FROM entries ORDER BY entry"))


def whole(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_a_question_in_doubt_does_not_move_what_is_held_for_others(tmp_path: Path) -> None:
    async with Budget(tmp_path / "b.sqlite3", "v/1", FakeClock()) as budget:
        taught(budget)
        held = {delta: budget.least(plan(delta)) for delta in (0.05, 0.02)}
        assert held[0.02] > held[0.05] > 0.65
        with structlog.testing.capture_logs() as logs:
            for _ in range(10):
                for delta in held:
                    budget.allows(plan(delta), "e0", LIKELY)
        assert {delta: budget.least(plan(delta)) for delta in held} == held
        assert len(logs) <= 1  # the second delta's, once


async def test_a_wrong_hit_in_doubt_tightens_what_is_held_for_every_delta(tmp_path: Path) -> None:
    async with Budget(tmp_path / "b.sqlite3", "v/1", FakeClock()) as budget:
        taught(budget)
        budget.allows(plan(0.05), "e0", LIKELY)
        before = budget.least(plan(0.05))
        for number in range(100, 110):
            budget.label(label(number, right=False), plan(0.02))
        assert budget.least(plan(0.05)) > before


async def test_what_is_held_for_each_delta_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "b.sqlite3"
    async with Budget(path, "v/1", FakeClock()) as budget:
        taught(budget)
        for delta in (0.05, 0.02):
            budget.allows(plan(delta), "e1", LIKELY)
        held = [budget.least(plan(delta)) for delta in (0.05, 0.02)]
    async with Budget(path, "v/1", FakeClock()) as budget:
        assert [budget.least(plan(delta)) for delta in (0.05, 0.02)] == held


async def test_ceilings_are_kept_for_as_many_deltas_as_one_pack_has(tmp_path: Path) -> None:
    async with Budget(tmp_path / "b.sqlite3", "v/1", FakeClock()) as budget:
        taught(budget)
        for delta in range(1, 100):
            budget.allows(plan(delta / 100), "e1", LIKELY)
        assert len(budget._categories["c"].state.ceilings) <= 16


@pytest.mark.parametrize(("least", "p"), [(0.65, 0.7), (0.5, 0.52)])
async def test_hits_wrong_at_the_minimum_are_not_served_on(tmp_path: Path, least: float, p: float) -> None:
    async with Budget(tmp_path / "b.sqlite3", "v/1", FakeClock()) as budget:
        terms = plan(min_probability=least)
        for number in range(5):
            budget.saw(terms, Verification(probability=p))
            budget.label(label(number, right=False, probability=p), terms)
        assert not budget.allows(terms, "new", Verification(probability=p))
        assert budget.standing("c", least, 0.05).least > p


async def test_another_verifiers_rows_are_dropped_at_the_next_start_and_the_log_says_so(tmp_path: Path) -> None:
    path = tmp_path / "b.sqlite3"
    async with Budget(path, "v/1", FakeClock()) as budget:
        taught(budget, 3)
    with structlog.testing.capture_logs() as logs:
        async with Budget(path, "v/2", FakeClock()) as budget:
            assert rows(path) == []
            assert budget.standing("c", 0.65, 0.05).labels == 0
    [told] = [line for line in logs if line["event"] == "budget_of_another_verifier_dropped"]
    assert (told["entries"], told["categories"], told["verifier"]) == (3, 1, "v/2")
    assert b"v/1" not in whole(tmp_path)


async def test_without_a_verifier_what_was_learnt_waits_for_its_own_and_callers_do_not_change_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "b.sqlite3"
    async with Budget(path, "v/1", FakeClock()) as budget:
        taught(budget)
        before = budget.standing("c", 0.65, 0.05)
    async with Budget(path, "", FakeClock()) as budget:
        assert not budget.hear(label(1, right=False, source="feedback"))
    async with Budget(path, "v/1", FakeClock()) as budget:
        assert budget.standing("c", 0.65, 0.05) == before


@pytest.mark.parametrize(
    ("selector", "erased", "left"),
    [
        (Selector(tenant="t"), (), ["e2"]),
        (Selector(tenant="t", user="u"), (), ["e1", "e2"]),
        (Selector(category="d"), (), ["e0", "e2"]),
        (Selector(before_s=150.0), (), ["e2"]),
        (Selector(before_s=150.0, tenant="x"), (), ["e0", "e1", "e2"]),
        (Selector(tag="x", tenant="t"), ("e1",), ["e0", "e2"]),
        (Selector(), ("e0", "e9"), ["e1", "e2"]),
        (Selector(), (), ["e0", "e1", "e2"]),
    ],
)
async def test_an_erasure_reaches_rows_that_are_in_the_file_alone(
    tmp_path: Path, selector: Selector, erased: tuple[str, ...], left: list[str]
) -> None:
    path, clock = tmp_path / "b.sqlite3", FakeClock(100.0)
    async with Budget(path, "v/1", clock) as budget:
        budget.label(label(0), plan())
        budget.label(label(1, category="d", user="w"), plan())
        clock.advance(100.0)
        budget.label(label(2, tenant="s"), plan())
    async with Budget(path, "", clock) as budget:  # none of them is in memory
        assert await budget.forget(selector, erased) == 3 - len(left)
        assert [entry for entry, _ in rows(path)] == left
