"""Probes: a pack's own examples of what must hit and what must miss, checked with a real encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from cacheproxy.model import Embedding
from cacheproxy.policy.document import read_document
from cacheproxy.policy.pairrule import PairRule, Text
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.model import Classification
    from cacheproxy.policy.document import Problem
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Ruling, Verify
    from cacheproxy.policy.prepare import Encode

PROBE_FILE = "probes.toml"

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One claim: with `cached`'s answer stored, `asked` must be served it (`hit`) or must not (`miss`)."""

    cached: NonEmpty
    asked: NonEmpty
    expect: Literal["hit", "miss"]
    why: NonEmpty
    category: str = ""
    """Under which category both stand. Empty: each is classified as a request would be, by rules and examples."""


class ClassifiedProbe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One claim: a question without any other sign of its category is taken for one of `category`."""

    text: NonEmpty
    category: NonEmpty
    or_second: bool = False
    """Whether it is enough that the category is the second of a question in doubt: the stricter policy applies."""
    why: str = ""


class ProbeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`probes.toml`: arrays of `[[probes]]` and of `[[classified]]`."""

    probes: tuple[Probe, ...]
    classified: tuple[ClassifiedProbe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """A pack's probes, with the line each stands on, so that a failure can name it."""

    file: Path
    probes: tuple[Probe, ...] = ()
    lines: tuple[int, ...] = ()
    classified: tuple[ClassifiedProbe, ...] = ()
    classified_lines: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.probes) + len(self.classified)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What became of a probe."""

    probe: Probe
    ruling: Ruling
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedResult:
    """What a question was taken for."""

    probe: ClassifiedProbe
    told: Classification
    passed: bool


def load_probes(directory: Path, pack: Pack) -> ProbeSet:
    """Load a pack's probes; none when it has no `probes.toml`. Raises PackError naming file, line and key."""
    file = directory / PROBE_FILE
    if not file.exists():
        return ProbeSet(file=file)
    document = read_document(file)
    told = document.decode(ProbeFile)
    document.refuse(_unknown_categories(told, pack))
    return ProbeSet(
        file=file,
        probes=told.probes,
        lines=tuple(document.line(("probes", at)) for at in range(len(told.probes))),
        classified=told.classified,
        classified_lines=tuple(document.line(("classified", at)) for at in range(len(told.classified))),
    )


def run_probes(
    pack: Pack, probes: ProbeSet, encode: Encode, epoch: str, verifier: Verify | None = None
) -> tuple[list[ProbeResult], list[ClassifiedResult]]:
    """Rule on every probe and classify every text, in order.

    `epoch` is the fingerprint of `encode`'s encoder; `verifier` one that knows it, if there is one.
    """
    texts = dict.fromkeys(text for probe in probes.probes for text in (probe.cached, probe.asked))
    texts |= dict.fromkeys(probe.text for probe in probes.classified)
    if not texts:
        return [], []
    vectors, unseen = encode(list(texts))
    seen = {
        text: Text(text=text, embedding=Embedding(vector=vector, unseen=digest))
        for text, vector, digest in zip(texts, vectors, unseen, strict=True)
    }
    rule = PairRule(prepared(pack, encode, verifies=verifier is not None), epoch, verifier)
    results = []
    for probe in probes.probes:
        ruling = rule.decide(seen[probe.cached], seen[probe.asked], probe.category)
        results.append(ProbeResult(probe=probe, ruling=ruling, passed=ruling.served == (probe.expect == "hit")))
    classified = []
    for claim in probes.classified:
        told = rule.classify(seen[claim.text])
        classified.append(ClassifiedResult(probe=claim, told=told, passed=holds(claim, told)))
    return results, classified


def holds(claim: ClassifiedProbe, told: Classification) -> bool:
    """Whether a question is taken for what a probe claims."""
    return told.category == claim.category or (claim.or_second and told.second == claim.category)


def _unknown_categories(told: ProbeFile, pack: Pack) -> Iterator[Problem]:
    named = {("probes", at): probe.category for at, probe in enumerate(told.probes)}
    named |= {("classified", at): probe.category for at, probe in enumerate(told.classified)}
    for path, category in named.items():
        if category and category not in pack.categories:
            known = ", ".join(pack.categories)
            yield (*path, "category"), f"must be one of this pack's categories ({known}), got {category!r}"
