from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cacheproxy.bench.asking import Ask, Mixed, Repeating, encode, read_mix
from cacheproxy.bench.questions import Question, read_questions, rewordings, shipped, unheard
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = [Question(text=f"What is {name}?", wordings=(f"What's {name}?", f"{name}: what?")) for name in "abcdefgh"]


def mixed(seed: int, mix: str = "exact=50,semantic=30,miss=20") -> Mixed:
    return Mixed(QUESTIONS, read_mix(mix), stream=0.25, seed=seed)


def repeating(seed: int, exponent: float = 1.0, verbatim: float = 0.3) -> Repeating:
    return Repeating(QUESTIONS, exponent=exponent, verbatim=verbatim, stream=0.0, seed=seed)


def test_a_mix_is_kept_and_is_the_same_for_a_seed() -> None:
    asking = mixed(3)
    asks = [asking.next() for _ in range(4000)]
    again = mixed(3)
    assert asks == [again.next() for _ in range(4000)]
    other = mixed(4)
    assert asks != [other.next() for _ in range(4000)]
    shares = Counter(ask.meant for ask in asks)
    assert shares["exact"] == pytest.approx(2000, rel=0.1)
    assert shares["semantic"] == pytest.approx(1200, rel=0.1)
    assert shares["miss"] == pytest.approx(800, rel=0.1)
    assert sum(ask.stream for ask in asks) == pytest.approx(1000, rel=0.1)


def test_what_is_meant_to_hit_exactly_was_asked_before_and_nothing_else_was() -> None:
    asking = mixed(1)
    kept = {ask.text for ask in asking.first()}
    asks = [asking.next() for _ in range(500)]
    assert all((ask.text in kept) == (ask.meant == "exact") for ask in asks)
    misses = [ask for ask in asks if ask.meant == "miss"]
    assert len({ask.text for ask in misses}) == len(misses)
    assert all(ask.headers == {"x-cacheproxy-threshold": "1"} for ask in misses)


@pytest.mark.parametrize("told", ["exact=50,other=50", "exact", "exact=-1", "exact=0,miss=0", "miss=inf", ""])
def test_a_mix_that_is_none_is_refused(told: str) -> None:
    with pytest.raises(ConfigError, match="--mix"):
        read_mix(told)


def test_questions_repeat_by_zipfs_law() -> None:
    asking = repeating(5, exponent=1.0, verbatim=1.0)
    counts = [count for _, count in Counter(asking.next().text for _ in range(20_000)).most_common()]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.15)
    assert counts[0] / counts[7] == pytest.approx(8, rel=0.25)


def test_a_share_is_asked_word_by_word_and_the_rest_in_other_wordings() -> None:
    asking = repeating(5, verbatim=0.3)
    asked = Counter(asking.next().text.startswith("What is") for _ in range(5000))
    assert asked[True] / 5000 == pytest.approx(0.3, abs=0.03)


def test_a_key_of_a_trace_always_asks_the_same() -> None:
    asking, other = repeating(5), repeating(5)
    assert len({asking.next("46-47-48").text for _ in range(20)}) == 1
    assert len({asking.next(str(number)).text for number in range(200)}) == len(QUESTIONS)
    assert asking.next("46-47-48").text == other.next("46-47-48").text


def test_there_are_more_rewordings_than_a_proxy_remembers_embeddings() -> None:
    texts = rewordings(shipped(), 1)
    assert len(set(texts)) == len(texts) > 4096
    assert texts == rewordings(shipped(), 1) != rewordings(shipped(), 2)
    assert {question.text for question in shipped()}.isdisjoint(texts)


def test_questions_nobody_asked_are_other_ones_for_another_seed() -> None:
    first, second = unheard(1), unheard(2)
    assert {next(first) for _ in range(100)}.isdisjoint({next(second) for _ in range(100)})


def test_questions_are_read_with_their_wordings(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [
        {"text": "a?", "wordings": ["A?"]},
        {"text": "b1", "intent": "b"},
        {"text": "b2", "intent": "b"},
        {"a": "c1", "b": "c2", "label": 1},
        {"a": "d1", "b": "d2", "label": 0},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_questions(file) == [
        Question(text="a?", wordings=("A?",)),
        Question(text="b1", wordings=("b2",)),
        Question(text="c1", wordings=("c2",)),
        Question(text="d1"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "holds no questions"), ("{}", "line 1 has no text"), ("\n{", "line 2 is not JSON")],
)
def test_a_file_of_no_questions_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        read_questions(file)


def test_a_request_is_whole() -> None:
    ask = Ask(meant="miss", text="wie spät?", stream=True, headers={"x-cacheproxy-threshold": "1"})
    raw = encode(ask, host="127.0.0.1:1", path="/v1/chat/completions", key="k", tokens_out=7, more={"x-more": "1"})
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert {"authorization: Bearer k", "x-bench-tokens: 7", "x-more: 1", f"content-length: {len(body)}"} <= set(lines)
    assert json.loads(body)["messages"] == [{"role": "user", "content": "wie spät?"}]
