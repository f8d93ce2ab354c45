"""Buckets never allow more than the limit and one burst in any window; keys never share but by their tenant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.access.gate import Gate
from cacheproxy.access.limits import Account
from cacheproxy.errors import RateLimited
from tests.support.clock import FakeClock
from tests.support.virtual_keys import record, ring

pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 300)), max_size=200)
labels = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


@given(limit=st.integers(1, 50), pauses=pauses)
def test_no_window_holds_more_requests_than_the_limit_and_one_burst(limit: int, pauses: list[float]) -> None:
    account, now_s = Account(record(requests_per_minute=limit), 0.0), 0.0
    passed: list[float] = []
    waits: list[float] = []
    for pause in pauses:
        now_s += pause
        try:
            account.count_request(now_s)
        except RateLimited as exc:
            waits.append(exc.retry_after_s or 0.0)
        else:
            passed.append(now_s)
    assert all(0 < wait_s <= 60 / limit + 1e-6 for wait_s in waits)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span_s = passed[last] - passed[first]
            assert last - first + 1 <= limit + span_s * limit / 60 + 1e-6


@given(
    limit=st.integers(1, 10_000), answers=st.lists(st.tuples(st.floats(0, 200), st.integers(0, 30_000)), max_size=100)
)
def test_tokens_go_over_by_at_most_one_answer_at_a_time(limit: int, answers: list[tuple[float, int]]) -> None:
    account, now_s, spent, largest = Account(record(tokens_per_minute=limit), 0.0), 0.0, 0, 0
    for pause, cost in answers:
        now_s += pause
        try:
            account.check_tokens(now_s, now_s)
        except RateLimited:
            continue
        account.charge_tokens(cost, now_s, now_s)
        spent, largest = spent + cost, max(largest, cost)
        assert spent <= limit + now_s * limit / 60 + largest + 1e-3


@given(
    limit=st.integers(1, 10_000),
    answers=st.lists(st.tuples(st.floats(0, 40_000), st.integers(0, 5_000)), max_size=100),
)
def test_a_day_goes_over_by_at_most_one_answer(limit: int, answers: list[tuple[float, int]]) -> None:
    account, now_s = Account(record(tokens_per_day=limit), 0.0), 0.0
    days: dict[int, list[int]] = {}
    fresh_s: list[tuple[float, float]] = []
    for pause, cost in answers:
        now_s += pause
        try:
            account.check_tokens(now_s, now_s)
        except RateLimited as exc:
            fresh_s.append((now_s, now_s + (exc.retry_after_s or 0.0) + 1e-3))
            continue
        account.charge_tokens(cost, now_s, now_s)
        days.setdefault(int(now_s // 86_400), []).append(cost)
    assert all(then_s // 86_400 == refused_s // 86_400 + 1 for refused_s, then_s in fresh_s)
    assert all(sum(costs) <= limit + max(costs) for costs in days.values())


@given(limits=st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_changing_the_limit_back_and_forth_gives_nothing_away(limits: list[int]) -> None:
    account, passed = Account(record(requests_per_minute=10), 0.0), 0
    for limit in (*limits, 10):
        account.adopt(record(requests_per_minute=limit), 0.0)
        for _ in range(200):
            try:
                account.count_request(0.0)
            except RateLimited:
                break
            passed += 1
    assert passed <= max(10, *limits)


@given(tenants=st.lists(labels, min_size=2, max_size=6))
def test_two_keys_share_a_scope_exactly_when_their_tenant_is_the_same(tenants: list[str]) -> None:
    records = [record(f"sk-cp-{n}", id=f"k{n}", tenant=tenant) for n, tenant in enumerate(tenants)]
    gate = Gate(ring(*records), FakeClock())
    scopes = [gate.identify([(b"api-key", b"sk-cp-%d" % n)]).tenant for n in range(len(tenants))]
    for a, one in zip(tenants, scopes, strict=True):
        for b, other in zip(tenants, scopes, strict=True):
            assert (one == other) == (a == b)
            assert len(one) == 64
