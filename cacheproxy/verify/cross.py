"""The cross-encoder: both questions read together by the encoder's own layers, trained on for this.

Its graph begins after the word embeddings, which stay the base encoder's: they are read from its weights, so that an
artefact holds the layers only. One pair a run: dynamic quantisation scales a whole tensor, and a pair's value must not
depend on its neighbours.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    RuntimeException,
)
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from cacheproxy.errors import ConfigError, VerifierUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SIDE_TOKENS = 64
"""Most tokens that are read of one question."""
MOST_TOKENS = 2 * SIDE_TOKENS + 3
"""Of a pair, with the special ones."""
_AROUND = 8
"""Tokens kept of what both questions share before and after where they differ, when they are long."""
_WORDS = ("embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight")
LONGEST = 16_000
"""Characters of a text that are read, half of them at each end."""
_SHORTEST = np.float32(1e-6)
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9 ]")
"""What BERT takes apart before it looks for word pieces, in a printable text of ASCII."""
_KNOWN_WORDS = 16_384
_LONGEST_WORD = 100
"""Characters of a word that is remembered; a longer one is unknown to BERT as a whole, and would fill the memory."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENGINE_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, RuntimeException)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The encoder that a verifier grew from: its weights (safetensors), its tokenizer, and the weights' sha256."""

    weights: Path
    tokenizer: Path
    sha256: str


