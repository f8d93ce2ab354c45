from __future__ import annotations

import pytest
import torch
from torch import nn

from cacheproxy.upstream.local import int8

pytestmark = pytest.mark.skipif(not int8.supported(), reason="no int8 kernels in this torch build")


def test_int8_layers_stay_close_to_float32() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.SiLU(), nn.Linear(128, 32, bias=False))
    x = torch.randn(5, 64)
    with torch.inference_mode():
        exact = model(x)
        int8.quantise(model)
        close = model(x)
    assert [type(layer) for layer in model] == [int8.Int8Linear, nn.SiLU, int8.Int8Linear]
    assert (close - exact).norm() / exact.norm() < 0.03


def test_each_output_row_has_its_own_scale() -> None:
    weight = torch.tensor([[1000.0, -1000.0], [0.01, 0.02]])
    result = int8.Int8Linear(weight)(torch.ones(1, 2))
    assert result[0, 1].item() == pytest.approx(0.03, rel=0.03)


def test_a_row_of_zeros_gives_zero() -> None:
    assert int8.Int8Linear(torch.zeros(2, 4))(torch.ones(1, 4)).abs().max().item() == 0
