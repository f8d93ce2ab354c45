"""The exchange of labels between replicas: what was labelled here waits to be told, and what others told is learnt."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from cacheproxy.errors import SharedUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cacheproxy.learn.sharedlabels import Labels, SharedLabel

_MOST_UNTOLD = 20_000


class LabelExchange:
    """One replica's. Without the engine what was labelled waits, the newest 20,000 of it."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._untold = _waiting(())
        self._telling = asyncio.Lock()

    @property
    def replica(self) -> str:
        """The name under which its labels are told."""
        return self._labels.replica

    def owe(self, label: SharedLabel) -> None:
        """Have a label told with the next round."""
        self._untold.append(label)

    async def converge(self, position: str, learn: Callable[[Sequence[SharedLabel], str], None]) -> None:
        """Tell what waits, and have others' labels of after `position` learnt: some at a time, with the next position.

        Without the engine nothing happens.
        """
        try:
            await self._tell()
            while True:
                found, reached = await self._labels.after(position)
                if reached == position:
                    return
                position = reached
                learn([one for one in found if one.by != self.replica], position)
        except SharedUnavailable:
            return

    async def forget(self, meant: Callable[[SharedLabel], bool]) -> None:
        """Have labels learnt by nobody any more, be they told, being told or waiting. Raises SharedUnavailable."""
        async with self._telling:
            self._untold = _waiting(one for one in self._untold if not meant(one))
            await self._labels.forget(meant)

    async def _tell(self) -> None:
        async with self._telling:
            telling, self._untold = self._untold, _waiting(())
            try:
                await self._labels.tell(list(telling))
            except BaseException:
                self._untold = _waiting((*telling, *self._untold))
                raise


def _waiting(labels: Iterable[SharedLabel]) -> deque[SharedLabel]:
    return deque(labels, maxlen=_MOST_UNTOLD)
