"""What the proxy adds to its encoder: `python -m tests.benchmarks.overhead --out FILE`, about two minutes.

One caller, one request at a time. The proxy notes when its models are at work, so that what it adds is told of every
request by itself: its time, less the time that the encoder worked within it. A busy machine makes both longer.

A second proxy, with the int8 encoder, is asked the same by turns, wherever an encoder works; its rows stand apart.
`--before CHECKOUT` has another checkout, with a `.venv` of its own, asked the same in the same run, by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from bisect import bisect_left
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from cacheproxy.bench.questions import unheard
from tests.benchmarks import encoder, load, server
from tests.benchmarks.scenarios import questions, request, scenario, variants

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[2]
ENCODERS = HERE / ".cacheproxy" / "encoders"
KINDS = ("exact hit", "semantic hit", "miss", "miss, stream")
PAUSES_MS = (0, 20)
"""Between two requests: with none, what is done behind an answer delays the next one."""
_ALONE = {"semantic hit": "short texts", "miss": "thirty tokens", "miss, stream": "thirty tokens"}
"""The kinds of requests that an encoder works for, and on what."""
INT8 = "int8"


@dataclass(slots=True)
class Seen:
    """What was seen of one kind of request: milliseconds, CPU of the proxy, when it was asked."""

    sent_s: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    spans: list[tuple[float, float]] = field(default_factory=list)
    stages_s: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report."""
    checkouts = {"now": HERE} | ({"before": arguments.before.resolve()} if arguments.before else {}) | {INT8: HERE}
    seen: dict[tuple[str, str, int], Seen] = {}
    alone: dict[str, dict[str, list[float]]] = {"fp32": {}, INT8: {}}
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / f"{name}.json" for name in checkouts}
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(server.backend())
            proxies = {
                name: await stack.enter_async_context(
                    server.timed_proxy(
                        folder, backend.port, Path(scratch) / name, ENCODERS, files[name], _precision(name)
                    )
                )
                for name, folder in checkouts.items()
            }
            asked = {(name, kind): scenario(kind, arguments.seed) for name in proxies for kind in KINDS}
            for proxy in proxies.values():
                await _warm(proxy)
            for number in range(arguments.rounds):
                for precision, kept in alone.items():
                    for text, median_ms in _alone_ms(number, precision).items():
                        kept.setdefault(text, []).append(median_ms)
                for kind in KINDS:
                    for pause_ms in PAUSES_MS:
                        sys.stderr.write(f"round {number + 1}: {kind}, {pause_ms} ms apart\n")
                        for name, proxy in proxies.items():
                            if name == INT8 and (pause_ms or kind not in _ALONE):
                                continue
                            found = seen.setdefault((name, kind, pause_ms), Seen())
                            await _ask(proxy, asked[name, kind], found, arguments.seconds, pause_ms / 1000)
        calls = {name: [tuple(call) for call in json.loads(file.read_text())] for name, file in files.items()}
    alone_ms = {
        precision: {text: statistics.median(found) for text, found in kept.items()} for precision, kept in alone.items()
    }
    runs = [
        {
            "checkout": name,
            "kind": kind,
            "pause_ms": pause_ms,
            **_told(kind, found, calls[name], alone_ms[_precision(name)]),
        }
        for (name, kind, pause_ms), found in seen.items()
    ]
    return {
        "method": {"seconds": arguments.seconds, "rounds": arguments.rounds, "seed": arguments.seed},
        "load_average": os.getloadavg()[0],
        "encoder_alone_ms": alone_ms["fp32"],
        "runs": [run for run in runs if run["checkout"] != INT8],
        INT8: {
            "encoder_alone_ms": alone_ms[INT8],
            "runs": [{**run, "checkout": "now"} for run in runs if run["checkout"] == INT8],
        },
    }


def _precision(name: str) -> str:
    return INT8 if name == INT8 else "fp32"


async def _warm(proxy: server.Process) -> None:
    for text in questions():
        await load.run("127.0.0.1", proxy.port, iter([request(text)]), connections=1, seconds=0)
    for text in variants(0)[:50]:
        await load.run("127.0.0.1", proxy.port, iter([request(text)]), connections=1, seconds=0)


def _alone_ms(number: int, precision: str) -> dict[str, float]:
    """Return milliseconds a text in this process, with nothing around it."""
    texts = {"short texts": variants(number)[:60], "thirty tokens": list(islice(unheard(10**6 + number), 60))}
    return {name: encoder.alone_ms(found, ENCODERS, precision) for name, found in texts.items()}


