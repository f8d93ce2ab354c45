"""G2: what one principal plants reaches no other one, whatever it plants, and however often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from cacheproxy.query.keys import keys
from tests.attacks.across import FAMILIES, VICTIM, ScopeViolated, against_others, flood, flood_evicts

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARES = ("never", "agreed")
Share = Literal["never", "agreed"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("family", FAMILIES)
async def test_no_planted_answer_reaches_another_principal(share: Share, family: str) -> None:
    assert (await against_others(share, family, 30)).succeeded == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("family", FAMILIES)
async def test_of_a_thousand_attempts_none_reaches_another_principal(share: Share, family: str) -> None:
    assert (await against_others(share, family, 1000)).succeeded == 0


@pytest.mark.parametrize("share", SHARES)
async def test_a_flood_of_answers_reaches_no_other_principal(share: Share) -> None:
    assert (await flood(share, 400)).succeeded == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", SHARES)
async def test_a_flood_of_a_thousand_reaches_no_other_principal(share: Share) -> None:
    assert (await flood(share, 1000)).succeeded == 0


async def test_a_flood_takes_no_room_that_another_tenant_has_a_right_to() -> None:
    left, kept = await flood_evicts(600)
    assert left == kept


@pytest.mark.parametrize("family", FAMILIES)
async def test_within_a_scope_the_same_attempts_do_succeed(family: str) -> None:
    rate = await against_others("never", family, 10, attackers=(VICTIM,))
    assert rate.succeeded > 0, "the attack cannot succeed at all: then its failure elsewhere says nothing"


async def test_as_many_colluding_principals_as_agreement_takes_do_reach_others() -> None:
    rate = await against_others("agreed", "same question", 10, attackers=("a" * 64, "b" * 64))
    assert rate.succeeded == 10, "what the page on sharing says of collusion is to be said otherwise"


def one_scope_for_all(fixed: Sequence[Any], texts: Sequence[object]) -> tuple[bytes, bytes]:
    """Return fingerprints without the tenant: the first of two mistakes."""
    head, *rest = fixed
    return keys([[head[0], "", *head[2:]], *rest], texts)


async def test_without_the_tenant_in_the_keys_the_second_check_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheproxy.query.keys.keys", one_scope_for_all)
    with pytest.raises(ScopeViolated, match="0 of 5"):
        await against_others("never", "same question", 5)


async def test_without_either_check_the_attack_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheproxy.query.keys.keys", one_scope_for_all)
    monkeypatch.setattr("cacheproxy.tiers.exact_reason", lambda *_: "")
    assert (await against_others("never", "same question", 5)).succeeded == 5
