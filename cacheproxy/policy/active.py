"""The policy in force: one immutable snapshot of a pack, made ready to decide. Each request sees exactly one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cacheproxy.model import Classification
from cacheproxy.policy.pack import Category
from cacheproxy.policy.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Query
    from cacheproxy.policy.learnt import Learnt
    from cacheproxy.policy.pack import Pack, Price


_MOST_PRICES = 1024


class Classify(Protocol):
    """What tells a query's category from its embedding."""

    def __call__(self, vector: NDArray[np.float32]) -> Classification:
        """Return the category of a unit vector of shape (dim,), never one that the pack does not have."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A pack with its compiled rules and, where categories have examples, what tells them apart."""

    pack: Pack
    rules: Rules
    version: int = 0
    classify: Classify | None = None
    """None where no category has examples, or no encoder made vectors of them."""
    verifies: bool = False
    """Whether there is a verifier that knows the encoder."""
    learnt: Mapping[str, Learnt] = field(default_factory=dict)
    """By epoch, what the similarity heads brought along. It only grows, while the policy is in force, too."""
    by_examples: tuple[str, ...] = field(init=False)
    """The categories a query may turn out to be of once its text is embedded; none without a classifier."""
    cautious: frozenset[str] = field(init=False)
    """Those of them that are never cached."""
    widest: Category = field(init=False)
    """What may be allowed to a query whose category is not known yet: the most that any of them allows."""
    terms: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What plan.py worked out of it for a category and an epoch: it changes no more, and every request asks."""
    prices: dict[str, Price | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def price(self, model: str) -> Price | None:
        """Return the price of a model, or None when the pack does not know it; looked for once."""
        if model not in self.prices:
            if len(self.prices) >= _MOST_PRICES:
                self.prices.clear()  # models are named by backends: there may be any number
            self.prices[model] = self.pack.price(model)
        return self.prices[model]

    @property
    def etag(self) -> str:
        """The version as an entity tag (RFC 9110 section 8.8.3)."""
        return f'"{self.version}"'

    @classmethod
    def of(cls, pack: Pack, tenant_of: Callable[[str], str] = str) -> Policy:
        """Return a pack without a classifier: by its rules and its default category only."""
        return cls(pack=pack, rules=Rules(pack.categories, tenant_of))

    def __post_init__(self) -> None:
        """Note what every request asks."""
        named = [name for name, rules in self.pack.categories.items() if rules.examples and self.classify is not None]
        names = tuple(dict.fromkeys([self.pack.default_category, *named])) if named else ()
        cautious = frozenset(name for name in names if not self.pack.categories[name].allow_caching)
        object.__setattr__(self, "by_examples", names)
        object.__setattr__(self, "cautious", cautious)
        known = [self.pack.categories[name] for name in names or (self.pack.default_category,)]
        object.__setattr__(self, "widest", widest(known))

    def told(self, query: Query) -> Classification | None:
        """Return the category that the request or a rule names, or the default one where nothing else can decide.

        None where the text must be looked at. A request that names another category than the operator's rule narrows:
        the stricter policy of both applies.
        """
        claimed, asked = self.rules.claim(query), query.controls.category
        if asked is not None:
            return Classification(category=asked, second=claimed if claimed != asked else "", source="request")
        if claimed:
            return Classification(category=claimed, source="rule")
        if not self.by_examples or not (query.text.strip() or (query.earlier and self.cautious)):
            return Classification(category=self.pack.default_category)
        return None

    def settled(self, told: Classification | None) -> bool:
        """Whether nothing that the text is near to can change a category any more.

        What a request names can: it may narrow policy, never widen it, so it does not open a category never cached.
        """
        return told is not None and not (told.source == "request" and self.cautious)

    def settle(self, told: Classification | None, seen: Sequence[Classification]) -> Classification:
        """Return a query's category from what was told and what its texts are near to, the question's own first.

        One earlier question of a conversation that may be of a category never cached is enough: what follows it may
        speak of the same. Where the request names its category, the text must be of that one beyond doubt.
        """
        found = told or seen[0]
        if told is not None and seen[0].source == "unknown":
            return seen[0]
        for one in seen:
            # Who names a category says more than a doubt does, and less than a text that is clearly private.
            private = [name for name in (one.category, one.second) if name in self.cautious]
            if told is not None and one.second and len(private) < 2:
                continue
            for name in private:
                if name != found.category:
                    return replace(found, second=name)
        return found

    def unknown(self) -> Classification:
        """Return what stands for a query whose text could not be embedded: any category might be its own."""
        return Classification(category=self.pack.default_category, source="unknown")


def of_conversation(whole: Classification, own: Classification) -> Classification:
    """Return the category of a question in its conversation: the conversation's, since "Who won?" has none of its own.

    A question that is beyond doubt of another one brings that one's rules along: the stricter of both apply.
    """
    doubtless = own.source == "examples" and not own.second and own.category not in (whole.category, "")
    return replace(whole, second=own.category) if doubtless else whole


def may_be_private(policy: Policy, seen: Classification) -> bool:
    """Whether a text that is near to this may be of a category that is never cached."""
    return seen.source == "unknown" or seen.category in policy.cautious or seen.second in policy.cautious


def stricter(categories: Iterable[Category]) -> Category:
    """Return rules that allow what all of these allow, and nothing more."""
    return reduce(_stricter, categories)


def _stricter(one: Category, other: Category) -> Category:
    return Category(
        description=one.description,
        allow_caching=one.allow_caching and other.allow_caching,
        semantic=one.semantic and other.semantic,
        ttl_s=min(one.ttl_s, other.ttl_s),
        max_temperature=min(one.max_temperature, other.max_temperature),
        max_stale_s=min(one.max_stale_s, other.max_stale_s),
        stale_if_error_s=min(one.stale_if_error_s, other.stale_if_error_s),
        stale_while_revalidate_s=min(one.stale_while_revalidate_s, other.stale_while_revalidate_s),
        candidates=max(one.candidates, other.candidates),
        tool_calls=one.tool_calls and other.tool_calls,
        structured_output=one.structured_output and other.structured_output,
        priority=min(one.priority, other.priority),
        quota=one.quota,
        tenant_share=min(one.tenant_share, other.tenant_share),
        ttl_jitter=max(one.ttl_jitter, other.ttl_jitter),
        load_threshold_drop=min(one.load_threshold_drop, other.load_threshold_drop),
        load_ttl_stretch=min(one.load_ttl_stretch, other.load_ttl_stretch),
        verify=one.verify or other.verify,
        min_probability=max(one.min_probability, other.min_probability),
        near_miss_band=one.near_miss_band,
        probability_band=one.probability_band,
        delta=min(one.delta, other.delta),
        shadow_rate=min(one.shadow_rate, other.shadow_rate),
        explore_rate=min(one.explore_rate, other.explore_rate),
        judge=min(one.judge, other.judge, key=("off", "async", "inline").index),
        learning_calls_per_hour=min(one.learning_calls_per_hour, other.learning_calls_per_hour),
        learning_usd_per_day=min(one.learning_usd_per_day, other.learning_usd_per_day),
        share=min(one.share, other.share, key=("never", "approved", "agreed").index),
        share_principals=max(one.share_principals, other.share_principals),
        augment=min(one.augment, other.augment, key=("off", "auto").index),
        example_similarity=max(one.example_similarity, other.example_similarity),
        max_examples=min(one.max_examples, other.max_examples),
        example_tokens=min(one.example_tokens, other.example_tokens),
        augment_ttl_s=min(one.augment_ttl_s, other.augment_ttl_s),
        augment_judge_rate=min(one.augment_judge_rate, other.augment_judge_rate),
        augment_model_name=min(one.augment_model_name, other.augment_model_name, key=("small", "asked").index),
        double_run_usd_per_day=min(one.double_run_usd_per_day, other.double_run_usd_per_day),
        train=_least_train(one, other),
        pii=tuple(dict.fromkeys((*one.pii, *other.pii))),
    )


def widest(categories: Iterable[Category]) -> Category:
    """Return rules that allow what any of these allows: what may still be possible before the category is known."""
    return reduce(_wider, categories)


def _wider(one: Category, other: Category) -> Category:
    return Category(
        allow_caching=one.allow_caching or other.allow_caching,
        semantic=one.semantic or other.semantic,
        ttl_s=max(one.ttl_s, other.ttl_s),
        max_temperature=max(one.max_temperature, other.max_temperature),
        max_stale_s=max(one.max_stale_s, other.max_stale_s),
        stale_if_error_s=max(one.stale_if_error_s, other.stale_if_error_s),
        stale_while_revalidate_s=max(one.stale_while_revalidate_s, other.stale_while_revalidate_s),
        tool_calls=one.tool_calls or other.tool_calls,
        structured_output=one.structured_output or other.structured_output,
        verify=one.verify and other.verify,
        min_probability=min(one.min_probability, other.min_probability),
        augment=max(one.augment, other.augment, key=("off", "auto").index),
        example_similarity=min(one.example_similarity, other.example_similarity),
        max_examples=max(one.max_examples, other.max_examples),
        example_tokens=max(one.example_tokens, other.example_tokens),
        augment_ttl_s=max(one.augment_ttl_s, other.augment_ttl_s),
        augment_judge_rate=max(one.augment_judge_rate, other.augment_judge_rate),
        augment_model_name=max(one.augment_model_name, other.augment_model_name, key=("small", "asked").index),
        double_run_usd_per_day=max(one.double_run_usd_per_day, other.double_run_usd_per_day),
        train=_least_train(one, other),  # what is not known to be allowed is not trained on
    )


def _least_train(one: Category, other: Category) -> Literal["never", "allowed"]:
    return min(one.train, other.train, key=("never", "allowed").index)
