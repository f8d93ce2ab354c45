"""Groups of training pairs: whoever shares a question is together, and who trains does not change by others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from cacheproxy.learn.pairfile import grouped
from tests.support.pairs import question, vector_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from numpy.typing import NDArray

    Edge = tuple[str, str, str]

NAMES = [f"q{number}" for number in range(12)]
EDGES = st.lists(st.tuples(st.sampled_from("tu"), st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=30)


def groups_of(edges: Sequence[Edge]) -> tuple[list[int], list[bool]]:
    told = [(tenant, question(tenant + kept), question(tenant + asked)) for tenant, kept, asked in edges]
    kept = vectors([tenant + name for tenant, name, _ in edges])
    asked = vectors([tenant + name for tenant, _, name in edges])
    group, held = grouped(told, [kept, asked])
    return group.tolist(), held.tolist()


def vectors(names: Sequence[str]) -> NDArray[np.float32]:
    found = [vector_of(name) for name in names]
    return np.stack(found) if found else np.empty((0, 0), dtype=np.float32)


def naive(edges: Sequence[Edge]) -> list[frozenset[int]]:
    """Return for each row which rows are of its group, found by walking."""
    ends = [{(tenant, kept), (tenant, asked)} for tenant, kept, asked in edges]
    found = []
    for start in range(len(edges)):
        known, reached = {start}, set(ends[start])
        while new := {at for at, end in enumerate(ends) if end & reached} - known:
            known |= new
            reached = set().union(*(ends[at] for at in known))
        found.append(frozenset(known))
    return found


@settings(max_examples=200)
@given(edges=EDGES)
def test_a_group_is_all_that_is_connected_and_nothing_else(edges: list[Edge]) -> None:
    group, held = groups_of(edges)
    assert [frozenset(np.flatnonzero(np.array(group) == one).tolist()) for one in group] == naive(edges)
    assert len(set(zip(group, held, strict=True))) == len(set(group))


@settings(max_examples=200)
@given(edges=EDGES, more=EDGES, order=st.randoms(use_true_random=False))
def test_rows_elsewhere_do_not_change_who_is_held(edges: list[Edge], more: list[Edge], order: Random) -> None:
    edges = [("t", kept, asked) for _, kept, asked in edges]
    elsewhere = [("u", kept, asked) for _, kept, asked in more]
    _, alone = groups_of(edges)
    mine = [True] * len(edges) + [False] * len(elsewhere)
    order.shuffle(mine)  # in whatever places, but the oldest first
    rows = {True: iter(edges), False: iter(elsewhere)}
    _, held = groups_of([next(rows[one]) for one in mine])
    assert [is_held for one, is_held in zip(mine, held, strict=True) if one] == alone


@settings(max_examples=200)
@given(edges=EDGES, more=EDGES)
def test_no_row_that_was_trained_on_is_ever_held(edges: list[Edge], more: list[Edge]) -> None:
    _, before = groups_of(edges)
    _, after = groups_of([*edges, *more])
    assert not any(now and not was for was, now in zip(before, after, strict=False))
