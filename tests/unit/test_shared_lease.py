"""The lease of a log, moment by moment, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheproxy.shared.follower import pause_s
from cacheproxy.shared.lease import BEGINNING, Lease, Position, Seen, margin_s, schema_of
from cacheproxy.shared.wire import Identity

ENGINE = Identity("run-1", "history-1")
OTHER = Identity("run-2", "history-1")
EPOCH = "1:" + "a" * 32
FIVE, SIX, NINE = Position(5, 0), Position(6, 0), Position(9, 0)


def seen(head: Position, first: Position | None = BEGINNING, epoch: str = EPOCH, identity: Identity = ENGINE) -> Seen:
    return Seen(head=head, first=first, epoch=epoch, identity=identity, replication_id="h")


def serving_at(now_s: float, position: Position = FIVE) -> Lease:
    """Return a lease that was granted at `now_s` for 2 s."""
    lease = Lease(2.0)
    lease.hear(lease.send(now_s), seen(position), now_s)
    assert lease.end(lease.begin(), position)
    assert lease.hear(lease.send(now_s), seen(position), now_s) is None
    assert lease.held(now_s, ENGINE)
    return lease


def test_nothing_is_served_before_everything_was_read() -> None:
    lease = Lease(2.0)
    assert lease.gap == "start"
    lease.hear(lease.send(0.0), seen(BEGINNING), 0.0)
    assert not lease.held(0.0, ENGINE)
    assert lease.state == "syncing"


def test_a_lease_counts_from_before_its_heartbeat_was_sent() -> None:
    lease = serving_at(0.0)
    sent = lease.send(1.0)
    lease.hear(sent, seen(FIVE), 1.9)  # a late answer
    assert lease.held(2.99, ENGINE)
    assert not lease.held(3.0, ENGINE)
    assert lease.left_s(2.5) == pytest.approx(0.5)


def test_an_answer_that_is_later_than_a_lease_grants_nothing() -> None:
    lease = serving_at(0.0)
    sent = lease.send(1.0)
    assert lease.hear(sent, seen(FIVE), 3.5) == "cut_off"
    assert not lease.held(3.5, ENGINE)


def test_a_process_that_was_stopped_serves_nothing_when_it_goes_on() -> None:
    lease = serving_at(0.0)
    sent = lease.send(0.5)
    # Stopped here for 30 s. Whatever is looked at first, the answer that waits in the socket included:
    assert not lease.held(30.5, ENGINE)
    lease.hear(sent, seen(FIVE), 30.5)
    assert not lease.held(30.5, ENGINE)
    assert lease.gap == "cut_off"


def test_a_lease_grows_only_once_everything_of_the_answer_is_applied() -> None:
    lease = serving_at(0.0)
    lease.hear(lease.send(1.0), seen(NINE), 1.0)
    lease.hear(lease.send(1.5), seen(NINE), 1.5)
    lease.apply(SIX)
    assert not lease.held(2.0, ENGINE)
    lease.apply(NINE)
    assert lease.held(3.4, ENGINE)
    assert not lease.held(3.5, ENGINE)


def test_who_is_always_a_little_behind_is_granted_the_leases_that_it_caught_up_with() -> None:
    lease = serving_at(0.0, Position(0, 1))
    for step in range(1, 1000):
        now_s = step / 100
        lease.hear(lease.send(now_s), seen(Position(step, 0)), now_s)
        lease.apply(Position(max(0, step - 50), 1))
        assert lease.held(now_s, ENGINE) or now_s < 0.5
    assert lease.left_s(9.99) == pytest.approx(2.0 - 0.5, abs=0.05)


def test_a_heartbeat_that_the_watchers_did_not_confirm_grants_nothing() -> None:
    lease = serving_at(0.0)
    assert lease.hear(lease.send(1.0), seen(FIVE), 1.0, confirmed=False) is None
    assert not lease.held(2.0, ENGINE)


def test_a_heartbeat_that_said_syncing_grants_nothing() -> None:
    lease = Lease(2.0)
    sent = lease.send(0.0)
    assert lease.end(lease.begin(), FIVE)
    lease.hear(sent, seen(FIVE), 0.1)
    assert not lease.held(0.1, ENGINE)


def test_another_engine_ends_a_lease_at_once() -> None:
    lease = serving_at(0.0)
    assert not lease.held(0.1, OTHER)
    assert not lease.held(0.1, None)


@pytest.mark.parametrize(
    ("told", "gap"),
    [
        (seen(FIVE, epoch="1:" + "b" * 32), "epoch"),
        (seen(FIVE, identity=OTHER), "engine"),
        (replace(seen(FIVE), replication_id="another"), "engine"),
        (seen(Position(4, 9)), "rolled_back"),
        (seen(NINE, first=SIX), "trimmed"),
        (seen(NINE, first=None), "trimmed"),
        (seen(NINE, first=FIVE), None),
        (seen(FIVE, first=None), None),
        (seen(FIVE, first=FIVE), None),
    ],
)
def test_what_may_have_been_missed_is_a_gap(told: Seen, gap: str | None) -> None:
    lease = serving_at(0.0)
    assert lease.hear(lease.send(1.0), told, 1.0) == gap
    assert lease.gap == gap
    assert lease.held(1.0, told.identity) == (gap is None)


def test_messages_applied_while_a_heartbeat_was_under_way_are_no_gap() -> None:
    lease = serving_at(0.0)
    sent = lease.send(1.0)
    lease.apply(NINE)
    assert lease.hear(sent, seen(SIX), 1.1) is None


def test_a_gap_while_everything_is_read_makes_it_be_read_again() -> None:
    lease = serving_at(0.0)
    lease.lose("failed")
    turn = lease.begin()
    lease.hear(lease.send(0.5), seen(FIVE, identity=OTHER), 0.5)  # replaced in the midst of it
    assert not lease.end(turn, FIVE)
    assert lease.gap == "failed"
    assert lease.end(lease.begin(), FIVE)


def test_epochs_say_by_which_version_they_were_made() -> None:
    assert schema_of(EPOCH) == 1
    assert schema_of("12:" + "0" * 32) == 12
    for foreign in ("", "1", "x:" + "0" * 32, "1:short"):
        assert schema_of(foreign) is None


def test_places_are_ordered_by_both_their_numbers() -> None:
    assert Position.read("10-2") > Position.read(b"9-10") > Position.read("9-9") > Position.read("")
    assert str(Position.read("10-2")) == "10-2"


def test_margins_and_pauses_are_bounded() -> None:
    assert margin_s(2.0) == pytest.approx(0.25)
    pauses = [pause_s(failures, 1.0) for failures in range(1, 2000)]
    assert pauses[0] == pytest.approx(0.05)
    assert max(pauses) == 1.0
    assert pause_s(20, 0.0) == 0.5
