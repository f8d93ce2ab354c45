"""What was made of an entry goes with it, whoever it belongs to, also when a crash comes in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy.erasure import Erasure
from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import ALIAS_TAG, PRINCIPAL_TAG, Selector
from cacheproxy.policy.share import principal
from cacheproxy.settings import Store
from cacheproxy.store.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.model import Entry


class Failing(MemoryStore):
    """A store whose erase fails once for a selector with this tenant."""

    failing = ""

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        if self.failing and selector.tenant == self.failing and not dry_run:
            self.failing = ""
            raise StoreUnavailable("told to")
        return await super().erase(selector, dry_run=dry_run, scrub=scrub)


def made(key: str, *parents: str, tenant: str = "t") -> Entry:
    tags = tuple(f"{ALIAS_TAG}{entry_id(parent)}" for parent in parents)
    return replace(make_entry(key, created_s=FakeClock().now() - 1), tags=tags, tenant=tenant)


@pytest.fixture
async def store() -> Failing:
    """A family: b and the shared c come of a, d of b, and e of itself and d."""
    store = Failing(Store(), FakeClock())
    family = (
        made("a"), made("b", "a"), made("c", "other", "a", tenant="common"), made("d", "b", tenant="u"),
        made("e", "e", "d"), made("other", tenant="u"),
    )  # fmt: skip
    for entry in family:
        assert await store.put(entry, store.fence)
    return store


def erasure(store: MemoryStore, journal: Path) -> Erasure:
    return Erasure(store, lambda ids, *, scrub: None, [], FakeClock(), journal)


async def left(store: MemoryStore) -> str:
    keys = [key for key in ("a", "b", "c", "d", "e", "other") if await store.get(entry_id(key))]
    return "".join(key[0] for key in keys)


async def test_a_purge_with_descendants_takes_the_whole_family(store: Failing, tmp_path: Path) -> None:
    whole, meant = erasure(store, tmp_path / "j"), Selector(ids=(entry_id("a"),))
    preview = await whole.preview(meant, descendants=True)
    erased = await whole.purge(meant, descendants=True)
    assert set(preview) == set(erased.ids) == {entry_id(key) for key in "abcde"}
    assert await left(store) == "o"


async def test_a_purge_without_takes_what_is_meant(store: Failing, tmp_path: Path) -> None:
    await erasure(store, tmp_path / "j").purge(Selector(ids=(entry_id("a"),)))
    assert await left(store) == "bcdeo"


async def test_an_erasure_always_takes_descendants(store: Failing, tmp_path: Path) -> None:
    await erasure(store, tmp_path / "j").erase(Selector(tenant="u"))
    assert await left(store) == "ab"


async def test_erasing_a_tenant_takes_what_it_took_part_in_although_its_own_entries_are_gone(
    store: Failing, tmp_path: Path
) -> None:
    shared = replace(make_entry("s", created_s=FakeClock().now() - 1), tags=(f"{PRINCIPAL_TAG}{principal('gone')}",))
    await store.put(shared, store.fence)
    await erasure(store, tmp_path / "j").erase(Selector(tenant="gone", category="elsewhere"))
    assert await store.get(shared.id) is not None
    erased = await erasure(store, tmp_path / "j").erase(Selector(tenant="gone"))
    assert erased.ids == (shared.id,)
    assert await left(store) == "abcdeo"


async def test_descendants_go_before_their_parents_so_that_a_crash_loses_none(store: Failing, tmp_path: Path) -> None:
    store.failing = "u"
    erased = await erasure(store, tmp_path / "j").erase(Selector(tenant="u"))
    assert erased.pending == ("entries",)
    assert await left(store) == "abdo", "the children went first"
    restarted = erasure(store, tmp_path / "j")
    await restarted.retry()
    assert restarted.owed == 0
    assert await left(store) == "ab"
