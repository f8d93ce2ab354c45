"""Relay: an answer on its way from a backend to its flight, folded beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.flight import Flight, Head
    from cacheproxy.ports import Fold

F = TypeVar("F", bound="Fold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed(Generic[F]):
    """An answer of a backend that was passed on up to its clean end. `fill_ms` is how long it took."""

    head: Head
    fold: F
    fill_ms: float


async def pass_on(chunks: AsyncIterator[bytes], fold: Fold, flight: Flight) -> None:
    """Pass what is left of a body on to its end. Raises UpstreamError where it breaks off.

    Whoever reads a stream gets all of it before anything is done with what was read of it. Until its end no turn is
    waited: bytes that came before a cut might be lost in the meantime.
    """
    try:
        async for chunk in chunks:
            await flight.write(fold.feed(chunk))
    finally:
        flight.append(fold.flush())
    flight.end()
    if flight.streams:
        await flight.let_readers_go_first()
