"""Price: what a stored answer would have cost at the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.model import Hit
    from cacheproxy.policy.pack import Price

_MOST_TOKENS = 10**9  # beyond it, usage is nonsense and prices nothing


def saved_usd(outcome: Hit, price: Price | None) -> float:
    """Return what the backend would have charged for this answer; 0 when its price or its usage is unknown."""
    return cost_usd(outcome.entry.reply.body, price)


def cost_usd(body: Mapping[str, object], price: Price | None) -> float:
    """Return what a backend charges for an answer; 0 when its price or its usage is unknown."""
    usage = body.get("usage")
    if price is None or not isinstance(usage, dict):
        return 0.0
    return (
        _tokens(usage, "prompt_tokens", "input_tokens") * price.input_usd_per_mtok
        + _tokens(usage, "completion_tokens", "output_tokens") * price.output_usd_per_mtok
    ) / 1e6


def _tokens(usage: Mapping[str, object], *names: str) -> int:
    """Return a count under the first of its names that is there: dialects name it differently."""
    value = next((usage[name] for name in names if name in usage), None)
    return value if isinstance(value, int) and 0 < value < _MOST_TOKENS else 0
