"""Plan: what policy allows for one query, before anything is looked up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Augmenting, Plan, Shared, Staleness, Tier, Trait
from cacheproxy.policy.active import stricter
from cacheproxy.policy.adapt import effective_probability, effective_threshold, effective_ttl
from cacheproxy.policy.teach import may_train

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.model import Classification, Controls, Query
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Category, Pack

# Requests that the cache leaves alone: the answer depends on who or when, or cannot be kept whole.
_BYPASS = (Trait.UNREADABLE, Trait.ANONYMOUS, Trait.STATEFUL, Trait.LIVE_SEARCH, Trait.AUDIO)
_NEARBY = 0.03
"""Least probability of a category for its entries to be verified for a text of another one."""
_MOST_TERMS, _MOST_PLANS = 4096, 64
_ANSWERED = ("chat", "completions", "responses")
"""Dialects in which a model answers a question; embeddings are no answers."""
# Requests that only the very same request may share: what must be equal is not all in the last user text.
_EXACT_ONLY = (
    Trait.TOOLS,
    Trait.IMAGE,
    Trait.MIXED_CONTENT,
    Trait.MANY_CHOICES,
    Trait.LOGPROBS,
    Trait.RESPONSE_FORMAT,
    Trait.LAST_MESSAGE,
    Trait.ASKED_AGAIN,
    Trait.NO_TEXT,
    Trait.MANY_PROMPTS,
    Trait.BEST_OF,
    Trait.ECHO,
    Trait.SUFFIX,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """The rules that apply to a query, and the threshold that its encoder calls for (None: nothing by similarity).

    With `verify` the threshold is only where asking the verifier begins.
    """

    category: str
    rules: Category
    threshold: float | None
    floor: float | None
    verify: bool
    plain: float = 0.0
    """In a head's epoch, the threshold that the encoder alone calls for."""
    second: str = ""
    nearby: tuple[str, ...] = ()
    refusal: str = "category_not_cached"
    """The reason where the rules allow no caching."""
    unverified: bool = False
    """Whether there is no threshold because there is no verifier: with one, answers might be served by similarity."""
    plans: dict[tuple[object, ...], Plan] = field(default_factory=dict, repr=False, compare=False)
    """What was planned by them."""


def plan(query: Query, policy: Policy, epoch: str | None, told: Classification, load: float = 0.0) -> Plan:
    """Decide which tiers may be read and whether the answer may be kept.

    `epoch` is the encoder's, or None when there is none; `load` (0 to 1) is that of the query's backend. The first rule
    that narrows is the plan's reason; a bypass outranks an exact-only rule. Raises InvalidRequest when the caller names
    a category the pack does not have.
    """
    if told.category not in policy.pack.categories:
        known = ", ".join(sorted(policy.pack.categories))
        raise InvalidRequest(f"unknown category; this pack has: {known}", param="x-cacheproxy-category")
    return _plan(query, _terms(policy, epoch, told), epoch, load)


def possible(query: Query, policy: Policy, epoch: str | None) -> Plan:
    """Return what may still become of a query whose category is not known yet: the least narrow of its plans."""
    key = (epoch, epoch in policy.learnt)
    terms: _Terms | None = policy.terms.get(key)
    if terms is None:
        terms = policy.terms[key] = _possible_terms(policy, epoch)
    return _plan(query, terms, epoch, 0.0)


def _possible_terms(policy: Policy, epoch: str | None) -> _Terms:
    thresholds = [threshold_of(policy, name, epoch) for name in policy.by_examples]
    return _Terms(
        category=policy.pack.default_category,
        rules=policy.widest,
        threshold=min((one for one, _ in thresholds if one is not None), default=None),
        floor=None,
        verify=bool(thresholds) and all(verified for _, verified in thresholds),
        unverified=_unverified(policy, policy.by_examples, epoch),
    )


def _terms(policy: Policy, epoch: str | None, told: Classification) -> _Terms:
    """Return the rules of a category, worked out once for each one and what it is in doubt with and near to."""
    second = told.second if told.second in policy.pack.categories else ""
    near = tuple(name for name, chance in told.scores if chance >= _NEARBY) if told.source == "examples" else ()
    key = (epoch, epoch in policy.learnt, told.category, second, told.source, near)
    terms: _Terms | None = policy.terms.get(key)
    if terms is None:
        if len(policy.terms) >= _MOST_TERMS:
            policy.terms.clear()  # there are a few hundred of a usual pack, and no end to them in a large one
        terms = policy.terms[key] = _terms_of(policy, epoch, told)
    return terms


