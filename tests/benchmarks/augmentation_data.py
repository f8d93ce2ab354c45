"""Tasks with answers that can be checked, for a small model with examples: questions, references, and who is right.

Every question is in one of three parts by a digest of its text: those that are reported, those that are learnt from,
and those whose recorded answers are the examples. Nothing is in two of them, whatever sizes are asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

from cacheproxy.augment.rewards import exact
from cacheproxy.augment.worth import UNKNOWN_QUALITY
from tests.benchmarks.augmentation_flaws import flawed
from tests.benchmarks.verification_data import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

REPORTED, TRAINING = 20, 45
"""Of a hundred digests, those below are reported, those from there on below the second are learnt from."""
LONGEST = 1024
"""Characters of a question, above which it is left out: the small model's window is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question as it is asked, and the answer that is recorded for it."""

    text: str = field(repr=False)
    reference: str = field(repr=False)
    accepted: tuple[str, ...] = field(default=(), repr=False)
    """Whatever else counts as right: aliases, or the text of the choice that the reference is the letter of."""
    quality: float = UNKNOWN_QUALITY
    """What is known of the recorded answer, where it is an example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Questions of one kind, asked by one caller: `system` is his own prompt."""

    name: str
    system: str
    max_tokens: int
    right: Callable[[str, Item], bool]
    """Whether an answer is right."""
    reported: tuple[Item, ...]
    training: tuple[Item, ...]
    pool: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many questions of each part, at most."""

    questions: int
    training: int
    pool: int


# Who is right


def labelled(answer: str, item: Item) -> bool:
    """Whether an answer is the label, or the first label-like word of its first line is: `card_arrival`.

    A label without an underscore is a plain word, so it must be the whole answer: else an echo of the question counts.
    """
    line = _first_line(answer)
    named = re.search(r"\w+_\w+", line)
    if named is not None and "_" in item.reference:
        return named[0].casefold() == item.reference.rstrip("?").casefold()
    return _is(line, item.reference)


def chosen(answer: str, item: Item) -> bool:
    """Whether an answer begins with the right letter; where it begins with none, whether it is the choice's text.

    A letter must stand alone or before a mark: the article that begins a sentence is none.
    """
    letter = re.match(r"\W*(?:answer\W+)?([A-E])(?:\s*$|\s*[).:,\]\n])", answer, re.IGNORECASE)
    if letter is not None:
        return letter[1].upper() == item.reference[0]
    return any(_is(_first_line(answer), text) for text in item.accepted)


def told(answer: str, item: Item) -> bool:
    """Whether an accepted answer is somewhere in an answer, word by word: a sentence that says it is right."""
    words = _words(answer)
    return any(f" {wanted} " in f" {words} " for one in (item.reference, *item.accepted) if (wanted := _words(one)))


def numbered(answer: str, item: Item) -> bool:
    """Whether the number that an answer ends up with is the reference."""
    return _is(answer, item.reference)


def _is(answer: str, reference: str) -> bool:
    said = exact(answer, reference)
    return said is not None and said.value == 1.0


def _first_line(answer: str) -> str:
    return answer.strip().partition("\n")[0]


def _words(text: str) -> str:
    """Return words as NQ's own measure compares them: no case, no marks, no articles."""
    plain = "".join(sign if sign.isalnum() else " " for sign in text.casefold())
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


# Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a data set becomes a task. `{labels}` in `system` stands for all of its labels."""

    file: str
    system: str
    max_tokens: int
    right: Callable[[str, Item], bool]
    read: Callable[[Mapping[str, Any]], Item | None]
    flawed: float = 0.0
    """Share of the past answers that are wrong (`augmentation_flaws.py`)."""
    like: str = ""
    """Another task that has the same questions."""


def _intent(row: Mapping[str, Any]) -> Item | None:
    return Item(text=row["text"], reference=row["intent"]) if row["intent"] != "oos" else None


def _bank_intent(row: Mapping[str, Any]) -> Item | None:
    return _intent(row) if row["category"] == "banking" else None


