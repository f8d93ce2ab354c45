"""The nouns: frozen values that every room shares, and nothing that acts.

Similarities are cosines in [-1, 1], higher is closer. Times are seconds since the epoch (`_s`) unless a name says
otherwise. No repr shows prompt text or an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


class Tier(StrEnum):
    """Which lookup found an entry."""

    EXACT = "exact"
    SEMANTIC = "semantic"


class Stale(StrEnum):
    """Why an entry is served past its freshness; the value is told in `Cache-Status`."""

    NO = ""
    ASKED = "max-stale"
    """The caller takes stale answers."""
    REVALIDATING = "swr"
    """A newer answer is being fetched meanwhile (RFC 5861 section 3)."""
    ON_ERROR = "stale-if-error"
    """The backend failed (RFC 5861 section 4)."""


class Trait(StrEnum):
    """What a request holds that limits how it may be cached; the value is the reason a caller reads."""

    TOOLS = "tools"
    IMAGE = "image"
    AUDIO = "audio"
    MANY_CHOICES = "n"
    LOGPROBS = "logprobs"
    RESPONSE_FORMAT = "response_format"
    LAST_MESSAGE = "last_message_not_user"
    ASKED_AGAIN = "asked_again"
    NO_TEXT = "no_text"
    MIXED_CONTENT = "mixed_content"
    MANY_PROMPTS = "prompts"
    BEST_OF = "best_of"
    ECHO = "echo"
    SUFFIX = "suffix"
    STATEFUL = "stateful"
    LIVE_SEARCH = "live_search"
    ANONYMOUS = "anonymous"
    UNREADABLE = "unrecognised_shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Who may share an answer: a hard partition, never part of the embedded text.

    `tenant` is an HMAC of the caller's credential under the install's secret (hex), or "" for a caller without one.
    """

    tenant: str
    namespace: str = ""
    common: str = ""
    """The scope in which answers of several tenants may meet, keyed by the install (hex); "" where the operator does
    not vouch for the tenant: whoever can invent credentials could be as many tenants as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What a request is in the scope that tenants share: its fingerprints with that scope in the tenant's place."""

    tenant: str
    compatibility: bytes
    fingerprint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What one request asked of the cache; it can narrow policy, never widen it."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    min_fresh_s: float | None = None
    max_stale_s: float | None = None
    """How long past its expiry an answer is still welcome; infinite for a bare `max-stale`."""
    stale_if_error_s: float | None = None
    """The same for when the backend fails; infinite for a bare `stale-if-error`."""
    ttl_s: float | None = None
    threshold: float | None = None
    tiers: frozenset[Tier] = frozenset(Tier)
    category: str | None = None
    tags: tuple[str, ...] = ()
    """Labels kept with the entry, for purging by tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The form the caller wants its answer in; never part of any key."""

    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request, understood: who asks, what must be equal, and which text may be matched by similarity.

    `fingerprint` (32 bytes) covers scope and the whole body; `compatibility` (32 bytes) the same with the last user
    text left out, and of a `chain` all texts. Both ignore the wire form.
    """

    dialect: str
    scope: Scope
    model: str
    text: str = field(repr=False)
    fingerprint: bytes
    compatibility: bytes
    wire: Wire
    controls: Controls
    traits: frozenset[Trait] = frozenset()
    temperature: float | None = None
    text_digest: bytes = b""
    """SHA-256 of `text`, taken where the request is understood: for a large one, not on the event loop."""
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """What a backend may have chosen its answer by (`Vary`), names in lower case; part of no fingerprint."""
    system: str = field(default="", repr=False)
    """The system or developer instructions, for policy's rules; both fingerprints cover them anyway."""
    earlier: tuple[str, ...] = field(default=(), repr=False)
    """The last questions before it in the conversation, at most four."""
    chain: tuple[str, ...] = field(default=(), repr=False)
    """What was said before it, oldest first, user and assistant in turns ("" for one not taken), ending with the
    assistant; empty for a question that stands alone, and where the history must be equal (query/chain.py)."""
    inputs: tuple[str, ...] = field(default=(), repr=False)
    """The distinct texts of a list that is answered input by input, for policy's rules; then `text` is ""."""
    user: str = ""
    """An HMAC of the end user that the body names (hex), for erasure; "" when it names none."""
    common: Common | None = None
    """Where answers may be shared between tenants; None where they never are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """Which category a query belongs to, and how that is known."""

    category: str
    second: str = ""
    """The next best category where the margin is small: searched, too, and the stricter policy of the two applies."""
    source: str = "default"
    """`request` (a header), `rule`, `examples`, `entry` (what the exact tier found tells), `default`, or `unknown`
    (the text could not be embedded: the strictest policy of all applies)."""
    margin: float | None = None
    """Probability of the best category minus that of the second best, where examples decided."""
    scores: tuple[tuple[str, float], ...] = ()
    """The best categories with their probabilities, highest first; "" stands for none of them."""


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

    @property
    def searched(self) -> tuple[str, ...]:
        """The categories whose entries may be served by similarity."""
        return (self.category, *((self.second,) if self.second else ()), *self.nearby)

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

    @property
    def lookup(self) -> bool:
        """Whether any tier may be read."""
        return self.exact or self.semantic


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Where vectors may meet: one category, one scope with its compatibility fingerprint, one encoder epoch."""

    category: str
    compatibility: bytes
    epoch: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """A unit vector of shape (dim,), float32, and a digest of the text the encoder cannot see (b"" for none)."""

    vector: NDArray[np.float32]
    unseen: bytes = b""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry the index proposes; a hint until its document is read."""

    entry_id: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """A question as a verifier reads it: its text, and what was said before it, oldest first.

    `vector` is the encoder's, of shape (dim,), where there is one. `chain` alternates user and assistant and ends with
    the assistant; it is empty for a question that stands alone.
    """

    text: str = field(repr=False)
    vector: NDArray[np.float32] | None = None
    chain: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether the answer of one asking is right for another one, as a verifier sees it.

    `veto` names the rule that forbids it, "" for none. `steps` are (name, value) of each step, for `explain`.
    """

    probability: float
    veto: str = ""
    steps: tuple[tuple[str, float], ...] = ()


