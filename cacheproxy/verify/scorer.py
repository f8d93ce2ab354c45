"""The cascade over pairs of questions: rules, then the cheap score, then the cross-encoder for the best of them."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import ConfigError
from cacheproxy.model import Verification
from cacheproxy.verify import artefact, reading
from cacheproxy.verify.cross import MOST_TOKENS, CrossEncoder, Words
from cacheproxy.verify.features import compare_all, prepare
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
"""Of a question that is the same but for capitals and white space: too short for the cross-encoder to be sure."""

_UNDECIDED = (0.3, 0.9)
"""Probabilities by one order of the two, caution aside, between which the other order is read, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Which steps of the cascade run; all but in an ablation."""

    rules: bool = True
    cross: bool = True


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
        """Return the same verifier with its rules off, for an ablation."""
        other = copy(self)
        other._steps = replace(self._steps, rules=False)
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
        texts = {text: memory.text(text) for pair in pairs for text in pair[:2]}
        return [self._rank([(texts[kept], cosine)], texts[asked], memory)[0] for asked, kept, cosine in pairs]

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return a verification for each kept text, given with its cosine.

        Only the nearest that no rule speaks against, and that the cheap score gives a chance, is read by the
        cross-encoder. The others get probability 0: where the nearest is another question, hardly any farther one is
        the same (docs/verification.md).
        """
        memory = self._memory
        texts = [(memory.text(text), cosine) for text, cosine in kept]
        # A matrix times its own transpose has other last bits than times an equal one: equal texts are two, as ever.
        one = prepare(asked, self._words) if any(text.text == asked for text, _ in texts) else memory.text(asked)
        return self._rank(texts, one, memory)

    def _rank(self, kept: Sequence[tuple[Text, float]], asked: Text, memory: Memory) -> list[Verification]:
        if not kept:
            return []
        rows, vetoes = compare_all(asked, kept)
        if self._steps.rules:
            vetoes = [
                veto or VETO * planted(asked.reading, text.reading, memory.parts)
                for veto, (text, _) in zip(vetoes, kept, strict=True)
            ]
        else:
            vetoes = [""] * len(kept)
        cheap = self._trees.logits(rows)
        weights = self.manifest.weights
        alone = [_sigmoid(weights.cheap[0] + weights.cheap[1] * float(logit)) for logit in cheap]
        able = [at for at, veto in enumerate(vetoes) if not veto and cheap[at] >= weights.hopeless]
        nearest = max(able, key=lambda at: kept[at][1], default=None)
        found = []
        for at, (text, cosine) in enumerate(kept):
            steps = [("cosine", cosine), ("cheap", alone[at])]
            probability = alone[at] if not self._steps.cross else 0.0
            if self._steps.cross and at == nearest:
                read, probability = self._read(text.text, asked.text, float(cheap[at]))
                steps.append(("cross", _sigmoid(read)))
                if math.isfinite(read) and text.text.casefold().split() == asked.text.casefold().split():
                    steps.append(("equal", _EQUAL))
                    probability = max(probability, _EQUAL)
            found.append(Verification(probability=probability, veto=vetoes[at], steps=tuple(steps)))
        return found

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
