"""How questions meet: where their vectors lie, what is near, and what a verifier is asked and says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Where vectors may meet: one category, one scope with its compatibility fingerprint, one encoder epoch."""

    category: str
    compatibility: bytes
    epoch: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """A unit vector of shape (dim,), float32, and a digest of the text the encoder cannot see (b"" for none)."""

    vector: NDArray[np.float32]
    unseen: bytes = b""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry the index proposes; a hint until its document is read."""

    entry_id: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """A question as a verifier reads it: its text, and what was said before it, oldest first.

    `vector` is the encoder's, of shape (dim,), where there is one. `chain` alternates user and assistant and ends with
    the assistant; it is empty for a question that stands alone.
    """

    text: str = field(repr=False)
    vector: NDArray[np.float32] | None = None
    chain: tuple[str, ...] = field(default=(), repr=False)


FARTHER = "farther"
"""The step of what was not compared, since something nearer is right: nothing is known of it, vetoes neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether the answer of one asking is right for another one, as a verifier sees it.

    `veto` names the rule that forbids it, "" for none. `steps` are (name, value) of each step, for `explain`.
    """

    probability: float
    veto: str = ""
    steps: tuple[tuple[str, float], ...] = ()
