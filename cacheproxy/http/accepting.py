"""Accepting connections: all that wait, as many as fit in a few milliseconds, in one turn of the event loop.

uvloop's own servers take one or two connections of a listening socket in each turn. Turns are long while much is asked,
so a crowd of new connections would wait for many of them in the kernel's queue, if only to be told to go.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_MOST_A_TURN = 128
"""Connections taken before others have their turn: some milliseconds of work."""
_FEWEST_A_TURN = 16
"""Also where there is no room for any: they are told so, and closed again."""
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What is wrong with the system; all else is of one connection."""
_PAUSE_S = 1.0
"""Before the next try where the system has no file or memory left for a connection."""

log = structlog.get_logger()


class Acceptor:
    """Takes connections of one listening socket until it is closed. It is what uvicorn takes for a server."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], room: Callable[[], int]
    ) -> None:
        """Begin at once; `protocol` makes the protocol of a new connection, `room` tells how many more are welcome.

        Those that are not would take the files that others need, if only until they are closed.
        """
        self._listening = listening
        self._protocol = protocol
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._paused: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._begin()

    def close(self) -> None:
        """Take no more; those that were taken go on."""
        self._loop.remove_reader(self._listening)
        if self._paused is not None:
            self._paused.cancel()

    async def wait_closed(self) -> None:
        """Wait until those that were taken last have their protocol."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _begin(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(max(_FEWEST_A_TURN, min(_MOST_A_TURN, self._room() - len(self._opening)))):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno not in _FULL:  # whoever it was has gone already
                    continue
                # It would fail in each turn until something is closed.
                log.error("connections_not_taken", reason=exc.strerror, again_in_s=_PAUSE_S)  # noqa: TRY400 - says all
                self._loop.remove_reader(self._listening)
                self._paused = self._loop.call_later(_PAUSE_S, self._begin)
                return
            connection.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as exc:  # it went before it was open
            log.debug("connection_lost", reason=exc.strerror)
            connection.close()
