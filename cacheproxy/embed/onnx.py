"""The CPU encoder: tokenizers and onnxruntime, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

from cacheproxy.embed.artefact import GRAPH
from cacheproxy.embed.encoder import CPU_BATCH_TEXTS, CPU_BATCH_TOKENS
from cacheproxy.embed.source import TOKENIZER
from cacheproxy.embed.text import Window, pad
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_LOAD_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, RuntimeException)


class OnnxEncoder:
    """Runs an exported graph in the calling thread: one core a call.

    One session serves all worker threads: its runs are thread-safe and concurrent, a second session was measured to be
    no faster and costs the weights again (65 MB at fp32).
    """

    def __init__(self, folder: Path, *, fingerprint: str, dim: int, window: int, precision: str) -> None:
        """Load the graph and the tokenizer of an exported folder. Raises ConfigError when either cannot be loaded."""
        self._window = Window.load(folder / TOKENIZER, window)
        self._fingerprint = fingerprint
        self._dim = dim
        self._whole_batch = precision == "fp32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except _LOAD_ERRORS as exc:
            raise ConfigError(
                f"{folder}: onnxruntime cannot load it ({exc}); delete the folder to export again"
            ) from exc

    @property
    def fingerprint(self) -> str:
        """Name of the vectors this encoder makes."""
        return self._fingerprint

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def max_batch(self) -> int:
        """Return 1 for int8, whose texts run one by one; for fp32 as many as gain by it."""
        return CPU_BATCH_TEXTS if self._whole_batch else 1

    @property
    def batch_tokens(self) -> int:
        """What a core does in some 30 ms."""
        return CPU_BATCH_TOKENS

    def weigh(self, text: str) -> int:
        """Guess a text's tokens."""
        return self._window.weigh(text)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        """Return unit vectors of shape (n, dim) and the digest of what was unseen of each text."""
        tokens = [self._window.read(text) for text in texts]
        ids = [token.ids for token in tokens]
        # Dynamic quantisation scales a whole tensor at once: in a shared run a text's vector would move with its
        # neighbours (cosine with itself down to 0.97).
        vectors = self._run(ids) if self._whole_batch else np.concatenate([self._run([one]) for one in ids])
        return vectors, [token.unseen for token in tokens]

    def _run(self, ids: Sequence[list[int]]) -> NDArray[np.float32]:
        input_ids, attention_mask = pad(ids)
        outputs = self._session.run(["embedding"], {"input_ids": input_ids, "attention_mask": attention_mask})
        vectors: NDArray[np.float32] = outputs[0]
        return vectors
