"""The classification benchmark's report as Markdown tables."""

from __future__ import annotations

from typing import Any


def render(report: dict[str, Any]) -> str:
    """Return the tables that docs/benchmarks.md shows."""
    lines = [
        f"Encoder {report['encoder']}; {report['seeds']} seeds.",
        "",
        "| task | kind | examples | accuracy | macro-F1 | ECE | doubt | right without doubt | best or second right |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['task']} | {run['kind']} | {run['examples']} | {_spread(run['accuracy'])} "
        f"| {_spread(run['macro_f1'])} | {run['ece']['mean']:.3f} | {run['doubt']:.2f} "
        f"| {run['right_without_doubt']:.3f} | {run['either_right']:.3f} |"
        for run in report["runs"]
    ]
    for found in report["shipped"]:
        lines += [
            "",
            f"Shipped examples, {found['kind']}: {found['fit_ms']:.0f} ms to fit, {found['query_us']:.0f} us a query.",
        ]
        lines += ["", "| category | source | n | right | best or second | told |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {one['category']} | {one['source']} | {one['n']} | {_share(one['right'], one['interval'])} "
            f"| {one['either']:.2f} | {_told(one['told'], one['n'])} |"
            for one in found["sources"]
        ]
        asked = found["general"]
        lines += [
            "",
            f"{asked['n']} general questions: {_told(asked['told'], asked['n'])}; doubt {asked['doubt']:.3f}; "
            f"never cached {_share(asked['never_cached'], asked['never_cached_interval'], 3)}.",
            "",
            "| own affairs | n | personal | never cached |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {one['n']} | {one['personal']:.2f} "
            f"| {_share(one['never_cached'], one['never_cached_interval'])} |"
            for name, one in found["own affairs"].items()
        ]
    return "\n".join(lines) + "\n"


def _spread(figure: dict[str, Any]) -> str:
    (low, high), (least, most) = figure["interval"], figure["seeds"]
    return f"{figure['mean']:.3f} [{low:.3f}, {high:.3f}], seeds {least:.3f}-{most:.3f}"


def _share(share: float, interval: tuple[float, float], digits: int = 2) -> str:
    return f"{share:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _told(counts: dict[str, int], total: int) -> str:
    return ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items())
