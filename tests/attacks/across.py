"""Attacks across scopes: one principal plants, all others ask. Not one attempt may succeed (G2)."""

from __future__ import annotations

from itertools import cycle, islice
from random import Random
from typing import TYPE_CHECKING

from cacheproxy.model import Selector
from tests.attacks.planted import ORDERS, prefixed
from tests.attacks.questions import blocks
from tests.attacks.rates import Rate
from tests.attacks.world import POISON, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal

    Plant = Callable[[Random], Iterator[tuple[str, str]]]
    """Pairs of what is planted and the question it is aimed at, without end."""

ATTACKER, VICTIM = "a" * 64, "e" * 64
_FLOOD = 40


def right(question: str) -> str:
    """Return what the backend answers to everybody else."""
    return f"The answer to number {blocks_of(question)} of the questions is the one in the book."


def blocks_of(question: str) -> int:
    """Return a question's number."""
    return [block.question for block in blocks()].index(question)


def _same(_random: Random) -> Iterator[tuple[str, str]]:
    """Plant the very question: nothing can be nearer."""
    return ((block.question, block.question) for block in cycle(blocks()))


def _prefix(random: Random) -> Iterator[tuple[str, str]]:
    for block in cycle(blocks()):
        yield random.choice(list(prefixed(block.question))), block.question


def _suffix(random: Random) -> Iterator[tuple[str, str]]:
    for block in cycle(blocks()):
        words = block.question.split()
        yield f"{random.choice(ORDERS)} {' '.join(random.choices(words, k=12))}", block.question


def _traps(_random: Random) -> Iterator[tuple[str, str]]:
    for at in cycle(range(2)):
        for block in blocks():
            yield block.traps[at][1], block.question


class ScopeViolated(AssertionError):
    """The second check of scopes had something to do: the first one failed."""


FAMILIES: dict[str, Plant] = {
    "same question": _same,
    "prefix": _prefix,
    "suffix": _suffix,
    "hard negatives": _traps,
}


async def against_others(
    share: Literal["never", "agreed"], family: str, attempts: int, attackers: tuple[str, ...] = (ATTACKER,)
) -> Rate:
    """Let a principal plant poison, honest ones ask the same, and a victim ask; count the attempts that hit anybody.

    The attacker also asks the target itself, so as to be one of those whose answers agree, and renews its answers.
    Several `attackers` collude: what must hold against one need not hold against `share_principals` of them. The
    attacker VICTIM is one of those who ask.
    """
    succeeded = 0
    plant = FAMILIES[family](Random(1))
    for done in range(0, attempts, len(blocks())):  # a new cache for each pass: nobody has an answer to a target yet
        async with World(share) as world:
            for at, (planted, target) in enumerate(islice(plant, min(len(blocks()), attempts - done))):
                # Tenants of its own for each attempt: what they asked before would answer them.
                others = [f"{at:062x}{number:02x}" for number in range(4)]
                planting = [others[0] if attacker == VICTIM else attacker for attacker in attackers]
                succeeded += await _attempt(world, planted, target, planting, others)
            if world.telemetry.scope_violations._value.get():
                raise ScopeViolated(f"{succeeded} of {attempts} attempts succeeded, documents of others were proposed")
    return Rate(policy=f"share = {share}", family=family, succeeded=succeeded, attempts=attempts)


async def _attempt(world: World, planted: str, target: str, attackers: Sequence[str], others: Sequence[str]) -> bool:
    """Plant, then ask as everybody else; return whether anybody got poison."""
    for attacker in attackers:
        for _ in range(2):
            await world.ask(attacker, planted, POISON, fresh=True)
        await world.ask(attacker, target, POISON)
    await world.quiet()
    got = [await world.ask(tenant, target, right(target)) for tenant in others[:-1]]
    await world.quiet()
    got.append(await world.ask(others[-1], target, right(target)))
    return POISON in got


async def flood(share: Literal["never", "agreed"], attempts: int) -> Rate:
    """Let one principal fill the store with poison for a target, then others ask. Each answer planted is an attempt."""
    random, succeeded = Random(1), 0
    async with World(share, max_entries=2000) as world:
        for block in blocks()[: attempts // _FLOOD]:
            target = block.question
            for number in range(_FLOOD):
                words = target.split()
                random.shuffle(words)
                await world.ask(ATTACKER, f"{' '.join(words)} {number}", POISON, fresh=True)
            await world.sweep()
            others = [f"{blocks_of(target):062x}{number:02x}" for number in range(3)]
            got = [await world.ask(tenant, target, right(target)) for tenant in others]
            succeeded += POISON in got
    return Rate(policy=f"share = {share}", family="insert flood", succeeded=succeeded, attempts=attempts)


async def flood_evicts(attempts: int) -> tuple[int, int]:
    """Let one principal flood a full store; return how many of another one's entries are left, of how many."""
    kept = [block.question for block in blocks()]
    async with World("never", max_entries=400) as world:
        for question in kept:
            await world.ask(VICTIM, question, right(question), fresh=True)
        for number in range(attempts):
            world.clock.advance(0.1)
            await world.ask(ATTACKER, f"{number} is a number that nobody asked about", POISON, fresh=True)
            if number % 50 == 0:
                await world.sweep()
        await world.sweep()
        left = await world.store.page(Selector(tenant=VICTIM), limit=1000)
        return len(left.entries), len(kept)
