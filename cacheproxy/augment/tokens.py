"""Tokens: how many a text takes in the small model, counted or estimated, and how many are left for examples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE_TOKENS = 8
"""What a chat template writes around one message, generously: its role, its marks, line ends."""

_ASCII_PIECE = re.compile(r"[A-Z][a-z]{1,3}|[a-z]{1,4}|[A-Z]{1,2}| (?=\d)|\n|\s{2,}|[\x21-\x7e]")
_FOREIGN = re.compile(r"[^\x00-\x7f]+")


class Estimated:
    """An estimate for when the small model's tokenizer is not at hand: rather too many than too few.

    A token for every four letters of a word, for every digit and mark, and for every byte of what is not ASCII. For
    SmolLM2 (49,152 tokens) that was never too few on 4,300 English texts, and 21 to 41 % too many in the mean (code,
    prose, arithmetic, short questions); in 4 of 18 other texts it was (German 28 against 33, base64 77 against 110).
    A small model that refuses a prompt as too long costs a call, and the large one answers.
    """

    def count(self, text: str) -> int:
        """Return about how many tokens a text takes."""
        count = len(_ASCII_PIECE.findall(text)) + (1 if text else 0)
        if text.isascii():
            return count
        return count + sum(len(found.encode("utf-8", "surrogatepass")) for found in _FOREIGN.findall(text))


class Tokenised:
    """Counts with the small model's own tokenizer. Any thread may count."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer over: its own silent truncation and padding are switched off."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path) -> Tokenised:
        """Read a `tokenizer.json`. Raises ConfigError when it cannot be read."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as exc:  # the library raises bare Exception for any flaw
            raise ConfigError(f"small.tokenizer, {path}: the small model's tokenizer cannot be read: {exc}") from exc

    def count(self, text: str) -> int:
        """Return how many tokens a text takes. Lone surrogates count as the sign that replaces them."""
        whole = text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
        return len(self._tokenizer.encode(whole, add_special_tokens=False).ids)


def room(context_tokens: int, prompt_tokens: int, max_answer_tokens: int) -> int:
    """Return how many tokens a context window has left beside a prompt and its answer.

    Below 0 the small model cannot take the request at all, with examples or without.
    """
    return context_tokens - prompt_tokens - max_answer_tokens


def budget(context_tokens: int, prompt_tokens: int, max_answer_tokens: int, most: int) -> int:
    """Return how many tokens examples may take: what the context window has left, at most `most`, never below 0.

    `prompt_tokens` covers the caller's own prompt and the block that examples stand in (`prompt.FRAME`).
    """
    return max(0, min(most, room(context_tokens, prompt_tokens, max_answer_tokens)))
