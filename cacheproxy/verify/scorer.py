"""The cascade over pairs of questions: rules, then the cheap score, then the cross-encoder for the best of them."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import ConfigError
from cacheproxy.model import FARTHER, Verification
from cacheproxy.verify import artefact, reading
from cacheproxy.verify.cross import LONGEST, MOST_TOKENS, CrossEncoder, Words
from cacheproxy.verify.features import compare, prepare
from cacheproxy.verify.graph import Shape, build
from cacheproxy.verify.memory import Memory
from cacheproxy.verify.planted import VETO, planted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.verify.artefact import Manifest
    from cacheproxy.verify.cross import Base
    from cacheproxy.verify.features import Text

_EQUAL = 0.99
"""Of a question that is the same but for capitals and white space: the cross-encoder has nothing to say of it."""

_RIGHT = 0.8
"""The probability from which on nothing farther is looked at: the cross-encoder would not read it, whatever it is."""

_SURE = 0.95
"""The least probability by the trees alone at which they may decide without the cross-encoder."""

_SHORT = 300
"""Characters up to which the trees may decide so: they see little of where a long text differs."""

_UNDECIDED = (0.3, 0.9)
"""Probabilities by one order of the two, caution aside, between which the other order is read, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Which steps of the cascade run; all but in an ablation."""

    rules: bool = True
    cross: bool = True
    spare: bool = True
    """Whether the cross-encoder is spared what is equal, or what the trees are sure of."""


class PairScorer:
    """Tells how probable it is that one question's answer is right for another. In the calling thread, on one core."""

    def __init__(self, folder: Path, base: Base, steps: Steps | None = None) -> None:
        """Load an artefact. Raises ConfigError where it is not whole or was made for another encoder."""
        self.manifest, self._trees, weights = artefact.load(folder)
        if self.manifest.weights_sha256 != base.sha256:
            artefact.refuse_base(folder, self.manifest)
        self._words = Words(base)
        self._memory = Memory(self._words)
        self._cross = CrossEncoder(_graph(folder, self.manifest, weights), self._words)
        self._steps = steps or Steps()

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        return self.manifest.fingerprint

    def without_rules(self) -> PairScorer:
        """Return the same verifier with its rules off, for an ablation; it spares the cross-encoder nothing."""
        other = copy(self)
        other._steps = replace(self._steps, rules=False, spare=False)
        return other

    def forget(self) -> int:
        """Remember no text of before, nor of what is being scored right now; return how many were known."""
        before, self._memory = self._memory, Memory(self._words)
        self._words.forget()
        reading.forget()
        return len(before)

    def score(self, pairs: Sequence[tuple[str, str, float]]) -> list[Verification]:
        """Return a verification for each pair: the text asked, the text kept, the cosine of both. Each by itself."""
        memory = self._memory
        return [self._rank([(kept, cosine)], memory.text(asked), memory)[0] for asked, kept, cosine in pairs]

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return a verification for each kept text, given with its cosine.

        Only the nearest that no rule speaks against, and that the cheap score gives a chance, is read by the
        cross-encoder. The others get probability 0: where the nearest is another question, hardly any farther one is
        the same (docs/verification.md). Where it is right, those farther are not even compared (step `FARTHER`).
        """
        memory = self._memory
        texts = list(kept)
        # A matrix times its own transpose has other last bits than times an equal one: equal texts are two, as ever.
        one = prepare(asked, self._words) if any(text == asked for text, _ in texts) else memory.text(asked)
        return self._rank(texts, one, memory)

    def _rank(self, kept: Sequence[tuple[str, float]], asked: Text, memory: Memory) -> list[Verification]:
        """Verify the nearest first: what is farther than one that is right is compared with nothing."""
        found: dict[int, Verification] = {}
        read, right = False, False
        for at in sorted(range(len(kept)), key=lambda at: kept[at][1], reverse=True):
            text, cosine = kept[at]
            if right:
                found[at] = Verification(probability=0.0, steps=(("cosine", cosine), (FARTHER, 1.0)))
                continue
            veto, cheap = self._compared(asked, memory.text(text), cosine, memory)
            alone = self._alone(cheap)
            steps: tuple[tuple[str, float], ...] = (("cosine", cosine), ("cheap", alone))
            probability = 0.0 if self._steps.cross else alone
            if self._steps.cross and not read and not veto and cheap >= self.manifest.weights.hopeless:
                read = True
                told, probability = self._told(memory.text(text), asked, cheap, alone)
                steps += told
                right = probability >= _RIGHT
            found[at] = Verification(probability=probability, veto=veto, steps=steps)
        return [found[at] for at in range(len(kept))]

    def _compared(self, asked: Text, kept: Text, cosine: float, memory: Memory) -> tuple[str, float]:
        """Return the veto of two texts, "" for none, and the log-odds of the trees."""
        row, veto = compare(asked, kept, cosine)
        if not self._steps.rules:
            veto = ""
        elif not veto and planted(asked.reading, kept.reading, memory.parts):
            veto = VETO
        return veto, float(self._trees.logits(row[None])[0])

    def _alone(self, cheap: float) -> float:
        """Return the probability by the trees alone."""
        bias, trees = self.manifest.weights.cheap
        return _sigmoid(bias + trees * cheap)

    def _told(self, kept: Text, asked: Text, cheap: float, alone: float) -> tuple[tuple[tuple[str, float], ...], float]:
        """Return the steps behind the trees, and the probability; what is equal, or sure, is not read."""
        equal = _equal(kept.text, asked.text)
        if self._steps.spare and equal:
            return (("equal", _EQUAL),), _EQUAL
        if self._steps.spare and self._sure(kept, asked, cheap, alone):
            return (("sure", alone),), alone
        read, probability = self._read(kept.text, asked.text, cheap)
        cross = "cross", _sigmoid(read)
        return ((cross, ("equal", _EQUAL)), max(probability, _EQUAL)) if equal else ((cross,), probability)

    def _sure(self, kept: Text, asked: Text, cheap: float, alone: float) -> bool:
        """Whether the trees may decide alone: also by their probability, of short texts with the same words of content.

        Whoever plants an answer adds words to a question, and the trees believe what the rest of it has in common.
        """
        sure = self.manifest.weights.sure
        return (
            sure is not None
            and cheap >= sure
            and alone >= _SURE
            and max(len(kept.text), len(asked.text)) <= _SHORT
            and kept.reading.content_set == asked.reading.content_set
        )

    def _read(self, kept: str, asked: str, cheap: float) -> tuple[float, float]:
        """Return the cross-encoder's log-odds and the probability; where that is undecided, by both orders."""
        bias, trees, cross = self.manifest.weights.both

        def told(read: float, raised: float = 0.0) -> float:
            # What was not read whole is not right, whatever sign the weight has.
            return _sigmoid(bias + raised + trees * cheap + cross * read) if math.isfinite(read) else 0.0

        read = self._cross.logit(kept, asked)
        if _UNDECIDED[0] <= told(read, self.manifest.caution) <= _UNDECIDED[1]:
            read = (read + self._cross.logit(asked, kept)) / 2
        return read, told(read)


def _equal(one: str, other: str) -> bool:
    """Whether two texts differ in capitals and white space only. Of one that is too long to be seen whole, none do."""
    seen = one == other or max(len(one), len(other)) <= LONGEST
    return seen and one.casefold().split() == other.casefold().split()


def _graph(folder: Path, manifest: Manifest, weights: Mapping[str, NDArray[Any]]) -> bytes:
    if len(weights.get("embeddings.position_embeddings.weight", ())) < MOST_TOKENS:
        raise ConfigError(f"{folder}: has no places for {MOST_TOKENS} tokens; train it from an encoder that has them")
    try:
        return build(weights, Shape(layers=manifest.layers, heads=manifest.heads, dim=manifest.dim))
    except (KeyError, ValueError) as exc:
        raise ConfigError(f"{folder}: lacks weights ({exc}); train or install the verifier again") from exc


def _sigmoid(logit: float) -> float:
    if math.isnan(logit):
        return 0.0
    return 1.0 / (1.0 + math.exp(-max(min(logit, 500.0), -500.0)))
