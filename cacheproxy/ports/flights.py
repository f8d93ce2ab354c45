"""Flights across replicas, as the line sees them."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Turn(Enum):
    """What a replica does about a miss."""

    LEAD = "lead"
    """It asks the backend, and must `release` its lease."""
    ALONE = "alone"
    """It asks without a lease: the answer cannot be kept, takes too long, or nobody can be asked."""
    LOOK = "look"
    """Another replica is done: what it kept may be there."""


class Elsewhere(Protocol):
    """Which replica asks the backend. Nothing of it ever fails: without the engine everybody is alone, at once."""

    async def turn(self, key: bytes, wait_s: float) -> Turn:
        """Lead, or wait up to `wait_s` for whoever leads the flight of this key, which holds its scope."""
        ...

    async def release(self, key: bytes, *, kept: bool) -> None:
        """Give a lease back; unless something was `kept`, those who wait go on alone."""
        ...
