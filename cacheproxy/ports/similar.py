"""What likeness is found by: texts to vectors, vectors to what is near, and whether what is near may be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Asking, Candidate, Embedding, Partition, Verification


class Embedder(Protocol):
    """Texts to unit vectors."""

    @property
    def epoch(self) -> str:
        """The encoder's fingerprint: vectors of different epochs are never compared."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    async def embed(self, text: str, *, scope: str = "") -> Embedding:
        """Embed one text of any length.

        Work on equal texts may be shared between calls of one `scope` (a tenant) and never beyond: the time saved would
        tell.

        Raises EmbedderUnavailable when the queue is full, the deadline passes or the encoder fails or yields a vector
        that is not finite, not of unit norm or not of `dim`. A failure of one batch fails all of its waiters and no
        other.
        """
        ...

    def drop(self, text: str, *, scope: str = "") -> None:
        """Forget the embedding of one text, if it is remembered for this scope: it was of what is never cached."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class VectorIndex(Protocol):
    """Nearest neighbours inside one partition. A hint: what it returns may be stale, the document is checked again.

    Vectors are the encoder's. What is near may be told by a head on them: then its epoch is another one than theirs. Or
    an epoch has an encoder of its own, by whose vectors it is searched.
    """

    @property
    def epoch(self) -> str:
        """The epoch that is to be searched now."""
        ...

    @property
    def waiting(self) -> int:
        """How many entries the epoch of now cannot find yet, since their vectors have yet to be made."""
        ...

    def encoder(self, epoch: str | None) -> Embedder | None:
        """Return what makes the vectors that an epoch is searched by, where it is not the encoder in use; else None."""
        ...

    def alike(self, one: NDArray[np.float32], other: NDArray[np.float32], epoch: str) -> float:
        """Return the similarity of two vectors of shape (dim,) as a search of this epoch tells it; -1 if it is gone."""
        ...

    async def search(self, partition: Partition, vector: NDArray[np.float32], k: int) -> list[Candidate]:
        """Return at most `k` candidates, closest first; none for an unknown partition, or one of an epoch that is gone.

        Raises IndexUnavailable for a vector of wrong dtype, shape, norm or with a non-finite value.
        """
        ...

    def add(
        self,
        partition: Partition,
        entry_id: str,
        vector: NDArray[np.float32],
        sought: tuple[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Make an entry findable at once, replacing an entry of the same id. Never blocks. Raises as `search`.

        The partition's epoch is the encoder's, and so is the vector. `sought` is what it was looked for by, and in
        which epoch, where that has an encoder of its own; without it, such an epoch finds the entry a little later.
        """
        ...

    def remove(self, entry_ids: Collection[str]) -> None:
        """Forget entries; unknown ids are ignored. No later search returns them. Never blocks."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...

    def __len__(self) -> int:
        """Count live entries over all partitions."""
        ...


class Verifier(Protocol):
    """The second factor of similarity hits: whether the answer of one question may be served to another."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        ...

    def covers(self, epoch: str) -> bool:
        """Whether it was calibrated for similarities of this encoder epoch; otherwise it is not asked."""
        ...

    async def verify(self, asked: Asking, kept: Sequence[tuple[Asking, float]]) -> list[Verification]:
        """Return a verification for each kept asking, given with its similarity, in the same order.

        What no verdict can be given on within the time has probability 0. Raises VerifierUnavailable.
        """
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...
