"""The shelf of heads: those that this proxy has been given, and which of them serves. Blocks; call it in a thread.

`heads/<digest>/` holds each one as it came; `heads/state.json` says which serves, which one did before, and which one
was being adopted when the proxy stopped, so that the next start goes on with it.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from cacheproxy.datafile import moved_aside
from cacheproxy.embed.headfile import (
    MANIFEST,
    WEIGHTS,
    Artefact,
    Manifest,
    read,
    read_manifest,
    refuse_base,
    refuse_dim,
    refuse_precision,
    unpack,
)
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

STATE = "state.json"
MOST_KEPT = 8
"""Heads that are kept on disk, and how far one can go back: 5 MB, or 110 MB of whole layers."""

_log = structlog.get_logger()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Epochs of heads; "" is the encoder without one."""

    serving: str = ""
    before: tuple[str, ...] = ()
    """Those that served before, the latest last."""
    adopting: str | None = None
    """What is to serve once it is filled; None when nothing is on its way."""
    back: bool = False
    """Whether that is a way back."""
    attempts: int = 0
    """How often it was begun."""
    why: str = ""
    """Why the proxy goes back by itself; "" where an operator asked for what is on its way."""
    watched: tuple[int, int] | None = None
    """Labelled hits that were wrong, and all of them, before the one that serves; None where it is not watched."""

    def adopted(self, watched: tuple[int, int]) -> State:
        """Return the state once what is on its way serves: one further, or back past whatever served since."""
        serving, before = self.adopting or "", self.before
        if not self.back:
            before = (*before, self.serving)
            if len(before) > MOST_KEPT:  # the encoder alone can always be gone back to
                before = ("", *before[1 - MOST_KEPT :])
            return State(serving=serving, before=before, watched=watched)
        return State(serving=serving, before=earlier(before, serving))

    def alone(self, *, again: str | None = None) -> State:
        """Return the state of a start in which the encoder serves alone, since what served cannot.

        `again` is what is to serve once more as soon as it can, unless something else is on its way.
        """
        before = tuple(epoch for epoch in self.before if epoch)
        if self.adopting:
            before = (*before, again) if again else before
            return replace(self, serving="", before=before, watched=None)
        return State(serving="", before=before, adopting=again)


def earlier(before: tuple[str, ...], epoch: str) -> tuple[str, ...]:
    """Return what served before an epoch last did, of those that served before; nothing where it never did."""
    while before and before[-1] != epoch:
        before = before[:-1]
    return before[:-1]


class HeadShelf:
    """Heads over the encoder `base`, which makes vectors of `dim` components.

    `trusted` are public keys; one of them must have signed a head, if there are any.
    """

    def __init__(self, folder: Path, base: str, dim: int, trusted: Collection[str] = ()) -> None:
        self._folder = folder
        self._base = base
        self._dim = dim
        self._trusted = tuple(trusted)

    def state(self) -> State:
        """Return what serves; one that is damaged is renamed, and the encoder serves alone.

        Raises ConfigError where that cannot be told.
        """
        file = self._folder / STATE
        try:
            return msgspec.json.decode(file.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            with _on_disk(file):
                aside = moved_aside(file, time.time())
            _log.error(
                "head_state_set_aside",
                file=str(file),
                moved_to=str(aside),
                reason=str(exc),
                what="the encoder serves alone: promote a head again",
            )
            return State()
        except OSError as exc:
            raise ConfigError(f"{file}: cannot be read ({exc.strerror}); see the disk of the data directory") from exc

    def note(self, state: State) -> None:
        """Remember what serves, whole or not at all. Raises ConfigError when the disk refuses."""
        self._write(self._folder / STATE, msgspec.json.encode(state))

    def checked(self, manifest: Manifest, weights: bytes, where: str) -> Artefact:
        """Return a head that came from outside, checked against its manifest, keys and encoder. Raises ConfigError."""
        self._refuse_others(manifest, where)  # before anything of the size that it claims is made
        return unpack(manifest, weights, where, self._trusted)

    def put(self, artefact: Artefact, weights: bytes) -> None:
        """Keep a head that was checked. Raises ConfigError when the disk refuses."""
        folder = self._folder / _name(artefact.epoch)
        self._write(folder / WEIGHTS, weights)
        self._write(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(artefact.manifest)))

    def find(self, epoch: str) -> Artefact:
        """Return the head of an epoch, checked again. Raises ConfigError where it is gone or damaged."""
        folder = self._folder / _name(epoch)
        self._refuse_others(read_manifest(folder), str(folder))
        artefact = read(folder, self._trusted)
        if artefact.epoch != epoch:
            raise ConfigError(f"{folder}: holds another head than its name says; promote it again")
        return artefact

    def recodes(self, epoch: str) -> bool:
        """Whether adopting an epoch encodes texts: its layers changed. Blocks for a moment."""
        try:
            return bool(epoch) and read_manifest(self._folder / _name(epoch)).mode != "head"
        except ConfigError:
            return False  # whoever adopts it will say what is wrong

    def epochs(self) -> list[str]:
        """Return the epochs of all heads that were put here."""
        return sorted(f"{self._base}+{manifest.parent.name}" for manifest in self._folder.glob(f"*/{MANIFEST}"))

    def prune(self) -> None:
        """Remove heads beyond the newest `MOST_KEPT`, but none that serves, served before or is on its way.

        Where nothing says which those are, all stay. Raises ConfigError when the disk refuses.
        """
        if not (self._folder / STATE).exists():
            return
        state = self.state()
        named = {_name(epoch) for epoch in (state.serving, *state.before, state.adopting or "")}
        with _on_disk(self._folder):
            folders = {file.parent for file in self._folder.glob(f"*/{MANIFEST}")}
            others = sorted((one for one in folders if one.name not in named), key=lambda one: one.stat().st_mtime)
            room = max(1, MOST_KEPT - (len(folders) - len(others)))  # one may have come just now
            for folder in others[:-room]:
                shutil.rmtree(folder)
                _log.info("head_dropped", head=folder.name)

    def _refuse_others(self, manifest: Manifest, where: str) -> None:
        refuse_base(manifest, self._base, where)
        refuse_dim(manifest, self._dim, where)
        refuse_precision(manifest.mode, manifest.base, where)

    def _write(self, file: Path, content: bytes) -> None:
        draft = file.with_name(f".{file.name}")
        with _on_disk(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)


@contextmanager
def _on_disk(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be written ({exc.strerror}); see the disk of the data directory") from exc


def _name(epoch: str) -> str:
    return epoch.rpartition("+")[2]
