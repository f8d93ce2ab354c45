from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Classification, Common, Controls, Plan, Query, Scope, Staleness, Tier, Trait, Wire
from cacheproxy.policy import plan as plan_module
from cacheproxy.policy.active import Policy, stricter
from cacheproxy.policy.learnt import Learnt
from cacheproxy.policy.pack import Category, Encoder, Pack, Price
from cacheproxy.policy.plan import plan, possible
from cacheproxy.policy.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable

EPOCH = "encoder-1"
EXACT = frozenset({Tier.EXACT})
NONE = frozenset[Tier]()

PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={
        "default": Category(semantic=True, ttl_s=100.0, candidates=7),
        "careful": Category(ttl_s=50.0, max_temperature=0.0),
        "never": Category(allow_caching=False, semantic=True),
        "new": Category(semantic=True),
        "calling": Category(semantic=True, tool_calls=True),
        "plain": Category(semantic=True, structured_output=False),
    },
    encoders={"e": Encoder(fingerprint=EPOCH, calibrated_on="x", thresholds={"default": 0.8, "careful": 0.9})},
)

POLICY = Policy.of(PACK)
COMMON = Common(tenant="all", compatibility=b"c" * 32, fingerprint=b"f" * 32)


def query(controls: Controls | None = None, **fields: Any) -> Query:
    plain = Query(
        dialect="chat",
        scope=Scope(tenant="t"),
        model="m",
        text="Hi",
        fingerprint=b"f" * 32,
        compatibility=b"c" * 32,
        wire=Wire(),
        controls=controls or Controls(),
    )
    return dataclasses.replace(plain, **fields)


def planned(controls: Controls | None = None, *, epoch: str | None = EPOCH, **fields: Any) -> Plan:
    asked = query(controls, **fields)
    told = POLICY.told(asked)
    assert told is not None
    return plan(asked, POLICY, epoch, told)


def rights(found: Plan) -> str:
    """What a plan allows, as letters: e(xact) s(emantic) k(eep) f(indable by similarity)."""
    named = zip("eskf", (found.exact, found.semantic, found.store, found.embed), strict=True)
    return "".join(letter if allowed else "-" for letter, allowed in named)


def test_a_plain_question_may_use_everything() -> None:
    assert planned() == Plan(
        category="default",
        exact=True,
        semantic=True,
        store=True,
        embed=True,
        threshold=0.8,
        base_threshold=0.8,
        ttl_s=100.0,
        base_ttl_s=100.0,
        candidates=7,
        epoch="encoder-1",
        delta=0.05,
        trains=True,
    )


BYPASSED = [Trait.UNREADABLE, Trait.ANONYMOUS, Trait.STATEFUL, Trait.LIVE_SEARCH, Trait.AUDIO]


@pytest.mark.parametrize("trait", Trait)
def test_every_trait_narrows_and_names_itself(trait: Trait) -> None:
    found = planned(traits=frozenset({trait}))
    assert rights(found) == ("----" if trait in BYPASSED else "e-k-")
    assert found.reason == trait.value


def test_a_bypass_outranks_an_exact_only_rule() -> None:
    assert planned(traits=frozenset({Trait.TOOLS, Trait.STATEFUL})).reason == "stateful"
    assert planned(Controls(no_cache=True), traits=frozenset({Trait.STATEFUL})).reason == "stateful"


