"""The GPU encoder: sentence-transformers on cuda or mps in half precision.

Written with care but not run on a GPU: its tests run it on a CPU in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sentence_transformers import SentenceTransformer

from cacheproxy.embed.encoder import CPU_BATCH_TOKENS
from cacheproxy.embed.lanes import Lanes
from cacheproxy.embed.text import Window, pad
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.embed.device import Device
    from cacheproxy.embed.source import Source

_GPU_BATCH_TOKENS = 16_384
"""Padded tokens in one batch on a GPU, which a short batch leaves idle: not measured, since no GPU was at hand."""
_GPU_MULTIPLE = 8
"""Half precision is fastest where matrices come in multiples of eight (NVIDIA's guide to tensor cores)."""


class SentenceEncoder:
    """Runs a model through sentence-transformers on one device, under the same long-input rule as the CPU encoder.

    Half precision on a GPU, float32 on a CPU; each has its own fingerprint. Texts are tokenised in the calling thread;
    on CUDA one batch is copied while another one is computed.
    """

    def __init__(self, source: Source, device: Device) -> None:
        """Load the weights onto the device. Raises ConfigError when that fails."""
        half = device != "cpu"
        dtype = torch.float16 if half else torch.float32
        self._fingerprint = source.fingerprint("torch-fp16" if half else "torch-fp32", "float16" if half else "float32")
        self._dim = source.dim
        self._window = Window.load(source.tokenizer, source.window)
        self._device = torch.device(device)
        self._half = half
        try:
            self._model = SentenceTransformer(
                str(source.directory),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            ).eval()
        except (OSError, RuntimeError, ValueError) as exc:
            raise ConfigError(f"{source.directory}: cannot be loaded on {device} ({exc})") from exc
        self._lanes = Lanes(self._device)

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
        """No limit of its own that a setting would reach."""
        return 1024

    @property
    def batch_tokens(self) -> int:
        """As many as keep the device busy; on a CPU as few as for the exported graph."""
        return _GPU_BATCH_TOKENS if self._half else CPU_BATCH_TOKENS

    def weigh(self, text: str) -> int:
        """Guess a text's tokens."""
        return self._window.weigh(text)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        """Return unit vectors of shape (n, dim) and the digest of what was unseen of each text."""
        tokens = [self._window.read(text) for text in texts]
        input_ids, attention_mask = pad([token.ids for token in tokens], _GPU_MULTIPLE if self._half else 1)
        with self._lanes.one() as lane:
            vectors = lane.run(self._compute, input_ids, attention_mask)
        return vectors, [token.unseen for token in tokens]

    def _compute(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        pooled = self._model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
        # Normalised again in float32: half precision leaves the norm off by up to 1e-3.
        return torch.nn.functional.normalize(pooled.float(), dim=1)
