"""The parts: what the line runs through, each behind its port, and what is told when one of them fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from cacheproxy.model import Destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.errors import PartUnavailable
    from cacheproxy.model import Query
    from cacheproxy.ports import (
        Budget,
        Clock,
        Elsewhere,
        Embedder,
        EntryStore,
        Feedback,
        Learning,
        LookupLog,
        PiiGate,
        Sharing,
        SmallModel,
        Upstream,
        VectorIndex,
        Verifier,
    )
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()

SAID_AGAIN_S = 10.0
"""Pause between two lines on the same failure of a part: an outage fails with every request."""


class Failures:
    """What was said of failures lately. Each is said at once, and again after a pause, with how often it was since."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, exc: PartUnavailable, times: int, now_s: float) -> None:
        """Log a failure, `times` alike, at this monotonic time; or count it for the next line on its part."""
        said_s, unsaid = self._said.get(exc.part, (float("-inf"), 0))
        times += unsaid
        if now_s - said_s < SAID_AGAIN_S:
            self._said[exc.part] = said_s, times
            return
        self._said[exc.part] = now_s, 0
        log.warning("part_failed", part=exc.part, reason=exc.message, **({"times": times} if times > 1 else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the line runs through. `embedder` is None when only exact matches are served."""

    store: EntryStore
    index: VectorIndex
    embedder: Embedder | None
    upstream: Upstream
    clock: Clock
    telemetry: Telemetry
    make_room: Callable[[], None]
    """Called after a put that took the store above its caps."""
    feedback: Feedback | None = None
    lookups: LookupLog | None = None
    pii: PiiGate | None = None
    verifier: Verifier | None = None
    budget: Budget | None = None
    learning: Learning | None = None
    sharing: Sharing | None = None
    small: SmallModel | None = None
    """May answer a miss in the place of the model that was asked for, where policy lets it."""
    elsewhere: Elsewhere | None = None
    """Which replica asks the backend, where several share one cache."""
    flight_wait_s: float = 0.0
    """Longest wait for another replica's answer; of a caller who streams `stream_wait_s`."""
    stream_wait_s: float = 0.0
    may_keep: Callable[[str], bool] = field(default=lambda tenant: True)
    """Takes one of the answers that a tenant may have kept a minute; False when there is none left."""
    swamped: Callable[[Query], bool] = field(default=lambda query: False)
    """Whether a miss would be turned away, and only after a wait for its embedding."""
    expect: Callable[[Query], Callable[[bool], None]] = field(default=lambda query: lambda needed: None)
    """Keeps a place at the backend while a question is looked up; what it returns is told whether one is needed."""
    behind: Callable[[], bool] = field(default=lambda: False)
    """Whether texts have waited for the encoder for so long that no more should join them."""
    admit_miss: Callable[[], None] = field(default=lambda: None)
    """Lets a request go on that the exact tier had nothing for. Raises Overloaded."""
    load: Callable[[str], float] = field(default=lambda model: 0.0)
    """How loaded the backend of a model is, 0 to 1."""
    resolve: Callable[[str], Destination] = field(default=lambda model: Destination(model=model))
    """Where requests for a model go."""
    failures: Failures = field(default_factory=Failures)

    @property
    def epoch(self) -> str | None:
        """The epoch whose similarities decide now, the encoder's or a head's; None without an encoder."""
        return self.index.epoch if self.embedder else None

    def failed(self, exc: PartUnavailable, times: int = 1) -> str:
        """Count a part's failure, or several that are alike; return the reason that a caller reads."""
        self.telemetry.part_failures.labels(exc.part).inc(times)
        self.failures.say(exc, times, self.clock.monotonic())
        return f"{exc.part}_unavailable"

    def count_violation(self, reason: str) -> None:
        """Count a refusal if its reason is that a document of another scope was proposed."""
        if reason == "scope_violation":
            self.telemetry.scope_violations.inc()
            log.error("scope_violated", what="a document of another scope was proposed and refused")
