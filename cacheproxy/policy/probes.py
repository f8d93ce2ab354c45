"""Probes: a pack's own examples of what must hit and what must miss, checked with a real encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from cacheproxy.model import Embedding
from cacheproxy.policy.document import read_document
from cacheproxy.policy.pairrule import PairRule, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Ruling

    Encode = Callable[[Sequence[str]], tuple[NDArray[np.float32], Sequence[bytes]]]
    """Texts to unit vectors of shape (n, dim) and a digest each of what the encoder could not see."""

PROBE_FILE = "probes.toml"

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One claim: with `cached`'s answer stored, `asked` must be served it (`hit`) or must not (`miss`)."""

    cached: NonEmpty
    asked: NonEmpty
    expect: Literal["hit", "miss"]
    why: NonEmpty
    category: str = ""
    """Empty means the pack's default category."""


class ProbeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`probes.toml`: an array of `[[probes]]`."""

    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """A pack's probes, with the line each stands on, so that a failure can name it."""

    file: Path
    probes: tuple[Probe, ...] = ()
    lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What became of a probe."""

    probe: Probe
    ruling: Ruling
    passed: bool


def load_probes(directory: Path, pack: Pack) -> ProbeSet:
    """Load a pack's probes; none when it has no `probes.toml`. Raises PackError naming file, line and key."""
    file = directory / PROBE_FILE
    if not file.exists():
        return ProbeSet(file=file)
    document = read_document(file)
    probes = document.decode(ProbeFile).probes
    known = ", ".join(pack.categories)
    document.refuse(
        (("probes", at, "category"), f"must be one of this pack's categories ({known}), got {probe.category!r}")
        for at, probe in enumerate(probes)
        if probe.category and probe.category not in pack.categories
    )
    lines = tuple(document.line(("probes", at)) for at in range(len(probes)))
    return ProbeSet(file=file, probes=probes, lines=lines)


def run_probes(pack: Pack, probes: Sequence[Probe], encode: Encode, epoch: str) -> list[ProbeResult]:
    """Rule on every probe, in order. `epoch` is the fingerprint of the encoder behind `encode`."""
    texts = list(dict.fromkeys(text for probe in probes for text in (probe.cached, probe.asked)))
    if not texts:
        return []
    vectors, unseen = encode(texts)
    seen = {
        text: Text(text=text, embedding=Embedding(vector=vector, unseen=digest))
        for text, vector, digest in zip(texts, vectors, unseen, strict=True)
    }
    rule = PairRule(pack, epoch)
    results = []
    for probe in probes:
        ruling = rule.decide(seen[probe.cached], seen[probe.asked], probe.category)
        results.append(ProbeResult(probe=probe, ruling=ruling, passed=ruling.served == (probe.expect == "hit")))
    return results