RULES: dict[str, tuple[Controls, dict[str, Any], str, str]] = {
    "no-cache": (Controls(no_cache=True), {}, "--kf", "request_no_cache"),
    "no-store": (Controls(no_store=True), {}, "es-f", "request_no_store"),
    "both": (Controls(no_cache=True, no_store=True), {}, "---f", "request_no_cache"),
    "exact tier": (Controls(tiers=EXACT), {}, "e-k-", "tier_exact"),
    "no tier": (Controls(tiers=NONE, no_store=True), {}, "----", "tier_off"),
    "a category without similarity": (Controls(category="careful"), {}, "e-k-", "category_exact_only"),
    "a category that is never cached": (Controls(category="never"), {}, "----", "category_not_cached"),
    "a category that was not calibrated": (Controls(category="new"), {}, "e-k-", "encoder_not_calibrated"),
    "another encoder": (Controls(), {"epoch": "encoder-2"}, "e-k-", "encoder_not_calibrated"),
    "no encoder": (Controls(), {"epoch": None}, "e-k-", "no_encoder"),
    "temperature at the limit": (Controls(), {"temperature": 0.7}, "eskf", ""),
    "temperature above it": (Controls(), {"temperature": 0.71}, "----", "temperature"),
    "temperature beyond floats": (Controls(), {"temperature": 10**400}, "----", "temperature"),
    "temperature below zero": (Controls(), {"temperature": -1.0}, "eskf", ""),
    "temperature for a careful category": (
        Controls(category="careful"),
        {"temperature": 0.1},
        "----",
        "temperature",
    ),
    "no temperature for a careful category": (Controls(category="careful"), {}, "e-k-", "category_exact_only"),
}


@pytest.mark.parametrize(("controls", "given", "expected", "reason"), RULES.values(), ids=RULES)
def test_a_rule_narrows_and_gives_its_reason(
    controls: Controls, given: dict[str, Any], expected: str, reason: str
) -> None:
    found = planned(controls, **given)
    assert (rights(found), found.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("category", "verifies", "reason"),
    [("new", False, "no_verifier"), ("new", True, ""), ("default", False, ""), ("plain", False, "no_verifier"),
     ("unverified", False, "encoder_not_calibrated"), ("unverified", True, "encoder_not_calibrated"),
     ("careful", False, "category_exact_only")],
)  # fmt: skip
def test_a_category_that_only_a_verifier_could_serve_says_that_there_is_none(
    category: str, verifies: bool, reason: str
) -> None:
    encoders = {
        name: structs.replace(one, thresholds={"default": 0.8}, verify_from=0.5) for name, one in PACK.encoders.items()
    }
    categories = {**PACK.categories, "unverified": Category(semantic=True, verify=False)}
    pack = structs.replace(PACK, encoders=encoders, categories=categories)
    policy = dataclasses.replace(Policy.of(pack), verifies=verifies)
    found = plan(query(), policy, EPOCH, Classification(category=category, source="request"))
    assert (found.reason, found.semantic) == (reason, not reason)


@pytest.mark.parametrize(
    ("category", "traits", "kept"),
    [
        ("calling", {Trait.TOOLS}, True),
        ("calling", {Trait.TOOLS, Trait.RESPONSE_FORMAT}, True),
        ("calling", set(), False),
        ("default", {Trait.TOOLS}, False),
    ],
)
def test_answers_that_call_tools_are_kept_by_policy_and_for_the_same_request_only(
    category: str, traits: set[Trait], kept: bool
) -> None:
    found = planned(Controls(category=category), traits=frozenset(traits))
    assert found.keep_tool_calls == kept
    assert not (found.keep_tool_calls and (found.semantic or found.embed))


@pytest.mark.parametrize(("category", "expected"), [("plain", "----"), ("calling", "e-k-")])
def test_structured_output_is_left_alone_by_policy(category: str, expected: str) -> None:
    found = planned(Controls(category=category), traits=frozenset({Trait.RESPONSE_FORMAT}))
    assert (rights(found), found.reason) == (expected, "response_format")


@pytest.mark.parametrize(
    ("asked", "effective"), [(None, 0.8), (0.0, 0.8), (0.5, 0.8), (0.8, 0.8), (0.95, 0.95), (1.0, 1.0)]
)
def test_a_request_may_only_raise_the_threshold(asked: float | None, effective: float) -> None:
    assert planned(Controls(threshold=asked)).threshold == effective


