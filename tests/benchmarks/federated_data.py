"""What heads are trained and measured on: questions with intents, and question pairs, dealt out to clients.

A client is a proxy: some of its questions are kept, each other one is asked once and meets one kept question, whose
answer is right for it or not. So its pairs make stars around kept questions, and a star is a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from cacheproxy_federated.task import Pairs
from sklearn.cluster import KMeans

from tests.benchmarks.verification_data import QQP, is_kept_back, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Embed = Callable[[Sequence[str]], NDArray[np.float32]]
    Rows = NDArray[np.int64]

INTENTS = {
    "banking77": "banking77_dev.jsonl.gz",
    "clinc150": "clinc150_dev.jsonl.gz",
    "hwu64": "hwu64_dev.jsonl.gz",
}
REPORTED = ("banking77", "clinc150", "qqp")
CHOOSING = "hwu64"
"""Hyper-parameters are chosen on it, and no figure of it is reported."""
CLIENTS = 20
TESTED = 30
"""Of a hundred questions with intents, so many are for measuring."""
HELD = 5
"""Every so manieth group of a client is held back from training, for thresholds."""
STAR = 8
"""One of so many questions of an intent is kept at a client, and at least one."""
NEAR_INTENTS = 5
"""A wrong pair joins a question with a kept one of one of so many nearest intents, by their mean vectors."""
DEALS = {"even": math.inf, "skewed": 0.3}
"""The parameter of the Dirichlet distribution by which each topic falls to clients; infinite: evenly."""
QQP_PAIRS = 6_000
"""At most so many question pairs are trained on: the first clusters of a seeded order."""
QQP_TOPICS = 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Client:
    """One client's pairs: those it trains on, and those it holds back for thresholds."""

    train: Pairs
    held: Pairs
    topic: Rows
    """Intent or cluster of the kept question of each pair that is trained on; no client is told."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """Questions with intents: unit vectors of shape (n, d), and a number each for the intent."""

    vectors: NDArray[np.float32]
    intent: Rows

    def at(self, which: Rows | NDArray[np.bool_]) -> Questions:
        """Return some of them."""
        return Questions(vectors=self.vectors[which], intent=self.intent[which])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A data set: what clients are made of, and the pairs that are measured, none of whose questions is in a client.

    `pool` is questions with intents, or pairs whose group is their cluster, each with the topic of its cluster.
    """

    name: str
    pool: Questions | Pairs
    topic: Rows
    test: Pairs


def source(name: str, directory: Path, embed: Embed) -> Source:
    """Read a data set and embed it."""
    return _question_pairs(directory, embed) if name == "qqp" else _intents(name, directory, embed)


def deal(data: Source, seed: int, how: str) -> list[Client]:
    """Return the clients of a seed: by `how`, of `DEALS`, topics are spread evenly over them or fall to few of them."""
    spread = DEALS[how]
    random = np.random.default_rng([seed, list(DEALS).index(how)])
    if isinstance(data.pool, Pairs):
        names, first = np.unique(data.pool.group, return_index=True)
        owner = _owners(data.topic[first], random, spread)[np.searchsorted(names, data.pool.group)]
        dealt = [data.pool.at(owner == client) for client in range(CLIENTS)]
        return [_held_back(pairs, pairs.group, random) for pairs in dealt]
    owner = _owners(data.pool.intent, random, spread)
    pools = [data.pool.at(owner == client) for client in range(CLIENTS)]
    made = [stars(pool, random) for pool in pools]
    return [_held_back(pairs, pool.intent[pairs.group], random) for pairs, pool in zip(made, pools, strict=True)]


