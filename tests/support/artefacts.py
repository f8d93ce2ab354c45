"""Verifiers on disk for tests: a tiny BERT made here, and artefacts of it or of the real encoder, none of them trained.

Their trees are two stumps, over the cosine and over the shared words; their cross-encoders are the base's own layers
under a head drawn at random.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cacheproxy.verify import artefact
from cacheproxy.verify.cross import Base
from cacheproxy.verify.features import NAMES, VERSION
from cacheproxy.verify.graph import quantised
from cacheproxy.verify.trees import Trees
from cacheproxy.verifying import base_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.verify.artefact import Manifest

LAYERS, HEADS, DIM, WIDE, PLACES = 2, 4, 32, 64, 160
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = "how do i pay reset my password the card account can you open close what is to a of in delete and"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_VOCABULARY = [*_SPECIAL, *_LETTERS, *(f"##{one}" for one in _LETTERS), *"?!.,'-[]", *_WORDS.split()]
ENCODER = "all-MiniLM-L6-v2"


def real_base() -> Base:
    """Return the files of the encoder that comes with the project."""
    return base_of(ENCODER)


def tiny_base(folder: Path, seed: int = 1, **changes: int) -> Base:
    """Write a BERT of two layers with random weights as sentence-transformers would, and return its files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(_VOCABULARY))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = _random_weights(np.random.default_rng(seed), changes.get("vocabulary", len(vocabulary)), changes)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": DIM, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": WIDE, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "max_position_embeddings": changes.get("places", PLACES), "type_vocab_size": 2, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return Base(weights=folder / "model.safetensors", tokenizer=folder / "tokenizer.json", sha256=digest)


def _random_weights(
    random: np.random.Generator, vocabulary: int, changes: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    def drawn(*shape: int) -> NDArray[np.float32]:
        return random.normal(0.0, 0.3, shape).astype(np.float32)

    places = changes.get("places", PLACES)
    found = {
        "embeddings.word_embeddings.weight": drawn(vocabulary, DIM),
        "embeddings.position_embeddings.weight": drawn(places, DIM),
        "embeddings.token_type_embeddings.weight": drawn(2, DIM),
        "embeddings.LayerNorm.weight": 1.0 + drawn(DIM),
        "embeddings.LayerNorm.bias": drawn(DIM),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        sizes = {"attention.self.query": (DIM, DIM), "attention.self.key": (DIM, DIM)}
        sizes |= {"attention.self.value": (DIM, DIM), "attention.output.dense": (DIM, DIM)}
        sizes |= {"intermediate.dense": (WIDE, DIM), "output.dense": (DIM, WIDE)}
        for name, shape in sizes.items():
            found |= {f"{prefix}{name}.weight": drawn(*shape), f"{prefix}{name}.bias": drawn(shape[0])}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{prefix}{name}.weight": 1.0 + drawn(DIM), f"{prefix}{name}.bias": drawn(DIM)}
    return found


def cross_of(base: Base, seed: int = 3) -> dict[str, NDArray[Any]]:
    """Return the base's layers as a cross-encoder's, int8, under a random head."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in load_file(base.weights).items():
        if "word_embeddings" in name or "pooler" in name or name.endswith("position_ids"):
            continue
        if name.startswith("encoder") and array.ndim == 2:
            found[name], found[name.removesuffix("weight") + "scale"] = quantised(array.T.astype(np.float32))
        else:
            found[name] = array.astype(np.float32)
    dim = len(found["embeddings.LayerNorm.weight"])
    head = np.random.default_rng(seed).normal(0.0, 2.0 / dim**0.5, (2 * dim, 1))
    return found | {"head.weight": head.astype(np.float32), "head.bias": np.zeros(1, dtype=np.float32)}


def stumps() -> Trees:
    """Return trees that believe a cosine above 0.5, and shared words above 0.3: log-odds of -4, -2, 2 or 4."""
    cosine, shared = NAMES.index("cosine"), NAMES.index("words_shared")
    return Trees(
        feature=np.array([cosine, 0, 0, shared, 0, 0], dtype=np.int32),
        threshold=np.array([0.5, 0, 0, 0.3, 0, 0], dtype=np.float32),
        left=np.array([1, 1, 2, 4, 4, 5], dtype=np.int32),
        right=np.array([2, 1, 2, 5, 4, 5], dtype=np.int32),
        value=np.array([0, -3, 3, 0, -1, 1], dtype=np.float32),
        roots=np.array([0, 3], dtype=np.int32),
        depth=1,
        base=0.0,
    )


def write_verifier(folder: Path, base: Base, **changes: Any) -> Manifest:
    """Write an artefact of a base; `changes` replace fields of its manifest before it is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    cross = _cross_of(base)
    real = len(cross["embeddings.LayerNorm.weight"]) != DIM
    manifest = artefact.Manifest(
        schema=artefact.SCHEMA,
        name="test",
        description="made by a test",
        encoder=ENCODER if real else "tiny",
        weights_sha256=base.sha256,
        layers=6 if real else LAYERS,
        heads=12 if real else HEADS,
        dim=384 if real else DIM,
        features=VERSION,
        feature_names=NAMES,
        files={},
        weights=artefact.Weights(cheap=(0.0, 1.0), both=(0.0, 1.0, 0.1), hopeless=-3.5),
        sources=(artefact.Source(name="none.jsonl", sha256="0" * 64, pairs=0, licence="Apache-2.0"),),
        held_back={"none": artefact.Figures(pairs=0, precision=None, recall=None, average_precision=None)},
        seed=0,
        visits=0,
        parent="",
        tools={},
    )
    return artefact.save(folder, msgspec.structs.replace(manifest, **changes), stumps(), cross)


@cache
def _cross_of(base: Base) -> dict[str, NDArray[Any]]:
    return cross_of(base)
