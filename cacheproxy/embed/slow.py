"""Texts encoded that nobody waits for: a few at a time, on one thread that gives way to every other."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cacheproxy.background import BEHIND_ALL, step_back
from cacheproxy.embed.batch import Flaw, run
from cacheproxy.errors import EmbedderUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.model import Embedding

BATCH_TEXTS = 8
"""Texts encoded at a time: some tens of milliseconds."""
_MOST_YIELD_S = 0.2
_POLL_S = 0.005


class Slow:
    """Runs an encoder on one thread of low priority. Close it.

    `busy` tells whether live questions are being encoded right now.
    """

    def __init__(self, encoder: Encoder, busy: Callable[[], bool]) -> None:
        self._encoder = encoder
        self._busy = busy
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="cacheproxy-recode", initializer=step_back, initargs=(BEHIND_ALL,)
        )
        self._closed = False

    async def embedded(self, texts: Collection[str], *, hurry: bool = False) -> dict[str, Embedding]:
        """Return the embeddings of texts; those that cannot be read by this encoder are left out.

        It waits for live questions and pauses as long as it works, unless it is to `hurry`: then only the thread's
        priority gives way. Raises EmbedderUnavailable where a whole batch cannot be read, each text by itself, and once
        it is closed.
        """
        found: dict[str, Embedding] = {}
        ordered = sorted(set(texts), key=self._encoder.weigh)
        for at in range(0, len(ordered), BATCH_TEXTS):
            if not hurry:
                await self._yield()
            began = time.monotonic()
            found |= await self._batch(ordered[at : at + BATCH_TEXTS])
            if not hurry:
                await asyncio.sleep(time.monotonic() - began)
        return found

    def close(self) -> None:
        """Take no more; the thread ends once it is done with what it was given. Do not wait for it."""
        self._closed = True
        # Nothing is cancelled: whoever waits for a batch would take that for the end of itself.
        self._thread.shutdown(wait=False)

    async def _batch(self, texts: Sequence[str]) -> dict[str, Embedding]:
        outcomes = await self._run(texts)
        if any(isinstance(one, Flaw) for one in outcomes) and len(texts) > 1:
            outcomes = [one for text in texts for one in await self._run([text])]
        if len(texts) > 1 and all(isinstance(one, Flaw) for one in outcomes):
            raise EmbedderUnavailable("embedder: what is kept cannot be encoded anew; see the log")
        return {text: one for text, one in zip(texts, outcomes, strict=True) if not isinstance(one, Flaw)}

    async def _run(self, texts: Sequence[str]) -> list[Embedding | Flaw]:
        if self._closed:
            raise EmbedderUnavailable("embedder: this encoder is not in use any more")
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, self._encoder, texts)

    async def _yield(self) -> None:
        """Wait while live questions are being encoded, but not for ever."""
        end = time.monotonic() + _MOST_YIELD_S
        while self._busy() and time.monotonic() < end:  # noqa: ASYNC110 - live work has nobody to tell
            await asyncio.sleep(_POLL_S)
