"""What operators ask of similarity heads: which one serves, and another one in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.policy.gate import Verdict


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a head is on its way. `step` is "", `examining`, `filling`, or `failed` with a `problem`."""

    step: str = ""
    epoch: str = ""
    done: int = 0
    total: int = 0
    """Entries, about; texts while it is examined, as far as is known."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was asked for, and what came of it. `verdict` is None where nothing had to be examined.

    While it is `examining` nothing has come of it yet: `Heads.last` tells, once it has.
    """

    epoch: str
    began: bool
    dry_run: bool = False
    examining: bool = False
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTold:
    """A head, as operators see it. `signed_by` is a public key, "" for none."""

    epoch: str
    mode: str
    """What was trained: `head`, or the encoder's own layers, `top-layers` or `lora`."""
    dim: int
    int8: bool
    vector_bytes: int
    parent: str
    round: int
    signed_by: str
    thresholds: Mapping[str, float]
    metrics: Mapping[str, float]


class Heads(Protocol):
    """The heads of one proxy. One change at a time."""

    @property
    def progress(self) -> Progress:
        """How far a change is."""
        ...

    @property
    def before(self) -> Sequence[str]:
        """Epochs of what served before, the latest last; "" is the encoder alone."""
        ...

    @property
    def last(self) -> Change | None:
        """What came of the last encoder that was examined while nobody waited, since the start; None of none."""
        ...

    def known(self) -> list[str]:
        """Return the epochs of all heads that this proxy has been given. Blocks."""
        ...

    def serving(self) -> HeadTold | None:
        """Return the head that serves, None for the encoder alone."""
        ...

    async def promote(
        self, manifest: Mapping[str, Any], weights: bytes, *, actor: str, force: bool, dry_run: bool
    ) -> Change:
        """Examine a head and, where it passes or `force` says so, begin to adopt it; the audit log keeps who did.

        One that changes the encoder's layers takes minutes: it is `examining` then, and `progress` and `last` tell.

        Raises InvalidRequest for one that cannot serve here, VersionConflict while another one is on its way or for the
        one that serves, EmbedderUnavailable and NotChanged.
        """
        ...

    async def rollback(self, *, dry_run: bool = False) -> Change:
        """Begin to go back to what served before. Raises NotFound where nothing did, VersionConflict as `promote`."""
        ...

    def cancel(self, *, dry_run: bool = False) -> Change:
        """End what is on its way; what serves goes on. Raises NotFound where nothing is."""
        ...
