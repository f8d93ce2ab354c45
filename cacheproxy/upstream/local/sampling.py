"""Choosing the next token from the model's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cacheproxy.upstream.local.request import Sampling

REPETITION_PENALTY = 1.1
"""Softens, always, the score of a token the answer holds already: without it greedy answers run in circles."""

_GREEDY_BELOW = 1e-3
_SEED_BITS = (1 << 63) - 1


class Sampler:
    """Chooses one answer's tokens, remembering them. Greedy at temperature 0; a seed makes sampling repeatable."""

    def __init__(self, rules: Sampling, vocabulary: int) -> None:
        self._rules = rules
        self._counts = torch.zeros(vocabulary)
        self._random = torch.Generator()
        if rules.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(rules.seed & _SEED_BITS)

    def pick(self, scores: torch.Tensor) -> int:
        """Return the next token. `scores` has shape (vocabulary,), float32, and is not changed."""
        scores = self._penalised(scores)
        token = int(scores.argmax()) if self._rules.temperature < _GREEDY_BELOW else self._drawn(scores)
        self._counts[token] += 1
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        seen = self._counts > 0
        softened = torch.where(scores > 0, scores / REPETITION_PENALTY, scores * REPETITION_PENALTY)
        scores = torch.where(seen, softened, scores)
        return scores - self._rules.frequency_penalty * self._counts - self._rules.presence_penalty * seen

    def _drawn(self, scores: torch.Tensor) -> int:
        chances, tokens = torch.softmax(scores / self._rules.temperature, dim=0).sort(descending=True)
        # Nucleus: the smallest head whose chances reach top_p; the first token is always in it.
        outside = chances.cumsum(0) - chances >= self._rules.top_p
        outside[0] = False
        return int(tokens[torch.multinomial(chances.masked_fill(outside, 0.0), 1, generator=self._random)])
