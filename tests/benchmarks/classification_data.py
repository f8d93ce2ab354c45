"""Labelled questions for the classification benchmark, grouped from public data sets that stand in a directory."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

NONE = "default"
"""What belongs to no category of a task."""

_MMLU = {
    "code": "college_computer_science high_school_computer_science computer_security machine_learning",
    "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics "
    "high_school_statistics",
    "law": "international_law jurisprudence professional_law",
    "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
    "professional_medicine virology",
    "finance": "econometrics high_school_macroeconomics high_school_microeconomics professional_accounting",
}
_SUBJECT = {subject: group for group, subjects in _MMLU.items() for subject in subjects.split()}
# Of the other 35 subjects, those that stand at a border of two groups are left out; the rest are general knowledge.
_BORDER = frozenset({"formal_logic", "electrical_engineering", "business_ethics", "management", "marketing"})
_ROUTER = {
    "computer science": "code",
    "math": "math",
    "law": "law",
    "health": "health",
    "economics": "finance",
    **dict.fromkeys(("business", "engineering", "technology"), ""),
}
_PROMPTS = {
    "code": {
        "coding",
        "hard_prompt/coding",
        "StackOverflow",
        "Leetcode",
        "GeeksforGeeks",
        "Github",
        "computer science",
    },
    "math": {"math", "hard_prompt/math"},
    "writing": {"writing", "roleplay", "creative_writing/creative_writing"},
    "science": {"physics", "chemistry", "biology", "science", "stem"},
    "humanities": {"history", "philosophy", "humanities"},
    "business": {"business", "economics"},
}
_PROMPT_GROUP = {category: group for group, categories in _PROMPTS.items() for category in categories}
_PROMPT_REST = frozenset(
    {"generic", "knowledge", "common-sense", "reasoning", "other", "general", "psychology", "health", "law"}
)
_OWN = (
    "application_status balance bill_balance bill_due calendar credit_limit credit_score current_location "
    "freeze_account income last_maintenance meeting_schedule order_status pay_bill payday pin_change pto_balance "
    "pto_request_status pto_used reminder rewards_balance routing shopping_list spending_history todo_list "
    "transactions transfer user_name"
)
OWN_INTENTS = frozenset(_OWN.split())
"""Intents of clinc150 whose answer depends on who asks: their accounts, bills, leave, lists, appointments, name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question: the category that is right for it, where it comes from, and whether examples are drawn from it."""

    text: str
    category: str
    source: str
    train: bool
    kind: str = ""
    """The intent or subject that its source gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Questions to tell apart. `taught` says whether the default category has examples, too."""

    name: str
    rows: tuple[Row, ...]
    taught: bool


def tasks(directory: Path) -> Iterator[Task]:
    """Yield the tasks. Train and test parts share no text."""
    yield Task(name="clinc150 domains", rows=_whole(_clinc(directory, lambda row: row["category"])), taught=False)
    yield Task(name="banking77 against the rest", rows=_whole(_banking_rest(directory)), taught=False)
    yield Task(name="prompts", rows=_whole(_prompts(directory, _prompt_group)), taught=False)
    yield Task(name="subjects", rows=_whole(_subjects(directory)), taught=False)
    yield Task(name="subjects, default taught", rows=_whole(_subjects(directory)), taught=True)


def read(directory: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of one data set. Raises FileNotFoundError where it is not there."""
    with gzip.open(directory / f"{name}_dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def general(directory: Path, count: int) -> list[str]:
    """Return `count` questions of QQP, at most one of a component, in the order of their digests."""
    first: dict[str, str] = {}
    for row in read(directory, "qqp"):
        first.setdefault(row["cluster"], row["a"])
    return sorted(first.values(), key=_digest)[:count]


def _clinc(directory: Path, group: Callable[[dict[str, Any]], str]) -> Iterator[Row]:
    for row in read(directory, "clinc150"):
        category = group(row)
        yield Row(
            text=row["text"],
            category=NONE if category == "oos" else category,
            source="clinc150",
            train=row["orig_split"] == "train",
            kind=row["intent"],
        )


def _banking(directory: Path, category: str) -> Iterator[Row]:
    for row in read(directory, "banking77"):
        train = row["orig_split"] == "train"
        yield Row(text=row["text"], category=category, source="banking77", train=train, kind=row["intent"])


def _banking_rest(directory: Path) -> Iterator[Row]:
    yield from _banking(directory, "banking")
    yield from _clinc(directory, lambda row: "" if row["category"] in {"banking", "credit_cards"} else NONE)
    yield from _plain(directory, "gsm8k", "question", NONE)
    yield from _plain(directory, "code", "prompt", NONE)
    yield from _plain(directory, "mmlu", "question", NONE)
    yield from _general(directory)


def _subjects(directory: Path) -> Iterator[Row]:
    yield from _plain(directory, "gsm8k", "question", "math")
    yield from _plain(directory, "code", "prompt", "code")
    for row in read(directory, "mmlu"):
        subject = row["category"]
        if subject not in _BORDER:
            group = _SUBJECT.get(subject, NONE)
            yield Row(text=row["question"], category=group, source="mmlu", train=_half(row["question"]), kind=subject)
    yield from _banking(directory, "support")
    yield from _prompts(directory, _prompt_subject)
    yield from _general(directory)


def _prompts(directory: Path, group: Callable[[dict[str, Any]], str]) -> Iterator[Row]:
    for row in read(directory, "prompts"):
        if row["prompt"].strip():
            yield Row(
                text=row["prompt"],
                category=group(row),
                source="prompts",
                train=_half(row["prompt"]),
                kind=row["category"],
            )


def _prompt_group(row: dict[str, Any]) -> str:
    return _PROMPT_GROUP.get(row["category"], NONE if row["category"] in _PROMPT_REST else "")


def _prompt_subject(row: dict[str, Any]) -> str:
    if row["src"].startswith("semantic_router"):
        return _ROUTER.get(row["category"], NONE)
    group = _PROMPT_GROUP.get(row["category"], "")
    if group in {"code", "math"}:
        return group
    if group == "writing":
        return "chat"
    return NONE if row["category"] in {"generic", "knowledge", "common-sense", "humanities"} else ""


def _general(directory: Path) -> Iterator[Row]:
    yield from _plain(directory, "nq_open", "question", NONE)
    for text in general(directory, 10_000)[5_000:]:
        yield Row(text=text, category=NONE, source="qqp", train=_half(text))


def _plain(directory: Path, name: str, key: str, category: str) -> Iterator[Row]:
    for row in read(directory, name):
        yield Row(text=row[key], category=category, source=name, train=_half(row[key]), kind=row.get("category", ""))


def _whole(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Drop what has no category, and each text but its first; a text of the test part is never an example."""
    kept: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.train):
        if row.category and row.text.strip():
            kept.setdefault(" ".join(row.text.lower().split()), row)
    return tuple(kept.values())


def _half(text: str) -> bool:
    return int(_digest(f"part of {text}")[:2], 16) < 128


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
