"""A policy pack: every number an operator may tune, as frozen values.

The schema of `policies/<pack>/policy.toml` is exactly these structs; `policy/loader.py` reads and checks it. Unknown
keys are errors.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1)]
Threshold = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Category(_Table, frozen=True):
    """The rules of one category. The defaults are the safe ones: exact matches only, short-lived."""

    description: str = ""
    allow_caching: bool = True
    """False: nothing of such a query is looked up, embedded for keeping, or stored."""
    semantic: bool = False
    """Whether an answer may be served by similarity."""
    ttl_s: Seconds = 3600.0
    max_temperature: NotNegative = 0.7
    """A request above it asks for variety and bypasses the cache; one without a temperature passes."""
    max_stale_s: NotNegative = 0.0
    """The cap on everything stale: how long past its expiry an entry is kept, and may be served, at the very most."""
    stale_if_error_s: NotNegative = 0.0
    """How long past its expiry an entry is served, without being asked for, when the backend fails."""
    stale_while_revalidate_s: NotNegative = 0.0
    """How long past its expiry an entry is served at once, while a newer answer is fetched in the background."""
    candidates: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """How many nearest entries are judged."""
    tool_calls: bool = False
    """Whether answers that call tools may be kept, for the very same request only."""
    structured_output: bool = True
    """Whether answers in a format other than text (JSON, a schema) may be kept, for the very same request only."""


class Encoder(_Table, frozen=True):
    """Thresholds calibrated for one encoder; they mean nothing for another."""

    fingerprint: Text
    calibrated_on: Text
    thresholds: dict[str, Threshold]
    """By category: cosine at or above which an entry may be served."""


class Price(_Table, frozen=True):
    """What a model costs, for `x-cacheproxy-saved-usd`. `model` is a shell pattern; the first that matches counts."""

    model: Text
    input_usd_per_mtok: NotNegative
    output_usd_per_mtok: NotNegative


class Pack(_Table, frozen=True):
    """A whole pack. `default_category` names the one that a query without a better match belongs to."""

    schema: int
    name: Text
    description: str
    default_category: Text
    categories: dict[str, Category]
    encoders: dict[str, Encoder] = {}
    prices: tuple[Price, ...] = ()

    def threshold(self, category: str, epoch: str) -> float | None:
        """Return a category's threshold calibrated for an encoder epoch, or None: similarity then serves nothing."""
        for encoder in self.encoders.values():
            if encoder.fingerprint == epoch:
                return encoder.thresholds.get(category)
        return None

    def price(self, model: str) -> Price | None:
        """Return the price of a model, or None when the pack does not know it."""
        return next((price for price in self.prices if fnmatchcase(model, price.model)), None)
