"""A policy pack: every number an operator may tune, as frozen values.

The schema of `policies/<pack>/policy.toml` is exactly these structs; `policy/loader.py` reads and checks it. Unknown
keys are errors.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1)]
Threshold = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3.2e9)]  # a century
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=3.2e9)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Rule(_Table, frozen=True):
    """Claims queries for a category whatever their text is near to: everything that is given must hold.

    `models` and `routes` are shell patterns of which one must match; `text`, `system` and the values of `headers`
    are RE2 regular expressions that must be found somewhere, whatever the case.
    """

    models: tuple[Text, ...] = ()
    routes: tuple[Text, ...] = ()
    """`chat`, `completions`, `responses` or `embeddings`."""
    tenants: tuple[Text, ...] = ()
    """Tenant labels of virtual keys, or tenants as `explain` and the entries show them."""
    namespaces: tuple[Text, ...] = ()
    headers: dict[str, Pattern] = {}
    text: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    system: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class Category(_Table, frozen=True):
    """The rules of one category. The defaults are the safe ones: exact matches only, short-lived."""

    description: str = ""
    allow_caching: bool = True
    """False: nothing of such a query is looked up, embedded for keeping, or stored."""
    semantic: bool = False
    """Whether an answer may be served by similarity."""
    ttl_s: Seconds = 3600.0
    max_temperature: NotNegative = 0.7
    """A request above it asks for variety and bypasses the cache; one without a temperature passes."""
    max_stale_s: NotNegative = 0.0
    """The cap on everything stale: how long past its expiry an entry is kept, and may be served, at the very most."""
    stale_if_error_s: NotNegative = 0.0
    """How long past its expiry an entry is served, without being asked for, when the backend fails."""
    stale_while_revalidate_s: NotNegative = 0.0
    """How long past its expiry an entry is served at once, while a newer answer is fetched in the background."""
    candidates: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """How many nearest entries are judged."""
    tool_calls: bool = False
    """Whether answers that call tools may be kept, for the very same request only."""
    structured_output: bool = True
    """Whether answers in a format other than text (JSON, a schema) may be kept, for the very same request only."""
    examples: tuple[Text, ...] = ()
    """Questions of this category, ten or more: a query near to them belongs to it, unless a rule says otherwise."""
    rules: tuple[Rule, ...] = ()
    """The first rule that holds decides, in the order of the categories."""
    priority: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 1.0
    """Divides what the category borrowed, when room is needed: who borrowed most gives back first."""
    quota: Share = 0.0
    """Share of the store that is guaranteed to it; what others do not use may be borrowed."""
    tenant_share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.5
    """Share of what the category holds above which a tenant gives way first, when the category must give room."""
    ttl_jitter: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.0
    """Lifetimes are shortened by up to this share, so that what was stored together does not end together."""
    load_threshold_drop: Annotated[float, msgspec.Meta(ge=0.0, le=0.2)] = 0.0
    """How far the threshold falls when the backend is fully loaded (never below the encoder's floor)."""
    load_ttl_stretch: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 0.0
    """How much longer lifetimes get then: 1 doubles them."""
    verify: bool = True
    """Whether an answer is served by similarity only once a verifier finds it right for the question. Without it, or
    where no verifier knows the encoder, the encoder's threshold decides alone."""
    min_probability: Annotated[float, msgspec.Meta(ge=0.5, lt=1.0)] = 0.9
    """How probable it must be, to the verifier, that the answer is right."""
    near_miss_band: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.05
    """How far below the threshold a similarity still counts as a near miss, where similarity decides."""
    probability_band: Annotated[float, msgspec.Meta(ge=0.0, le=0.9)] = 0.4
    """How far below `min_probability` a probability still counts as a near miss, where a verifier decides."""
    delta: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.05
    """Share of wrong answers among similarity hits that is tolerated."""
    shadow_rate: Share = 0.0
    """Share of similarity hits whose question also goes to the backend, unseen, so that its answer can be compared."""
    explore_rate: Share = 0.0
    """Share of questions, refused for too low a probability only, whose answer is compared with the one refused."""
    judge: Literal["off", "async", "inline"] = "off"
    """Whether a model is asked what comparing cannot tell. `async`: afterwards; a near miss found right is promoted.
    `inline`: also before an answer of the grey zone is served."""
    learning_calls_per_hour: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 60
    """Most calls of the backend made to learn: shadow samples and judging."""
    learning_usd_per_day: NotNegative = 1.0
    """Most that these calls may cost, at the pack's prices."""
    false_hit_cost: NotNegative = 2.0
    """How many right hits one false hit undoes, where its worth is told in money."""
    share: Literal["never", "approved", "agreed"] = "never"
    """Whether an answer may be served to other tenants. `approved`: where an operator said so. `agreed`: also where
    several tenants, for the very same request, got answers that agree. Only between callers with virtual keys."""
    share_principals: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 2
    """How many tenants must have got agreeing answers, besides the one that asks."""
    augment: Literal["off", "auto"] = "off"
    """Whether a small model may answer, where no kept answer may be served, with similar kept ones as its examples.
    Needs `semantic`, by which they are found; never where nothing is cached."""
    example_similarity: Share = 0.4
    """Cosine from which on a kept question and its answer may be an example."""
    max_examples: Annotated[int, msgspec.Meta(ge=1, le=32)] = 5
    """Most examples in one prompt."""
    example_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    """Most tokens of the small model for all of them; what its context leaves may be less."""
    augment_ttl_s: Seconds = 3600.0
    """Lifetime of an answer that the small model gave, where that is shorter than `ttl_s`."""
    augment_judge_rate: Share = 0.01
    """Share of the small model's answers that a model is asked about."""
    augment_model_name: Literal["small", "asked"] = "small"
    """Whose name such an answer bears: the model's that gave it, or the one's that was asked for."""
    double_run_usd_per_day: NotNegative = 0.0
    """Most that answering one question by two models, to compare them, may cost, at the pack's prices."""
    train: Literal["allowed", "never"] = "allowed"
    """Whether a similarity model may be trained on its questions, where an operator collects them. Never, where nothing
    is cached; where personal data is looked for (`pii`), only on questions that were looked through and hold none."""
    pii: tuple[Text, ...] = ()
    """Kinds of personal data, by the names of the detector, that forbid keeping an answer. Empty: not looked for."""


class Encoder(_Table, frozen=True):
    """Thresholds calibrated for one encoder; they mean nothing for another."""

    fingerprint: Text
    calibrated_on: Text
    thresholds: dict[str, Threshold]
    """By category: cosine at or above which an entry may be served."""
    floors: dict[str, Threshold] = {}
    """By category: below it load never lowers a threshold. Without one load changes no threshold."""
    verify_from: Share = 0.0
    """Cosine from which on the verifier is asked. 0: the thresholds hold for verified categories, too."""


class Classifier(_Table, frozen=True):
    """How queries that no rule claims are classified by the categories' examples."""

    kind: Literal["prototype", "logistic"] = "prototype"
    doubt: Share = 0.2
    """A margin below it is small: both categories are searched, and the stricter policy of the two applies. Against a
    category that is never cached the margin is taken with three times its probability."""


class Price(_Table, frozen=True):
    """What a model costs, for `x-cacheproxy-saved-usd`. `model` is a shell pattern; the first that matches counts."""

    model: Text
    input_usd_per_mtok: NotNegative
    output_usd_per_mtok: NotNegative


class Pack(_Table, frozen=True):
    """A whole pack. `default_category` names the one that a query without a better match belongs to."""

    schema: int
    name: Text
    description: str
    default_category: Text
    categories: dict[str, Category]
    classifier: Classifier = Classifier()
    encoders: dict[str, Encoder] = {}
    prices: tuple[Price, ...] = ()

    def threshold(self, category: str, epoch: str) -> float | None:
        """Return a category's threshold calibrated for an encoder epoch, or None: similarity then serves nothing."""
        for encoder in self.encoders.values():
            if encoder.fingerprint == epoch:
                return encoder.thresholds.get(category)
        return None

    def verify_from(self, category: str, epoch: str) -> float | None:
        """Return the cosine from which on a category's candidates are verified; None where thresholds alone decide."""
        if not self.categories[category].verify:
            return None
        found = (one.verify_from for one in self.encoders.values() if one.fingerprint == epoch)
        return next(found, 0.0) or None

    def floor(self, category: str, epoch: str) -> float | None:
        """Return the lowest threshold that load may bring a category to; None where load changes none."""
        for encoder in self.encoders.values():
            if encoder.fingerprint == epoch:
                return encoder.floors.get(category)
        return None

    def price(self, model: str) -> Price | None:
        """Return the price of a model, or None when the pack does not know it."""
        return next((price for price in self.prices if fnmatchcase(model, price.model)), None)
