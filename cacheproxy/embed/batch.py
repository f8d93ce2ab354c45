"""What the micro-batcher moves: jobs, the choice of a batch, one run of the encoder with its result checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import structlog

from cacheproxy.model import Embedding

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.encoder import Encoder

_NORM_TOLERANCE = 1e-3
_SLACK = 16
"""Tokens by which two texts may always differ and still share a batch; beyond it, at most by a factor of two."""

_log = structlog.get_logger()


class Flaw(StrEnum):
    """Why there is no embedding."""

    EXCEPTION = "exception"
    SHAPE = "shape"
    NOT_FINITE = "not_finite"
    NORM = "norm"
    DEADLINE = "deadline"
    QUEUE_FULL = "queue_full"
    STUCK = "stuck"
    CLOSED = "closed"


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One text to encode, and everybody who waits for it. `started_s` is None while it queues.

    What is `forgotten` meanwhile is not remembered when it is done.
    """

    key: bytes
    text: str = field(repr=False)
    weight: int
    queued_s: float
    started_s: float | None = None
    forgotten: bool = False
    waiters: list[asyncio.Future[Embedding | Flaw]] = field(default_factory=list)


def choose(pending: Mapping[bytes, Job], *, max_texts: int, max_tokens: int) -> list[Job]:
    """Pick the next batch from jobs in order of arrival, at least one of which there must be.

    The oldest job always goes. Of those right behind it (four batches deep) it takes along the ones closest in length,
    as long as the padded batch stays within `max_tokens`: padding costs as much as text, and a batch that runs long
    makes the next text wait.
    """
    oldest, *others = islice(pending.values(), 4 * max_texts)
    batch, widest = [oldest], oldest.weight
    for job in sorted(others, key=lambda other: abs(other.weight - oldest.weight)):
        narrow, wide = sorted((job.weight, oldest.weight))
        widened = max(widest, job.weight)
        if len(batch) == max_texts or widened * (len(batch) + 1) > max_tokens:
            break
        if wide - narrow <= max(narrow, _SLACK):
            batch.append(job)
            widest = widened
    return batch


def run(encoder: Encoder, texts: Sequence[str]) -> list[Embedding | Flaw]:
    """Encode in the calling thread and check what comes back; never raises. One outcome for each text."""
    try:
        vectors, unseen = encoder.encode(texts)
        if vectors.dtype == np.float32 and vectors.shape == (len(texts), encoder.dim) and len(unseen) == len(texts):
            outcomes = [_checked(vector, digest) for vector, digest in zip(vectors, unseen, strict=True)]
        else:
            outcomes = [Flaw.SHAPE] * len(texts)
        error = ""
    except Exception as exc:  # a worker survives whatever a model does; logged here, counted by the batcher
        outcomes = [Flaw.EXCEPTION] * len(texts)
        error = type(exc).__name__  # not its message, which could quote a text
    flaws = {outcome.value for outcome in outcomes if isinstance(outcome, Flaw)}
    if flaws:
        _log.warning("encoding_failed", flaws=sorted(flaws), error=error, texts=len(texts))
    return outcomes


def _checked(vector: NDArray[np.float32], unseen: bytes) -> Embedding | Flaw:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm):
        return Flaw.NOT_FINITE
    if abs(norm - 1.0) > _NORM_TOLERANCE:
        return Flaw.NORM
    own = vector.copy()  # a row alone, or a kept vector would hold its whole batch in memory
    own.flags.writeable = False
    return Embedding(vector=own, unseen=unseen)
