"""Who answers what is not kept: one request to a backend, its answer, and the small model that may be asked first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheproxy.settings import Secret


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


class TokenCounter(Protocol):
    """Says how many tokens a text takes. Never fails, whatever the text; never awaits."""

    def count(self, text: str) -> int:
        """Return how many tokens a text takes, template and special tokens apart."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """A small, cheap model that may answer a miss in the large one's place, told by examples how.

    `upstream` is sent calls for `model`, and sends no key of a caller. It raises as `Upstream.send`, UpstreamBusy at
    once while the model is out; whatever it raises means that the large model answers.
    """

    upstream: Upstream
    model: str
    """The name that a request's body gives."""
    context_tokens: int
    """What prompt and answer have together."""
    form: Literal["block", "turns"]
    """How examples are told to it."""
    counter: TokenCounter
    first_words_s: float = 10.0
    """Longest wait for the first words of a streamed answer; then the large model answers."""
    whole_answer_s: float = 20.0
    """Longest wait for the whole of another answer; then the large model answers."""
