"""`make bench`: every part of the performance report, and docs/benchmarks.md made of them; 25 minutes, a quiet machine.

Each part is a program of its own (`python -m tests.benchmarks.NAME --out FILE`) with a time that it may take; its raw
figures go into docs/, and the tables between the markers of docs/benchmarks.md are made of whatever is there, so that a
part that was left out (`--parts`), or failed, keeps its last figures. `--smoke` runs the parts in seconds, on a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import goals, memory, overhead, overloads, peers, replicas_report, report, scale, scale_index
from tests.benchmarks.page import written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[2]
PAGE = "benchmarks.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One program, what it is told, and how its report is shown."""

    module: str
    file: str
    """Where its raw figures are, in docs/."""
    within_s: float
    """Then it is ended; programs that write after each round keep what they have."""
    render: Callable[[Any], str]
    words: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()
    """What it is told in the place of `words` to be done in seconds."""
    usual: bool = True
    """Whether it runs where no parts are named."""


PARTS = {
    "peers": Part(
        module="peers",
        file="benchmarks-peers.json",
        within_s=600,
        render=peers.render,
        words=("--seconds", "3", "--rounds", "3", "--within-s", "480"),
        smoke=("--seconds", "0.3", "--rounds", "1"),
    ),
    "hot": Part(
        module="hot_path",
        file="benchmarks.json",
        within_s=480,
        render=report.render,
        words=("--seconds", "3"),
        smoke=("--seconds", "0.3", "--rounds", "1", "--connections", "1", "16", "64"),
    ),
    "overhead": Part(
        module="overhead",
        file="benchmarks-overhead.json",
        within_s=240,
        render=overhead.render,
        smoke=("--seconds", "0.3", "--rounds", "1"),
    ),
    "overload": Part(
        module="overloads",
        file="benchmarks-overload.json",
        within_s=240,
        render=overloads.render,
        smoke=("--seconds", "2"),
    ),
    "scale": Part(
        module="scale",
        file="benchmarks-scale.json",
        within_s=240,
        render=scale.render,
        smoke=("--entries", "2000"),
    ),
    "index": Part(
        module="scale_index",
        file="benchmarks-index.json",
        within_s=420,
        render=scale_index.render,
        smoke=("--entries", "1000", "--scopes", "1", "100", "--kept", "float32"),
    ),
    "memory": Part(
        module="memory",
        file="benchmarks-memory.json",
        within_s=240,
        render=memory.render,
        smoke=("--entries", "1500"),
    ),
    "replicas": Part(
        module="replicas",
        file="benchmarks-replicas.json",
        within_s=900,
        render=replicas_report.render,
        smoke=("--parts", "throughput", "--throughput-s", "1"),
        usual=False,
    ),
}


def run(part: Part, out: Path, within_s: float, more: Sequence[str], *, smoke: bool) -> str:
    """Run a part; return "" or what went wrong. Its whole process group is ended when its time is over."""
    words = [*(part.smoke if smoke else part.words), *more]
    command = [sys.executable, "-m", f"tests.benchmarks.{part.module}", "--out", str(out), *words]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        code = child.wait(within_s)
    except subprocess.TimeoutExpired:
        return f"ended after {within_s:.0f} s"
    finally:
        _end(child)
    return f"exit code {code}" if code else ""


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what a part started and may have left, gently first: servers take their own children with them."""
    for number, pause_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        deadline_s = time.monotonic() + pause_s
        while time.monotonic() < deadline_s:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def update(docs: Path) -> None:
    """Write every section of the page that there are figures for, and the goals."""
    page, reports = (docs / PAGE).read_text(encoding="utf-8"), {}
    for name, part in PARTS.items():
        file = docs / part.file
        if file.exists():
            reports[name] = json.loads(file.read_bytes())
            page = written(page, name, part.render(reports[name]))
    page = written(page, "goals", goals.render(reports))
    (docs / PAGE).write_text(page, encoding="utf-8")


def main(arguments: argparse.Namespace, docs: Path) -> int:
    """Run the parts one after the other and write the page; return how many went wrong."""
    began_s, failed = time.monotonic(), 0
    for name in arguments.parts:
        part, left_s = PARTS[name], 60 * arguments.minutes - (time.monotonic() - began_s)
        if left_s < 1:
            sys.stderr.write(f"-- {name}: left out, {arguments.minutes:g} minutes are over\n")
            failed += 1
            continue
        sys.stderr.write(f"-- {name}\n")
        more = ["--home", str(arguments.home)] if name == "peers" and arguments.home else []
        started_s = time.monotonic()
        wrong = run(part, docs / part.file, min(part.within_s, left_s), more, smoke=arguments.smoke)
        sys.stderr.write(f"-- {name}: {wrong or 'done'}, {time.monotonic() - started_s:.0f} s\n")
        failed += bool(wrong)
        update(docs)  # after each: what is there by now is worth having
    update(docs)
    return failed


if __name__ == "__main__":
    usual = [name for name, part in PARTS.items() if part.usual]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=usual, help=f"default {' '.join(usual)}")
    parser.add_argument("--minutes", type=float, default=25.0, help="longest time for all parts (default 25)")
    parser.add_argument("--home", type=Path, help="environments of the peers (default .venv-peers)")
    parser.add_argument("--smoke", action="store_true", help="try the parts in seconds, on a copy of the page")
    parsed = parser.parse_args()
    if not parsed.smoke:
        sys.exit(1 if main(parsed, ROOT / "docs") else 0)
    with tempfile.TemporaryDirectory(prefix="cacheproxy-bench-") as scratch:
        shutil.copy(ROOT / "docs" / PAGE, scratch)
        wrong_parts = main(parsed, Path(scratch))
        sys.stdout.write((Path(scratch) / PAGE).read_text(encoding="utf-8"))
    sys.exit(1 if wrong_parts else 0)
