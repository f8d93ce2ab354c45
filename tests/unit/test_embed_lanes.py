"""Lanes: what a GPU's batches go through, run here on a CPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cacheproxy.embed.lanes import Lane, Lanes
from cacheproxy.embed.text import pad

CPU = torch.device("cpu")


def sums(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    return (input_ids * attention_mask).sum(dim=1, keepdim=True)


def batch(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return pad(rows)


def test_a_smaller_batch_sees_nothing_of_the_larger_one_before() -> None:
    lane = Lane(CPU)
    assert lane.run(sums, *batch([5, 5, 5, 5], [7, 7, 7, 7], [9, 9, 9, 9])).tolist() == [[20], [28], [36]]
    assert lane.run(sums, *batch([1], [2])).tolist() == [[1], [2]]
    assert lane.run(sums, *batch([1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [[36]]


def test_vectors_given_out_stay_when_the_lane_goes_on() -> None:
    lane = Lane(CPU)
    first = lane.run(sums, *batch([1], [2]))
    lane.run(sums, *batch([3], [4]))
    assert first.tolist() == [[1], [2]]
    assert first.dtype == np.float32


def test_half_precision_comes_back_as_float32() -> None:
    got = Lane(CPU).run(lambda ids, mask: (ids * mask).to(torch.float16) / 3, *batch([1, 2]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[1 / 3, 2 / 3]], atol=1e-3)


def test_threads_that_come_at_once_take_turns_and_get_their_own() -> None:
    lanes = Lanes(CPU)
    inside, most, lock = 0, 0, threading.Lock()

    def slow(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            inside -= 1
        return sums(input_ids, attention_mask)

    def one(number: int) -> float:
        with lanes.one() as lane:
            return float(lane.run(slow, *batch([number, number]))[0, 0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(60))) == [2.0 * number for number in range(60)]
    assert most == 1, "a device without streams has one lane"


def test_a_batch_that_fails_gives_its_lane_back() -> None:
    lanes = Lanes(CPU)

    def fails(_ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"), lanes.one() as lane:
            lane.run(fails, *batch([1]))
    with lanes.one() as lane:
        assert lane.run(sums, *batch([4])).tolist() == [[4]]


def test_rows_are_padded_to_a_multiple_that_the_mask_leaves_out() -> None:
    input_ids, attention_mask = pad([[1, 2, 3], [4]], 8)
    assert input_ids.shape == attention_mask.shape == (2, 8)
    assert attention_mask.sum(axis=1).tolist() == [3, 1]
    assert pad([[1] * 8], 8)[0].shape == (1, 8)
