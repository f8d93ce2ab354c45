"""Reports of benches as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy.bench.figures import Figures, Spread
    from cacheproxy.bench.overload import OverloadReport
    from cacheproxy.bench.runs import Report

_NAME, _CELL = 26, 28
_HEAD = ("requests", "p50 ms", "p95 ms", "p99 ms", "first byte p50 ms")


def render(report: Report) -> str:
    """Return a report: how it was measured, then figures as medians over repeats with [least, most]."""
    found, method = report.figures, report.method
    how = ", ".join(f"{name} {value}" for name, value in method.items() if value is not None)
    lines = [
        f"{report.command}: {how}",
        f"machine: {', '.join(f'{name} {value}' for name, value in report.machine.items())}",
        f"simulated: {', '.join(report.simulated) or 'nothing'}",
        "",
        *_rates(found),
    ]
    if report.rss_mb is not None:
        lines.append(f"{'memory of the proxy':{_NAME}}{' -> '.join(f'{mb:g}' for mb in report.rss_mb.values())} MB")
    lines += ["", *latencies(found), "", *_stages(found), *_mixes(found)]
    return "\n".join(lines)


def render_overload(report: OverloadReport) -> str:
    """Return an overload report: the goals first, then what each phase was like."""
    lines = [f"{report.command}: {', '.join(f'{name} {value}' for name, value in report.method.items())}"]
    lines += [f"machine: {', '.join(f'{name} {value}' for name, value in report.machine.items())}"]
    lines += [f"simulated: {', '.join(report.simulated) or 'nothing'}", ""]
    lines += [
        f"{'met' if goal.met else 'NOT MET':8} {name}: {goal.measured:g} {goal.unit} (goal: {goal.goal})"
        for name, goal in report.goals.items()
    ]
    kept_up = ", ".join(f"{kind} {share:g} %" for kind, share in report.kept_up.items())
    lines.append(f"goodput of the peak by what was meant: {kept_up}")
    for name, phase in report.phases.items():
        lines += ["", f"-- {name}", *_rates(phase), *latencies(phase), *_stages(phase), *_mixes(phase)]
    return "\n".join(lines)


def latencies(found: Figures) -> list[str]:
    """Return the table of latencies."""
    lines = [_line("", _HEAD)]
    for name, one in found.latency.items():
        cells = (f"{one.requests:,}", *map(_told, (one.p50_ms, one.p95_ms, one.p99_ms, one.first_p50_ms)))
        lines.append(_line(name, cells))
    return lines


def _rates(found: Figures) -> list[str]:
    rates = [("requests a second", found.per_s), ("good answers a second", found.goodput_per_s)]
    if found.cpu_ms_per_request is not None:
        rates.append(("CPU ms a request, proxy", found.cpu_ms_per_request))
    lines = [f"{name:{_NAME}}{_told(value)}" for name, value in rates]
    lines.append(f"{'generator late, p99 ms':{_NAME}}{_told(found.late_p99_ms)}")
    return lines


def _stages(found: Figures) -> list[str]:
    if not found.stages:
        return []
    lines = [_line("inside the proxy", ("times", "mean ms", "p50 ms", "p99 ms"))]
    for name, one in found.stages.items():
        lines.append(_line(name, (f"{one.count:,}", *(f"{ms:.3f}" for ms in (one.mean_ms, one.p50_ms, one.p99_ms)))))
    return [*lines, ""]


def _mixes(found: Figures) -> list[str]:
    lines = [f"answers: {', '.join(f'{name} {count:,}' for name, count in found.mix.items())}"]
    for kind, came in found.meant.items():
        if kind != "anything":
            lines.append(f"meant as {kind}: {', '.join(f'{name} {count:,}' for name, count in came.items())}")
    told = ", ".join(f"{name} {count:,}" for name, count in found.errors.items())
    return [*lines, f"errors: {told or 'none'}"]


def _told(value: Spread) -> str:
    digits = 3 if value.median < 10 else 1
    if value.min == value.max:
        return f"{value.median:,.{digits}f}"
    return f"{value.median:,.{digits}f} [{value.min:,.{digits}f}, {value.max:,.{digits}f}]"


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:{_NAME}}" + "".join(f"{cell:<{_CELL}}" for cell in cells)).rstrip()
