"""The entry's side: an answer as it is kept, and who holds how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model.likeness import Partition

ALIAS_TAG = "alias-of:"
"""Begins a tag of every promoted entry; what follows is the id of the entry that gave it its answer."""

COMMON_TAG = "common:"
"""Begins a tag of an entry that may be shared; what follows is `Common.fingerprint` in hex."""

SHARED_TAG = "shared"
"""A tag of every entry that tenants share."""

PRINCIPAL_TAG = "principal:"
"""Begins a tag of a shared entry for each of its principals; what follows is the principal."""

CONSENT_TAG = "consent:train"
"""A tag of every entry whose question its caller lets a model be trained on."""

OPERATOR = "operator"
"""Stands among an entry's principals where an operator had it shared."""

PLAIN_STREAM = "plain_stream"
"""The source of a reply without usage that was folded from a stream for which nobody had asked for it."""


def entry_id(key: bytes) -> str:
    """Return the id of the entry that answers exactly this request: opaque, since its scope is keyed by the install.

    `key` is the request's exact fingerprint, or its variant's key.
    """
    return key[:16].hex()


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

    `id` is `entry_id` of the exact fingerprint, or, for a further variant of one request, of a digest with that
    variant's headers. `vector` is None when the entry serves the exact tier only.
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
