"""The Protocols behind which everything stands that can block, fail or be swapped.

Every implementation passes the Protocol's contract suite in tests/contract. A failing part raises its `PartUnavailable`
leaf; the pipeline turns that into a miss. Cancelling any awaited call is safe and leaves the part usable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import (
        Asking,
        Candidate,
        Embedding,
        Entry,
        Hit,
        Holding,
        Looked,
        Lookup,
        Miss,
        Partition,
        Plan,
        Query,
        Reply,
        Selector,
        Verification,
        Wire,
    )
    from cacheproxy.settings import Secret


class Embedder(Protocol):
    """Texts to unit vectors."""

    @property
    def epoch(self) -> str:
        """The encoder's fingerprint: vectors of different epochs are never compared."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    async def embed(self, text: str, *, scope: str = "") -> Embedding:
        """Embed one text of any length.

        Work on equal texts may be shared between calls of one `scope` (a tenant) and never beyond: the time saved would
        tell.

        Raises EmbedderUnavailable when the queue is full, the deadline passes or the encoder fails or yields a vector
        that is not finite, not of unit norm or not of `dim`. A failure of one batch fails all of its waiters and no
        other.
        """
        ...

    def drop(self, text: str, *, scope: str = "") -> None:
        """Forget the embedding of one text, if it is remembered for this scope: it was of what is never cached."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class VectorIndex(Protocol):
    """Nearest neighbours inside one partition. A hint: what it returns may be stale, the document is checked again."""

    async def search(self, partition: Partition, vector: NDArray[np.float32], k: int) -> list[Candidate]:
        """Return at most `k` candidates, closest first; none for an unknown partition.

        Raises IndexUnavailable for a vector of wrong dtype, shape, norm or with a non-finite value.
        """
        ...

    def add(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Make an entry findable at once, replacing an entry of the same id. Never blocks. Raises as `search`."""
        ...

    def remove(self, entry_ids: Collection[str]) -> None:
        """Forget entries; unknown ids are ignored. No later search returns them. Never blocks."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...

    def __len__(self) -> int:
        """Count live entries over all partitions."""
        ...


class Verifier(Protocol):
    """The second factor of similarity hits: whether the answer of one question may be served to another."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        ...

    def covers(self, epoch: str) -> bool:
        """Whether it was calibrated for similarities of this encoder epoch; otherwise it is not asked."""
        ...

    async def verify(self, asked: Asking, kept: Sequence[tuple[Asking, float]]) -> list[Verification]:
        """Return a verification for each kept asking, given with its similarity, in the same order.

        What no verdict can be given on within the time has probability 0. Raises VerifierUnavailable.
        """
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class EntryStore(Protocol):
    """Documents by id: the commit point of every hit."""

    @property
    def fence(self) -> int:
        """A number that every purge raises, also over restarts; a fill takes it along when it begins."""
        ...

    @property
    def over_cap(self) -> bool:
        """Whether `sweep` has something to do about the size caps; puts far above them are refused."""
        ...

    async def get(self, entry_id: str) -> Entry | None:
        """Return the entry, or None when it is missing, gone or fails its checksum (then also dropped and counted).

        An entry past its expiry is returned until it is gone (`Entry.gone_s`): whoever serves it judges its freshness.

        Raises StoreUnavailable.
        """
        ...

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry, replacing one of the same id; return once a crash of this process cannot lose it.

        Returns False, keeping nothing, when this id was purged since the fence was `fence`: the fill began before. What
        began before a restart, or so long ago that its purges are no longer remembered, is refused whatever its id.
        Raises StoreUnavailable.
        """
        ...

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries for good, raise the fence, return how many were there. Raises StoreUnavailable.

        Fills of these ids that have begun are refused, also when this fails; fills of all others are not touched.
        """
        ...

    async def sweep(self) -> list[str]:
        """Remove entries that are gone, then, above the size caps, what policy says is to go; return the ids removed.

        Bounded work per call: call again while it returns ids. Raises StoreUnavailable.
        """
        ...

    def scan(self, epoch: str) -> AsyncIterator[tuple[Partition, str, NDArray[np.float32]]]:
        """Yield (partition, id, vector) of each live entry of an epoch, in no order, to rebuild an index."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some entries, oldest row first; `after` continues the listing, None at its end."""

    entries: tuple[Entry, ...]
    after: int | None


