"""How a batch gets onto a device and its vectors off again while another batch is computed there.

A lane is what one batch needs: on CUDA a stream of its own and page-locked buffers, which copies need to run beside
computation. With two lanes one batch is copied while the other one is computed. Elsewhere there are no streams: one
lane, and one batch at a time. Written with care but not run on a GPU: tests run the same lines on a CPU.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

CUDA_LANES = 2
"""One batch computed, one copied: a third would only hold memory of the device."""


class Lane:
    """The buffers and the stream of one batch at a time."""

    def __init__(self, device: torch.device) -> None:
        """Take a stream where the device has them; buffers grow to the largest batch seen."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch types it half
        self._out = self._buffer(0, torch.int64)
        self._back = self._buffer(0, torch.float32)

    def run(
        self,
        compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return `compute(input_ids, attention_mask)`, given and returned on the device, as an array of one's own.

        Inputs are of shape (n, width), the result is of shape (n, dim). Blocks without holding the interpreter's lock
        while the device works. Raises whatever `compute` raises, and RuntimeError for the device.
        """
        n, width = input_ids.shape
        if self._out.numel() < 2 * n * width:
            self._out = self._buffer(2 * n * width, torch.int64)
        staged = self._out[: 2 * n * width].view(2, n, width)
        staged[0].copy_(torch.from_numpy(input_ids))
        staged[1].copy_(torch.from_numpy(attention_mask))
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext(), torch.inference_mode():
            moved = staged.to(self._device, non_blocking=True)  # both in one copy
            result = compute(moved[0], moved[1]).float()
            if self._back.numel() < result.numel():
                self._back = self._buffer(result.numel(), torch.float32)
            back = self._back[: result.numel()].view(result.shape)
            back.copy_(result, non_blocking=self._stream is not None)
            if self._stream is not None:
                # Blocking means a thread that sleeps: spinning would take a core.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch types it half
                done.record(self._stream)
                done.synchronize()
        vectors: NDArray[np.float32] = back.numpy().copy()
        return vectors

    def _buffer(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self._stream is not None)


class Lanes:
    """Lanes of one device, dealt out to whichever threads ask."""

    def __init__(self, device: torch.device) -> None:
        """Make the lanes. What the device still does, such as loading weights, is waited for."""
        count = CUDA_LANES if device.type == "cuda" else 1
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for _ in range(count):
            self._free.put(Lane(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the weights came by another stream

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """Take a lane for the time of a batch; blocks while there is none."""
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)
