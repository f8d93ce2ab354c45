"""One question to many nodes, and the answers that came in time. A node that dies never holds up the others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from cacheproxy.errors import CacheProxyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.app import Message
    from flwr.serverapp import Grid

_SLACK_S = 60.0
"""How long a message outlives the wait for it: the server then drops a reply on its way."""


class RunEnded(CacheProxyError):
    """A run cannot go on: too few nodes, or too few sound replies, for too long."""

    code = "training_ended"


class Clock(Protocol):
    """Time that only moves forward."""

    def now_s(self) -> float:
        """Return seconds since some moment."""
        ...

    def sleep_s(self, seconds: float) -> None:
        """Return so much later."""
        ...


class WallClock:
    """The machine's own."""

    def now_s(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        """Return so much later."""
        time.sleep(seconds)


class Exchange:
    """Talks to nodes over a Flower grid, on deadlines of its own: Flower's would wait for nodes that are gone."""

    def __init__(self, grid: Grid, clock: Clock, poll_s: float) -> None:
        self._grid = grid
        self._clock = clock
        self._poll_s = poll_s

    def nodes(self, least: int, wait_s: float) -> list[int]:
        """Return the nodes that are there, at least so many. Raises RunEnded when they did not come in time."""
        end = self._clock.now_s() + wait_s
        while len(present := sorted(set(self._grid.get_node_ids()))) < least:
            if self._clock.now_s() >= end:
                raise RunEnded(
                    f"{len(present)} of at least {least} nodes were there after {wait_s:g} s; start more with "
                    "`cacheproxy federated join`, or lower --quorum"
                )
            self._clock.sleep_s(self._poll_s)
        return present

    def ask(self, messages: Sequence[Message], deadline_s: float) -> list[Message]:
        """Send messages and return the replies that came until all had, or time is up, or who is missing has left.

        At most one reply for each message, and none to anything else.
        """
        for message in messages:
            message.metadata.ttl = deadline_s + _SLACK_S
        self._grid.push_messages(messages)
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        replies: list[Message] = []
        end = self._clock.now_s() + deadline_s
        while waiting:
            replies += [
                reply
                for reply in self._grid.pull_messages(list(waiting))
                if waiting.pop(reply.metadata.reply_to_message_id, None) is not None
            ]
            if self._clock.now_s() >= end or not set(waiting.values()) & set(self._grid.get_node_ids()):
                break
            self._clock.sleep_s(self._poll_s)
        return replies
