"""Contexts: a question and its conversation, embedded so that its like is found, and verified turn by turn.

The rules are pure (query/chain.py, verify/chains.py); here the encoder and the verifier are asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import EmbedderUnavailable, VerifierUnavailable
from cacheproxy.model import Asking, Embedding, Verification
from cacheproxy.query.chain import ABOUT, in_context, leading_questions
from cacheproxy.verify.chains import compare, conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.journey import Journey
    from cacheproxy.model import Candidate, Entry, Query
    from cacheproxy.ports import Embedder, Verifier
    from cacheproxy.verify.chains import Comparison, Pair

_MOST_DOUBTFUL = 2
"""Most conversations a lookup that the verifier is asked of, the nearest first: each one is several pairs."""
_NOT_ASKED = Verification(probability=0.0, veto="", steps=(("not_asked", 1.0),))


class Contexts:
    """What questions and their conversations mean. All that it embeds is remembered for the query's tenant alone."""

    def __init__(
        self,
        embedder: Embedder | None,
        verifier: Verifier | None,
        own: Callable[[str | None], Embedder | None] = lambda epoch: None,
    ) -> None:
        """`own` returns the encoder that an epoch has of its own, if it has one (`VectorIndex.encoder`)."""
        self._embedder = embedder
        self._verifier = verifier
        self._own = own

    async def question(self, journey: Journey) -> Embedding:
        """Return the embedding of the question alone, made once. Raises EmbedderUnavailable."""
        embedder, query = self._encoder(), journey.query
        if journey.embedding is None:
            journey.embeddable = False  # unless the next line returns
            journey.embedding = await embedder.embed(query.text, scope=query.scope.tenant)
            journey.embeddable = True
        return journey.embedding

    async def embedded(self, journey: Journey, text: str) -> Embedding:
        """Return the embedding of a text of the request, the question or another one. Raises EmbedderUnavailable."""
        if text == journey.query.text:
            return await self.question(journey)
        return await self._encoder().embed(text, scope=journey.query.scope.tenant)

    async def placed(self, journey: Journey) -> Embedding:
        """Return the embedding by which a question is kept and looked for, made once: its own, or in its conversation.

        Raises EmbedderUnavailable.
        """
        if journey.placed is None:
            question = await self.question(journey)
            if journey.query.chain:
                vector = in_context(question.vector, await self._asked(journey.query))
                question = replace(question, vector=vector)
            journey.placed = question
        return journey.placed

    async def sought(self, journey: Journey) -> NDArray[np.float32]:
        """Return the vector by which a question is looked for in the epoch of its plan. Raises EmbedderUnavailable.

        It is what it is kept under, unless that epoch has an encoder of its own.
        """
        placed, own = await self.placed(journey), self._own(journey.plan.epoch)
        if own is None:
            return placed.vector
        if journey.sought is None or journey.sought[0] != own.epoch:
            query = journey.query
            question, *asked = await _each(own, (query.text, *leading_questions(query.chain)), query.scope.tenant)
            vector = in_context(question.vector, [one.vector for one in asked]) if query.chain else question.vector
            journey.sought = (own.epoch, vector)
        return journey.sought[1]

    async def alike(self, journey: Journey, entry: Entry, near: Callable[..., float]) -> float:
        """Return how near two questions are, both without their conversations, as the epoch of the plan tells it.

        `near` tells it of the encoder's vectors (`VectorIndex.alike`). -1 where a part that it cannot see differs.
        Raises EmbedderUnavailable.
        """
        question, kept = await self.question(journey), await self.kept(journey, entry)
        if kept.unseen != question.unseen:
            return -1.0
        own = self._own(journey.plan.epoch)
        if own is None:
            return near(question.vector, kept.vector, journey.plan.epoch)
        first, second = await _each(own, (journey.query.text, entry.text), journey.query.scope.tenant)
        return float(np.dot(first.vector, second.vector))

    async def about(self, journey: Journey) -> NDArray[np.float32]:
        """Return the vector by which a question's conversation is classified. Raises EmbedderUnavailable."""
        question = await self.question(journey)
        return in_context(question.vector, await self._asked(journey.query), ABOUT)

    async def kept(self, journey: Journey, entry: Entry) -> Embedding:
        """Return the embedding of a kept question alone, without its conversation. Raises EmbedderUnavailable."""
        (kept,) = await self._all((entry.text,), journey.query.scope.tenant)
        return kept

    def forget(self, journey: Journey, texts: Iterable[str]) -> None:
        """Keep no embedding of these texts of a request, nor of its conversation."""
        journey.embedding = journey.placed = journey.sought = None
        for embedder in filter(None, (self._embedder, self._own(journey.plan.epoch))):
            for text in {*texts, *leading_questions(journey.query.chain)}:
                embedder.drop(text, scope=journey.query.scope.tenant)

    async def verified(
        self, query: Query, kept: Sequence[tuple[Entry, Candidate]], at_least: float
    ) -> list[Verification]:
        """Return the word on each kept conversation, nearest first; earlier turns must be as near as `at_least`.

        Of the third one on which the verifier would have to be asked, nothing is known: probability 0. Raises
        EmbedderUnavailable and VerifierUnavailable.
        """
        asked = Asking(text=query.text, chain=query.chain)
        comparisons = [compare(asked, Asking(text=entry.text, chain=entry.chain)) for entry, _ in kept]
        doubtful = [one for one in comparisons if not one.veto and one.pairs][:_MOST_DOUBTFUL]
        said = await self._said(doubtful, query.scope.tenant)
        return [
            _NOT_ASKED
            if not one.veto and any(pair not in said for pair in one.pairs)
            else conclude(one, said, at_least)
            for one in comparisons
        ]

    async def _said(self, doubtful: Sequence[Comparison], tenant: str) -> dict[Pair, tuple[Verification, float]]:
        """Return what the verifier says of every pair, with its cosine."""
        pairs = list(dict.fromkeys(pair for one in doubtful for pair in one.pairs))
        if not pairs:
            return {}
        verifier = self._verifier
        if verifier is None:
            raise VerifierUnavailable("there is no verifier")
        texts = list(dict.fromkeys(text for pair in pairs for text in (pair.asked, pair.kept)))
        known = dict(zip(texts, await self._all(texts, tenant), strict=True))
        of_asked: dict[str, list[Pair]] = {}
        for pair in pairs:
            of_asked.setdefault(pair.asked, []).append(pair)
        words = await asyncio.gather(
            *(
                verifier.verify(
                    Asking(text=text, vector=known[text].vector),
                    [(Asking(text=one.kept, vector=known[one.kept].vector), _cosine(known, one)) for one in with_it],
                )
                for text, with_it in of_asked.items()
            )
        )
        return {
            pair: (word, _cosine(known, pair))
            for with_it, found in zip(of_asked.values(), words, strict=True)
            for pair, word in zip(with_it, found, strict=True)
        }

    async def _asked(self, query: Query) -> list[NDArray[np.float32]]:
        return [one.vector for one in await self._all(leading_questions(query.chain), query.scope.tenant)]

    async def _all(self, texts: Sequence[str], tenant: str) -> list[Embedding]:
        return await _each(self._encoder(), texts, tenant)

    def _encoder(self) -> Embedder:
        if self._embedder is None:
            raise EmbedderUnavailable("there is no encoder")
        return self._embedder


async def _each(embedder: Embedder, texts: Sequence[str], tenant: str) -> list[Embedding]:
    return list(await asyncio.gather(*(embedder.embed(text, scope=tenant) for text in texts)))


def _cosine(known: dict[str, Embedding], pair: Pair) -> float:
    """Return how near two texts are; -1 where a part that the encoder cannot see differs."""
    one, other = known[pair.asked], known[pair.kept]
    return float(np.dot(one.vector, other.vector)) if one.unseen == other.unseen else -1.0
