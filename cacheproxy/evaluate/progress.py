"""How far long work is: a bar on a terminal, plain lines elsewhere. Always on stderr: stdout is for results."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINES = 10
"""Plain lines for one piece of work."""


@contextmanager
def progress(label: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of items just done, out of `total`."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda step: bar.advance(task, step)
        return
    yield _PlainLines(label, total, console).advance


class _PlainLines:
    def __init__(self, label: str, total: int, console: Console) -> None:
        self._label = label
        self._total = total
        self._console = console
        self._done = 0

    def advance(self, step: int) -> None:
        """Write a line whenever another tenth is done."""
        before, self._done = self._done * _LINES // self._total, self._done + step
        if self._done * _LINES // self._total > before:
            self._console.print(f"{self._label}: {self._done:,} of {self._total:,}", highlight=False)