async def _ask(proxy: server.Process, requests: Iterator[bytes], found: Seen, seconds: float, pause_s: float) -> None:
    before_s, cpu_s = proxy.stages_s(), proxy.cpu_s()
    measured = await load.run("127.0.0.1", proxy.port, requests, connections=1, seconds=seconds, pause_s=pause_s)
    found.cpu_s += proxy.cpu_s() - cpu_s
    for stage, total_s in proxy.stages_s().items():
        found.stages_s[stage] = found.stages_s.get(stage, 0.0) + total_s - before_s.get(stage, 0.0)
    found.spans.append((measured.sent_s[0], measured.sent_s[-1] + measured.total_ms[-1] / 1000))
    found.sent_s += measured.sent_s
    found.first_ms += measured.first_ms
    found.total_ms += measured.total_ms
    for name, count in measured.outcomes.items():
        found.outcomes[name] = found.outcomes.get(name, 0) + count


def _told(
    kind: str, found: Seen, calls: list[tuple[str, float, float, float]], alone_ms: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of one kind: of a stream up to its first byte, of the others whole."""
    times_ms = found.first_ms if kind.endswith("stream") else found.total_ms
    spent = {
        model: _within(found.sent_s, times_ms, [(call[1], call[2]) for call in calls if call[0] == model])
        for model in ("encoder", "verifier")
    }
    added = [time_ms - encoder_ms for time_ms, encoder_ms in zip(times_ms, spent["encoder"], strict=True)]
    around = [extra_ms - verifier_ms for extra_ms, verifier_ms in zip(added, spent["verifier"], strict=True)]
    encoder_cpu_s = sum(
        cpu_s
        for model, began_s, _, cpu_s in calls
        if model == "encoder" and any(first <= began_s <= last for first, last in found.spans)
    )
    count = len(times_ms)
    return {
        "requests": count,
        "outcomes": found.outcomes,
        "time_ms": _spread(times_ms),
        "encoder_ms": _spread(spent["encoder"]),
        "verifier_ms": _spread(spent["verifier"]),
        "added_ms": _spread(added),
        "added_without_verifier_ms": _spread(around),
        "over_encoder_alone_ms": (
            round(statistics.median(times_ms) - alone_ms[_ALONE[kind]], 3) if kind in _ALONE else None
        ),
        "cpu_ms": round(found.cpu_s * 1000 / count, 3),
        "cpu_added_ms": round((found.cpu_s - encoder_cpu_s) * 1000 / count, 3),
        "stages_ms": {name: round(total_s * 1000 / count, 3) for name, total_s in found.stages_s.items()},
    }


def _within(sent_s: list[float], times_ms: list[float], works: list[tuple[float, float]]) -> list[float]:
    """Return, of each request, the milliseconds of work that began within it, as far as it ended in it, too."""
    works = sorted(works)
    begins = [began_s for began_s, _ in works]
    found = []
    for began_s, time_ms in zip(sent_s, times_ms, strict=True):
        ended_s = began_s + time_ms / 1000
        inside = works[bisect_left(begins, began_s) : bisect_left(begins, ended_s)]
        found.append(sum((min(last, ended_s) - first) * 1000 for first, last in inside))
    return found


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(ordered[int(share * (len(ordered) - 1))], 3)
        for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9))
    }


def render(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"Load average {report['load_average']:.1f}; {_alone(report)}. Medians with [p10, p90].", ""]
    lines += _table(report["runs"])
    if coded := report.get(INT8):
        told = (
            f'**With the int8 encoder** (`encoder.precision = "int8"`), a second proxy asked by turns; {_alone(coded)}.'
        )
        lines += ["", told, "", *_table(coded["runs"])]
    return "\n".join(lines) + "\n"


def _alone(report: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {found:.2f} ms" for name, found in report["encoder_alone_ms"].items())
    return f"encoder alone: {times}"


def _table(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| request | apart | checkout | n | time, ms | encoder in it | verifier in it | added to the encoder "
        "| and without the verifier | over the encoder alone | CPU ms | of it not the encoder's |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [run["kind"], f"{run['pause_ms']} ms", run["checkout"], str(run["requests"])]
        cells += [
            "{p50:.2f} [{p10:.2f}, {p90:.2f}]".format(**run[name])
            for name in ("time_ms", "encoder_ms", "verifier_ms", "added_ms", "added_without_verifier_ms")
        ]
        over = run["over_encoder_alone_ms"]
        cells += ["" if over is None else f"{over:.2f}", f"{run['cpu_ms']:.2f}", f"{run['cpu_added_ms']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Milliseconds a request in each stage (means):", ""]
    for run in runs:
        stages = ", ".join(f"{name} {spent:.3f}" for name, spent in run["stages_ms"].items())
        lines.append(f"- {run['kind']}, {run['pause_ms']} ms apart, {run['checkout']}: {stages}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument("--before", type=Path, help="another checkout to compare with, in the same run")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one turn (default 1.5)")
    parser.add_argument("--rounds", type=int, default=6, help="how often each turn is repeated (default 6)")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    finished = uvloop.run(main(parsed))
    if parsed.out:
        parsed.out.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(finished))
