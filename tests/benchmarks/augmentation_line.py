"""One task as it is asked: the proxy's own rules of choosing and telling examples, the small model, what is learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.augment.arms import Situation
from cacheproxy.augment.augmentable import why_not
from cacheproxy.augment.example import Example
from cacheproxy.augment.gains import Gains
from cacheproxy.augment.helpful import Helpfulness, features
from cacheproxy.augment.prompt import augmented, example_tokens, frame_tokens, prompt_tokens
from cacheproxy.augment.select import NOTHING, Room, Selection, select, select_nearest, select_random
from cacheproxy.augment.tokens import budget
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.pack import Category
from cacheproxy.upstream.local import CONTEXT_TOKENS, MODEL_ID
from tests.benchmarks.augmentation_routing import Seen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.augment.prompt import Form
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.ports import TokenCounter
    from tests.benchmarks.augmentation_data import Item, Task
    from tests.benchmarks.augmentation_model import Answer, Small

    Vectors = NDArray[np.float32]

FORM: Form = "turns"
CANDIDATES = 32
"""Of the baselines."""
READ = 15
"""Of the proxy: three for each of five examples (`cacheproxy/examples.py`)."""
ANSWER_COSINE = 0.5
"""Of every example: the proxy does not measure it either, which would take a pass of the encoder for each."""
AGE_S = 3600.0
"""Of every example: the recorded answers have no age of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What an operator would set, by the names of a category's settings."""

    example_similarity: float = Category().example_similarity
    max_examples: int = 5
    example_tokens: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What everything is measured with."""

    small: Small
    counter: TokenCounter
    encoder: TextEncoder
    vectors: Path
    rules: Rules = field(default_factory=Rules)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a task, ready to be asked: the caller's body, and what there is to help."""

    item: Item
    body: dict[str, Any]
    tokens: int
    near: tuple[Example, ...]
    """Candidates as the proxy finds them: like enough, the nearest first."""
    nearest: tuple[Example, ...]
    """The nearest, like or not."""
    chance: tuple[Example, ...]
    """As many, drawn by chance from the whole pool."""


class Shelf:
    """A task's past questions and their answers, seen from a question that is asked."""

    def __init__(self, task: Task, bench: Bench) -> None:
        self._task, self._bench = task, bench
        texts = {one.text for one in (*task.pool, *task.training, *task.reported)}
        self._seen = embed_texts(texts, bench.encoder, bench.vectors)
        self._questions = np.stack([self._seen[one.text].vector for one in task.pool])
        count = bench.counter
        self._tokens = [example_tokens(one.text, one.reference, count, form=FORM) for one in task.pool]

    def question(self, item: Item) -> Question:
        """Return a question with its candidates. Equal questions have equal ones."""
        vector = self._seen[item.text].vector
        cosines = self._questions @ vector
        order = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        drawn = Random(f"{self._bench.seed} {item.text}").sample(range(len(cosines)), min(CANDIDATES, len(cosines)))
        nearest = tuple(self._example(int(at), cosines) for at in order)
        return Question(
            item=item,
            body=body(self._task, item),
            tokens=self._bench.counter.count(item.text),
            near=tuple(one for one in nearest[:READ] if one.question_cosine >= self._bench.rules.example_similarity),
            nearest=nearest,
            chance=tuple(self._example(at, cosines) for at in drawn),
        )

    def _example(self, at: int, cosines: Vectors) -> Example:
        return Example(
            entry_id=f"{self._task.name}-{at}",
            question=self._task.pool[at].text,
            answer=self._task.pool[at].reference,
            question_cosine=float(cosines[at]),
            answer_cosine=ANSWER_COSINE,
            vector=self._questions[at],
            tokens=self._tokens[at],
            age_s=AGE_S,
            quality=self._task.pool[at].quality,
            source="large",
            offloads=1.0,
            same_category=True,
        )


