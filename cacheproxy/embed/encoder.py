"""What runs a model: the synchronous, thread-safe thing behind the micro-batcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

CPU_BATCH_TOKENS = 1024
"""Padded tokens in one batch on a CPU: beyond about 250 a larger batch saves little and makes the next text wait."""
CPU_BATCH_TEXTS = 16
"""Texts in one batch on a CPU: more save next to nothing, and all that are in it come to the verifier at once."""


class Encoder(Protocol):
    """Texts to unit vectors, in the calling thread. Several threads may call at once."""

    @property
    def fingerprint(self) -> str:
        """Readable prefix and digest of everything that shapes a vector; the same on every machine."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    @property
    def max_batch(self) -> int:
        """Most texts that one call should carry; 1 when texts gain nothing from sharing a run."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens that one call should carry: more saves little, and makes the next text wait."""
        ...

    def weigh(self, text: str) -> int:
        """Guess the number of tokens that a text costs, cheaply: only for putting similar lengths together."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        """Return vectors of shape (n, dim) and, for each text, the digest of what was not seen (b"" when all was).

        A text's vector does not depend on the other texts of the call, up to float32 rounding. Any exception means that
        no text of this call was encoded.
        """
        ...
