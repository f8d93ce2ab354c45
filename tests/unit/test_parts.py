"""What is said of parts that fail: the first failure at once, an outage in few lines."""

from __future__ import annotations

import structlog

from cacheproxy.errors import EmbedderUnavailable, StoreUnavailable
from cacheproxy.parts import SAID_AGAIN_S, Failures


def test_an_outage_is_said_at_once_and_then_counted() -> None:
    failures = Failures()
    with structlog.testing.capture_logs() as said:
        for n in range(1000):
            failures.say(StoreUnavailable("away"), 1, n * SAID_AGAIN_S / 500)
        failures.say(EmbedderUnavailable("slow"), 3, 0.0)
    assert [(one["part"], one.get("times")) for one in said] == [("store", None), ("store", 500), ("embedder", 3)]
