"""Labels that replicas share: each learns from all of them, once, in the order in which the engine took them.

The newest are kept in a stream, numbers and names of entries only. A replica keeps, with what it learnt, up to where it
has read; its own it skips, since it learnt from them at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

log = structlog.get_logger()

MOST = 20_000
"""About how many labels are kept for replicas that join."""
BEGINNING = "0-0"
_AT_ONCE = 500
_TIMEOUT_S = 5.0
_LABEL = b"label"


class SharedLabel(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a replica tells of a label. New fields go at the end: others may be older, or newer.

    `least` and `delta` are those of the plan that it was labelled under, None for the word of a caller.
    """

    by: str
    verifier: str
    source: str
    tenant: str
    category: str
    entry_id: str
    question: bytes
    probability: float | None
    right: bool
    user: str = ""
    least: float | None = None
    delta: float | None = None


class Labels:
    """The labels of one install; `replica` is this data directory's name, the same after a restart."""

    def __init__(self, link: Link, layout: Layout, replica: str) -> None:
        self._link = link
        self._stream = layout.key("c", "labels")
        self.replica = replica

    async def tell(self, labels: Sequence[SharedLabel]) -> None:
        """Have every replica learn from these. Raises SharedUnavailable."""
        for start in range(0, len(labels), _AT_ONCE):
            some = labels[start : start + _AT_ONCE]
            added = [
                ("XADD", self._stream, "MAXLEN", "~", MOST, "*", _LABEL, msgspec.msgpack.encode(one)) for one in some
            ]
            await self._link.slow_pipe(added, _TIMEOUT_S)

    async def after(self, position: str) -> tuple[list[SharedLabel], str]:
        """Return some labels that were told after a position, and where the last of them stands.

        Raises SharedUnavailable.
        """
        found = await self._link.slow(
            "XRANGE", self._stream, f"({position}", "+", "COUNT", _AT_ONCE, timeout_s=_TIMEOUT_S
        )
        labels = [one for _, fields in found if (one := _label(fields)) is not None]
        return labels, found[-1][0].decode() if found else position

    async def forget(self, meant: Callable[[SharedLabel], bool]) -> int:
        """Remove labels for good; return how many. Raises SharedUnavailable."""
        position, gone = BEGINNING, list[bytes]()
        while True:
            found = await self._link.slow(
                "XRANGE", self._stream, f"({position}", "+", "COUNT", _AT_ONCE, timeout_s=_TIMEOUT_S
            )
            if not found:
                break
            position = found[-1][0].decode()
            gone += [at for at, fields in found if (one := _label(fields)) is not None and meant(one)]
        for start in range(0, len(gone), _AT_ONCE):
            await self._link.slow("XDEL", self._stream, *gone[start : start + _AT_ONCE], timeout_s=_TIMEOUT_S)
        return len(gone)


def _label(fields: Sequence[bytes]) -> SharedLabel | None:
    try:
        return msgspec.msgpack.decode(fields[1], type=SharedLabel)
    except (IndexError, msgspec.MsgspecError):
        return None
