"""Addresses of an engine: what they name, and that errors hold no password."""

from __future__ import annotations

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.shared.address import Address, is_shared, parse


def test_one_server_with_user_password_and_database() -> None:
    target = parse("rediss://us%40er:p%3Aw%2F@example:7000/3")
    assert (target.kind, target.tls, target.nodes) == ("standalone", True, (Address("example", 7000),))
    assert (target.username, target.password.reveal(), target.db) == ("us@er", "p:w/", 3)
    assert "p:w/" not in repr(target)


def test_ports_and_database_have_defaults() -> None:
    assert parse("redis://example").nodes == (Address("example", 6379),)
    assert parse("redis://[::1]:7000").nodes == (Address("::1", 7000),)
    assert parse("redis+sentinel://a,b:1/main").nodes == (Address("a", 26379), Address("b", 1))
    assert str(Address("::1", 7000)) == "[::1]:7000"


def test_sentinels_name_a_service_and_maybe_a_database() -> None:
    target = parse("redis+sentinel://:pw@a,b,c/main/2")
    assert (target.kind, target.service, target.db, len(target.nodes)) == ("sentinel", "main", 2, 3)
    assert target.password.reveal() == "pw"


def test_a_cluster_has_nodes_alone() -> None:
    target = parse("redis+cluster://a:1,b:2,c:3")
    assert (target.kind, len(target.nodes), target.db) == ("cluster", 3, 0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "lacks the name of a host"),
        ("redis://a,b", "several servers"),
        ("redis://a:0", "port"),
        ("redis://a:x", "port"),
        ("redis://a/x", "number of a database"),
        ("redis://a/1/2", "too many parts"),
        ("redis://s3cret@a", "a user without a password"),
        ("redis://:s3cret?@a", "no parameters"),
        ("redis+sentinel://:s3cret@a", "must name the service"),
        ("redis+cluster://:s3cret@a/1", "a Cluster has none but 0"),
        ("postgres://:s3cret@a", "not an engine"),
    ],
)
def test_errors_say_what_is_wrong_and_never_quote_the_address(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(url)
    assert "store.url" in refused.value.message
    assert says in refused.value.message
    assert "s3cret" not in refused.value.message


def test_files_and_memory_are_not_shared() -> None:
    assert is_shared("redis+cluster://a")
    assert not is_shared("sqlite:///entries.db")
    assert not is_shared("memory://")
    assert not is_shared("")
