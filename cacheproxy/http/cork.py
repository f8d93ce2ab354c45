"""A transport that hands over at once what one turn of the event loop wrote: head and body in one system call."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_MOST_HELD = 64 * 1024
"""Beyond it bytes go to the transport within the turn, whose flow control then stops the writer."""


class Corked:
    """Wraps a transport. `close` keeps on reading where `gently` says so, so that the caller can read our last words.

    With unread input, closing resets the connection, and many clients then drop the answer they were just given.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, gently: Callable[[], bool]
    ) -> None:
        self.parting = False
        """Whether our side is closed and the caller's is not."""
        self._transport = transport
        self._loop = loop
        self._gently = gently
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold the bytes until the turn ends, or until they are many."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _MOST_HELD:
            self._flush()

    def close(self) -> None:
        """Hand over what is held, then close: our side first, or both when asked again."""
        self._flush()
        if self._transport.is_closing():
            return
        if self._gently() and not self.parting and self._transport.can_write_eof():
            self.parting = True
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what was written and not taken is lost."""
        self._held.clear()
        self._transport.abort()

    def reset(self) -> None:
        """Close at once with a reset (RST): what was written and not taken is lost, and the peer gets an error."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None and not self._transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def is_closing(self) -> bool:
        """Whether nothing more may be written."""
        return self.parting or self._transport.is_closing()

    def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self.is_closing():  # else the peer left within this turn, and uvloop would raise
            self._transport.write(b"".join(held))
