"""Recoding: what is kept, encoded by an encoder whose layers were changed, while requests go on.

Its vectors cannot be computed from those that are kept, only from texts. They are made by `embed.slow`, by exactly the
rule that a question is looked for by (`contexts.Contexts.sought`), so that an entry's vector is the one that a fresh
embedding of its request would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.slow import Slow
from cacheproxy.embed.tuned import open_tuned, prune_exports
from cacheproxy.errors import ConfigError, IndexUnavailable
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

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What recoding takes beside its encoder. `busy` is whether live questions are being encoded right now."""

    store: EntryCatalogue
    config: settings.Encoder
    data_dir: Path
    busy: Callable[[], bool]


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
        self._flushing = asyncio.Lock()
        self._closed = False

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

    async def vectors(self, ids: Sequence[str], *, hurry: bool = False) -> Mapping[str, Vector]:
        """Return vectors, made of the entries' texts where there are none yet; without those that are gone meanwhile.

        `hurry` is as of `Slow.embedded`. Raises EmbedderUnavailable and StoreUnavailable.
        """
        gone: set[str] = set()
        self._watched.append(gone)
        try:
            found = {**await self.known(ids), **{one: self._kept[one] for one in ids if one in self._kept}}
            missing = [one for one in ids if one not in found]
            made = await self._made(missing, hurry=hurry) if missing else {}
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
        """Write down what was kept and forgotten, once it is settled what an earlier call does; nothing once closed.

        Raises IndexUnavailable; then it is tried again with the next one.
        """
        async with self._flushing:
            kept, gone = self._kept, self._gone
            if self._closed or not (kept or gone):
                return
            self._kept, self._gone = {}, set()
            written = False
            try:
                await self._side.change(self.embedder.epoch, kept, gone)
                if gone:
                    await self._side.scrub()
                written = True
            finally:
                if not written:  # be it that this call was cancelled: what is to be forgotten is forgotten
                    kept = {one: vector for one, vector in kept.items() if one not in self._gone}
                    self._kept, self._gone = {**kept, **self._kept}, self._gone | gone

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
        """Write down what is left, and end the threads. What is still on its way is not written any more."""
        with contextlib.suppress(IndexUnavailable):
            await self.flush()
        self._closed = True
        self._slow.close()
        await self.embedder.__aexit__(None, None, None)

    async def _made(self, ids: Sequence[str], *, hurry: bool) -> dict[str, Vector]:
        entries = await self._entries(ids)
        texts = {text for entry in entries for text in _texts(entry)}
        known = await self._slow.embedded(texts, hurry=hurry)
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


class Layered:
    """Opens encoders with changed layers, and the file beside the store that all of them share.

    Use it as an async context manager, around whatever it opens.
    """

    def __init__(self, around: Around) -> None:
        self._around = around
        self._path = around.data_dir / FILE
        self._side: SideFile | None = None
        self._exports = threading.Lock()
        """Held by the thread that makes or removes some, which goes on where its caller was cancelled."""
        self._opening = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether the vectors that were made before were damaged, and all have to be made again."""
        return self._side is not None and self._side.set_aside

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

        Raises IndexUnavailable.
        """
        if ids and self._path.exists():
            try:
                side = await self._file()
            except ConfigError as exc:  # to be tried again, as whatever else an erasure owes
                raise IndexUnavailable(exc.message) from exc
            await side.change("", {}, ids)
            await side.scrub()

    async def prune(self, kept: Collection[Artefact]) -> None:
        """Remove the exports of all encoders with changed layers but these. Raises ConfigError."""
        await asyncio.to_thread(self._prune, kept)

    def _prune(self, kept: Collection[Artefact]) -> None:
        with self._exports:
            prune_exports(self._around.config, self._around.data_dir, kept)

    async def _encoder(self, artefact: Artefact) -> Encoder:
        return await asyncio.to_thread(self._opened, artefact)

    def _opened(self, artefact: Artefact) -> Encoder:
        with self._exports:
            return open_tuned(self._around.config, self._around.data_dir, artefact)

    async def _file(self) -> SideFile:
        async with self._opening:  # or two who want it at once would each open it
            if self._side is None:
                side = SideFile(self._path)
                await side.__aenter__()
                self._side = side
            return self._side
