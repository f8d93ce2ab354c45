"""What policy allows for one query, and where it may go, decided before anything is looked up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """How long past its expiry an entry may be served, and when. The default: never."""

    cap_s: float = 0.0
    """Policy's limit on everything below, and on how long an expired entry is kept."""
    asked_s: float | None = None
    """The caller's `max-stale`, or None."""
    asked_on_error_s: float | None = None
    """The caller's `stale-if-error`, or None: then policy's and the backend's own count."""
    on_error_s: float = 0.0
    """Policy's, without being asked, when the backend fails."""
    while_revalidate_s: float = 0.0
    """Policy's, while a newer answer is fetched in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """On what terms answers go beyond their tenant: docs/decisions/0036-sharing.md."""

    principals: int
    """How many other tenants must have got agreeing answers."""
    agreed: bool
    """Whether that is enough; otherwise an operator must approve."""
    most: float
    """Share of the category's shared entries that one tenant may have taken part in, once there are many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmenting:
    """On what terms a small model may answer with kept answers as its examples."""

    similarity: float
    """Cosine from which on a kept question and its answer may be an example."""
    most: int
    """Most examples in one prompt."""
    tokens: int
    """Most tokens of the small model for all of them."""
    ttl_s: float
    """How long its answer lives; never longer than another's answer would."""
    judge_rate: float
    """Share of its answers that a model is asked about."""
    double_run_usd_per_day: float
    """Most that answering one question by two models, to compare them, may cost in the category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a request for some model goes: the model the backend is asked for, and the backends, "" for the default."""

    model: str
    name: str = ""

    def variant(self, asked: str) -> bytes:
        """Return what sets answers for the model `asked` apart by where they come from; b"" for the plain case."""
        plain = self.model == asked and not self.name
        return b"" if plain else f"\nmodel:{self.model}\nvia:{self.name}".encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What policy allows for one query, decided before anything is looked up.

    `reason` names the rule that narrowed it, or is "".
    """

    category: str
    exact: bool
    """Whether the exact tier may be read."""
    semantic: bool
    """Whether the semantic tier may be read."""
    store: bool
    """Whether the answer may be kept."""
    embed: bool
    """Whether a kept answer may be found by similarity later."""
    threshold: float
    ttl_s: float
    candidates: int
    reason: str = ""
    epoch: str = ""
    """Whose similarities `threshold` is of: only what is found in this epoch is measured by it."""
    plain_threshold: float = 0.0
    """Where the epoch is a head's: the threshold in the encoder's own similarities, which earlier turns are told by."""
    max_age_s: float | None = None
    min_fresh_s: float = 0.0
    only_if_cached: bool = False
    stale: Staleness = field(default_factory=Staleness)
    failed: bool = False
    """Whether the backend was asked and failed: what may be served only then, may be now."""
    keep_tool_calls: bool = False
    """Whether an answer that calls tools may be kept, for the very same request."""
    second: str = ""
    """A further category whose entries are searched, see `Classification.second`."""
    nearby: tuple[str, ...] = ()
    """With `verify`: categories next to it, whose entries are verified as well; their rules are no stricter."""
    base_threshold: float = 0.0
    """The threshold before load lowered it and the caller raised it."""
    base_ttl_s: float = 0.0
    """The lifetime before load stretched it and the caller shortened it."""
    ttl_jitter: float = 0.0
    """Share by which lifetimes vary, so that entries of one moment do not end at one moment."""
    load: float = 0.0
    """How loaded the query's backend is, 0 to 1, as the two values above took it."""
    check_pii: tuple[str, ...] = ()
    """Kinds of personal data that forbid keeping an answer; empty asks nothing."""
    verify: bool = False
    """Whether a candidate must be verified to be served; `threshold` is then only where asking the verifier begins."""
    min_probability: float = 1.0
    """With `verify`: the probability, that its answer is right, from which on a candidate is served."""
    delta: float = 1.0
    """Share of wrong answers among similarity hits that is tolerated."""
    shadow_rate: float = 0.0
    """Share of similarity hits whose question also goes to the backend, unseen."""
    explore_rate: float = 0.0
    """Share of questions, refused for too low a probability only, whose answer is compared with the one refused."""
    judge: str = "off"
    """Whether a model is asked what comparing cannot tell: `off`, `async` or `inline`."""
    shared: Shared | None = None
    """On what terms answers may be shared between tenants; None: never."""
    augment: Augmenting | None = None
    """On what terms a small model may answer where no kept answer may be served; None: not at all."""
    augmented: bool = False
    """Whether a kept answer may be served that a small model gave."""
    trains: bool = False
    """Whether a model may be trained on the question, as far as its category goes."""
    named_as_asked: bool = False
    """Whether what a small model answers bears the name of the model that was asked for."""

    @property
    def searched(self) -> tuple[str, ...]:
        """The categories whose entries may be served by similarity."""
        return (self.category, *((self.second,) if self.second else ()), *self.nearby)

    @property
    def lookup(self) -> bool:
        """Whether any tier may be read."""
        return self.exact or self.semantic
