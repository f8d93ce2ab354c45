"""The shelf of heads: those that this proxy has been given, and which of them serves. Blocks; call it in a thread.

`heads/<digest>/` holds each one as it came; `heads/state.json` says which serves, which one did before, and which one
was being adopted when the proxy stopped, so that the next start goes on with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.embed.headfile import (
    MANIFEST,
    WEIGHTS,
    Artefact,
    Manifest,
    read,
    read_manifest,
    refuse_base,
    refuse_dim,
    unpack,
)
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

STATE = "state.json"
_MOST_KEPT = 16


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
    watched: tuple[int, int] | None = None
    """Labelled hits that were wrong, and all of them, before the one that serves; None where it is not watched."""


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
        """Return what serves. Raises ConfigError where that cannot be told."""
        file = self._folder / STATE
        try:
            return msgspec.json.decode(file.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"{file}: cannot be read ({exc}); delete it to serve with the encoder alone, then promote a head again"
            ) from exc

    def note(self, state: State) -> None:
        """Remember what serves, whole or not at all. Raises ConfigError when the disk refuses."""
        before = state.before
        if len(before) > _MOST_KEPT:  # the encoder alone can always be gone back to
            before = ("", *before[-_MOST_KEPT + 1 :])
        self._write(self._folder / STATE, msgspec.json.encode(msgspec.structs.replace(state, before=before)))

    def checked(self, manifest: Manifest, weights: bytes, where: str) -> Artefact:
        """Return a head that came from outside, checked against its manifest, keys and encoder. Raises ConfigError."""
        artefact = unpack(manifest, weights, where, self._trusted)
        self._refuse_others(artefact, where)
        return artefact

    def put(self, artefact: Artefact, weights: bytes) -> None:
        """Keep a head that was checked. Raises ConfigError when the disk refuses."""
        folder = self._folder / _name(artefact.epoch)
        self._write(folder / WEIGHTS, weights)
        self._write(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(artefact.manifest)))

    def find(self, epoch: str) -> Artefact:
        """Return the head of an epoch, checked again. Raises ConfigError where it is gone or damaged."""
        folder = self._folder / _name(epoch)
        artefact = read(folder, self._trusted)
        self._refuse_others(artefact, str(folder))
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

    def _refuse_others(self, artefact: Artefact, where: str) -> None:
        refuse_base(artefact, self._base, where)
        refuse_dim(artefact, self._dim, where)

    def _write(self, file: Path, content: bytes) -> None:
        draft = file.with_name(f".{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
        except OSError as exc:
            raise ConfigError(
                f"{file}: cannot be written ({exc.strerror}); see the disk of the data directory"
            ) from exc


def _name(epoch: str) -> str:
    return epoch.rpartition("+")[2]
