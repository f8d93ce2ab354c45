"""What an error of the engine means: one row for each."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions as redis
from redis._parsers.base import BaseParser

from cacheproxy.shared.breaker import LONGEST_S, Breaker
from cacheproxy.shared.faults import Remedy, fault_of, known_codes, must_be_mended

CASES = [
    # what the server says, remedy, breaker counts it, connections are dropped
    ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", Remedy.DEGRADE, False, False),
    ("READONLY You can't write against a read only replica.", "READONLY", Remedy.DEGRADE, True, True),
    ("MISCONF Redis is configured to save RDB snapshots, but", "MISCONF", Remedy.DEGRADE, False, False),
    ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", Remedy.DEGRADE, False, False),
    ("LOADING Redis is loading the dataset in memory", "LOADING", Remedy.DEGRADE, True, False),
    ("MASTERDOWN Link with MASTER is down and", "MASTERDOWN", Remedy.DEGRADE, True, True),
    ("BUSY Redis is busy running a script.", "BUSY", Remedy.DEGRADE, True, False),
    ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN", Remedy.DEGRADE, True, True),
    ("ERR max number of clients reached", "clients", Remedy.DEGRADE, True, False),
    ("NOAUTH Authentication required.", "NOAUTH", Remedy.CONFIG, True, False),
    ("WRONGPASS invalid username-password pair or user is disabled.", "WRONGPASS", Remedy.CONFIG, True, False),
    ("NOPERM User x has no permissions to run the 'set' command", "NOPERM", Remedy.CONFIG, False, False),
    ("WRONGTYPE Operation against a key holding the wrong kind", "WRONGTYPE", Remedy.CONFIG, False, False),
    ("CROSSSLOT Keys in request don't hash to the same slot", "CROSSSLOT", Remedy.CONFIG, False, False),
    ("ERR DB index is out of range", "db", Remedy.CONFIG, True, False),
    ("ERR SELECT is not allowed in cluster mode", "db", Remedy.CONFIG, True, False),
    ("ERR This instance has cluster support disabled", "cluster", Remedy.CONFIG, True, False),
    ("ERR unknown command 'XREAD', with args beginning with: ", "unknown-command", Remedy.CONFIG, False, False),
    ("MOVED 3999 127.0.0.1:6381", "MOVED", Remedy.RETRY, False, True),
    ("ASK 3999 127.0.0.1:6381", "ASK", Remedy.RETRY, False, False),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN", Remedy.RETRY, False, False),
    ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT", Remedy.RETRY, False, False),
    ("ERR something new", "ERR", Remedy.DEGRADE, False, False),
    ("NEWWORD something new", "ERR", Remedy.DEGRADE, False, False),
]


@pytest.mark.parametrize(("said", "code", "remedy", "counts", "moves"), CASES)
def test_every_word_of_the_server_has_its_remedy(
    said: str, code: str, remedy: Remedy, counts: bool, moves: bool
) -> None:
    error = BaseParser.parse_error(said)  # type: ignore[no-untyped-call]  # redis-py types it half
    fault = fault_of(error)
    assert (fault.code, fault.remedy, fault.counts, fault.moves) == (code, remedy, counts, moves)
    assert must_be_mended(code) == (remedy is Remedy.CONFIG) or code == "MOVED"
    assert said.partition(" ")[2][:12] not in fault.says


def test_the_table_is_whole() -> None:
    assert set(known_codes()) <= {code for _, code, *_ in CASES}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (redis.TimeoutError("x"), "timeout"),
        (TimeoutError(), "timeout"),
        (redis.ConnectionError("x"), "unreachable"),
        (ConnectionResetError(), "unreachable"),
        (redis.MaxConnectionsError(), "pool"),
        (redis.InvalidResponse("x"), "protocol"),
        (ssl.SSLError("x"), "tls"),
    ],
)
def test_failures_of_the_connection_are_told_apart(error: Exception, code: str) -> None:
    assert fault_of(error).code == code


def test_the_breaker_opens_after_three_failures_within_a_second_and_one_trial_decides() -> None:
    breaker = Breaker(chance=lambda: 1.0)
    for at in (0.0, 0.6, 1.2, 1.8):  # never three within a second
        assert not breaker.open
        breaker.failed(at)
    assert breaker.opened == 0
    breaker.failed(2.0)
    assert breaker.opened == 1
    assert not breaker.tries(2.0 + LONGEST_S - 0.01, 0.1)
    assert breaker.tries(3.1, 0.1)
    assert not breaker.tries(3.1, 0.1), "one trial at a time"
    breaker.failed(3.15)
    assert not breaker.tries(3.2, 0.1)
    assert breaker.tries(4.3, 0.1)
    breaker.succeeded()
    assert not breaker.open
    assert not breaker.tries(4.3, 0.1), "nothing to try"


def test_a_trial_that_says_nothing_gives_way_to_another() -> None:
    breaker = Breaker(chance=lambda: 0.0)
    for _ in range(3):
        breaker.failed(0.0)
    assert breaker.tries(0.6, 0.1)
    assert not breaker.tries(0.65, 0.1)
    assert breaker.tries(0.71, 0.1)
