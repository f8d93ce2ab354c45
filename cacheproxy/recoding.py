"""Recoding: what is kept, encoded by an encoder whose layers were changed, while requests go on.

Its vectors cannot be computed from those that are kept, only from texts. They are made a few at a time on one thread
that gives way to every other, by exactly the rule that a question is looked for by (`contexts.Contexts.sought`), so
that an entry's vector is the one that a fresh embedding of its request would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.embed.batch import Flaw, run
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.tuned import open_tuned
from cacheproxy.errors import EmbedderUnavailable, IndexUnavailable
from cacheproxy.index.sidefile import FILE, SideFile
from cacheproxy.model import Selector
from cacheproxy.query.chain import in_context, leading_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.model import Embedding, Entry
    from cacheproxy.ports import EntryCatalogue

    Vector = NDArray[np.float32]

BATCH_TEXTS = 8
"""Texts encoded at a time: some tens of milliseconds."""
_MOST_YIELD_S = 0.2
_POLL_S = 0.005
_NICE = 10

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What recoding takes beside its encoder. `busy` is whether live questions are being encoded right now."""

    store: EntryCatalogue
    config: settings.Encoder
    data_dir: Path
    busy: Callable[[], bool]


class Slow:
    """Runs an encoder on one thread of low priority, with a pause after every batch. Close it."""

    def __init__(self, encoder: Encoder, busy: Callable[[], bool]) -> None:
        self._encoder = encoder
        self._busy = busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cacheproxy-recode", initializer=_give_way)

    async def embedded(self, texts: Collection[str]) -> dict[str, Embedding]:
        """Return the embeddings of texts; those that cannot be read by this encoder are left out.

        Raises EmbedderUnavailable where a whole batch cannot, each text by itself.
        """
        found: dict[str, Embedding] = {}
        ordered = sorted(set(texts), key=self._encoder.weigh)
        for at in range(0, len(ordered), BATCH_TEXTS):
            await self._yield()
            began = time.monotonic()
            found |= await self._batch(ordered[at : at + BATCH_TEXTS])
            await asyncio.sleep(time.monotonic() - began)
        return found

    def close(self) -> None:
        """End the thread once it is done with its batch; do not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _batch(self, texts: Sequence[str]) -> dict[str, Embedding]:
        outcomes = await self._run(texts)
        if any(isinstance(one, Flaw) for one in outcomes) and len(texts) > 1:
            outcomes = [one for text in texts for one in await self._run([text])]
        if len(texts) > 1 and all(isinstance(one, Flaw) for one in outcomes):
            raise EmbedderUnavailable("embedder: what is kept cannot be encoded anew; see the log")
        return {text: one for text, one in zip(texts, outcomes, strict=True) if not isinstance(one, Flaw)}

    async def _run(self, texts: Sequence[str]) -> list[Embedding | Flaw]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, self._encoder, texts)

    async def _yield(self) -> None:
        """Wait while live questions are being encoded, but not for ever."""
        end = time.monotonic() + _MOST_YIELD_S
        while self._busy() and time.monotonic() < end:  # noqa: ASYNC110 - live work has nobody to tell
            await asyncio.sleep(_POLL_S)


class Recoding:
    """`index.space.Own`: an encoder with changed layers, its vectors of what is asked, and those of what is kept."""

    def __init__(self, encoder: Encoder, around: Around, side: SideFile) -> None:
        self.embedder = MicroBatcher(encoder, around.config)
        self._store = around.store
        self._side = side
        self._slow = Slow(encoder, lambda: around.busy() or bool(self.embedder.running))
        self._kept: dict[str, Vector] = {}
        self._gone: set[str] = set()
        self._watched: list[set[str]] = []

    async def open(self) -> Recoding:
        """Start the threads, and return itself."""
        await self.embedder.__aenter__()
        return self

    async def embedded(self, texts: Collection[str]) -> dict[str, Embedding]:
        """Return the embeddings of texts that nobody waits for, as `Slow.embedded`."""
        return await self._slow.embedded(texts)

    async def known(self, ids: Sequence[str]) -> Mapping[str, Vector]:
        """Return the vectors that were made before; none where the file beside the store cannot be read."""
        try:
            return await self._side.read(self.embedder.epoch, ids, self.embedder.dim)
        except IndexUnavailable as exc:
            log.warning("side_vectors_unreadable", reason=exc.message)
            return {}

    async def vectors(self, ids: Sequence[str]) -> Mapping[str, Vector]:
        """Return vectors, made of the entries' texts where there are none yet; without those that are gone meanwhile.

        Raises EmbedderUnavailable, StoreUnavailable and IndexUnavailable.
        """
        gone: set[str] = set()
        self._watched.append(gone)
        try:
            found = {**await self.known(ids), **{one: self._kept[one] for one in ids if one in self._kept}}
            missing = [one for one in ids if one not in found]
            made = await self._made(missing) if missing else {}
        finally:
            self._watched = [one for one in self._watched if one is not gone]
        for one, vector in made.items():
            if one not in gone:
                self.keep(one, vector)
        return {one: vector for one, vector in {**found, **made}.items() if one not in gone}

    def keep(self, entry_id: str, vector: Vector) -> None:
        """Remember a vector; `flush` writes it down."""
        self._kept[entry_id] = vector

    def forget(self, ids: Collection[str]) -> None:
        """Forget entries, also those whose vectors are being made right now; `flush` removes them from the file."""
        self._gone.update(ids)
        for one in ids:
            self._kept.pop(one, None)
        for watched in self._watched:
            watched.update(ids)

    async def flush(self) -> None:
        """Write down what was kept and forgotten. Raises IndexUnavailable; then it is tried again with the next one."""
        kept, gone = self._kept, self._gone
        if not kept and not gone:
            return
        self._kept, self._gone = {}, set()
        try:
            await self._side.change(self.embedder.epoch, kept, gone)
            if gone:
                await self._side.scrub()
        except IndexUnavailable:
            self._kept = {**{one: vector for one, vector in kept.items() if one not in self._gone}, **self._kept}
            self._gone |= gone
            raise

    async def keep_only(self, kept: Callable[[str], bool]) -> None:
        """Forget whatever is not kept. Raises IndexUnavailable."""
        after = ""
        while ids := await self._side.page(after):
            after = ids[-1]
            self.forget([one for one in ids if not kept(one)])
        await self.flush()

    def forget_embeddings(self) -> int:
        """Remember no embedding of what was asked; return how many were known."""
        return self.embedder.forget()

    async def aclose(self) -> None:
        """Write down what is left, and end the threads."""
        with contextlib.suppress(IndexUnavailable):
            await self.flush()
        self._slow.close()
        await self.embedder.__aexit__(None, None, None)

    async def _made(self, ids: Sequence[str]) -> dict[str, Vector]:
        entries = await self._entries(ids)
        texts = {text for entry in entries for text in _texts(entry)}
        known = await self._slow.embedded(texts)
        made = {}
        for entry in entries:
            own, *before = (known.get(text) for text in _texts(entry))
            if own is not None and None not in before:
                asked = [one.vector for one in before if one is not None]
                made[entry.id] = in_context(own.vector, asked) if entry.chain else own.vector
        return made

    async def _entries(self, ids: Sequence[str]) -> list[Entry]:
        found: list[Entry] = []
        after: int | None = 0
        while after is not None:
            page = await self._store.page(Selector(ids=tuple(ids)), after=after, limit=len(ids))
            found += page.entries
            after = page.after
        return found


def _texts(entry: Entry) -> tuple[str, ...]:
    """Return what an entry's vector is made of: its question, and those of its conversation that lead to it."""
    return (entry.text, *leading_questions(entry.chain)) if entry.chain else (entry.text,)


