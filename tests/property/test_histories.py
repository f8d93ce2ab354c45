"""The checker of recorded histories finds what is planted, and nothing else."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import (
    NEVER_S,
    Event,
    Kept,
    Made,
    Purged,
    Served,
    Violation,
    divergent,
    read_history,
    violations,
    write_history,
)

if TYPE_CHECKING:
    from pathlib import Path

REPLICAS = ("a", "b", "c")
KEY = "k"


def honest(chance: random.Random, steps: int) -> list[Event]:
    """Return what replicas say that keep every promise: each holds a copy, possibly old, until a purge takes it."""
    now = 0.0
    history: list[Event] = []
    kept: int | None = None
    copies: dict[str, int | None] = dict.fromkeys(REPLICAS)
    version = 0
    for _ in range(steps):
        replica = chance.choice(REPLICAS)
        began = now = now + 1
        match chance.choice(("fill", "serve", "serve", "serve", "learn", "purge", "late fill", "failed purge")):
            case "fill":
                version += 1
                history.append(Made(KEY, version, began + chance.uniform(0, 0.4)))
                kept = copies[replica] = version
                history.append(Kept(replica, KEY, version, began + chance.uniform(0.5, 0.9)))
            case "serve":
                copy = copies[replica] if chance.random() < 0.5 else kept
                if copy is not None and (copies[replica] is None or copy >= (copies[replica] or 0)):
                    copies[replica] = copy
                    # It may have waited long before, and long after, without knowing anything new.
                    history.append(Served(replica, KEY, copy, began, began + chance.uniform(0, 5)))
            case "learn":
                copies[replica] = kept
            case "purge":
                kept = None
                for one in REPLICAS:
                    copies[one] = None
                history.append(Purged(KEY, began - chance.uniform(0, 0.5), began + chance.uniform(0, 3)))
            case "failed purge":
                history.append(Purged(KEY, began, NEVER_S))
            case "late fill":
                version += 1
                history.append(Made(KEY, version, began))  # a purge came between: refused
    return history


def by_definition(history: list[Event]) -> set[Violation]:
    """Say the promises once more, slowly."""
    made = {event.version: event.at_s for event in history if isinstance(event, Made)}
    purges = [event for event in history if isinstance(event, Purged)]
    seen = [(one.replica, one.version, one.at_s) for one in history if isinstance(one, Kept)]
    seen += [(one.replica, one.version, one.ended_s) for one in history if isinstance(one, Served)]
    seen = [one for one in seen if one[1] in made]
    found = set()
    for served in history:
        if not isinstance(served, Served):
            continue
        born = made.get(served.version, NEVER_S)
        if born > served.ended_s:
            found.add(Violation("foreign", served))
        elif any(purge.binding_s <= served.began_s and born < purge.called_s for purge in purges):
            found.add(Violation("purge", served))
        else:
            kept_by = min(at for _, version, at in seen if version == served.version)
            if any(
                replica == served.replica and at < served.began_s and kept_by < made[version]
                for replica, version, at in seen
            ):
                found.add(Violation("monotone", served))
    return found


@given(st.integers(0, 2**32), st.integers(0, 200))
def test_an_honest_history_passes(seed: int, steps: int) -> None:
    assert violations(honest(random.Random(seed), steps)) == []


@given(st.integers(0, 2**32))
def test_an_answer_after_a_binding_purge_is_found(seed: int) -> None:
    chance = random.Random(seed)
    history = honest(chance, 60)
    end = 100.0
    planted = Served(chance.choice(REPLICAS), KEY, 10_000, end + 3, end + 4)
    history += [Made(KEY, 10_000, end), Purged(KEY, end + 1, end + 2), planted]
    chance.shuffle(history)
    assert Violation("purge", planted) in violations(history)


@given(st.integers(0, 2**32))
def test_an_answer_older_than_one_seen_before_is_found(seed: int) -> None:
    chance = random.Random(seed)
    replica = chance.choice(REPLICAS)
    old: list[Event] = [Made(KEY, 10_000, 200.0), Kept("a", KEY, 10_000, 201.0)]
    new: list[Event] = [Made(KEY, 10_001, 202.0)]
    new.append(chance.choice((Kept(replica, KEY, 10_001, 203.0), Served(replica, KEY, 10_001, 202.5, 203.0))))
    planted = Served(replica, KEY, 10_000, 204.0, 205.0)
    elsewhere = Served("d", KEY, 10_000, 204.0, 205.0)
    history: list[Event] = [*honest(chance, 60), *old, *new, planted, elsewhere]
    chance.shuffle(history)
    assert violations(history) == [Violation("monotone", planted)]


@given(st.integers(0, 2**32))
def test_an_answer_that_nobody_gave_is_found(seed: int) -> None:
    chance = random.Random(seed)
    unheard = Served("a", KEY, 20_000, 300.0, 301.0)
    foreign = Served("a", KEY, 20_001, 300.0, 301.0)
    early = Served("a", KEY, 20_002, 300.0, 301.0)
    planted: list[Served] = [unheard, foreign, early]
    history: list[Event] = [*honest(chance, 30), *planted, Made("other key", 20_001, 250.0), Made(KEY, 20_002, 302.0)]
    assert violations(history) == [Violation("foreign", one) for one in planted]


_moments = st.integers(0, 12).map(float)
_versions = st.integers(1, 4)
_replicas = st.sampled_from(REPLICAS[:2])
_anything = st.one_of(
    st.builds(Kept, _replicas, st.just(KEY), _versions, _moments),
    st.builds(
        lambda one, what, at, more: Served(one, KEY, what, at, at + more), _replicas, _versions, _moments, _moments
    ),
    st.builds(lambda at, more: Purged(KEY, at, at + more), _moments, _moments),
)


@given(st.lists(_anything, max_size=14), st.dictionaries(_versions, _moments))
def test_the_fast_check_says_what_the_promises_say(events: list[Event], made: dict[int, float]) -> None:
    history = [*events, *(Made(KEY, version, at) for version, at in made.items())]
    assert set(violations(history)) == by_definition(history)


def test_replicas_that_hold_the_same_agree() -> None:
    assert divergent({"a": {"x": 1, "y": None}, "b": {"x": 1}}) == []
    assert divergent({"a": {"x": 1, "y": 2}, "b": {"x": 1}, "c": {"x": 3, "y": 2}}) == ["x", "y"]


def test_histories_of_several_processes_are_put_together(tmp_path: Path) -> None:
    history = honest(random.Random(1), 100)
    write_history(tmp_path / "a", history)
    assert read_history(tmp_path / "a") == history
