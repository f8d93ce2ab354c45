from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.augment.tokens import Estimated, Tokenised, budget, room
from cacheproxy.embed.locate import locate
from cacheproxy.embed.source import TOKENIZER
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SMOLLM2 = {
    "What is Gremolata?": 7,
    "Hi, I have some falafel, but no tahini to put on them. Can you give me a recipe for making some?": 25,
    "def mean(numbers: list[float]) -> float:\n    return sum(numbers) / len(numbers)\n": 21,
    "https://example.com/a/b?c=d&e=f#g": 19,
    "01234567890123456789": 20,
    "|---|---|\n| a | b |\n": 12,
}
"""Texts, and what the tokenizer of SmolLM2-135M-Instruct (49,152 tokens) makes of them."""

PROSE = (
    "You need to verify your identity before the card can be sent. Open the app, choose Cards, then Order a new card.",
    "Bert was able to sell 8 toy phones for $18 each, while Tory was able to sell 7 toy guns for $20 each.",
    "for i in range(10):\n    if i % 2 == 0:\n        print(f'{i} is even')\n",
)


@pytest.mark.parametrize(("text", "count"), SMOLLM2.items())
def test_the_estimate_is_not_below_what_a_small_vocabulary_takes(text: str, count: int) -> None:
    assert count <= Estimated().count(text) <= 2 * count + 2


@pytest.mark.parametrize("text", PROSE)
def test_the_estimate_is_not_below_a_real_tokenizer_and_at_most_twice_of_it(text: str) -> None:
    real = Tokenised.from_file(locate("all-MiniLM-L6-v2").tokenizer).count(text)
    assert real <= Estimated().count(text) <= 2 * real


@pytest.mark.parametrize("text", ["東京の天気はどうですか", "Как мне сбросить пароль", "🎉👩‍🚀", "\ud800", "é"])
def test_what_is_not_ascii_is_estimated_by_its_bytes(text: str) -> None:
    foreign = "".join(character for character in text if not character.isascii())
    assert Estimated().count(text) >= len(foreign.encode("utf-8", "surrogatepass"))


def test_nothing_takes_no_token() -> None:
    assert Estimated().count("") == 0


def test_a_tokenizer_counts_beyond_its_own_window_and_survives_a_lone_surrogate() -> None:
    counter = Tokenised.from_file(locate("all-MiniLM-L6-v2").tokenizer)
    assert counter.count("word " * 5000) == 5000
    assert counter.count("a \ud800 b") >= 2


def test_an_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / TOKENIZER
    file.write_text("{")
    with pytest.raises(ConfigError, match=str(file)):
        Tokenised.from_file(file)


@pytest.mark.parametrize(
    ("context", "prompt", "answer", "most", "left"),
    [
        (2048, 100, 512, 1024, 1024),
        (2048, 1200, 512, 1024, 336),
        (2048, 1536, 512, 1024, 0),
        (2048, 2000, 512, 1024, 0),
        (2048, 100, 512, 0, 0),
    ],
)
def test_examples_get_what_prompt_and_answer_leave(
    context: int, prompt: int, answer: int, most: int, left: int
) -> None:
    assert budget(context, prompt, answer, most) == left


def test_a_request_that_is_too_long_for_the_window_leaves_less_than_nothing() -> None:
    assert room(2048, 2000, 512) < 0 <= room(2048, 1536, 512)
