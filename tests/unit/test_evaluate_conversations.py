from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.evaluate.conversationfile import Talk, read_conversations
from cacheproxy.evaluate.conversations import Baselines, evaluate_conversations, whole
from cacheproxy.evaluate.tables import render_conversations
from cacheproxy.evaluate.talkrule import query_of
from cacheproxy.policy.pack import Category, Encoder, Pack
from tests.support.encoders import HashEncoder
from tests.support.verifiers import CosineScorer

if TYPE_CHECKING:
    from pathlib import Path

REEF = [
    "What is the Great Barrier Reef?",
    "The Great Barrier Reef is the largest coral reef system of the whole world.",
]
AGAIN = ["What is the Great Barrier Reef exactly?", REEF[1]]
FOREST = ["What is the Black Forest?", "The Black Forest is a forested mountain range in the south-west of Germany."]
FOLLOW = "How large is it in square kilometres?"
REPHRASED = "How large is it in square kilometres, please?"

PACK = Pack(
    schema=1,
    name="mine",
    description="",
    default_category="default",
    categories={"default": Category(semantic=True), "exact": Category()},
    encoders={
        "e": Encoder(
            fingerprint=HashEncoder.fingerprint,
            calibrated_on="x",
            thresholds={"default": 0.8, "exact": 0.8},
            verify_from=0.4,
        )
    },
)


@dataclass(frozen=True, slots=True)
class Row:
    ctx_a: list[str]
    q_a: str
    ctx_b: list[str]
    q_b: str
    label: int
    kind: str = ""

    def encoded(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


ROWS = [
    Row(REEF, FOLLOW, REEF, FOLLOW, 1, "same"),
    Row(REEF, FOLLOW, REEF, REPHRASED, 1, "reworded"),
    Row(REEF, FOLLOW, AGAIN, FOLLOW, 1, "context"),
    Row(REEF, FOLLOW, FOREST, FOLLOW, 0, "other"),
    Row(REEF, FOLLOW, [], FOLLOW, 0, "other"),
    Row(REEF, FOLLOW, [*REEF, "Is it old?", "Yes."], FOLLOW, 0, "other"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(row.encoded() for row in ROWS).encode()))
    return path


def test_without_a_verifier_only_the_very_same_context_serves(file: Path) -> None:
    report = evaluate_conversations(file, PACK, HashEncoder(), None)
    assert (report.n, report.tp, report.fp, report.fn, report.tn) == (6, 2, 0, 1, 3)
    assert {name: score.tp for name, score in report.by_kind.items()} == {
        "context": 0, "other": 0, "reworded": 1, "same": 1
    }  # fmt: skip
    assert report.vetoes == {"no_candidate": 2, "other_context": 2}


def test_with_a_verifier_a_reworded_context_serves(file: Path) -> None:
    report = evaluate_conversations(file, PACK, HashEncoder(), None, scorer=CosineScorer(0.75))
    assert (report.tp, report.fp) == (3, 0)
    assert report.recall == 1.0
    assert report.average_precision == 1.0


def test_a_category_overrides(file: Path) -> None:
    report = evaluate_conversations(file, PACK, HashEncoder(), None, category="exact")
    assert (report.tp, report.fp) == (1, 0)
    with pytest.raises(PackError, match="no category"):
        evaluate_conversations(file, PACK, HashEncoder(), None, category="unheard-of")


def test_the_baselines_are_the_last_message_and_the_whole_history(file: Path) -> None:
    report = evaluate_conversations(file, PACK, HashEncoder(), None, baseline=True)
    assert isinstance(report.baseline, Baselines)
    assert report.baseline.last_message.default.fp == 3
    assert report.baseline.whole_history.default.fp < 3
    told = render_conversations(report)
    for word in ("right served", "wrong served", "last, default", "whole, default", "reworded", "default"):
        assert word in told


SHAPES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "nothing": ((), ["user"]),
    "a turn": (("A?", "B."), ["user", "assistant", "user"]),
    "the user's turns alone": (("A?",), ["user", "user"]),
    "three of them": (("A?", "B?", "C?"), ["user", "user", "user", "user"]),
}


@pytest.mark.parametrize(("context", "roles"), SHAPES.values(), ids=SHAPES)
def test_a_context_becomes_messages(context: tuple[str, ...], roles: list[str]) -> None:
    talk = Talk(context=context, question="Why?")
    assert [message["role"] for message in talk.messages()] == roles
    assert bool(query_of(talk).chain) == bool(context)
    assert whole(talk) == "\n".join((*context, "Why?"))


BAD: dict[str, Any] = {
    "no label": {"ctx_a": [], "q_a": "a", "ctx_b": [], "q_b": "b"},
    "another label": {"ctx_a": [], "q_a": "a", "ctx_b": [], "q_b": "b", "label": 2},
    "a context of another type": {"ctx_a": "a", "q_a": "a", "ctx_b": [], "q_b": "b", "label": 1},
}


@pytest.mark.parametrize("row", BAD.values(), ids=BAD)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"talks.jsonl:1: "):
        read_conversations(path)


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no pair"):
        read_conversations(path)
