"""Vectors of an operator's texts are kept over restarts by encoder and text; a bad file costs time, nothing else."""

from __future__ import annotations

import sqlite3
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy import settings
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.examples import Examples
from cacheproxy.errors import EmbedderUnavailable
from tests.support.encoders import DIM, Fault, FaultyEncoder, HashEncoder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["What is a monad?", "How do I sort a list?", "Why?"]


class Start:
    """One start of a proxy with an encoder, which counts."""

    def __init__(self, path: Path, encoder: HashEncoder | None = None) -> None:
        self.encoder = encoder or HashEncoder()
        self._path = path

    async def embed(self, texts: list[str]) -> list[tuple[list[float], bytes]]:
        async with MicroBatcher(self.encoder, settings.Encoder(), memo=0) as embedder:
            return [(one.vector.tolist(), one.unseen) for one in await Examples(embedder, self._path)(texts)]

    @property
    def asked(self) -> list[str]:
        return sorted(text for call in self.encoder.calls for text in call)


class OtherEncoder(HashEncoder):
    fingerprint = "hash/trigrams/2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "examples.sqlite3"


def read(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_what_was_embedded_once_is_found_at_the_next_start(path: Path) -> None:
    first, second = Start(path), Start(path)
    embedded = await first.embed(TEXTS)
    assert first.asked == sorted(TEXTS)
    assert (await second.embed([*TEXTS, "More?"]))[:3] == embedded
    assert second.asked == ["More?"]
    assert mode(path) == 0o600


async def test_a_text_longer_than_the_encoder_sees_keeps_its_digest(path: Path) -> None:
    long = ["word " * 2000]
    assert await Start(path).embed(long) == await Start(path).embed(long)
    assert (await Start(path).embed(long))[0][1]


async def test_another_encoder_finds_nothing(path: Path) -> None:
    await Start(path).embed(TEXTS)
    other = Start(path, OtherEncoder())
    await other.embed(TEXTS)
    assert other.asked == sorted(TEXTS)


async def test_the_file_holds_no_texts(path: Path) -> None:
    await Start(path).embed(TEXTS)
    assert not any(text.encode() in read(path) for text in TEXTS)


async def test_texts_that_repeat_are_embedded_once(path: Path) -> None:
    start = Start(path)
    assert len(await start.embed(["Why?"] * 5)) == 5
    assert start.asked == ["Why?"]


def damage(path: Path, how: str) -> None:
    if how == "not a database":
        path.write_bytes(b"x" * 4096)
        return
    blobs = {"cut": b"123", "no unit vector": np.ones(DIM, dtype="<f4").tobytes(), "NaN": b"\xff" * 4 * DIM}
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE embeddings SET vector = ?", (blobs[how],))
    connection.close()


@pytest.mark.parametrize("how", ["not a database", "cut", "no unit vector", "NaN"])
async def test_what_is_damaged_is_embedded_anew(path: Path, how: str) -> None:
    right = await Start(path).embed(TEXTS)
    damage(path, how)
    again = Start(path)
    assert await again.embed(TEXTS) == right
    assert again.asked == sorted(TEXTS)


async def test_an_encoder_that_fails_is_told(path: Path) -> None:
    with pytest.raises(EmbedderUnavailable):
        await Start(path, FaultyEncoder({0: Fault.EXCEPTION})).embed(["Why?"])
