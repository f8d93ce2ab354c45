"""What a run leaves on disk after every round, and what it goes on from: artefacts that a proxy would take as well."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cacheproxy.embed import headfile
from cacheproxy.errors import ConfigError
from cacheproxy.federation.tale import PROGRESS

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from cacheproxy.embed.head import Head
    from cacheproxy.embed.headfile import Artefact, Manifest
    from cacheproxy.embed.layers import Layers
    from cacheproxy_federated.course import Course

RELEASE = "asked_to_train"
"""The line of progress for every time that nodes are asked for an update, also in vain."""
COUNTED = "asked_to_count"
"""The same of noisy counts."""
FINAL, COURSE = "final", "course.json"
_FROM = "from"
_MEMORY = "server.safetensors"
_ROUND = re.compile(r"round-(\d{4,})")


class _Line(msgspec.Struct):
    event: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Left:
    """Where an interrupted run was: its last whole round."""

    artefact: Artefact
    memory: dict[str, NDArray[np.float64]]


class Folder:
    """The folder of one run: `round-0001/` and so on, `final/`, and a line of progress for each step."""

    def __init__(self, root: Path, key: Ed25519PrivateKey | None = None) -> None:
        self._root = root
        self._key = key

    def begin(self, course: Course, start: str = "", *, resume: bool) -> None:
        """Make the folder; `start` is the epoch of the head that the run goes on from, "" for none.

        Raises ConfigError where it holds another run, or the run to go on with was another one.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        settings = msgspec.to_builtins(course) | ({_FROM: start} if start else {})
        told = msgspec.json.format(msgspec.json.encode(settings, order="sorted"))
        kept = self._root / COURSE
        if self._rounds() and not resume:
            raise ConfigError(f"{self._root}: holds a run already; go on with it (--resume), or name another folder")
        if resume and kept.exists() and not _may_go_on(kept.read_bytes(), told):
            raise ConfigError(
                f"{kept}: the run was begun with other settings; give the same ones (only --rounds and waits may "
                "change, --from may not), or name another folder"
            )
        draft = self._root / f".{COURSE}"
        draft.write_bytes(told)
        draft.replace(kept)

    def kept(
        self, number: int, head: Head | Layers, manifest: Manifest, memory: dict[str, NDArray[np.float64]]
    ) -> Artefact:
        """Write one round; the manifest comes last, so that a round is there whole or not at all."""
        folder = self._root / f"round-{number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        if memory:
            draft = folder / f".{_MEMORY}"
            draft.write_bytes(save(memory))
            draft.replace(folder / _MEMORY)
        return headfile.write(folder, head, manifest, self._key)

    def finish(self, head: Head | Layers, manifest: Manifest) -> Artefact:
        """Write the head that the run is for."""
        return headfile.write(self._root / FINAL, head, manifest, self._key)

    def last(self, base: str) -> Left | None:
        """Return the last whole round, None where there is none. Raises ConfigError for one that is damaged."""
        for folder in reversed(self._rounds()):
            if not (folder / headfile.MANIFEST).exists():
                continue
            artefact = headfile.read(folder)
            headfile.refuse_base(artefact.manifest, base, str(folder))
            return Left(artefact=artefact, memory=_memory(folder / _MEMORY))
        return None

    def releases(self, event: str) -> int:
        """Return how often a node may have answered such a question in this run, interruptions and retries included."""
        with (self._root / PROGRESS).open("rb") as file:
            return sum(msgspec.json.decode(line, type=_Line).event == event for line in file)

    def say(self, event: str, **fields: object) -> None:
        """Append a line of progress."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / PROGRESS).open("ab") as file:
            file.write(msgspec.json.encode({"event": event, **fields}) + b"\n")

    def _rounds(self) -> list[Path]:
        found = [path for path in self._root.glob("round-*") if _ROUND.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("round-")))


def _memory(file: Path) -> dict[str, NDArray[np.float64]]:
    if not file.exists():
        return {}
    try:
        return {name: np.asarray(array, dtype=np.float64) for name, array in load(file.read_bytes()).items()}
    except (SafetensorError, OSError, ValueError) as exc:
        raise ConfigError(
            f"{file}: cannot be read ({exc}); remove that round's folder and resume from the one before"
        ) from exc


def _may_go_on(before: bytes, now: bytes) -> bool:
    """Whether two courses differ in nothing that makes the head."""
    free = {"rounds", "deadline-s", "wait-s", "poll-s", "retries", "first"}
    try:
        one, other = (msgspec.json.decode(told, type=dict[str, object]) for told in (before, now))
    except msgspec.DecodeError:
        return False
    return all(one.get(key) == other.get(key) for key in (one.keys() | other.keys()) - free)