def body(task: Task, item: Item) -> dict[str, Any]:
    """Return the request as its caller sends it to the large model. Raises ValueError where it is not augmentable."""
    made = {
        "model": "large",
        "messages": [{"role": "system", "content": task.system}, {"role": "user", "content": item.text}],
        "max_tokens": task.max_tokens,
        "temperature": 0,
    }
    if why := why_not(made, "chat"):
        raise ValueError(f"{task.name}: a request that is not augmentable ({why})")
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What selection learns, one for all tasks."""

    helpfulness: Helpfulness = field(default_factory=Helpfulness)
    gains: Gains = field(default_factory=Gains)


class Line:
    """One task as it is asked: the proxy's rules, the small model, and what was learnt."""

    def __init__(self, task: Task, bench: Bench, learnt: Learnt) -> None:
        self.task, self._bench, self._learnt = task, bench, learnt
        self.shelf = Shelf(task, bench)

    def proxy(self, asked: Question) -> Callable[[Example], float]:
        """Return how helpful examples are thought to be."""
        return lambda one: self._learnt.helpfulness.score(one, asked.tokens, self.task.name)

    def room(self, asked: Question, most: int) -> Room:
        """Return what the prompt has left for examples."""
        own = prompt_tokens(asked.body, self._bench.counter, dialect="chat")
        own += frame_tokens(self._bench.counter, form=FORM)
        tokens = budget(CONTEXT_TOKENS, own, self.task.max_tokens, self._bench.rules.example_tokens)
        return Room(tokens=tokens, most=most)

    def arms(self, asked: Question) -> dict[str, Selection]:
        """Return what each arm of the comparison puts into the prompt."""
        proxy, room = self.proxy(asked), self.room(asked, self._bench.rules.max_examples)
        theta = self._learnt.gains.threshold(self.task.name)
        random = Random(f"{self._bench.seed} {asked.item.text}")
        return {
            "alone": NOTHING,
            "random": select_random(asked.chance, proxy=proxy, room=room, random=random),
            "nearest": select_nearest(asked.nearest, proxy=proxy, room=room),
            "selected": select(asked.near, proxy=proxy, threshold=theta, room=room),
        }

    def ask(self, asked: Question, chosen: Selection) -> tuple[Answer, bool]:
        """Return the small model's answer with these examples, and whether it is right."""
        made = augmented(asked.body, chosen, dialect="chat", model=MODEL_ID, form=FORM)
        found = self._bench.small.answer(made)
        return found, self.task.right(found.text, asked.item)

    def learn(self, item: Item, random: Random) -> Seen:
        """Ask a question with examples and without, and learn from both. A quarter each: by chance, the nearest."""
        asked = self.shelf.question(item)
        proxy, room = self.proxy(asked), self.room(asked, random.randint(1, self._bench.rules.max_examples))
        way = random.choice(("selected", "selected", "nearest", "random"))
        if way == "selected" and asked.near:
            tried = select(asked.near, proxy=proxy, threshold=0.0, room=room)  # below theta, too, or it can only rise
        elif way == "nearest":
            tried = select_nearest(asked.nearest, proxy=proxy, room=room)
        else:
            tried = select_random(asked.chance, proxy=proxy, room=room, random=random)
        (_, helped), (_, alone) = self.ask(asked, tried), self.ask(asked, NOTHING)
        self.reward(asked, tried, helped=helped, alone=alone)
        return Seen(situation=situation(asked, tried), augmented=float(helped), small=float(alone))

    def reward(self, asked: Question, tried: Selection, *, helped: bool, alone: bool) -> None:
        """Learn from one question that was answered both ways."""
        gains, name, score = self._learnt.gains, self.task.name, tried.mean_helpfulness
        gains.learn(name, score, float(helped), augmented=True)
        gains.learn(name, score, float(alone), augmented=False)
        for one in tried.examples:
            given = features(one, asked.tokens)
            weight = 1.0 / len(tried.examples)
            self._learnt.helpfulness.learn(given, float(helped), category=name, weight=weight)


def situation(asked: Question, chosen: Selection) -> Situation:
    """Return what the router is told."""
    return Situation(
        max_similarity=chosen.max_similarity,
        mean_helpfulness=chosen.mean_helpfulness,
        examples=len(chosen.examples),
        question_tokens=asked.tokens,
        agreement=chosen.agreement,
    )
