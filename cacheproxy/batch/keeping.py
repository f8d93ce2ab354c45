"""What is being kept right now: who asks for it a moment after its answer need not ask the backend again."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cacheproxy.flight import Flight


class Keeping:
    """The flights that inputs are being asked for in, by fingerprint; of several the latest."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}

    @contextmanager
    def during(self, flight: Flight, fingerprints: Iterable[bytes]) -> Iterator[None]:
        """Hold these inputs for a flight: while it is in the air, and until its answer is kept."""
        held = dict.fromkeys(fingerprints, flight)
        self._flights.update(held)
        try:
            yield
        finally:
            for fingerprint in held:
                if self._flights.get(fingerprint) is flight:
                    del self._flights[fingerprint]

    async def kept(self, fingerprints: Iterable[bytes], timeout_s: float) -> None:
        """Wait, at most `timeout_s`, until the answers for these inputs that have come to their end are kept."""
        flights = {self._flights[one] for one in fingerprints if one in self._flights}
        tasks = {flight.task for flight in flights if flight.ended and flight.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
