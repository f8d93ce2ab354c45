"""Erasures that have begun: what they mean is served to nobody, from the first moment to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.store.selection import meaning

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.model import Entry, Selector
    from cacheproxy.store.meta import Meta

RETRY_S = 30.0
"""Between attempts at what failed: each may read and write the whole file."""


class Erasures:
    """What is being erased, what failed and is `owed`, and whether free parts of the file are still to be scrubbed."""

    def __init__(self, *, unscrubbed: bool = False) -> None:
        self.unscrubbed = unscrubbed
        self._hidden: list[tuple[Selector, Callable[[Entry | Meta], bool]]] = []
        self._owed: list[Selector] = []
        self._tried_s: float | None = None

    def begin(self, selector: Selector) -> None:
        """Hide what is meant."""
        self._hidden.append((selector, meaning(selector)))

    def end(self, selector: Selector) -> None:
        """Hide it no longer: it is gone."""
        at = [hidden for hidden, _ in self._hidden].index(selector)
        del self._hidden[at]

    def owe(self, selector: Selector, now_s: float) -> None:
        """Go on hiding what could not be removed at this monotonic time, to be tried again later."""
        self._owed.append(selector)
        self._tried_s = now_s

    def take_due(self, now_s: float) -> Selector | None:
        """Return one that is to be tried again now, hidden as before; it is no longer owed."""
        if not self._owed or not self._due(now_s):
            return None
        return self._owed.pop(0)

    def scrub_due(self, now_s: float) -> bool:
        """Whether to scrub again what could not be scrubbed."""
        return self.unscrubbed and self._due(now_s)

    def tried(self, now_s: float) -> None:
        """Note an attempt."""
        self._tried_s = now_s

    def hide(self, entry: Entry | Meta) -> bool:
        """Whether an entry is meant by any of them."""
        return any(means(entry) for _, means in self._hidden)

    def _due(self, now_s: float) -> bool:
        return self._tried_s is None or now_s - self._tried_s >= RETRY_S