def _give_way() -> None:
    """Let every other thread run first; only Linux gives threads priorities of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Layered:
    """Opens encoders with changed layers, and the file beside the store that all of them share.

    Use it as an async context manager, around whatever it opens.
    """

    def __init__(self, around: Around) -> None:
        self._around = around
        self._path = around.data_dir / FILE
        self._side: SideFile | None = None

    async def __aenter__(self) -> Layered:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._side is not None:
            await self._side.__aexit__(None, None, None)

    async def slow(self, artefact: Artefact) -> Slow:
        """Return what encodes texts that nobody waits for; close it. Raises ConfigError."""
        return Slow(await self._encoder(artefact), self._around.busy)

    async def open(self, artefact: Artefact) -> Recoding:
        """Return what makes a space's vectors; close it, or the space. Raises ConfigError."""
        encoder, side = await self._encoder(artefact), await self._file()
        return await Recoding(encoder, self._around, side).open()

    async def only(self, epochs: Collection[str]) -> None:
        """Forget the vectors of all epochs but these: what serves no more must not outlive what it was made of.

        Raises ConfigError and IndexUnavailable.
        """
        if self._path.exists():
            await (await self._file()).only(epochs)

    async def erase(self, ids: Collection[str]) -> None:
        """Forget entries in every epoch, whoever made their vectors, and leave nothing of them in the file.

        Raises ConfigError and IndexUnavailable.
        """
        if ids and self._path.exists():
            side = await self._file()
            await side.change("", {}, ids)
            await side.scrub()

    async def _encoder(self, artefact: Artefact) -> Encoder:
        around = self._around
        return await asyncio.to_thread(open_tuned, around.config, around.data_dir, artefact)

    async def _file(self) -> SideFile:
        if self._side is None:
            side = SideFile(self._path)
            await side.__aenter__()
            self._side = side
        return self._side
