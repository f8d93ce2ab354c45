"""A batch's usage, shared out over its inputs so that the shares add up to it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def shares(usage: object, weights: Sequence[int]) -> list[Any]:
    """Return each input's share of a batch's usage.

    Whole numbers, at any depth, are apportioned by weight with the largest remainder, so that the shares add up to
    them; other numbers in proportion. Anything else is every input's. The usage of one input is its own.
    """
    if len(weights) == 1:
        return [usage]
    if isinstance(usage, dict):
        columns = {key: shares(value, weights) for key, value in usage.items()}
        return [{key: column[row] for key, column in columns.items()} for row in range(len(weights))]
    if isinstance(usage, bool) or not isinstance(usage, int | float):
        return [usage] * len(weights)
    if isinstance(usage, int):
        return apportion(usage, weights)
    whole = sum(weights)
    return [usage * weight / whole for weight in weights]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Return whole shares of a total, in proportion to positive weights, by the largest remainder.

    They add up to the total; of equal remainders the first counts.
    """
    whole = sum(weights)
    parts = [divmod(total * weight, whole) for weight in weights]
    short = total - sum(share for share, _ in parts)
    rounded_up = set(sorted(range(len(parts)), key=lambda row: -parts[row][1])[:short])
    return [share + (row in rounded_up) for row, (share, _) in enumerate(parts)]


def added(usages: Sequence[object]) -> Any:
    """Return the usage of several answers as one: numbers added at any depth, of anything else the last that is told.

    None when no answer told any.
    """
    told = [usage for usage in usages if usage is not None]
    if len(told) < 2:
        return told[0] if told else None
    if all(isinstance(usage, dict) for usage in told):
        return _added_objects([usage for usage in told if isinstance(usage, dict)])
    numbers = [usage for usage in told if isinstance(usage, int | float) and not isinstance(usage, bool)]
    return sum(numbers) if len(numbers) == len(told) else told[-1]


def _added_objects(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for usage in usages for name in usage)
    return {name: added([usage[name] for usage in usages if name in usage]) for name in names}
