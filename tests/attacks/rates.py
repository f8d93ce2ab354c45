"""Attack success rates, with their exact intervals, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.policy.bound import share

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many of so many attempts of a family succeeded under a policy."""

    policy: str
    family: str
    succeeded: int
    attempts: int

    @property
    def percent(self) -> float:
        """The rate."""
        return 100.0 * self.succeeded / max(1, self.attempts)


def table(title: str, rates: Iterable[Rate]) -> str:
    """Return a Markdown table."""
    lines = [
        f"### {title}",
        "",
        "| policy | family | succeeded | attempts | rate (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for rate in rates:
        told = share(rate.succeeded, rate.attempts)
        interval = f"{rate.percent:.2f} % ({100 * told.low:.2f} to {100 * told.high:.2f})"
        lines.append(f"| {rate.policy} | {rate.family} | {rate.succeeded} | {rate.attempts:,} | {interval} |")
    return "\n".join(lines) + "\n"
