"""The graph computes what BERT computes, but for the rounding to eight bits and less."""

from __future__ import annotations

from math import erf
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from cacheproxy.verify.graph import Shape, build, quantised
from tests.support.artefacts import DIM, HEADS, LAYERS, cross_of, real_base, tiny_base

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHAPE = Shape(layers=LAYERS, heads=HEADS, dim=DIM)
QUESTIONS = (
    "How do I reset my password?", "Where can I change my passphrase?", "What is the capital of France?", "pay a bill",
    "Why is the sky blue?", "Can I open an account without a passport?", "How long should I boil an egg?", "ok",
    "What does the warranty of a refurbished laptop cover, and for how long?", "cancel my order", "is it safe to swim",
)  # fmt: skip
_ERF = np.vectorize(erf)


def run(graph: bytes, words: Floats, types: list[int]) -> float:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return float(session.run(["logit"], {"words": words.astype(np.float32)[None], "types": np.array([types])})[0][0])


def bert(weights: Mapping[str, NDArray[Any]], shape: Shape, words: Floats, types: list[int]) -> float:
    """Compute the same in double precision, from the very int8 matrices, by the paper (Devlin et al. 2019)."""

    def linear(x: Floats, name: str) -> Floats:
        told = weights[f"{name}.weight"].astype(np.float64) * weights[f"{name}.scale"]
        return np.asarray(x @ told + weights[f"{name}.bias"])

    def normalised(x: Floats, name: str) -> Floats:
        away = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return np.asarray(away * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    hidden = words + weights["embeddings.position_embeddings.weight"][: len(words)]
    hidden = normalised(hidden + weights["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}."
        query, key, value = (
            linear(hidden, f"{at}attention.self.{part}").reshape(len(words), shape.heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", query, key) / (shape.dim / shape.heads) ** 0.5
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        read = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), value).reshape(len(words), -1)
        hidden = normalised(linear(read, f"{at}attention.output.dense") + hidden, f"{at}attention.output.LayerNorm")
        wide = linear(hidden, f"{at}intermediate.dense")
        wide = 0.5 * wide * (1.0 + _ERF(wide / 2**0.5))
        hidden = normalised(linear(wide, f"{at}output.dense") + hidden, f"{at}output.LayerNorm")
    pooled = np.concatenate([hidden[0], hidden.mean(0)])
    return float((pooled @ weights["head.weight"])[0] + weights["head.bias"][0])


@pytest.mark.parametrize("tokens", [2, 3, 17, 131])
def test_the_graph_is_bert_within_the_rounding_of_activations(tmp_path: Path, tokens: int) -> None:
    weights = cross_of(tiny_base(tmp_path))
    graph, random = build(weights, SHAPE), np.random.default_rng(tokens)
    ours, theirs = [], []
    for _ in range(20):
        words, types = random.normal(0, 0.3, (tokens, DIM)), sorted(random.integers(0, 2, tokens).tolist())
        ours.append(run(graph, words, types))
        theirs.append(bert(weights, SHAPE, words, types))
    # Eight bits an activation: the logits lie a few hundredths of their own spread (about 2.5) away.
    assert np.abs(np.array(ours) - theirs).max() < 0.25
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_the_same_input_gives_the_same_bits(tmp_path: Path) -> None:
    weights = cross_of(tiny_base(tmp_path))
    words = np.random.default_rng(0).normal(0, 0.3, (9, DIM))
    first = build(weights, SHAPE)
    assert first == build(weights, SHAPE)
    assert len({run(first, words, [0] * 5 + [1] * 4) for _ in range(5)}) == 1


def test_a_column_is_rounded_by_its_own_largest_value_to_seven_bits() -> None:
    matrix = np.array([[1.0, 0.001, 0.0], [-2.0, 0.0005, 0.0], [0.5, 0.0, 0.0]], dtype=np.float32)
    rounded, scales = quantised(matrix)
    assert rounded.dtype == np.int8
    assert np.abs(rounded).max(axis=0).tolist() == [63, 63, 0]
    assert np.abs(rounded * scales - matrix).max(axis=0) == pytest.approx(np.zeros(3), abs=float(scales[0] / 2 + 1e-9))
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("shape", [(1, HEADS, DIM), (3, HEADS, DIM), (LAYERS, 3, DIM)])
def test_weights_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    layers, heads, dim = shape
    with pytest.raises((KeyError, ValueError)):
        build(cross_of(tiny_base(tmp_path)), Shape(layers=layers, heads=heads, dim=dim))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tiny", "real"])
def test_the_graph_agrees_with_torchs_float_model(tmp_path: Path, which: str) -> None:
    import torch

    from cacheproxy.training.cross import Cross, weights_of
    from cacheproxy.verify.cross import Words

    base = tiny_base(tmp_path) if which == "tiny" else real_base()
    model = Cross(base.weights.parent, seed=4).eval()
    with torch.no_grad():
        model.head.weight.mul_(4.0)
    words, graph, random = Words(base), build(weights_of(model), model.shape), np.random.default_rng(1)
    ours, theirs = [], []
    for one, other in (random.choice(QUESTIONS, 2).tolist() for _ in range(30)):
        one, other = words.ids(one), words.ids(other)
        ids = [words.first, *one, words.last, *other, words.last]
        types = [0] * (len(one) + 2) + [1] * (len(other) + 1)
        ours.append(run(graph, words.vectors[ids].astype(np.float64), types))
        with torch.no_grad():
            theirs.append(float(model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids)).long())[0]))
    spread = float(np.std(theirs))
    assert spread > 0.1
    away = np.abs(np.array(ours) - theirs)  # seven bits a weight, eight an activation
    assert away.mean() < 0.2 * spread
    assert away.max() < 0.7 * spread
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95