def _choice(row: Mapping[str, Any]) -> Item | None:
    choices = "\n".join(f"{letter}. {text}" for letter, text in sorted(row["choices"].items()))
    return Item(text=f"{row['question']}\n{choices}", reference=row["answer"], accepted=(row["answer_text"],))


def _fact(row: Mapping[str, Any]) -> Item | None:
    first, *others = row["answers"]
    return Item(text=row["question"], reference=first, accepted=tuple(others))


def _sum(row: Mapping[str, Any]) -> Item | None:
    return Item(text=row["question"], reference=str(row["answer"]))


KINDS: Mapping[str, Kind] = {
    "banking77": Kind(
        file="banking77_dev.jsonl.gz",
        system="You sort what customers of a bank write. Answer with the name of the one intent that fits, and nothing "
        "else. The intents are: {labels}.",
        max_tokens=16,
        right=labelled,
        read=_intent,
    ),
    "clinc150": Kind(
        file="clinc150_dev.jsonl.gz",
        system="You sort what people say to an assistant. Answer with the name of the one intent that fits, and "
        "nothing else. The intents are: {labels}.",
        max_tokens=12,
        right=labelled,
        read=_intent,
    ),
    "clinc_banking": Kind(  # one domain of it: what an assistant with few intents is asked
        file="clinc150_dev.jsonl.gz",
        system="You sort what customers of a bank say. Answer with the name of the one intent that fits, and nothing "
        "else. The intents are: {labels}.",
        max_tokens=12,
        right=labelled,
        read=_bank_intent,
    ),
    "clinc_flawed": Kind(  # the same questions, some of the past answers wrong: what example quality is worth
        file="clinc150_dev.jsonl.gz",
        system="You sort what customers of a bank say. Answer with the name of the one intent that fits, and nothing "
        "else. The intents are: {labels}.",
        max_tokens=12,
        right=labelled,
        read=_bank_intent,
        flawed=0.2,
        like="clinc_banking",
    ),
    "commonsenseqa": Kind(
        file="commonsenseqa_dev.jsonl.gz",
        system="Answer with the letter of the best choice, and nothing else.",
        max_tokens=12,
        right=chosen,
        read=_choice,
    ),
    "nq_open": Kind(
        file="nq_open_dev.jsonl.gz",
        system="Answer the question with a few words.",
        max_tokens=24,
        right=told,
        read=_fact,
    ),
    "gsm8k": Kind(
        file="gsm8k_dev.jsonl.gz",
        system="Solve the problem. Answer with the final number, and nothing else.",
        max_tokens=16,
        right=numbered,
        read=_sum,
    ),
}
"""In the first four, examples show which labels are meant; in the last two they cannot know the answer."""


def task(name: str, directory: Path, sizes: Sizes, seed: int) -> Task:
    """Return a task of these sizes at most; equal seeds give equal ones, and larger ones hold the smaller."""
    kind = KINDS[name]
    items = list(_unique(item for row in rows(directory / kind.file) if (item := kind.read(row)) is not None))
    Random(f"{kind.like or name} {seed}").shuffle(items)
    labels = ", ".join(sorted({item.reference for item in items})) if "{labels}" in kind.system else ""
    parts = split(items)
    pool = tuple(parts[2][: sizes.pool])
    return Task(
        name=name,
        system=kind.system.replace("{labels}", labels),
        max_tokens=kind.max_tokens,
        right=kind.right,
        reported=tuple(parts[0][: sizes.questions]),
        training=tuple(parts[1][: sizes.training]),
        pool=flawed(pool, kind.flawed, seed) if kind.flawed else pool,
    )


def split(items: Iterable[Item]) -> tuple[Sequence[Item], Sequence[Item], Sequence[Item]]:
    """Return what is reported, what is learnt from, and what examples are made of, in the order given."""
    parts: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
    for item in items:
        at = int(sha256(_words(item.text).encode()).hexdigest(), 16) % 100
        parts[(at >= REPORTED) + (at >= TRAINING)].append(item)
    return parts


def _unique(items: Iterable[Item]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items:
        if (key := _words(item.text)) not in seen and len(item.text) <= LONGEST:
            seen.add(key)
            yield item
