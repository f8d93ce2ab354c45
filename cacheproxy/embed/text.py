"""The long-input rule: which part of a text the encoder sees, and a digest of the part that it does not.

A text whose tokens fit the model's window is seen whole. Of any other text the encoder sees the head and the tail, half
of the window each, and the middle is left out. To bound the work, a text longer than 16 characters per token of the
window (4,096 for a window of 256) is cut to that many characters, half from each end, before it is tokenised.

Nothing is left out silently. Characters (other than white space) that no known token covers are unseen: the middle,
words that the vocabulary does not hold (emoji, a word of more than 100 letters) and characters that the model's
normaliser drops. `unseen` is a digest of exactly those pieces, in order, so that whoever serves an answer by similarity
can demand that the unseen parts of both texts are equal. What the model sees but does not tell apart (case, accents) is
not unseen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RULE = 1
"""Version of the rule above; part of every encoder's fingerprint."""

CHARS_PER_TOKEN = 16
"""Characters looked at per token of the window: four times what English prose needs."""

_UNSEEN_BYTES = 16
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A text as the encoder gets it: token ids with the model's special tokens, and the digest of the rest."""

    ids: list[int]
    unseen: bytes


_Piece = tuple[int, tuple[int, int]]
"""A token's id, and where it begins and ends in the text. Plain tuples: there are as many as words."""


class Window:
    """Applies the long-input rule for one tokenizer and a window of `size` tokens, special tokens included."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """Take the tokenizer over: its own silent truncation and padding are switched off."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._unknown = tokenizer.token_to_id("[UNK]")
        self._prefix, self._suffix = _special_ids(tokenizer)
        self._room = size - len(self._prefix) - len(self._suffix)
        if self._room < 2:
            raise ConfigError(f"the encoder's window must hold two tokens of text, got max_seq_length {size}")
        self._tail = self._room // 2
        self._head = self._room - self._tail
        self.size = size
        self.max_chars = size * CHARS_PER_TOKEN

    @classmethod
    def load(cls, file: Path, size: int) -> Window:
        """Read a `tokenizer.json`. Raises ConfigError when it cannot be read."""
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as exc:  # tokenizers raises bare Exception for any bad file
            raise ConfigError(f"{file}: not a readable tokenizer ({exc}); install the model again") from exc
        return cls(tokenizer, size)

    def weigh(self, text: str) -> int:
        """Guess the number of tokens from the length: four characters each, at most the window."""
        return min(len(text) // 4 + 2, self.size)

    def read(self, text: str) -> Tokens:
        """Tokenise under the long-input rule, in time bounded by the window and not by the text."""
        pieces = self._fit(text)
        return Tokens(
            ids=[*self._prefix, *[id_ for id_, _ in pieces], *self._suffix],
            unseen=_digest(self._left_out(text, pieces)),
        )

    def _fit(self, text: str) -> list[_Piece]:
        if len(text) <= self.max_chars:
            pieces = self._tokenize(text, 0, len(text))
            return pieces if len(pieces) <= self._room else pieces[: self._head] + pieces[-self._tail :]
        half = self.max_chars // 2
        head = self._tokenize(text, 0, half)
        tail = self._tokenize(text, len(text) - half, len(text))
        return head[: self._head] + tail[-self._tail :]

    def _tokenize(self, text: str, start: int, end: int) -> list[_Piece]:
        part = text[start:end]
        if not part.isascii():
            # A lone surrogate (from a command line) is not Unicode text; the replacement is dropped by the normaliser.
            part = _SURROGATE.sub("\ufffd", part)
        # encode_batch releases the interpreter lock, encode does not.
        encoding = self._tokenizer.encode_batch([part], add_special_tokens=False)[0]
        pieces: Iterator[_Piece] = zip(encoding.ids, encoding.offsets, strict=True)
        if start:
            return [(id_, (start + first, start + last)) for id_, (first, last) in pieces]
        return list(pieces)

    def _left_out(self, text: str, pieces: Sequence[_Piece]) -> Iterator[str]:
        cursor = 0
        for id_, (start, end) in pieces:
            if id_ == self._unknown:
                continue
            if start > cursor and text[cursor:start] != " ":
                yield text[cursor:start]
            if end > cursor:
                cursor = end
        yield text[cursor:]


def pad(ids: Sequence[list[int]], multiple: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `input_ids` and `attention_mask` of shape (n, width): 1 in the mask where there is a token.

    The width is that of the longest row, rounded up to a `multiple`.
    """
    input_ids = np.zeros((len(ids), -(-max(map(len, ids)) // multiple) * multiple), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, one in enumerate(ids):
        input_ids[row, : len(one)] = one
        attention_mask[row, : len(one)] = 1
    return input_ids, attention_mask


def _digest(parts: Iterator[str]) -> bytes:
    """Hash what is left of the parts without the white space around them; b"" when nothing is left."""
    digest = None
    for part in parts:
        data = part.strip().encode("utf-8", "surrogatepass")
        if data:
            digest = digest or blake2b(digest_size=_UNSEEN_BYTES)
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest() if digest else b""


def _special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the model wants before and after every text."""
    encoding = tokenizer.encode("a")
    ids, special = encoding.ids, encoding.special_tokens_mask
    if 0 not in special:
        raise ConfigError("the encoder's tokenizer.json knows no letter 'a'; install the model again")
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]
