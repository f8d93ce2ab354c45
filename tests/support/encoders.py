"""Encoders for tests: a tiny deterministic one, one that fails on order, the real ones, and model directories."""

from __future__ import annotations

import hashlib
import json
import threading
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy import settings
from cacheproxy.embed.encoder import CPU_BATCH_TOKENS
from cacheproxy.embed.open import open_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.encoder import Encoder

ENCODERS = Path(__file__).resolve().parents[2] / ".cacheproxy" / "encoders"
"""Where the checkout's exported encoders are kept, so that they are made once."""

DIM = 64
SEEN_CHARS = 2048


class HashEncoder:
    """Deterministic unit vectors from character trigrams: equal texts are equal, similar texts are near.

    Sees the first and last 1,024 characters. Records every call; `gate` holds calls back while it is cleared.
    """

    fingerprint = "hash/trigrams/1"
    dim = DIM
    batch_tokens = CPU_BATCH_TOKENS

    def __init__(self, max_batch: int = 1024) -> None:
        self.max_batch = max_batch
        self.calls: list[tuple[str, ...]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def weigh(self, text: str) -> int:
        return min(len(text) // 4 + 2, SEEN_CHARS // 4)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        self.calls.append(tuple(texts))
        self.threads.add(threading.current_thread().name)
        self.gate.wait(timeout=30)
        return np.stack([_vector(text) for text in texts]), [_unseen(text) for text in texts]


class Fault(StrEnum):
    """What can go wrong in a call."""

    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_AN_ARRAY = "not_an_array"
    WRONG_DIM = "wrong_dim"
    WRONG_DTYPE = "wrong_dtype"
    TOO_FEW = "too_few"
    NAN = "nan"
    INFINITE = "infinite"
    ZERO = "zero"
    HANG = "hang"


class FaultyEncoder(HashEncoder):
    """A HashEncoder whose n-th calls (from 0) fail as told. A hang lasts until `release`, at most 30 s."""

    def __init__(self, faults: Mapping[int, Fault], max_batch: int = 1024) -> None:
        super().__init__(max_batch)
        self._faults = dict(faults)
        self._hanging = threading.Event()

    def release(self) -> None:
        """End every hang, now and later."""
        self._hanging.set()

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        fault = self._faults.get(len(self.calls))
        vectors, unseen = super().encode(texts)
        if fault is Fault.HANG:
            self._hanging.wait(timeout=30)
        if fault is Fault.EXCEPTION:
            raise RuntimeError("the model failed on: " + texts[0])
        if fault is Fault.OUT_OF_MEMORY:
            raise MemoryError
        if fault is Fault.NOT_AN_ARRAY:
            return list(vectors), unseen  # type: ignore[return-value]  # the fault itself
        if fault is Fault.WRONG_DIM:
            return vectors[:, :7], unseen
        if fault is Fault.WRONG_DTYPE:
            return vectors.astype(np.float64), unseen
        if fault is Fault.TOO_FEW:
            return vectors[:-1], unseen
        if fault in (Fault.NAN, Fault.INFINITE, Fault.ZERO):
            vectors[0] = {Fault.NAN: np.nan, Fault.INFINITE: np.inf, Fault.ZERO: 0.0}[fault]
        return vectors, unseen


@lru_cache
def real_encoder(precision: str) -> Encoder:
    """Return the real CPU encoder; the first call in a checkout exports it (15-30 s)."""
    return open_encoder(settings.Encoder(device="cpu", precision=precision, cache_dir=str(ENCODERS)), ENCODERS.parent)


def write_model(directory: Path, *, weights: bytes | None = None) -> Path:
    """Write a small, well-formed model directory (weights of zeros), as sentence-transformers saves it."""
    files = {
        "config.json": {
            "model_type": "bert",
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "tokenizer.json": {},
    }
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    (directory / "model.safetensors").write_bytes(safetensors_bytes() if weights is None else weights)
    return directory


def safetensors_bytes(layers: int = 6) -> bytes:
    """Return a whole safetensors file with the tensor names of a BERT encoder, all of them the same 16 zero bytes."""
    parts = [
        f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    ]
    parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
    kinds = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    names = [f"embeddings.{kind}.weight" for kind in kinds]
    names += [f"encoder.layer.{layer}.{part}.weight" for layer in range(layers) for part in parts]
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **dict.fromkeys(names, tensor)}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


def _vector(text: str) -> NDArray[np.float32]:
    vector = np.full(DIM, 1e-3, dtype=np.float32)
    seen = text if len(text) <= SEEN_CHARS else text[: SEEN_CHARS // 2] + text[-SEEN_CHARS // 2 :]
    for start in range(max(len(seen) - 2, 1)):
        trigram = hashlib.blake2b(seen[start : start + 3].encode("utf-8", "surrogatepass"), digest_size=4).digest()
        vector[int.from_bytes(trigram[:2], "big") % DIM] += 1.0 if trigram[2] % 2 else -1.0
    return vector / np.float32(np.linalg.norm(vector))


def _unseen(text: str) -> bytes:
    middle = text[SEEN_CHARS // 2 : -SEEN_CHARS // 2] if len(text) > SEEN_CHARS else ""
    return hashlib.blake2b(middle.encode("utf-8", "surrogatepass"), digest_size=16).digest() if middle else b""
