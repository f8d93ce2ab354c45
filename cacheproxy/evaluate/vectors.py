"""Embed each distinct text once, and remember it on disk for the next run with the same encoder."""

from __future__ import annotations

import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from cacheproxy.evaluate.progress import progress
from cacheproxy.model import Embedding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.policy.prepare import Encode

log = structlog.get_logger()

_BATCH = 64
"""Most texts a call of the encoder: enough to fill it, and few enough for a lively progress bar."""
_SHARD = 8192
"""Texts a cache file: what an interrupted run can lose."""
_KEY_BYTES = 16


class TextEncoder(Protocol):
    """An encoder that runs in the calling thread."""

    @property
    def fingerprint(self) -> str:
        """The epoch of its vectors."""
        ...

    @property
    def max_batch(self) -> int:
        """Most texts that one call should carry."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], Sequence[bytes]]:
        """Return unit vectors of shape (n, dim) and a digest each of the text not seen (b"" when all was).

        Several threads may call at once.
        """
        ...


def embed_texts(texts: Iterable[str], encoder: TextEncoder, cache_dir: Path | None) -> Mapping[str, Embedding]:
    """Return the embedding of every text.

    With `cache_dir`, vectors are read from there and kept there under the encoder's fingerprint and the text's digest;
    no text is written. Raises what the encoder raises; a cache that cannot be read or written costs time only.
    """
    keys = {_key(text): text for text in texts}
    cache = VectorCache(cache_dir, encoder.fingerprint) if cache_dir is not None else None
    known = cache.load(keys.keys()) if cache is not None else {}
    # Texts of like length share a batch, so that little of it is padding.
    missing = sorted((key for key in keys if key not in known), key=lambda key: (len(keys[key]), keys[key]))
    if missing:
        with progress("embedding", len(missing)) as advance:
            for start in range(0, len(missing), _SHARD):
                shard = missing[start : start + _SHARD]
                fresh: dict[bytes, Embedding] = {}
                for embeddings in _encode([keys[key] for key in shard], encoder):
                    fresh.update(zip(shard[len(fresh) :], embeddings, strict=False))
                    advance(len(embeddings))
                known.update(fresh)
                if cache is not None:
                    cache.add(fresh)
    return {text: known[key] for key, text in keys.items()}


def remembering(encoder: TextEncoder, cache_dir: Path | None) -> Encode:
    """Return a function that embeds many texts as `embed_texts` does."""

    def encode(texts: Sequence[str]) -> tuple[NDArray[np.float32], Sequence[bytes]]:
        seen = embed_texts(texts, encoder, cache_dir)
        return np.stack([seen[text].vector for text in texts]), [seen[text].unseen for text in texts]

    return encode


class VectorCache:
    """One encoder's vectors as numpy archives without pickle. Processes may share it; a damaged file is skipped."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._directory = directory / hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest()

    def load(self, wanted: Iterable[bytes]) -> dict[bytes, Embedding]:
        """Return what is kept of the wanted keys."""
        wanted = set(wanted)
        found: dict[bytes, Embedding] = {}
        for file in sorted(self._directory.glob("*.npz")):
            try:
                found.update(self._read(file, wanted))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
                log.warning("vector_cache_skipped", file=file.name, error=type(exc).__name__)
        return found

    def add(self, fresh: Mapping[bytes, Embedding]) -> None:
        """Keep new vectors in a file of their own, whole or not at all."""
        keys = np.array([list(key) for key in fresh], dtype=np.uint8)
        unseen = [embedding.unseen for embedding in fresh.values()]
        name = hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
        part = self._directory / f"{name}.{os.getpid()}.part"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with part.open("wb") as file:
                np.savez(
                    file,
                    fingerprint=np.array(self._fingerprint),
                    keys=keys,
                    vectors=np.stack([embedding.vector for embedding in fresh.values()]),
                    unseen=np.frombuffer(b"".join(unseen), dtype=np.uint8),
                    unseen_bytes=np.array([len(digest) for digest in unseen], dtype=np.int64),
                )
            part.replace(self._directory / f"{name}.npz")
        except OSError as exc:
            with suppress(OSError):
                part.unlink()
            log.warning("vector_cache_not_written", file=part.name, error=type(exc).__name__)

    def _read(self, file: Path, wanted: set[bytes]) -> dict[bytes, Embedding]:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if str(archive["fingerprint"]) != self._fingerprint:
                raise ValueError("another encoder's vectors")
            keys = [key.tobytes() for key in archive["keys"]]
            rows = [row for row, key in enumerate(keys) if key in wanted]
            if not rows:
                return {}
            vectors: NDArray[np.float32] = archive["vectors"]
            ends = np.cumsum(archive["unseen_bytes"])
            digests = archive["unseen"].tobytes()
        if (
            vectors.shape[0] != len(keys)
            or len(ends) != len(keys)
            or vectors.dtype != np.float32
            or not np.isfinite(vectors).all()
        ):
            raise ValueError("arrays do not fit together")
        starts = np.concatenate(([0], ends[:-1]))
        return {keys[row]: Embedding(vector=vectors[row], unseen=digests[starts[row] : ends[row]]) for row in rows}


def _encode(texts: Sequence[str], encoder: TextEncoder) -> Iterator[list[Embedding]]:
    """Yield the embeddings batch by batch, in order, one thread a core at work."""
    size = min(encoder.max_batch, _BATCH)

    def encode(start: int) -> list[Embedding]:
        vectors, unseen = encoder.encode(texts[start : start + size])
        return [Embedding(vector=vector, unseen=digest) for vector, digest in zip(vectors, unseen, strict=True)]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(encode, range(0, len(texts), size))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()
