from __future__ import annotations

import hashlib
from dataclasses import replace

from cacheproxy.model import Controls, Query, Scope, Wire
from cacheproxy.query.recent import RecentQuestions


def query(text: str = "Hi", settings: bytes = b"c", tenant: str = "t", namespace: str = "") -> Query:
    return Query(
        dialect="chat",
        scope=Scope(tenant=tenant, namespace=namespace),
        model="m",
        text=text,
        text_digest=hashlib.sha256(text.encode()).digest(),
        fingerprint=b"f" * 32,
        compatibility=settings * 32,
        wire=Wire(),
        controls=Controls(),
    )


def asked_otherwise(recent: RecentQuestions, asked: Query) -> bool:
    return recent.asked_otherwise(asked, remember=False)


def test_a_question_is_known_by_scope_and_text() -> None:
    recent = RecentQuestions()
    assert not recent.asked_otherwise(query(), remember=True)
    assert not asked_otherwise(recent, query())
    assert asked_otherwise(recent, query(settings=b"d"))
    for other in (query("Ho", b"d"), query(settings=b"d", tenant="u"), query(settings=b"d", namespace="n")):
        assert not asked_otherwise(recent, other)


def test_the_last_settings_count() -> None:
    recent = RecentQuestions()
    recent.asked_otherwise(query(), remember=True)
    assert recent.asked_otherwise(query(settings=b"d"), remember=True)
    assert asked_otherwise(recent, query())
    assert not asked_otherwise(recent, query(settings=b"d"))


def test_the_longest_forgotten_goes_first() -> None:
    recent = RecentQuestions(capacity=2)
    for text in ("a", "b", "a", "c"):
        recent.asked_otherwise(query(text), remember=True)
    assert len(recent) == 2
    assert [asked_otherwise(recent, query(text, b"d")) for text in "abc"] == [True, False, True]


def test_no_text_is_held() -> None:
    recent = RecentQuestions()
    recent.asked_otherwise(query("a question nobody else may read"), remember=True)
    assert "nobody" not in repr(vars(recent))


def test_the_text_itself_is_not_read_on_the_event_loop() -> None:
    recent = RecentQuestions()
    recent.asked_otherwise(query("a long prompt"), remember=True)
    assert asked_otherwise(recent, replace(query("a long prompt", b"d"), text="another"))
