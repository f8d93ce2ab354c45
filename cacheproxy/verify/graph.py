"""The cross-encoder's graph, put together from its weights: no exporter, no torch, nothing but matrices on disk.

Matrices are int8, one scale a column, in the reduced range of seven bits (with eight, processors without VNNI
saturate); activations are quantised as they come, one scale a tensor. Everything else is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import NodeProto
    from onnx import TensorProto as Tensor

    Floats = NDArray[np.float32]

_OPSET, _IR = 17, 9
_MOST = 63.0
"""Largest quantised weight: seven bits."""
_EPSILON = 1e-12
"""Of BERT's layer normalisation (`layer_norm_eps`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A BERT's sizes."""

    layers: int
    heads: int
    dim: int


def quantised(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return a matrix of shape (in, out) as int8, and the scale of each column, (out,)."""
    scales = np.maximum(np.abs(matrix).max(axis=0), 1e-8) / _MOST
    return np.clip(np.rint(matrix / scales), -_MOST, _MOST).astype(np.int8), scales.astype(np.float32)


def build(weights: Mapping[str, NDArray[np.float32] | NDArray[np.int8]], shape: Shape) -> bytes:
    """Return an ONNX model from `words` (1, tokens, dim) and `types` (1, tokens) to `logit` (1,).

    `weights` are named as BERT's in transformers, matrices transposed to (in, out) and quantised as `NAME.weight` with
    `NAME.scale`, and `head.weight` (2 * dim, 1) with `head.bias` over the first token beside the mean of all. Raises
    KeyError and ValueError for weights that are not of this shape, as far as names and heads tell.
    """
    if shape.dim % shape.heads or any(name.startswith(f"encoder.layer.{shape.layers}.") for name in weights):
        raise ValueError("other heads or layers")
    graph = _Graph(weights)
    hidden = graph.embedded()
    for layer in range(shape.layers):
        hidden = graph.layer(hidden, f"encoder.layer.{layer}.", shape)
    first = graph.add("Gather", hidden, graph.constant("zero", np.array(0, dtype=np.int64)), axis=1)
    mean = graph.add("ReduceMean", hidden, axes=[1], keepdims=0)
    pooled = graph.add("Concat", first, mean, axis=1)
    scored = graph.add("Gemm", pooled, graph.weight("head.weight"), graph.weight("head.bias"))
    graph.add("Squeeze", scored, graph.constant("last", np.array([1], dtype=np.int64)), out="logit")
    made = helper.make_graph(
        graph.nodes,
        "cross",
        [
            helper.make_tensor_value_info("words", TensorProto.FLOAT, [1, "tokens", shape.dim]),
            helper.make_tensor_value_info("types", TensorProto.INT64, [1, "tokens"]),
        ],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, [1])],
        initializer=list(graph.tensors.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    data: bytes = model.SerializeToString()
    return data


@dataclass(slots=True)
class _Graph:
    weights: Mapping[str, NDArray[np.float32] | NDArray[np.int8]]
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: object) -> str:
        """Add a node and return the name of its first output."""
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Return the name of a constant, added once."""
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str) -> str:
        """Return the name of a weight as a constant."""
        return self.constant(name, self.weights[name])

    def embedded(self) -> str:
        """Add places and sides to the words."""
        length = self.add("Gather", self.add("Shape", "words"), self.constant("one", np.array(1, dtype=np.int64)))
        start, step = self.constant("zero", np.array(0, dtype=np.int64)), self.constant("one", np.array(1))
        places = self.add(
            "Gather", self.weight("embeddings.position_embeddings.weight"), self.add("Range", start, length, step)
        )
        sides = self.add("Gather", self.weight("embeddings.token_type_embeddings.weight"), "types")
        return self.normalised(self.add("Add", self.add("Add", "words", places), sides), "embeddings.LayerNorm")

    def normalised(self, hidden: str, name: str) -> str:
        """Normalise a layer."""
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=_EPSILON)

    def quantise(self, hidden: str) -> tuple[str, str, str]:
        """Quantise activations; return their name, scale and zero point."""
        names = [f"q{len(self.nodes)}", f"s{len(self.nodes)}", f"z{len(self.nodes)}"]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [hidden], names))
        return names[0], names[1], names[2]

    def linear(self, hidden: tuple[str, str, str], name: str) -> str:
        """Multiply quantised activations with a matrix, and add its bias."""
        quantity, scale, zero = hidden
        product = self.add("MatMulInteger", quantity, self.weight(f"{name}.weight"), zero)
        scales = self.add("Mul", scale, self.weight(f"{name}.scale"))
        scaled = self.add("Mul", self.add("Cast", product, to=TensorProto.FLOAT), scales)
        return self.add("Add", scaled, self.weight(f"{name}.bias"))

    def layer(self, hidden: str, prefix: str, shape: Shape) -> str:
        """Add one layer: attention, then the feed-forward part."""
        own = self.quantise(hidden)
        split = self.constant("split", np.array([1, -1, shape.heads, shape.dim // shape.heads], dtype=np.int64))
        query, key, value = (
            self.add("Reshape", self.linear(own, f"{prefix}attention.self.{part}"), split)
            for part in ("query", "key", "value")
        )
        query, value = (self.add("Transpose", one, perm=[0, 2, 1, 3]) for one in (query, value))
        key = self.add("Transpose", key, perm=[0, 2, 3, 1])
        root = self.constant("root", np.array((shape.dim // shape.heads) ** -0.5, dtype=np.float32))
        scores = self.add("Softmax", self.add("Mul", self.add("MatMul", query, key), root), axis=-1)
        read = self.add("Transpose", self.add("MatMul", scores, value), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", read, self.constant("join", np.array([1, -1, shape.dim], dtype=np.int64)))
        told = self.linear(self.quantise(joined), f"{prefix}attention.output.dense")
        hidden = self.normalised(self.add("Add", told, hidden), f"{prefix}attention.output.LayerNorm")
        wide = self.linear(self.quantise(hidden), f"{prefix}intermediate.dense")
        narrow = self.linear(self.quantise(self.gelu(wide)), f"{prefix}output.dense")
        return self.normalised(self.add("Add", narrow, hidden), f"{prefix}output.LayerNorm")

    def gelu(self, hidden: str) -> str:
        """Apply the exact GELU."""
        half, one, root = (
            self.constant(name, np.array(value, dtype=np.float32))
            for name, value in (("half", 0.5), ("one_f", 1.0), ("root2", 2.0**0.5))
        )
        bent = self.add("Add", self.add("Erf", self.add("Div", hidden, root)), one)
        return self.add("Mul", self.add("Mul", hidden, bent), half)
