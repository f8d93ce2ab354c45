"""The report of the hot path as Markdown tables."""

from __future__ import annotations

from typing import Any


def render(report: dict[str, Any]) -> str:
    """Return the tables that docs/benchmarks.md shows."""
    machine, method = report["machine"], report["method"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {method['rounds']} interleaved "
        f"rounds of {method['seconds']:g} s, medians with [min, max] over rounds, seed {method['seed']}; load of the "
        f"machine before: {report.get('load_before', 'not told')}.",
        "",
        *_paths(report["runs"]),
        "",
        *_encoder(report["encoder"]),
        "",
        f"RSS {report['rss_mb_at_start']} MB at start, {report['rss_mb_at_end']} MB at the end.",
        "",
        *_outcomes(report["runs"]),
    ]
    if coded := report.get("int8"):
        told = '**With the int8 encoder** (`encoder.precision = "int8"`), a second proxy asked by turns:'
        lines += ["", told, "", *_paths(coded["runs"]), "", *_encoder(coded["encoder"]), "", *_outcomes(coded["runs"])]
    return "\n".join(lines) + "\n"


def _paths(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| path | connections | requests/s | CPU ms a request | p50 ms | p99 ms | first byte p50 ms "
        "| loop lag p99 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['scenario']} | {run['connections']} | {_spread(run['per_s'], 0)} | {_spread(run['cpu_ms'], 3)} "
        f"| {_spread(run['p50_ms'], 2)} | {_spread(run['p99_ms'], 2)} | {_spread(run['first_p50_ms'], 2)} "
        f"| {_lag(run.get('lag_p99_ms'))} |"
        for run in runs
    ]
    return lines


def _encoder(measured: dict[str, Any]) -> list[str]:
    lines = ["| encoder alone | ms a text, one thread | texts/s, batches of 32, all cores |", "|---|---|---|"]
    lines += [
        f"| {name} | {found['alone_ms']:.2f} | {found['batched_per_s']:.0f} |" for name, found in measured.items()
    ]
    return lines


def _outcomes(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["Outcomes:"]
    for run in runs:
        mix = ", ".join(f"{name} {count}" for name, count in sorted(run["outcomes"].items()))
        lines.append(f"- {run['scenario']}, {run['connections']}: {mix}")
    return lines


def _lag(found: float | None) -> str:
    return "" if found is None else f"{found:.1f}"


def _spread(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} [{value['min']:.{digits}f}, {value['max']:.{digits}f}]"