def _terms_of(policy: Policy, epoch: str | None, told: Classification) -> _Terms:
    """Return the rules of a category; where it is in doubt, those that all that it may be agree on."""
    pack = policy.pack
    names = [told.category]
    if told.source == "unknown":
        names = list(policy.by_examples) or names
    elif told.second in pack.categories:
        names.append(told.second)
    found = [threshold_of(policy, name, epoch) for name in names]
    thresholds, verify = [one for one, _ in found], any(verified for _, verified in found)
    floors = [None if epoch is None or verify else pack.floor(name, epoch) for name in names]
    rules = stricter(pack.categories[name] for name in names)
    return _Terms(
        category=told.category,
        rules=rules,
        threshold=None if None in thresholds else max(t for t in thresholds if t is not None),
        floor=None if None in floors else max(f for f in floors if f is not None),
        verify=verify,
        plain=_plain(policy, names, epoch),
        second=names[1] if len(names) == 2 and told.source != "unknown" else "",
        nearby=_nearby(policy, epoch, told, names, rules) if verify and told.source == "examples" else (),
        refusal="category_in_doubt" if pack.categories[told.category].allow_caching else "category_not_cached",
        unverified=_unverified(policy, names, epoch),
    )


def _plain(policy: Policy, names: Sequence[str], epoch: str | None) -> float:
    if epoch is None or epoch not in policy.learnt:
        return 0.0
    found = [threshold_of(policy, name, policy.learnt[epoch].base)[0] for name in names]
    return max((one for one in found if one is not None), default=0.0)


def _nearby(
    policy: Policy, epoch: str | None, told: Classification, names: Sequence[str], rules: Category
) -> tuple[str, ...]:
    """Return the categories that a rewording of the text may have been taken for, though this one hardly is.

    Only those whose entries are verified too, and no harder than the text's own rules say.
    """
    found: list[str] = []
    for scored, chance in told.scores:
        name = scored or policy.pack.default_category
        near = policy.pack.categories[name]
        if name in names or name in found or chance < _NEARBY or not (near.allow_caching and near.semantic):
            continue
        if threshold_of(policy, name, epoch)[1] and near.min_probability <= rules.min_probability:
            found.append(name)
    return tuple(found)


def threshold_of(policy: Policy, category: str, epoch: str | None) -> tuple[float | None, bool]:
    """Return the cosine from which on an entry of a category is served, or, where that is True, verified."""
    if epoch is None:
        return None, False
    learnt = policy.learnt.get(epoch)
    base = epoch if learnt is None else learnt.base
    verified = policy.pack.verify_from(category, base) if policy.verifies else None
    if verified is None:
        pack = policy.pack
        return pack.threshold(category, epoch) if learnt is None else learnt.threshold(pack, category), False
    return verified if learnt is None else learnt.verify_from, True


def needs_verifier(pack: Pack, category: str, epoch: str) -> bool:
    """Whether a category's answers are served by similarity with a verifier only: it has no threshold."""
    return pack.threshold(category, epoch) is None and pack.verify_from(category, epoch) is not None


def plain_epoch(policy: Policy, epoch: str) -> str:
    """Return the epoch of the encoder itself, of which an epoch may be that of a head."""
    learnt = policy.learnt.get(epoch)
    return epoch if learnt is None else learnt.base


def _unverified(policy: Policy, names: Iterable[str], epoch: str | None) -> bool:
    if policy.verifies or epoch is None:
        return False
    return any(needs_verifier(policy.pack, name, plain_epoch(policy, epoch)) for name in names)


def _plan(query: Query, terms: _Terms, epoch: str | None, load: float) -> Plan:
    """Return the plan of `_planned`, made once for all queries that nothing sets apart that it looks at."""
    lone = _lone(query)
    hot = query.temperature is not None and query.temperature > terms.rules.max_temperature
    # Tags are any number of any words, and no rule looks at them: kept here they would push out everybody's plans.
    controls = replace(query.controls, tags=()) if query.controls.tags else query.controls
    key = (query.traits, controls, query.dialect, lone, hot, epoch, load)
    plan = terms.plans.get(key)
    if plan is None:
        if len(terms.plans) >= _MOST_PLANS:
            terms.plans.clear()  # callers choose their controls, and load is any number
        plan = terms.plans[key] = _planned(query, terms, epoch, load)
    return plan