def stars(questions: Questions, random: np.random.Generator) -> Pairs:
    """Return a pair for each question that is not kept: with a kept one of its intent, or of a near one, by a coin.

    Where there is only one intent, every pair is right.
    """
    order = random.permutation(len(questions.intent))
    kept: dict[int, list[int]] = {}
    asked: list[int] = []
    for intent in sorted(set(questions.intent.tolist())):
        mine = order[questions.intent[order] == intent]
        keeps = max(1, len(mine) // STAR)
        kept[intent] = mine[:keeps].tolist()
        asked += mine[keeps:].tolist()
    near = _near_intents(questions, sorted(kept))
    found: list[tuple[int, int, bool]] = []
    for at in asked:
        intent = int(questions.intent[at])
        right = bool(random.random() < 0.5) or not near[intent]
        found.append((int(random.choice(kept[intent if right else random.choice(near[intent])])), at, right))
    a, b = (np.array([one[side] for one in found], dtype=np.int64) for side in (0, 1))
    return Pairs(
        a=questions.vectors[a],
        b=questions.vectors[b],
        right=np.array([one[2] for one in found], dtype=np.bool_),
        category=("all",) * len(found),
        group=a,
    )


def joined(clients: Sequence[Client], *, told: bool) -> Pairs:
    """Return what all clients train on in one place; where that is `told`, groups are topics, which no client knows."""
    many = [one.train for one in clients]
    starts = np.cumsum([0, *(int(one.group.max(initial=-1)) + 1 for one in many)])
    own = [one.group + start for one, start in zip(many, starts, strict=False)]
    return Pairs(
        a=np.concatenate([one.a for one in many]),
        b=np.concatenate([one.b for one in many]),
        right=np.concatenate([one.right for one in many]),
        category=tuple(name for one in many for name in one.category),
        group=np.concatenate([one.topic for one in clients] if told else own),
    )


def _near_intents(questions: Questions, intents: Sequence[int]) -> dict[int, list[int]]:
    means = np.stack([questions.vectors[questions.intent == intent].mean(axis=0) for intent in intents])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    near = means @ means.T
    np.fill_diagonal(near, -np.inf)
    best = np.argsort(-near, axis=1, kind="stable")[:, : min(NEAR_INTENTS, len(intents) - 1)]
    return {intent: [intents[at] for at in row] for intent, row in zip(intents, best.tolist(), strict=True)}


def _owners(topic: Rows, random: np.random.Generator, spread: float) -> Rows:
    """Return whose each thing is, by its topic."""
    owner = random.integers(CLIENTS, size=len(topic))
    if math.isfinite(spread):
        for one in sorted(set(topic.tolist())):
            shares = random.dirichlet(np.full(CLIENTS, spread))
            owner[topic == one] = random.choice(CLIENTS, size=int((topic == one).sum()), p=shares)
    return owner


def _held_back(pairs: Pairs, topic: Rows, random: np.random.Generator) -> Client:
    groups = random.permutation(np.unique(pairs.group))
    held = np.isin(pairs.group, groups[::HELD])
    return Client(train=pairs.at(~held), held=pairs.at(held), topic=topic[~held])


def _intents(name: str, directory: Path, embed: Embed) -> Source:
    found = {row["text"]: row["intent"] for row in rows(directory / INTENTS[name]) if row["intent"] != "oos"}
    texts, names = sorted(found), sorted(set(found.values()))
    intent = np.array([names.index(found[text]) for text in texts], dtype=np.int64)
    every = Questions(vectors=embed(texts), intent=intent)
    tested = np.array([int(sha256(text.encode()).hexdigest(), 16) % 100 < TESTED for text in texts])
    test = stars(every.at(tested), np.random.default_rng(0))
    return Source(name=name, pool=every.at(~tested), topic=intent[~tested], test=test)


def _question_pairs(directory: Path, embed: Embed) -> Source:
    every = list(rows(directory / QQP))
    clusters = sorted({row["cluster"] for row in every if not is_kept_back(row["cluster"])})
    rank = {clusters[at]: place for place, at in enumerate(np.random.default_rng(0).permutation(len(clusters)))}
    pool = sorted((row for row in every if row["cluster"] in rank), key=lambda row: rank[row["cluster"]])[:QQP_PAIRS]
    made = _labelled(pool, embed)
    _, first, where = np.unique(made.group, return_index=True, return_inverse=True)
    topics = KMeans(QQP_TOPICS, n_init=1, random_state=0).fit_predict(made.a[first]).astype(np.int64)
    kept = [row for row in every if is_kept_back(row["cluster"])]
    return Source(name="qqp", pool=made, topic=topics[where], test=_labelled(kept, embed))


def _labelled(found: Sequence[dict[str, object]], embed: Embed) -> Pairs:
    names = {name: at for at, name in enumerate(sorted({str(row["cluster"]) for row in found}))}
    return Pairs(
        a=embed([str(row["a"]) for row in found]),
        b=embed([str(row["b"]) for row in found]),
        right=np.array([bool(row["label"]) for row in found]),
        category=("all",) * len(found),
        group=np.array([names[str(row["cluster"])] for row in found], dtype=np.int64),
    )