class EntryCatalogue(Protocol):
    """The same store, seen by operators: what it holds, and what of it must go."""

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return up to `limit` entries that are meant and not gone; an empty selector lists all.

        Bounded work per call: a page may hold fewer, or none, and still have an `after`. Raises StoreUnavailable.
        """
        ...

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant, for good, and return their ids. Raises StoreUnavailable.

        An empty selector removes nothing. Fills of any entry that have begun are refused from the call on; nothing of
        what was removed can be read from the file afterwards, unless `scrub` is off, which spares rewriting the file:
        then traces may be left in free parts of it. A dry run only tells the ids.
        """
        ...

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category; cheap enough to be asked every few seconds."""
        ...


class Feedback(Protocol):
    """What callers said of served answers; everything here is in memory and at once."""

    def quarantined(self, entry: Entry, question: bytes) -> bool:
        """Whether a caller said that this entry is no answer to this question (an exact fingerprint, 32 bytes).

        For the entry's own question that holds of answers older than the word; for any other, of all.
        """
        ...

    def served(self, response_id: str, query: Query, entry: Entry, evidence: Lookup) -> None:
        """Remember that a question was answered from an entry; without a similarity in `evidence` it was its own."""
        ...

    def kept(self, response_id: str, query: Query, entry: Entry) -> None:
        """Remember that the backend's answer of this id became an entry."""
        ...


class LookupLog(Protocol):
    """What was decided, kept in memory to tell later what another threshold would have done."""

    def note(self, looked: Looked) -> None:
        """Take one decision into account, at once. Never raises."""
        ...

    def filled(self, category: str, model: str, fill_ms: float) -> None:
        """Take into account how long the backend took to answer a miss. Never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of a miss: the answer that was kept, or None, and the decision as it was logged."""

    query: Query
    plan: Plan
    miss: Miss
    reply: Reply | None
    call: Call
    looked: Looked | None = None


class Budget(Protocol):
    """What the labels of a category leave to be risked; everything here is in memory and at once."""

    def allows(self, plan: Plan, entry_id: str, verified: Verification) -> bool:
        """Whether an entry may be served, as far as the error budget goes. Never raises."""
        ...

    def least(self, plan: Plan) -> float:
        """Return the lowest probability that is served of an entry without labels. Never raises."""
        ...

    def saw(self, plan: Plan, verified: Verification) -> None:
        """Count a candidate that was verified without a veto: decisions to come are planned by such. Never raises."""
        ...


class Learning(Protocol):
    """Finds out, beside the answers, whether what was served was right. Nothing here waits or raises."""

    def draws(self, query: Query, plan: Plan, hit: Hit) -> bool:
        """Whether this hit is one of those to be compared with a fresh answer."""
        ...

    def fetch(self, query: Query, plan: Plan, hit: Hit, call: Call, dialect: Dialect) -> None:
        """Have the backend answer this hit's question, with its caller's own credentials, and compare both answers."""
        ...

    def answered(self, answered: Answered) -> None:
        """Compare the backend's answer with that of the candidate that was refused, where there is one to learn of."""
        ...

    async def approves(self, query: Query, plan: Plan, miss: Miss, call: Call) -> str:
        """Return the entry of the grey zone that a judge finds right for the question, "" for none, within a deadline.

        Never raises: no word is no approval.
        """
        ...


class Sharing(Protocol):
    """Lets an answer that several tenants got be served to others. Nothing here waits or raises."""

    def kept(self, query: Query, plan: Plan, entry: Entry) -> None:
        """Take note of an answer that was just kept."""
        ...