@pytest.mark.parametrize(("asked", "effective"), [(None, 100.0), (0.0, 0.0), (10.0, 10.0), (1e9, 100.0)])
def test_a_request_may_only_shorten_the_ttl(asked: float | None, effective: float) -> None:
    assert planned(Controls(ttl_s=asked)).ttl_s == effective


def test_freshness_is_carried_over() -> None:
    found = planned(Controls(max_age_s=5.0, min_fresh_s=6.0, only_if_cached=True))
    assert (found.max_age_s, found.min_fresh_s, found.only_if_cached) == (5.0, 6.0, True)


def test_staleness_is_what_policy_caps_and_the_caller_asks() -> None:
    rules = Category(max_stale_s=60.0, stale_if_error_s=30.0, stale_while_revalidate_s=10.0)
    pack = Pack(schema=1, name="t", description="", default_category="d", categories={"d": rules})
    asked = Controls(max_stale_s=math.inf, stale_if_error_s=5.0)
    expected = Staleness(cap_s=60.0, asked_s=math.inf, asked_on_error_s=5.0, on_error_s=30.0, while_revalidate_s=10.0)
    assert plan(query(asked), Policy.of(pack), None, Classification(category="d")).stale == expected
    assert planned().stale == Staleness()


def test_an_unknown_category_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidRequest, match="calling, careful, default, never, new, plain") as refusal:
        planned(Controls(category="nope"))
    assert refusal.value.param == "x-cacheproxy-category"


def doubted(second: str, *, category: str = "default", controls: Controls | None = None) -> Plan:
    told = Classification(category=category, second=second, source="examples")
    return plan(query(controls), POLICY, EPOCH, told)


def test_in_doubt_between_two_categories_the_stricter_rules_of_both_apply() -> None:
    found = doubted("careful")
    assert (found.category, found.second) == ("default", "careful")
    assert (found.threshold, found.ttl_s) == (0.9, 50.0)
    assert not found.semantic
    assert found.store


def test_in_doubt_a_category_that_is_never_cached_wins() -> None:
    for category, second in (("default", "never"), ("never", "default")):
        assert rights(doubted(second, category=category)) == "----"
    assert doubted("never").reason == "category_in_doubt"
    assert doubted("default", category="never").reason == "category_not_cached"


def test_a_second_category_that_is_gone_does_not_count() -> None:
    assert doubted("of yesterday") == doubted("")


@pytest.mark.parametrize(("load", "threshold", "ttl_s"), [(0.0, 0.9, 100.0), (0.5, 0.88, 150.0), (1.0, 0.87, 200.0)])
def test_load_lowers_the_threshold_to_its_floor_and_stretches_the_lifetime(
    load: float, threshold: float, ttl_s: float
) -> None:
    rules = Category(semantic=True, ttl_s=100.0, load_threshold_drop=0.04, load_ttl_stretch=1.0)
    encoder = Encoder(fingerprint=EPOCH, calibrated_on="x", thresholds={"d": 0.9}, floors={"d": 0.87})
    pack = Pack(
        schema=1, name="t", description="", default_category="d", categories={"d": rules}, encoders={"e": encoder}
    )
    found = plan(query(), Policy.of(pack), EPOCH, Classification(category="d"), load)
    assert found.threshold == pytest.approx(threshold)
    assert (found.ttl_s, found.load) == (ttl_s, load)
    assert (found.base_threshold, found.base_ttl_s) == (0.9, 100.0)
    asked = plan(
        query(Controls(threshold=0.95, ttl_s=10.0)), Policy.of(pack), EPOCH, Classification(category="d"), load
    )
    assert (asked.threshold, asked.ttl_s) == (0.95, 10.0)


