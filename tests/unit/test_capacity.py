"""Which past answers there is room for as examples, and what becomes of those that there is none for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy.augment.worth import Standing
from tests.support.augmented import FIRST, TENANT, Line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LESS = "How do I reset the password of my router?"


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line(tmp_path, capacity_tokens=100) as live:
        yield live


async def known(line: Line, text: str, *, tokens: int = 80, offloads: float = 1.0) -> Standing:
    entry = await line.keep(text, "an answer")
    now_s = line.clock.now()
    one = Standing(
        entry_id=entry.id,
        tenant=TENANT,
        category="default",
        tokens=tokens,
        since_s=now_s,
        at_s=now_s,
        offloads=offloads,
    )
    line.state.put(one)
    return one


async def near(line: Line) -> set[str]:
    return {one.entry_id for one in await line.made.examples.near(line.journey())}


async def test_who_helps_least_for_its_tokens_rests_and_its_entry_stays(line: Line) -> None:
    more, less = await known(line, FIRST, offloads=2.0), await known(line, LESS)
    assert await near(line) == {more.entry_id, less.entry_id}
    await line.made.capacity.tend()
    assert await near(line) == {more.entry_id}
    assert await line.store.get(less.entry_id) is not None
    assert line.state.standing(less.entry_id) is not None
    assert (await line.ask(LESS))[0] == "hit"


async def test_one_comes_back_when_it_is_worth_more_than_who_stayed(line: Line) -> None:
    more, less = await known(line, FIRST, offloads=2.0), await known(line, LESS)
    await line.made.capacity.tend()
    line.clock.advance(300)
    line.state.put(replace(less, pinned=True))
    await line.made.capacity.tend()
    assert await near(line) == {less.entry_id}
    line.made.gone([less.entry_id])
    await line.made.capacity.tend()
    assert more.entry_id in await near(line)


async def test_there_is_room_for_all_that_fit(line: Line) -> None:
    both = {(await known(line, text, tokens=50)).entry_id for text in (FIRST, LESS)}
    await line.made.capacity.tend()
    assert await near(line) == both


async def test_what_is_known_of_entries_that_are_gone_is_forgotten(line: Line) -> None:
    stays, gone = await known(line, FIRST), await known(line, LESS)
    await line.store.purge([gone.entry_id])
    await line.made.capacity.tend()
    assert [one.entry_id for one in line.state.standings()] == [stays.entry_id]


async def test_a_quarantine_outlives_the_entry_until_it_is_erased(line: Line) -> None:
    one = await known(line, FIRST)
    line.state.put(replace(one, quarantined=True))
    line.made.gone([one.entry_id])
    assert [kept.quarantined for kept in line.state.standings()] == [True]
    await line.keep(FIRST, "another answer")
    assert await near(line) == set()
    await line.state.forget(lambda _: False, erased=[one.entry_id])
    assert list(line.state.standings()) == []
