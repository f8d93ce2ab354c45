"""The query's side: who asks, for what, and what was asked of the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


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
    consents: bool = False
    """Whether the caller's virtual key lets a model be trained on what it asks; of no meaning for who shares what."""


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
    augment: bool = True
    """Whether a small model may answer, as far as the caller is concerned."""


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
