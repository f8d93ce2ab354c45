"""Processes that end with the command that started them, whatever ends it, and all that they started themselves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

_GRACE_S = 8.0
_POLL_S = 0.1
_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1
# Looked up here, since little may be done between fork and exec of a process with threads.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Child:
    """A process in a group of its own; its output goes to a file. Use it as a context manager."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._command = list(command)
        self._env = dict(env)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        """Start it. Raises ConfigError where the program is not there."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent if _PRCTL is not None else None,
                )
        except OSError as exc:
            raise ConfigError(f"{self._command[0]}: cannot be started ({exc.strerror}); is Flower installed?") from exc
        return self

    def __exit__(self, *exc: object) -> None:
        """End it and all its descendants: by asking, then by force."""
        process = self._process
        if process is None:
            return
        family: dict[int, int] = {}
        try:
            family |= descendants(process.pid)
            _signal_all([-process.pid], signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            # Whoever asks twice to end does not want to wait; nothing may stay for that.
            # Some put themselves into sessions of their own, and some are started while others end.
            family |= descendants(process.pid)
            # A number may have gone to a process that is none of ours.
            left = [pid for pid, began in family.items() if (_stat(Path(f"/proc/{pid}/stat")) or (0, 0))[1] == began]
            _signal_all([-process.pid, *left], signal.SIGKILL)
            process.wait()

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, None while it runs."""
        assert self._process is not None, "not started"
        return self._process.poll()

    def tail(self) -> str:
        """Return the last lines of its output."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL_LINES:])


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM, SIGHUP and SIGINT end this process as an exit does: what it started is ended first.

    SIGINT, too, where whoever started this process in the background had it ignored.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def descendants(pid: int) -> dict[int, int]:
    """Return the processes that a process started, and theirs, with when each began; none where there is no /proc."""
    children: dict[int, list[tuple[int, int]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        if told := _stat(stat):
            parent, began = told
            children.setdefault(parent, []).append((int(stat.parent.name), began))
    found: dict[int, int] = {}
    todo = [pid]
    while todo:
        fresh = [(child, began) for child, began in children.get(todo.pop(), ()) if child not in found]
        found |= fresh
        todo += [child for child, _ in fresh]
    return found


def _stat(file: Path) -> tuple[int, int] | None:
    """Return a process's parent and when it began, in the kernel's ticks; None when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name in parentheses may hold anything.
        fields = file.read_text().rpartition(")")[2].split()
        return int(fields[1]), int(fields[19])
    return None


def wait_until(ready: Callable[[], bool], child: Child, seconds: float, what: str) -> None:
    """Return when `ready()` is true. Raises ConfigError with the end of the child's log where it never is."""
    end = time.monotonic() + seconds
    while not ready():
        if child.ended is not None:
            raise ConfigError(f"{what} ended at once (exit code {child.ended}); {child.log} ends with:\n{child.tail()}")
        if time.monotonic() > end:
            raise ConfigError(f"{what} was not ready after {seconds:g} s; see {child.log}")
        time.sleep(_POLL_S)


def _signal_all(targets: Sequence[int], number: signal.Signals) -> None:
    for target in targets:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target, number)


def _end_with_parent() -> None:
    """Have the kernel end this process when the command is killed, which can clean up nothing then."""
    assert _PRCTL is not None, "asked for on Linux alone"
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
