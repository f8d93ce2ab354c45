"""Aside: an answer that nobody waits for, read to its end, and how alike two answers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cacheproxy.model import Reply, Wire
    from cacheproxy.ports import Answer, Dialect, Embedder


async def whole(answer: Answer, dialect: Dialect, wire: Wire, *, altered: bool = True) -> Reply | str:
    """Return the reply that an answer makes, or why it makes none. Raises UpstreamError.

    `altered` is as `Dialect.fold` takes it.
    """
    fold = dialect.fold(wire, answer.headers, altered=altered)
    async for chunk in answer.chunks():
        fold.feed(chunk)
    fold.flush()
    return fold.reply()


async def likeness(embedder: Embedder | None, tenant: str, one: str, other: str) -> float | None:
    """Return the cosine of two answers; None without an encoder, or where it does not see all of them.

    Neither is remembered. Raises EmbedderUnavailable.
    """
    if embedder is None or not one.strip() or not other.strip():
        return None
    first, second = [await embedder.embed(text, scope=tenant) for text in (one, other)]
    for text in (one, other):
        embedder.drop(text, scope=tenant)
    return None if first.unseen or second.unseen else float(np.dot(first.vector, second.vector))
