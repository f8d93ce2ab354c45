"""Ten times more than it can answer: `python -m tests.benchmarks.overloads --out FILE`, three minutes.

`cacheproxy bench overload` twice: where the backend is the bottleneck (eight requests at once, and a queue in front of
it that knows), and where the proxy is, its backend answering at once. Generator, backend and proxy share the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENCODERS = Path(__file__).parents[2] / ".cacheproxy"
SMALL_QUEUE = "[upstream]\nmax_concurrency = 8\nqueue = 32\n"
"""As docs/benchmarks.md has it."""
CASES = {
    "the backend is the bottleneck": ("--slots", "8", "--ttft-ms", "100"),
    "the proxy is the bottleneck": (),
}


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both and return their reports."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config, told = Path(scratch) / "small-queue.toml", Path(scratch) / "report.json"
        config.write_text(SMALL_QUEUE, encoding="utf-8")
        for name, more in CASES.items():
            sys.stderr.write(f"{name}\n")
            command = [sys.executable, "-m", "cacheproxy", "bench", "overload", "--seconds", str(arguments.seconds)]
            command += ["--data-dir", str(ENCODERS), "--json", str(told), *more]
            command += ["--serve", f"--config {config}"] if more else []
            ran = subprocess.run(command, check=False, capture_output=True, text=True)
            if ran.returncode not in (0, 1):  # 1: a goal was not met, which the report tells
                raise SystemExit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stderr[-2000:]}")
            report[name] = json.loads(told.read_bytes())
    return report


def render(report: dict[str, Any]) -> str:
    """Return the goals of each case, then what the overload was like."""
    lines = []
    for name, one in report.items():
        machine, method = one["machine"], one["method"]
        lines += [
            f"**{name[0].upper()}{name[1:]}** ({', '.join(one['simulated'])}): {method['normal_per_s']:g} requests/s "
            f"are normal, {method['overload_per_s']:g}/s for {method['seconds']:g} s too many; load of the machine "
            f"{machine['load_average'][0]:g}.",
            "",
            "| goal | wanted | measured | met |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {goal} | {found['goal']} {found['unit']} | {found['measured']:g} {found['unit']} "
            f"| {'yes' if found['met'] else 'no'} |"
            for goal, found in one["goals"].items()
        ]
        lines += ["", "| phase | requests/s | good/s | answers |", "|---|---|---|---|"]
        for phase, found in one["phases"].items():
            mix = ", ".join(f"{what} {count:,}" for what, count in found["mix"].items())
            rates = f"{found['per_s']['median']:.0f} | {found['goodput_per_s']['median']:.0f}"
            lines.append(f"| {phase} | {rates} | {mix} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overloads", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of an overload (default 60, as in the goal)"
    )
    parsed = parser.parse_args()
    finished = main(parsed)
    if parsed.out:
        parsed.out.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(finished))
