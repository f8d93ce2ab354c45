"""Converging: everything that replicas share beside documents is hooked to the control log, and looked after.

By topic, in the order in which a replica that joins reads it: the install, erasures, policies, words, virtual keys. The
rules by which each converges: docs/operations.md, "What replicas share".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.access import sharedkeys
from cacheproxy.access.usage import ROUND_S, SharedUsage
from cacheproxy.augment.sharedarms import ROUND_S as ARMS_S
from cacheproxy.augment.sharedarms import SharedArms
from cacheproxy.forgetting import Forgetting
from cacheproxy.govern import fleet
from cacheproxy.govern.fleetbook import FleetBook
from cacheproxy.learn import words
from cacheproxy.shared import erasures
from cacheproxy.shared.erasures import Erasures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from cacheproxy.assembly import Ground, Kept, Line
    from cacheproxy.erasure import Erasure, Part

_POLL_S = 5.0
"""How often state is read again that a message should have told of: one whose handling failed is made good by it."""
_FORGET_S = 5.0
_FLIGHT_S = 0.5
_LABELS_S = 2.0
_SEEN = "erasures.seen"


def forgetting_of(ground: Ground, line: Line) -> Forgetting | None:
    """Return what tells erasures to other replicas; None where there are none."""
    replica = ground.replica
    if replica is None:
        return None
    members = replica.members

    async def alive() -> Collection[str]:
        return [member.replica for member in await members.listed() if member.state != "gone"]

    kept = Erasures(
        replica.link,
        replica.layout,
        log_messages=ground.settings.replicas.log_messages,
        replica=members.replica,
        seen=ground.data_dir / _SEEN,
    )
    return Forgetting(kept, members.replica, alive, line.supervisor.spawn, ground.clock)


def told_elsewhere(forgetting: Forgetting | None, parts: list[Part]) -> list[Part]:
    """Return the parts of an erasure, and last those that tell other replicas."""
    if forgetting is None:
        return parts
    return [*parts, *forgetting.parts()]


def converge(ground: Ground, kept: Kept, line: Line, forgetting: Forgetting | None, erasure: Erasure) -> None:
    """Follow what other replicas do, from now on; of an embedded proxy nothing changes."""
    replica = ground.replica
    if replica is None or forgetting is None:
        return
    control, every = replica.control, line.supervisor.every
    control.on("install", _nothing, replica.joined.agree)
    forgetting.erasure = erasure
    control.on(erasures.TOPIC, forgetting.hear, forgetting.reload)
    every(_FORGET_S, forgetting.tend, "erasures_of_replicas")
    book = kept.book
    if isinstance(book, FleetBook):
        control.on(fleet.TOPIC, lambda _: book.catch_up(), book.catch_up)
        every(_POLL_S, book.tend_quietly, "policies_of_replicas")
    control.on(words.TOPIC, line.verdicts.hear, line.verdicts.reload)
    keeper = ground.keeper
    if keeper is not None and replica.keys is not None:
        replica.keys.changed = keeper.reload
        control.on(sharedkeys.TOPIC, replica.keys.hear, replica.keys.reload)
        every(_POLL_S, replica.keys.tend, "keys_of_replicas")
        usage = SharedUsage(replica.link, replica.layout, lambda: keeper.gate.accounts, ground.clock)
        every(ROUND_S, usage.tend, "usage_of_replicas")
    if line.small is not None:
        arms = SharedArms(replica.link, replica.layout, line.small.state, replica.labels.replica, ground.clock)
        every(ARMS_S, arms.tend, "arms_of_replicas")
    every(_LABELS_S, line.budget.converge, "labels_of_replicas")
    every(_FLIGHT_S, replica.flights.tend, "flights_of_replicas")
    line.supervisor.spawn(control.run())


def by_one(ground: Ground, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return work that only one of the replicas does; an embedded proxy does its own."""
    replica = ground.replica
    if replica is None:
        return work

    async def led() -> None:
        if replica.election.leads:
            await work()

    return led


async def _nothing(_: bytes) -> None:
    """Do nothing: which install it is never changes."""
