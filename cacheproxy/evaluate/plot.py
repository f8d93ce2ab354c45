"""Precision against hit rate, drawn: what each way of deciding could do at every level, and where it stands.

The curve and the area under it are the P-CHR of the semantic caching papers: precision among hits, over the share of
all questions that are served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import ConfigError
from cacheproxy.policy.calibrate import curve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

_SIZE_INCHES = (8.0, 5.5)
_DOTS_PER_INCH = 120


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """One way of deciding: hit rates, rising, with the precision at each (both of shape (n,)), and where it stands."""

    name: str
    hit_rate: NDArray[np.float64]
    precision: NDArray[np.float64]
    stands: tuple[float, float] | None = None
    """Hit rate and precision of the decisions that were made."""

    @property
    def area(self) -> float:
        """The mean precision over the hit rates that it reaches: the area, by steps, of width 1."""
        if not self.hit_rate.size:
            return 0.0
        return float(np.sum(np.diff(self.hit_rate, prepend=0.0) * self.precision) / self.hit_rate[-1])


def line(name: str, ranks: ArrayLike, labels: ArrayLike, served: ArrayLike | None = None) -> Line:
    """Return the line of a ranking: arrays of shape (n,). What ranks at 0 or below is served by no level.

    `served` marks what was served in fact.
    """
    places, right = np.asarray(ranks, dtype=np.float64), np.asarray(labels, dtype=bool)
    swept = curve(places, right)
    reach = swept.thresholds > 0.0
    hits = swept.tp + swept.fp
    stands = None
    if served is not None and (were := np.asarray(served, dtype=bool)).any():
        stands = float(were.mean()), float(right[were].mean())
    return Line(name=name, hit_rate=hits[reach] / right.size, precision=swept.precision[reach], stands=stands)


def plot(lines: Sequence[Line], title: str, file: Path) -> None:
    """Draw lines into a PNG file (or what else its suffix names).

    Raises ConfigError without matplotlib, for a suffix it does not know, and where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("--plot needs matplotlib: pip install 'cacheproxy[plot]'") from exc
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for one in lines:
        [drawn] = axes.step(one.hit_rate, one.precision, where="pre", label=f"{one.name} (area {one.area:.3f})")
        if one.stands is not None:
            axes.plot(*one.stands, marker="o", markersize=9, color=drawn.get_color(), markeredgecolor="black")
    axes.set(title=title, xlabel="hit rate", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(loc="lower left", title="a dot marks the decisions in force")
    try:
        figure.savefig(file, dpi=_DOTS_PER_INCH)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be written ({exc.strerror or exc}); name one in a folder there is") from exc
    except ValueError as exc:
        raise ConfigError(f"{file}: no plot of this kind; name a file that ends in .png, .svg or .pdf") from exc