class Words:
    """A base encoder's tokenizer and word embeddings, the latter read from its file where they are needed."""

    def __init__(self, base: Base) -> None:
        """Read the tokenizer, map the embeddings. Raises ConfigError for files that cannot be used."""
        try:
            self._tokenizer = Tokenizer.from_file(str(base.tokenizer))
        except Exception as exc:  # the library raises nothing narrower
            raise ConfigError(f"{base.tokenizer}: cannot be read as a tokenizer; install the encoder again") from exc
        self._tokenizer.encode_special_tokens = True  # a question that spells [SEP] does not separate anything
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        first, last = self._tokenizer.token_to_id("[CLS]"), self._tokenizer.token_to_id("[SEP]")
        if first is None or last is None:
            raise ConfigError(f"{base.tokenizer}: has no [CLS] and [SEP]; it is not a BERT tokenizer")
        self.first, self.last = first, last
        self._tokens_of = lru_cache(_KNOWN_WORDS)(self._encoded) if _word_by_word(self._tokenizer) else None
        self.vectors = _word_vectors(base.weights)
        self._lengths = np.zeros(len(self.vectors), dtype=np.float32)  # 0 until a word is met
        if self._tokenizer.get_vocab_size() > len(self.vectors):
            raise ConfigError(f"{base.tokenizer}: has more tokens than {base.weights.name}; install the encoder again")

    def ids(self, text: str) -> list[int]:
        """Return the tokens of any text, without special ones. Of a very long text only the ends are read."""
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} {text[-LONGEST // 2 :]}"
        if self._tokens_of is not None and text.isascii() and text.isprintable():
            words = _ASCII_WORD.findall(text)
            if len(text) <= _LONGEST_WORD or max(map(len, words), default=0) <= _LONGEST_WORD:
                return [token for word in words for token in self._tokens_of(word)]
        return self._encoded(text)

    def _encoded(self, text: str) -> list[int]:
        if not text.isascii():
            text = _SURROGATE.sub("\ufffd", text)  # half a character is none, and the tokenizer takes characters only
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def forget(self) -> None:
        """Remember no word of before."""
        if self._tokens_of is not None:
            self._tokens_of.cache_clear()

    def directions(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the unit embeddings of tokens, of shape (tokens, dim)."""
        vectors = self.vectors.take(ids, axis=0)
        lengths = self._lengths.take(ids)
        if not lengths.all():
            lengths = np.maximum(np.sqrt(np.add.reduce(vectors * vectors, axis=1)), _SHORTEST)
            self._lengths[ids] = lengths  # from several threads at once: the same values
        vectors /= lengths[:, None]
        return vectors


class CrossEncoder:
    """Runs the graph in the calling thread, on one core; several threads may call at once."""

    def __init__(self, graph: bytes, words: Words) -> None:
        """Load a graph that `graph.build` made. Raises ConfigError where it cannot be loaded."""
        self._words = words
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except _ENGINE_ERRORS as exc:
            raise ConfigError("onnxruntime cannot load the verifier; train or install it again") from exc

    def logit(self, kept: str, asked: str) -> float:
        """Return the log-odds that the answer of `kept` is right for `asked`; minus infinity where it cannot tell.

        It cannot where the questions are too long and differ in too many places, or where it does not read all of
        them. Raises VerifierUnavailable where the engine fails.
        """
        if kept != asked and max(len(kept), len(asked)) > LONGEST:
            return -math.inf
        sides = shortened(self._words.ids(kept), self._words.ids(asked), SIDE_TOKENS)
        if sides is None:
            return -math.inf
        one, other = sides
        ids = np.array([self._words.first, *one, self._words.last, *other, self._words.last])
        types = np.zeros((1, len(ids)), dtype=np.int64)
        types[0, len(one) + 2 :] = 1
        vectors = np.ascontiguousarray(self._words.vectors[ids], dtype=np.float32)[None]
        try:
            outputs = self._session.run(["logit"], {"words": vectors, "types": types})
        except _ENGINE_ERRORS as exc:
            raise VerifierUnavailable(f"the cross-encoder failed ({type(exc).__name__})") from exc
        return float(outputs[0][0])

    def both(self, kept: str, asked: str) -> float:
        """Return the mean of `logit` in both orders: which one is asked says nothing of whether they are the same."""
        return (self.logit(kept, asked) + self.logit(asked, kept)) / 2


def _word_by_word(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words, one after the other: so with BERT, which most encoders are."""
    return (
        isinstance(tokenizer.model, WordPiece)
        and isinstance(tokenizer.normalizer, BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )


def shortened(one: Sequence[int], other: Sequence[int], most: int) -> tuple[list[int], list[int]] | None:
    """Return both token lists within `most` tokens each, cut around where they differ; None where that is too long."""
    if max(len(one), len(other)) <= most:
        return list(one), list(other)
    least = min(len(one), len(other))
    before = next((at for at in range(least) if one[at] != other[at]), least)
    after = next((at for at in range(least - before) if one[-1 - at] != other[-1 - at]), least - before)
    start, cut = max(before - _AROUND, 0), max(after - _AROUND, 0)
    left, right = list(one[start : len(one) - cut]), list(other[start : len(other) - cut])
    return (left, right) if max(len(left), len(right)) <= most else None


def _word_vectors(file: Path) -> NDArray[np.float32]:
    """Map the word embeddings of a safetensors file into memory: shape (vocabulary, dim), read page by page."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > 1 << 24:
                raise ConfigError(f"{file}: not a safetensors file")
            header = msgspec.json.decode(stream.read(length), type=dict[str, dict[str, object]])
        tensor = next(header[name] for name in _WORDS if name in header)
        begin, end = msgspec.convert(tensor["data_offsets"], tuple[int, int])
        rows, dim = msgspec.convert(tensor["shape"], tuple[int, int])
        if tensor["dtype"] != "F32" or end - begin != rows * dim * 4:
            raise ConfigError(f"{file}: its word embeddings are not float32")
        mapped = np.memmap(file, dtype=np.float32, mode="r", offset=8 + length + begin, shape=(rows, dim))
        return mapped.view(np.ndarray)  # a memmap's own class makes every look-up slower
    except (OSError, StopIteration, KeyError, ValueError, msgspec.MsgspecError) as exc:
        raise ConfigError(f"{file}: holds no word embeddings that can be read; install the encoder again") from exc