def _planned(query: Query, terms: _Terms, epoch: str | None, load: float) -> Plan:
    """Work a plan out. What it reads of a query, and whatever more it should read, stands in `_plan`'s key."""
    rules, controls = terms.rules, query.controls
    bypass = _bypass_reason(query, rules, terms.refusal)
    exact_only = _exact_only_reason(query, terms, epoch)
    look = not bypass and not controls.no_cache
    threshold = terms.threshold or 0.0
    probability = effective_probability(rules.min_probability, rules.load_threshold_drop, load)
    under_load = effective_threshold(threshold, terms.floor, rules.load_threshold_drop, load)
    longest_s = effective_ttl(rules.ttl_s, rules.load_ttl_stretch, load)
    ttl_s = min(longest_s, controls.ttl_s if controls.ttl_s is not None else longest_s)
    return Plan(
        category=terms.category,
        epoch=epoch or "",
        plain_threshold=terms.plain,
        second=terms.second,
        nearby=terms.nearby,
        exact=look and Tier.EXACT in controls.tiers,
        semantic=look and not exact_only and Tier.SEMANTIC in controls.tiers,
        store=not bypass and not controls.no_store,
        embed=not bypass and not exact_only,
        threshold=max(under_load, controls.threshold or 0.0),
        base_threshold=threshold,
        ttl_s=ttl_s,
        base_ttl_s=rules.ttl_s,
        ttl_jitter=rules.ttl_jitter if controls.ttl_s is None else 0.0,
        load=load,
        candidates=rules.candidates,
        reason=bypass or _control_reason(controls) or exact_only,
        max_age_s=controls.max_age_s,
        min_fresh_s=controls.min_fresh_s or 0.0,
        only_if_cached=controls.only_if_cached,
        stale=_staleness(controls, rules),
        keep_tool_calls=rules.tool_calls and Trait.TOOLS in query.traits,
        check_pii=rules.pii,
        verify=terms.verify,
        min_probability=probability if terms.verify else 1.0,
        delta=rules.delta,
        shadow_rate=rules.shadow_rate,
        explore_rate=rules.explore_rate,
        judge=rules.judge,
        shared=_shared(query, rules) if not bypass and not exact_only else None,
        augment=_augmenting(query, rules, ttl_s) if not bypass and not exact_only else None,
        augmented=rules.augment == "auto" and controls.augment,
        trains=not bypass and may_train(rules),
        named_as_asked=rules.augment_model_name == "asked",
    )


def _augmenting(query: Query, category: Category, ttl_s: float) -> Augmenting | None:
    """Return on what terms a small model may answer: only who takes kept answers gets one made of them.

    What it answers must be kept, or nothing would be learnt of it. `ttl_s` is how long any answer would live.
    """
    controls = query.controls
    allowed = category.augment == "auto" and controls.augment and query.dialect in _ANSWERED
    if not allowed or controls.no_store or controls.no_cache or controls.only_if_cached:
        return None
    return Augmenting(
        similarity=category.example_similarity,
        most=category.max_examples,
        tokens=category.example_tokens,
        ttl_s=min(category.augment_ttl_s, ttl_s),
        judge_rate=category.augment_judge_rate,
        double_run_usd_per_day=category.double_run_usd_per_day,
    )


def _shared(query: Query, category: Category) -> Shared | None:
    """Return on what terms an answer may go beyond its tenant: only of a lone question that names nobody.

    The answer of a dialect with state at the backend names that state, so only chat and completions are shared.
    """
    if category.share == "never" or not _lone(query):
        return None
    return Shared(principals=category.share_principals, agreed=category.share == "agreed", most=category.tenant_share)


def _lone(query: Query) -> bool:
    """Whether it stands alone and names nobody, where tenants share answers at all."""
    alone = not (query.chain or query.earlier or query.user)
    return alone and query.common is not None and query.dialect in ("chat", "completions")


def _staleness(controls: Controls, category: Category) -> Staleness:
    return Staleness(
        cap_s=category.max_stale_s,
        asked_s=controls.max_stale_s,
        asked_on_error_s=controls.stale_if_error_s,
        on_error_s=category.stale_if_error_s,
        while_revalidate_s=category.stale_while_revalidate_s,
    )


def _bypass_reason(query: Query, category: Category, refusal: str) -> str:
    for trait in _BYPASS:
        if trait in query.traits:
            return trait.value
    if not category.allow_caching:
        return refusal
    if Trait.RESPONSE_FORMAT in query.traits and not category.structured_output:
        return Trait.RESPONSE_FORMAT.value
    if query.temperature is not None and query.temperature > category.max_temperature:
        return "temperature"
    if not query.controls.tiers:
        return "tier_off"
    return ""


def _control_reason(controls: Controls) -> str:
    if controls.no_cache:
        return "request_no_cache"
    return "request_no_store" if controls.no_store else ""


def _exact_only_reason(query: Query, terms: _Terms, epoch: str | None) -> str:
    for trait in _EXACT_ONLY:
        if trait in query.traits:
            return trait.value
    if Tier.SEMANTIC not in query.controls.tiers:
        return "tier_exact"
    if not terms.rules.semantic:
        return "category_exact_only"
    if epoch is None:
        return "no_encoder"
    if terms.threshold is not None:
        return ""
    return "no_verifier" if terms.unverified else "encoder_not_calibrated"
