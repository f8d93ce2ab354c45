"""A pack tried without being put in force: the probes on disk, ruled on as it would rule."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cacheproxy.errors import PackError
from cacheproxy.policy.loader import find_pack
from cacheproxy.policy.probes import load_probes, run_probes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.policy.pack import Pack


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one key."""

    key: str
    problem: str


class ProbeTold(msgspec.Struct, frozen=True, kw_only=True):
    """One probe and what became of it. `cached` is "" for one that only asks what a text is taken for."""

    cached: str
    asked: str
    expected: str
    found: str
    passed: bool
    reason: str = ""
    similarity: float | None = None
    threshold: float | None = None


async def tried(book: PolicyBook, pack: Pack) -> tuple[list[Problem], list[ProbeTold]]:
    """Return what the probes beside the pack on disk say of another pack, and why they cannot, if so.

    Raises NotChanged when the encoder fails.
    """
    try:
        probes = await asyncio.to_thread(lambda: load_probes(find_pack(book.source), pack))
    except PackError as exc:
        return [Problem(key="probes", problem=line) for line in exc.message.splitlines()], []
    texts = [text for probe in probes.probes for text in (probe.cached, probe.asked)]
    texts += [probe.text for probe in probes.classified]
    texts += [text for category in pack.categories.values() for text in category.examples]
    if not probes:
        return [], []
    seen = await book.embed(texts)

    def encode(wanted: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        return np.stack([seen[text].vector for text in wanted]), [seen[text].unseen for text in wanted]

    ruled, classified = await asyncio.to_thread(run_probes, pack, probes, encode, book.epoch, book.verifier)
    return [], [
        *(
            ProbeTold(
                cached=result.probe.cached,
                asked=result.probe.asked,
                expected=result.probe.expect,
                found="hit" if result.ruling.served else "miss",
                passed=result.passed,
                reason=result.ruling.reason,
                similarity=result.ruling.similarity,
                threshold=result.ruling.threshold,
            )
            for result in ruled
        ),
        *(
            ProbeTold(
                cached="",
                asked=result.probe.text,
                expected=result.probe.category,
                found=result.told.category,
                passed=result.passed,
                reason=result.told.source,
            )
            for result in classified
        ),
    ]
