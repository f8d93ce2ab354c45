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


class Trait(StrEnum):
    """What a request holds that limits how it may be cached; the value is the reason a caller reads."""

    TOOLS = "tools"
    IMAGE = "image"
    AUDIO = "audio"
    MANY_CHOICES = "n"
    LOGPROBS = "logprobs"
    RESPONSE_FORMAT = "response_format"
    LAST_MESSAGE = "last_message_not_user"
    NO_TEXT = "no_text"
    MIXED_CONTENT = "mixed_content"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What one request asked of the cache; it can narrow policy, never widen it."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    min_fresh_s: float | None = None
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
    text left out. Both ignore the wire form.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer in canonical form: the dialect's non-stream body, every field kept, in the order it came.

    `source` says whether it was read from a body or folded from a stream.
    """

    body: Mapping[str, Any] = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A kept answer with everything a hit must re-check.

    `id` is the hex of the exact fingerprint's first 16 bytes; `vector` is None when the entry serves the exact tier
    only.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether one candidate may be served, and why."""

    candidate: Candidate
    served: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What the tiers found: the evidence behind an outcome, shown in headers, metrics and `explain`."""

    similarity: float | None = None
    threshold: float | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Nothing may be served: the backend answers, and the answer may be kept."""

    category: str
    reason: str
    evidence: Lookup = field(default_factory=Lookup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """The cache takes no part: nothing is looked up, nothing is stored."""

    category: str
    reason: str


Outcome = Hit | Miss | Bypass
