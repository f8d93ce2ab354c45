"""After a change of policy, what may not be kept any more is gone."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from msgspec import structs

from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.model import Classification, Miss
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Rule
from cacheproxy.policy.rules import Rules
from cacheproxy.reconcile import Reconciler
from tests.support.entries import make_entry
from tests.support.house import PACK, QUESTION, UNRELATED, House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Selector

PLAIN = {"default": PACK.categories["default"], "code": PACK.categories["code"]}


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        built = House()
        for part in (built.store, built.embedder, built.index, built.supervisor):
            await stack.enter_async_context(part)
        yield built


def policy(near_to: str = "", /, **categories: Category) -> Policy:
    """Return a policy under which what is near to one of the vectors is of the category `private`."""
    pack = structs.replace(PACK, categories={**PLAIN, **categories})

    def classify(vector: NDArray[np.float32]) -> Classification:
        near = bool(vector @ VECTORS[near_to] > 0.99) if near_to else False
        return Classification(category="private" if near else "default", source="examples")

    return Policy(pack=pack, rules=Rules(pack.categories, str), classify=classify)


VECTORS: dict[str, NDArray[np.float32]] = {}


async def change(house: House, before: Policy, after: Policy) -> int:
    erased: list[str] = []

    async def erase(selector: Selector) -> int:
        ids = await house.store.erase(selector)
        house.index.remove(ids)
        erased.extend(ids)
        return len(ids)

    house.pipeline.policy = lambda: after
    await Reconciler(house.store, house.embedder, erase)(before, after)
    return len(erased)


async def test_a_category_that_is_switched_off_is_emptied(house: House) -> None:
    before = policy()
    house.pipeline.policy = lambda: before
    await house.answer()
    after = policy(default=Category(allow_caching=False))
    assert await change(house, before, after) == 1
    assert len(house.store) == 0


async def test_a_category_that_is_gone_is_emptied(house: House) -> None:
    before = policy()
    house.pipeline.policy = lambda: before
    await house.answer()
    assert await change(house, before, policy(extra=PLAIN["code"])) == 0, "nothing is taken out"
    renamed = structs.replace(PACK, default_category="code", categories={"code": PLAIN["code"]})
    assert await change(house, before, Policy.of(renamed)) == 1


async def test_new_examples_of_what_is_never_cached_take_what_is_near_to_them(house: House) -> None:
    before = policy()
    house.pipeline.policy = lambda: before
    await house.answer()
    await house.answer(UNRELATED)
    VECTORS["q"] = house.encoder.encode([QUESTION])[0][0]
    after = policy("q", private=Category(allow_caching=False, examples=("How do I reset my password?",)))
    assert await change(house, before, after) == 1
    _, outcome = await house.look_up(UNRELATED)
    assert not isinstance(outcome, Miss)


async def test_a_change_of_numbers_looks_at_no_entry(house: House) -> None:
    private = Category(allow_caching=False, examples=("x",))
    before = policy(private=private)
    house.pipeline.policy = lambda: before
    await house.answer()
    VECTORS["q"] = house.encoder.encode([QUESTION])[0][0]
    after = policy("q", private=private, code=structs.replace(PLAIN["code"], ttl_s=5.0))
    assert await change(house, before, after) == 0


async def test_a_new_rule_of_what_is_never_cached_takes_what_it_claims(house: House) -> None:
    before = policy(private=Category(allow_caching=False))
    house.pipeline.policy = lambda: before
    await house.answer()
    await house.answer(UNRELATED)
    after = policy(private=Category(allow_caching=False, rules=(Rule(text="password"),)))
    assert await change(house, before, after) == 1


async def test_while_the_examples_are_not_embedded_nothing_is_taken(house: House) -> None:
    before = policy()
    house.pipeline.policy = lambda: before
    await house.answer()
    private = Category(allow_caching=False, examples=("x",))
    pack = policy(private=private).pack
    unknown = Classification(category="default", source="unknown")
    after = Policy(pack=pack, rules=Rules(pack.categories, str), classify=lambda _: unknown)
    with pytest.raises(EmbedderUnavailable):
        await change(house, before, after)
    assert len(house.store) == 1


async def test_fills_that_began_under_another_telling_are_refused(house: House) -> None:
    before = policy()
    fence = house.store.fence
    await change(house, before, policy(private=Category(allow_caching=False, rules=(Rule(text="password"),))))
    assert not await house.store.put(make_entry("late"), fence)
