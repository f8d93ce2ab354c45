"""The decision's side: what was looked at, what may be served, and why; every outcome carries its evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.model.entry import Entry
    from cacheproxy.model.likeness import Candidate, Embedding, Verification
    from cacheproxy.model.query import Tier


class Stale(StrEnum):
    """Why an entry is served past its freshness; the value is told in `Cache-Status`."""

    NO = ""
    ASKED = "max-stale"
    """The caller takes stale answers."""
    REVALIDATING = "swr"
    """A newer answer is being fetched meanwhile (RFC 5861 section 3)."""
    ON_ERROR = "stale-if-error"
    """The backend failed (RFC 5861 section 4)."""


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
    untaught: str = "unknown"
    """Why no model may be trained on the question, as `policy.teach.untaught` says; "" where one may."""
    epoch: str = ""
    """Whose similarities these are: `Plan.epoch` of it; "" where that is not known."""


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
class Offload:
    """How the small model came to answer: by which arm, with which past answers as examples, and why that arm."""

    arm: str
    """`augmented` or `small`."""
    examples: tuple[str, ...]
    """Entry ids, in the order in which they were told."""
    reason: str
    model: str
    """The small model's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment(Miss):
    """A miss that the small model answers in place of the one that was asked for."""

    by: Offload


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """The cache takes no part: nothing is looked up, nothing is stored."""

    category: str
    reason: str


Outcome = Hit | Miss | Bypass
