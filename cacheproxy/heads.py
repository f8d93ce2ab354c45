"""Heads: which similarity head serves from the start, and what policies know of those there are."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.embed.headshelf import HeadShelf
from cacheproxy.errors import ConfigError, IndexUnavailable
from cacheproxy.proving import learnt_of

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.headshelf import State
    from cacheproxy.policy.learnt import Learnt
    from cacheproxy.proving import Opens
    from cacheproxy.recoding import Recoding
    from cacheproxy.settings import Encoder

FOLDER = "heads"
_KEY = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What a start found. Without a `serving` head the encoder serves alone."""

    shelf: HeadShelf
    state: State
    serving: Artefact | None
    own: Recoding | None
    """The encoder that serves in the place of the one in use, where it has changed layers; opened."""
    learnt: dict[str, Learnt]


async def open_heads(encoder: Encoder, data_dir: Path, base: str, dim: int, layered: Opens) -> Heads:
    """Find the head that serves over the encoder `base`, whose vectors have `dim` components.

    `layered` opens it where it is one with changed layers.

    Raises ConfigError where that cannot be told.

    One that cannot serve any more (another encoder, a damaged file) is left out with a warning: hits by similarity are
    then told by the encoder alone. So they are where the vectors that an encoder with changed layers made were damaged,
    until they are made again.
    """
    shelf = HeadShelf(data_dir / FOLDER, base, dim, _keys(encoder.head_keys))
    state = await asyncio.to_thread(shelf.state)
    await _only(layered, state.serving, state.adopting)  # what a crash left of those that serve no more
    if not state.serving:
        return _alone(shelf, state)
    try:
        artefact = await asyncio.to_thread(shelf.find, state.serving)
        if artefact.layers and layered.lost:
            return _alone(shelf, state.alone(again=state.serving))
        own = await layered.open(artefact) if artefact.layers else None
    except ConfigError as exc:
        log.warning("head_left_out", reason=exc.message)
        await _only(layered, state.adopting)
        return _alone(shelf, state.alone())
    return Heads(shelf=shelf, state=state, serving=artefact, own=own, learnt={artefact.epoch: learnt_of(artefact)})


def _alone(shelf: HeadShelf, state: State) -> Heads:
    return Heads(shelf=shelf, state=state, serving=None, own=None, learnt={})


async def _only(layered: Opens, *epochs: str | None) -> None:
    """Forget what was made of texts for any other epoch."""
    try:
        await layered.only([epoch for epoch in epochs if epoch])
    except IndexUnavailable as exc:
        log.warning("side_vectors_unreadable", reason=exc.message)


def _keys(told: str) -> list[str]:
    keys = [key.strip().lower() for key in told.split(",")] if told.strip() else []
    if any(not _KEY.fullmatch(key) for key in keys):
        raise ConfigError("encoder.head_keys: every key is 64 hexadecimal digits; separate them by commas")
    return keys
