"""One proxy, assembled: what stands between its parts and whoever listens for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cacheproxy.explain import explain
from cacheproxy.policy.loader import find_pack, load_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.access.keeper import Keeper
    from cacheproxy.explain import ExplainRequest, Explanation
    from cacheproxy.http.edge import Edge
    from cacheproxy.install import Claim
    from cacheproxy.model import Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.policy.pack import Pack
    from cacheproxy.settings import Settings


class HasHealth(Protocol):
    """A part that can say how it is."""

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return time.monotonic()


class ActivePack:
    """The pack in force; each request sees one value of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pack = load_pack(find_pack(name))

    def __call__(self) -> Pack:
        """Return the pack in force."""
        return self._pack

    def reload(self) -> None:
        """Read the pack again; a pack with problems leaves the old one in force. Raises PackError."""
        self._pack = load_pack(find_pack(self._name))


class Readiness:
    """Every part's own word on whether it can serve."""

    def __init__(self, parts: Mapping[str, HasHealth]) -> None:
        self._parts = parts
        self.draining = False

    def __call__(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        state = {name: part.health() for name, part in self._parts.items()}
        state["listener"] = "draining" if self.draining else ""
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One proxy, assembled and ready to be listened to."""

    settings: Settings
    pipeline: Pipeline
    pack: ActivePack
    edge: Edge
    ready: Readiness
    claim: Claim
    identify: Callable[[list[tuple[bytes, bytes]]], Scope]
    """Says whose scope a request with these headers is in."""
    keeper: Keeper | None
    """Of the virtual keys, where callers need one."""

    def readiness(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        return self.ready()

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Show every step of one decision. Raises RequestError."""
        return await explain(self.pipeline, request, self.identify)