class PiiGate(Protocol):
    """Looks for personal data."""

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        """Return which of these kinds occur in any string within `texts` (a JSON value). Raises PiiUnavailable."""
        ...


class Clock(Protocol):
    """Time, passed in so that decisions can be tested."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        ...


HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection (RFC 9110 section 7.6.1, and older customs): never in a Call or an Answer."""

OWN_PREFIX = "x-cacheproxy-"
"""Only this proxy speaks under this name: requests for it stop here, and a backend's headers of it are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to the backend. `target` is the origin-form path with its query; `headers` are end-to-end only.

    With `max_answer_bytes` the answer is asked for uncompressed, decoded if it is not, and capped (event streams are
    capped only once decoded); None passes whatever comes through. `model` and `tenant` say who asks for what, "" when
    that is not known. A `repeatable` call may be sent again when it failed before the first byte of an
    answer; one that may go `elsewhere` only to another backend, or where its connection was closed unanswered.
    `plain_body` is the caller's own body where `body` asks for more.

    A call made with a virtual key holds none of the caller's credentials: the backend's own key goes with it, or for
    the default backend (`upstream.url`) and no other the caller's `upstream_key`. `charge` is told the tokens of the
    answer once it has ended.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes | AsyncIterator[bytes] = field(repr=False)
    plain_body: bytes | None = field(default=None, repr=False)
    max_answer_bytes: int | None = None
    model: str = ""
    tenant: str = ""
    repeatable: bool = False
    elsewhere: bool = False
    upstream_key: Secret | None = field(default=None, repr=False)
    charge: Callable[[int], None] | None = field(default=None, repr=False)


class Answer(Protocol):
    """A backend's answer whose head has arrived. Leaving its `async with` block early cancels the exchange."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """End-to-end headers, in order, repeated names kept."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises UpstreamBroken on an early end, UpstreamTimeout past a deadline.

        Where only the end of the connection marks the end of the body, what the body is must tell a cut from an end.
        """
        ...

    async def __aenter__(self) -> Answer:
        """Enter."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Release the connection, closing it when the body was not read to its end."""
        ...


class Upstream(Protocol):
    """A backend that speaks OpenAI's API."""

    async def send(self, call: Call) -> Answer:
        """Send and wait for the head of the answer. Never follows a redirect.

        Raises UpstreamUnreachable, UpstreamTimeout (first byte), UpstreamBusy, UpstreamBroken (a redirect too), and
        InvalidRequest, before anything is sent, for a target or a header that HTTP cannot carry.
        """
        ...


class Fold(Protocol):
    """Reads an answer's bytes as they pass and folds them into a Reply."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes as the backend sent them; return the bytes that the caller should get for them."""
        ...

    def flush(self) -> bytes:
        """Return bytes held back (an unfinished event); called once, when the body ended, cleanly or not."""
        ...

    def reply(self) -> Reply | str:
        """Return the whole reply after a clean end, or the reason why these bytes may not be kept."""
        ...


class Dialect(Protocol):
    """One cached API: how its bytes become a Reply and a Reply becomes bytes."""

    name: str

    def request(self, body: Mapping[str, object], wire: Wire) -> bytes | None:
        """Return the body to send upstream, or None when the caller's own bytes serve."""
        ...

    def fold(self, wire: Wire, headers: Iterable[tuple[str, str]], *, altered: bool = True) -> Fold:
        """Start reading an answer with these headers, for a caller that wants `wire`.

        `altered` says whether it is an answer to what `request` returned, if anything, or to the caller's own bytes.
        """
        ...

    def render(self, reply: Reply, wire: Wire, *, tail: str, now_s: float) -> tuple[bytes, bytes]:
        """Return content type and bytes of a kept reply: a new id (ending in `tail`) and time, all else as it came."""
        ...
