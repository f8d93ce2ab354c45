"""A cached API's bytes: folded into a Reply, rendered again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cacheproxy.model import Reply, Wire


class Fold(Protocol):
    """Reads an answer's bytes as they pass and folds them into a Reply."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes as the backend sent them; return the bytes that the caller should get for them."""
        ...

    def flush(self) -> bytes:
        """Return bytes held back (an unfinished event); called once, when the body ended, cleanly or not."""
        ...

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was read; of a body that may not be known before its end."""
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