ALIAS_TAG = "alias-of:"
"""Begins a tag of every promoted entry; what follows is the id of the entry that gave it its answer."""

COMMON_TAG = "common:"
"""Begins a tag of an entry that may be shared; what follows is `Common.fingerprint` in hex."""

SHARED_TAG = "shared"
"""A tag of every entry that tenants share."""

PRINCIPAL_TAG = "principal:"
"""Begins a tag of a shared entry for each of its principals; what follows is the principal."""

OPERATOR = "operator"
"""Stands among an entry's principals where an operator had it shared."""

PLAIN_STREAM = "plain_stream"
"""The source of a reply without usage that was folded from a stream for which nobody had asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer in canonical form: the dialect's non-stream body, every field kept, in the order it came.

    `source` says whether it was read from a `body`, or folded from a `stream` or a `plain_stream`.
    """

    body: Mapping[str, Any] = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A kept answer with everything a hit must re-check.

    `id` is the hex of the exact fingerprint's first 16 bytes, or, for a further variant of one request, of a digest
    with that variant's headers. `vector` is None when the entry serves the exact tier only.
    """

    id: str
    fingerprint: bytes
    partition: Partition
    tenant: str
    text: str = field(repr=False)
    reply: Reply
    created_s: float
    expires_s: float
    fill_ms: float
    unseen: bytes = b""
    vector: NDArray[np.float32] | None = None
    tags: tuple[str, ...] = ()
    stale_until_s: float = 0.0
    """Until when policy or a caller may have it served past its expiry; before `expires_s` it means never."""
    revalidate_s: float = 0.0
    """The backend's own `stale-while-revalidate`, from its expiry on."""
    on_error_s: float = 0.0
    """The backend's own `stale-if-error`, from its expiry on."""
    vary: tuple[str, ...] = ()
    """Request headers, lower-case and sorted, that the backend chose this answer by."""
    variant: bytes = b""
    """A digest of their values in the request that it answered; b"" without `vary`."""
    namespace: str = ""
    model: str = ""
    """The model that was asked for."""
    user: str = ""
    """`Query.user` of the request that it answered."""
    second: str = ""
    """`Classification.second` of it: switching that category off removes this entry, too."""
    chain: tuple[str, ...] = field(default=(), repr=False)
    """`Query.chain` of it, where it may be found by similarity; `vector` is then of the question in its context."""
    origin: str = "backend"
    """Where its answer is from: `backend`, `promoted` (another entry), `shared` (several tenants' entries) or `warmed`
    (an operator). What model gave it, the answer tells."""
    policy: int = 0
    """The version of the policy it was kept under; 0 where that is not known."""
    principals: tuple[str, ...] = ()
    """Of a shared entry: digests of the tenants whose backend gave this answer, or one that agrees."""

    @property
    def parents(self) -> tuple[str, ...]:
        """The entries that it was made from; the first one gave it its answer."""
        return tuple(tag.removeprefix(ALIAS_TAG) for tag in self.tags if tag.startswith(ALIAS_TAG))

    @property
    def alias_of(self) -> str:
        """The entry whose answer it repeats, since an operator promoted it; "" where the answer is its own."""
        return next((tag.removeprefix(ALIAS_TAG) for tag in self.tags if tag.startswith(ALIAS_TAG)), "")

    @property
    def gone_s(self) -> float:
        """When nobody may be served from it any more, and it may be removed."""
        return max(self.expires_s, self.stale_until_s, self.expires_s + max(self.revalidate_s, self.on_error_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which entries are meant: those for which all that is given holds.

    Empty, it means none where entries are removed, and all where they are listed (`EntryCatalogue`).
    """

    ids: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    """Made of one of these entries."""
    tenant: str = ""
    namespace: str = ""
    category: str = ""
    """Also the second category of an entry."""
    model: str = ""
    tag: str = ""
    user: str = ""
    before_s: float | None = None
    """Created before this moment."""
    text: str = field(default="", repr=False)
    """Words within the question, whatever their case."""

    def __bool__(self) -> bool:
        return bool(
            self.ids or self.parents or self.tenant or self.namespace or self.category or self.model or self.tag
            or self.user or self.before_s is not None or self.text
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one tenant holds of one category."""

    category: str
    tenant: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A category's part of a store. `entries` and `size_bytes` are guaranteed; more is borrowed while nobody needs it.

    A tenant with more than `tenant_share` (0 to 1] of what the category holds gives way first. What the category
    borrows is divided by `priority`: who borrowed most gives back first.
    """

    entries: int
    size_bytes: int
    priority: float = 1.0
    tenant_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """One decision, as it is logged to tell later what another threshold would have done. Never of a bypass."""

    at_s: float
    tenant: str
    namespace: str
    category: str
    model: str
    outcome: str
    """`hit` or `miss`."""
    tier: str
    reason: str
    question: bytes
    """The exact fingerprint (32 bytes)."""
    text: str = field(repr=False)
    """The question, "" where the caller forbade storing."""
    similarity: float | None
    """Of the best candidate that the semantic tier found, served or not; None where it was not asked."""
    threshold: float | None
    """Where `min_probability` is there: only from where on the verifier is asked."""
    entry_id: str
    """That candidate, or the entry served; "" without one."""
    lookup_ms: float
    load: float
    embedding: Embedding | None = None
    compatibility: bytes = b""
    fill_ms: float = 0.0
    """Of a hit: what its answer once took the backend."""
    saved_usd: float = 0.0
    user: str = ""
    """`Query.user` of it, for erasure."""
    chain: tuple[str, ...] = field(default=(), repr=False)
    """`Query.chain` of it, () where the caller forbade storing; `embedding` is then of the question in its context."""
    probability: float | None = None
    """That the best candidate is right, as the verifier sees it; None where it was not asked."""
    min_probability: float | None = None
    """The lowest that is served; None where similarity alone decides."""
    refusal: str = ""
    """Why the best candidate was not served, whatever else made it a miss; "" for a hit, and without a candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether one candidate may be served, and why."""

    candidate: Candidate
    served: bool
    reason: str
    stale: Stale = Stale.NO
    verified: Verification | None = None
    """What the verifier said, where it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What the tiers found: the evidence behind an outcome, shown in headers, metrics and `explain`."""

    similarity: float | None = None
    threshold: float | None = None
    probability: float | None = None
    """That the entry served, or else the most probable one, is right; None where no verifier was asked."""
    judgements: tuple[Judgement, ...] = ()
    lookup_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A stored answer may be served."""

    entry: Entry
    tier: Tier
    category: str
    reason: str
    evidence: Lookup = field(default_factory=Lookup)
    stale: Stale = Stale.NO
    instead_of: Miss | None = None
    """With `Stale.ON_ERROR`: the miss whose forwarding failed."""
    failed_status: int | None = None
    """With `Stale.ON_ERROR`: what the backend answered, or None when it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Nothing may be served: the backend answers, and the answer may be kept."""

    category: str
    reason: str
    evidence: Lookup = field(default_factory=Lookup)
    asked_otherwise: bool = False
    """Whether the same text was asked a moment ago, in the same scope, with other settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """The cache takes no part: nothing is looked up, nothing is stored."""

    category: str
    reason: str


Outcome = Hit | Miss | Bypass
