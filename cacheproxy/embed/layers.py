"""Layers: what training changed in an encoder's own weights. Its last layers anew, or low-rank adapters in them.

A change is a flat vector of float32, so that whoever averages, clips or checks it need not know what it is of. It is
made whole, for serving, by adding it to the weights of the encoder that it was trained on: what comes of it is a plain
BERT encoder again, of the same size and speed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cacheproxy.embed.weights import LAYER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Mode = Literal["top-layers", "lora"]
MODES = get_args(Mode)
MOST_DEPTH = 256
"""Layers of an encoder, and of those that change: no more are ever looked at, whoever asks."""
MOST_DIM, MOST_INNER, MOST_RANK = 1 << 14, 1 << 16, 1 << 12
SCALE = 2.0
"""What an adapter's product is multiplied by (alpha / rank, as is usual)."""
ADAPTED = ("attention.self.query", "attention.self.value")
"""Maps of a layer that get an adapter."""
DOWN, UP = "lora_A", "lora_B"
_SPREAD = 0.02
"""Standard deviation of an adapter's first half before training; the second half is zero, so that nothing changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Which weights of an encoder change. `dim`, `inner` and `depth` are the encoder's width, feed-forward and layers.

    Of its layers the last `layers` change. `rank` is of adapters, 0 for whole layers.
    """

    mode: Mode
    dim: int
    inner: int
    depth: int
    layers: int
    rank: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError that names what cannot be."""
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if min(self.dim, self.inner, self.depth) < 1:
            raise ValueError(f"an encoder has no {self.dim} x {self.inner} x {self.depth} weights")
        if self.depth > MOST_DEPTH or self.dim > MOST_DIM or self.inner > MOST_INNER:
            raise ValueError(
                f"an encoder has at most {MOST_DEPTH} layers of {MOST_DIM} x {MOST_INNER}, "
                f"got {self.depth} of {self.dim} x {self.inner}"
            )
        if not 1 <= self.layers <= self.depth:
            raise ValueError(f"layers must be 1 to {self.depth}, got {self.layers}")
        if self.mode == "lora" and not 1 <= self.rank <= self.dim:
            raise ValueError(f"rank must be 1 to {self.dim}, got {self.rank}")
        if self.mode == "top-layers" and self.rank:
            raise ValueError(f"whole layers have no rank, got {self.rank}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a flat vector is of, in its order."""
        found: dict[str, tuple[int, ...]] = {}
        for at in range(self.depth - self.layers, self.depth):
            if self.mode == "lora":
                for part in ADAPTED:
                    found[f"encoder.layer.{at}.{part}.{DOWN}"] = (self.rank, self.dim)
                    found[f"encoder.layer.{at}.{part}.{UP}"] = (self.dim, self.rank)
                continue
            for part in LAYER:
                weight, bias = self._whole(part)
                found[f"encoder.layer.{at}.{part}.weight"] = weight
                found[f"encoder.layer.{at}.{part}.bias"] = bias
        return found

    @property
    def size(self) -> int:
        """Length of a flat vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def start(self, seed: int) -> NDArray[np.float32]:
        """Return the flat vector of before training, shape (size,): it changes nothing. The seed is of adapters."""
        flat = np.zeros(self.size, dtype=np.float32)
        random = np.random.default_rng(seed)
        for name, part in self.parts(flat).items():
            if name.endswith(DOWN):
                part[...] = random.normal(0.0, _SPREAD, part.shape)
        return flat

    def parts(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return a flat vector's tensors by name; they share its memory. Raises ValueError for another length."""
        shapes = self.shapes
        if flat.shape != (self.size,):
            raise ValueError(f"{self.mode} of this encoder is {self.size} numbers, got shape {flat.shape}")
        found, at = {}, 0
        for name, shape in shapes.items():
            end = at + math.prod(shape)
            found[name] = flat[at:end].reshape(shape)
            at = end
        return found

    def _whole(self, part: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if part.endswith("LayerNorm"):
            return (self.dim,), (self.dim,)
        if part == "intermediate.dense":
            return (self.inner, self.dim), (self.inner,)
        if part == "output.dense":
            return (self.dim, self.inner), (self.dim,)
        return (self.dim, self.dim), (self.dim,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """A change of an encoder: of whole layers what is added to their weights, of adapters their two halves."""

    form: Form
    flat: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Raise ValueError for a vector of another type or length, or one that is not finite."""
        if self.flat.dtype != np.float32 or self.flat.shape != (self.form.size,):
            raise ValueError(
                f"{self.form.mode} of this encoder is float32 of shape ({self.form.size},), "
                f"got {self.flat.dtype} {self.flat.shape}"
            )
        if not np.isfinite(self.flat).all():
            raise ValueError("changed layers must be finite")

    @classmethod
    def of(cls, form: Form, tensors: Mapping[str, NDArray[np.float32]]) -> Layers:
        """Return the change that named tensors are. Raises ValueError where names or shapes are not the form's."""
        told = {name: tensor.shape for name, tensor in tensors.items()}
        if told != form.shapes:
            raise ValueError(f"tensors of {form.mode} have other names or shapes than its manifest says")
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise ValueError("changed layers must be float32")
        return cls(form=form, flat=np.concatenate([tensors[name].reshape(-1) for name in form.shapes]))

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The change's tensors by name."""
        return self.form.parts(self.flat)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the change is, in hexadecimal digits."""
        told = f"layers/1:{self.form}:".encode()
        return hashlib.sha256(told + np.ascontiguousarray(self.flat, dtype="<f4").tobytes()).hexdigest()

    def added(self) -> dict[str, NDArray[np.float32]]:
        """Return by name of the encoder's own weights what is added to each."""
        if self.form.mode == "top-layers":
            return self.tensors
        parts, found = self.tensors, {}
        for name, down in parts.items():
            if name.endswith(DOWN):
                stem = name.removesuffix(DOWN)
                product = parts[stem + UP].astype(np.float64) @ down.astype(np.float64)
                found[stem + "weight"] = (SCALE * product).astype(np.float32)
        return found
