"""Encoders: which one is in use. Changing it while the proxy runs is not built yet: restart with another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from litestar import get

from cacheproxy.http.admin.document import GUARDED, refusals

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated


class InUse(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder in use; `epoch` is its fingerprint, which vectors, snapshots and thresholds carry."""

    name: str
    epoch: str
    dim: int
    precision: str
    device: str
    calibrated: bool
    """Whether the pack has a threshold for it: without one nothing is served by similarity."""
    entries: int
    """Entries that similarity can find."""


class Encoders(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder in use, and what is kept without a vector of it: for exact matches only, or from another encoder."""

    in_use: InUse | None
    other_entries: int


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return `encoders`."""

    @get("/admin/v1/encoders", sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def encoders() -> Encoders:
        parts, config = house.pipeline.parts, house.settings.encoder
        kept = sum(holding.entries for holding in house.catalogue.holdings())
        found = len(parts.index)
        if parts.embedder is None:
            return Encoders(in_use=None, other_entries=kept)
        pack, epoch = house.pipeline.pack(), parts.embedder.epoch
        in_use = InUse(
            name=config.name,
            epoch=epoch,
            dim=parts.embedder.dim,
            precision=config.precision,
            device=config.device,
            calibrated=pack.threshold(pack.default_category, epoch) is not None,
            entries=found,
        )
        return Encoders(in_use=in_use, other_entries=max(0, kept - found))

    return [encoders]
