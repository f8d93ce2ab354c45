"""Latencies of a bench, drawn: percentiles of each kind of answer, whole and to the first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.bench.figures import Figures

_SIZE_INCHES = (8.0, 5.5)
_DOTS_PER_INCH = 120
_SHARES = ("p50", "p95", "p99", "max")


def plot(found: Figures, title: str, file: Path) -> None:
    """Draw latencies into a PNG file (or what else its suffix names), with their spread over repeats as bars.

    Raises ConfigError without matplotlib, for a suffix it does not know, and where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("--plot needs matplotlib: pip install 'cacheproxy[plot]'") from exc
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for name, one in found.latency.items():
        values = (one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms)
        least = [value.median - value.min for value in values]
        most = [value.max - value.median for value in values]
        medians = [value.median for value in values]
        axes.errorbar(_SHARES, medians, yerr=(least, most), marker="o", capsize=4, label=f"{name} ({one.requests:,})")
    axes.set(title=title, xlabel="share of requests", ylabel="milliseconds since the request was due", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left")
    try:
        figure.savefig(file, dpi=_DOTS_PER_INCH)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be written ({exc.strerror or exc}); name one in a folder there is") from exc
    except ValueError as exc:
        raise ConfigError(f"{file}: no plot of this kind; name a file that ends in .png, .svg or .pdf") from exc