def test_what_was_worked_out_of_a_policy_once_is_worked_out_anew_when_a_head_is_learnt() -> None:
    learnt: dict[str, Learnt] = {}
    policy = Policy(pack=PACK, rules=Rules(PACK.categories, str), learnt=learnt)
    told = Classification(category="default")
    headed = f"{EPOCH}+head"
    assert [plan(query(), policy, epoch, told).threshold for epoch in (EPOCH, headed, EPOCH, headed)] == [
        0.8,
        0,
        0.8,
        0,
    ]
    learnt[headed] = Learnt(base=EPOCH, thresholds={"default": 0.6}, rest=0.7)
    assert plan(query(), policy, headed, told).threshold == 0.6
    assert possible(query(), policy, headed).category == "default"


def test_a_plan_is_the_same_whether_its_category_was_asked_for_before_or_not() -> None:
    policy = Policy.of(PACK)
    for told in (
        Classification(category="default"),
        Classification(category="default", second="careful", source="examples"),
        Classification(category="default", second="unheard of", source="request"),
        Classification(category="default", source="unknown"),
        Classification(category="careful", source="entry"),
    ):
        first, second = (plan(query(), policy, EPOCH, told) for _ in range(2))
        assert first == second == plan(query(), Policy.of(PACK), EPOCH, told)


def test_a_price_is_looked_for_once_and_any_number_of_models_takes_no_memory() -> None:
    prices = (Price(model="m-*", input_usd_per_mtok=1.0, output_usd_per_mtok=2.0),)
    policy = Policy.of(structs.replace(PACK, prices=prices))
    assert policy.price("m-1") == policy.price("m-1") == prices[0]
    assert policy.price("other") is None
    for number in range(5000):
        policy.price(f"m-{number}")
    assert len(policy.prices) <= 1024
    assert policy.price("m-1") == prices[0]


def test_what_a_text_is_near_to_has_its_rules_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, worked_out = Policy.of(PACK), []

    def counted(found: Iterable[Category]) -> Category:
        worked_out.append(1)
        return stricter(found)

    monkeypatch.setattr(plan_module, "stricter", counted)
    for chance in (0.91, 0.92, 0.93):
        scores = (("default", chance), ("careful", 1 - chance))
        told = Classification(category="default", second="careful", source="examples", scores=scores)
        assert plan(query(), policy, EPOCH, told).second == "careful"
    assert len(worked_out) == 1
    plan(query(), policy, EPOCH, dataclasses.replace(told, scores=(*scores, ("new", 0.2))))
    assert len(worked_out) == 2


def test_a_plan_that_was_made_before_is_the_one_that_would_be_made_now() -> None:
    shared = Category(semantic=True, ttl_s=100.0, share="agreed", augment="auto")
    pack = structs.replace(PACK, categories={**PACK.categories, "default": shared})
    policy = Policy.of(pack)
    asked = [
        query(controls, traits=traits, **fields)
        for controls in (
            Controls(),
            Controls(no_store=True),
            Controls(threshold=0.95, ttl_s=5.0),
            Controls(tiers=EXACT),
        )
        for traits in (frozenset[Trait](), frozenset({Trait.TOOLS}), frozenset({Trait.RESPONSE_FORMAT}))
        for fields in (
            *({}, {"temperature": 2.0}, {"dialect": "embeddings"}, {"user": "u"}),
            *({"common": COMMON}, {"common": COMMON, "user": "u"}, {"common": COMMON, "chain": ("a", "b")}),
        )
    ]
    for category in ("default", "careful", "calling", "plain"):
        told = Classification(category=category)
        for load in (0.0, 0.5):
            for one in (*asked, *reversed(asked)):
                assert plan(one, policy, EPOCH, told, load) == plan(one, Policy.of(pack), EPOCH, told, load)


def test_tags_set_no_plans_apart_so_that_nobody_pushes_out_those_of_others() -> None:
    policy, told = Policy.of(PACK), Classification(category="default")
    first = plan(query(), policy, EPOCH, told)
    for number in range(200):
        assert plan(query(Controls(tags=(f"tag-{number}",))), policy, EPOCH, told) is first
    assert plan(query(), policy, EPOCH, told) is first
