"""Control: what one replica tells all others beside documents, by topic, on a log of its own.

A message is told once to each replica that follows. Who missed some, or may have, reads the whole state of every topic
again (`reload`) before anything shared is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import CacheProxyError, SharedUnavailable
from cacheproxy.shared.follower import Follower, head
from cacheproxy.shared.topics import PAYLOAD, TOPIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cacheproxy.shared.follower import Message
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link
    from cacheproxy.shared.members import Members

log = structlog.get_logger()


_HEAD_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Topic:
    handle: Callable[[bytes], Awaitable[None]]
    reload: Callable[[], Awaitable[None]]


class Control:
    """The control log: `run` follows it."""

    def __init__(self, link: Link, layout: Layout, members: Members, *, log_messages: int) -> None:
        """Follow nothing yet. The log keeps about `log_messages`."""
        self._link = link
        self._layout = layout
        self._topics: dict[bytes, _Topic] = {}
        self._log = layout.stream("c")
        self._log_messages = log_messages
        self._follower = Follower(link, layout, "c", members, self._handle, self._resync)

    def on(self, topic: str, handle: Callable[[bytes], Awaitable[None]], reload: Callable[[], Awaitable[None]]) -> None:
        """Have a topic's messages handled; `reload` reads its whole state. Topics are read in the order of `on`."""
        self._topics[topic.encode()] = _Topic(handle, reload)

    async def tell(self, topic: str, payload: bytes) -> str:
        """Tell all replicas, this one among them; return the message's id. Raises SharedUnavailable."""
        found = await self._link.call(
            "XADD", self._log, "MAXLEN", "~", self._log_messages, "*", TOPIC, topic, PAYLOAD, payload
        )
        return str(found.decode())

    async def run(self) -> None:
        """Follow the log until cancelled."""
        await self._follower.run()

    async def _handle(self, messages: Sequence[Message]) -> None:
        for message in messages:
            topic = self._topics.get(message.fields.get(TOPIC, b""))
            if topic is None:  # of a newer version: what it means to us is read with the next reload
                continue
            try:
                await topic.handle(message.fields.get(PAYLOAD, b""))
            except CacheProxyError as exc:
                log.warning("control_message_failed", topic=message.fields[TOPIC].decode(), reason=exc.message)

    async def _resync(self, reason: str) -> str:
        """Read every topic's state; return the id to go on from, of before reading. Raises SharedUnavailable."""
        position = await head(self._link, self._layout, "c", _HEAD_TIMEOUT_S)
        log.info("control_reloads", reason=reason)
        for name, topic in self._topics.items():
            try:
                await topic.reload()
            except SharedUnavailable:
                raise
            except CacheProxyError as exc:  # this replica's disk, or a policy it cannot read: the rest goes on
                log.error("control_reload_failed", topic=name.decode(), reason=exc.message)  # noqa: TRY400 - no bug
        return position
