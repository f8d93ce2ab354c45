"""What examples do for the small model: accuracy without them, with some, and with those that were learnt to help.

`python -m tests.benchmarks.augmentation --data DIR --out docs/benchmarks-augmentation.json`. The small model is the
embedded one, its prompts are made by the proxy's own rules (`cacheproxy/augment`); the large model is the recorded
reference answer, right by construction. What is learnt is learnt on questions of its own, in the order they are asked,
by one state for all tasks, as a proxy has it; reported questions change nothing. Answers are remembered in `--cache`:
an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from cacheproxy import settings
from cacheproxy.augment.arms import Terms
from cacheproxy.augment.gains import Gains
from cacheproxy.augment.helpful import FEATURES
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.progress import progress
from cacheproxy.upstream.local import MODEL_ID
from tests.benchmarks.augmentation_data import KINDS, Sizes, task
from tests.benchmarks.augmentation_line import FORM, READ, Bench, Learnt, Line, Rules, situation
from tests.benchmarks.augmentation_model import Remembered
from tests.benchmarks.augmentation_report import ARMS, Asked, method, printed, summary
from tests.benchmarks.augmentation_routing import Seen, routed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.augmentation_data import Item, Task

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cacheproxy"
LEAST = 2 * round(Terms().enough)
"""Training questions of a task: rewards fade, and not every question has an example."""


def taught(lines: Sequence[Line], seed: int) -> dict[str, list[Seen]]:
    """Learn from the training questions of all tasks, one of each in turn; return what was seen, by task."""
    random = Random(seed)
    seen: dict[str, list[Seen]] = {line.task.name: [] for line in lines}
    with progress("learning", sum(len(line.task.training) for line in lines)) as advance:
        for line, item in _in_turn(lines):
            seen[line.task.name].append(line.learn(item, random))
            advance(1)
    return seen


def asked_of(line: Line) -> tuple[list[Asked], list[Seen]]:
    """Ask the reported questions of a task by every arm; nothing is learnt."""
    found, seen = [], []
    with progress(line.task.name, len(line.task.reported)) as advance:
        for item in line.task.reported:
            asked = line.shelf.question(item)
            arms = {name: (chosen, *line.ask(asked, chosen)) for name, chosen in line.arms(asked).items()}
            nearest = asked.nearest[0].answer if asked.nearest else ""
            found.append(
                Asked(
                    right={name: right for name, (_, _, right) in arms.items()}
                    | {"replayed": line.task.right(nearest, item)},
                    answers={name: answer for name, (_, answer, _) in arms.items()},
                    examples={name: len(chosen.examples) for name, (chosen, _, _) in arms.items()},
                )
            )
            selected, _, right = arms["selected"]
            alone = arms["alone"][2]
            seen.append(Seen(situation=situation(asked, selected), augmented=float(right), small=float(alone)))
            advance(1)
    return found, seen


def measured(tasks: Sequence[Task], bench: Bench) -> dict[str, Any]:
    """Return every figure."""
    learnt = Learnt()
    lines = [Line(one, bench, learnt) for one in tasks]
    lessons = taught(lines, bench.seed)
    found: dict[str, Any] = {}
    for line in lines:
        name = line.task.name
        asked, seen = asked_of(line)
        found[name] = {
            "questions": len(line.task.reported),
            "training": len(line.task.training),
            "pool": len(line.task.pool),
            **summary(asked, bench.seed),
            "learnt": told_of(learnt, name, lessons[name]),
            "routing": routed(name, lessons[name], seen, bench.seed),
        }
    return found


def told_of(learnt: Learnt, name: str, lessons: Sequence[Seen]) -> dict[str, Any]:
    """Return what was learnt of a task, and the threshold that its own lessons alone would have taught."""
    apart = Gains()
    for one in lessons:
        apart.learn(name, one.situation.mean_helpfulness, one.augmented, augmented=True)
        apart.learn(name, one.situation.mean_helpfulness, one.small, augmented=False)
    weights = zip(FEATURES, learnt.helpfulness.weights(name), strict=True)
    return {
        "threshold": learnt.gains.threshold(name),
        "threshold_apart": apart.threshold(name),
        "gains": [[one.score, round(one.gain, 4), one.tries_with] for one in learnt.gains.known(name)],
        "weights": {feature: round(weight, 3) for feature, weight in weights},
    }


def _in_turn(lines: Sequence[Line]) -> Iterator[tuple[Line, Item]]:
    for at in range(max((len(line.task.training) for line in lines), default=0)):
        yield from ((line, line.task.training[at]) for line in lines if at < len(line.task.training))


def main() -> int:
    """Measure, write the figures, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--cache", type=Path, default=HOME / "augmentation", help="directory of answers known already")
    parser.add_argument("--tasks", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--questions", type=int, default=60, help="reported questions of each task")
    parser.add_argument("--training", type=int, default=60, help=f"questions of each task to learn from, >= {LEAST}")
    parser.add_argument("--pool", type=int, default=2000, help="past answers of each task")
    parser.add_argument(
        "--similarity", type=float, default=Rules().example_similarity, help="least cosine of a candidate"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.training < LEAST:
        parser.error(f"--training must be at least {LEAST}: of fewer rewards the router knows no small arm")
    sizes = Sizes(questions=asked.questions, training=asked.training, pool=asked.pool)
    small = Remembered(HOME, asked.cache)
    bench = Bench(
        small=small,
        counter=small.counter,
        encoder=open_encoder(settings.Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME),
        vectors=HOME / "vectors",
        rules=Rules(example_similarity=asked.similarity),
        seed=asked.seed,
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    tasks = measured([task(name, asked.data, sizes, asked.seed) for name in asked.tasks], bench)
    report = {
        "method": method(),
        "model": MODEL_ID,
        "encoder": bench.encoder.fingerprint,
        "machine": {"cpu": _processor(), "python": platform.python_version()},
        "form": FORM,
        "rules": {"candidates": READ, **asdict(bench.rules)},
        "seed": asked.seed,
        "asked": small.asked,
        "seconds": {"wall": time.perf_counter() - began, "cpu": time.process_time() - began_cpu},
        "arms": list(ARMS),
        "tasks": tasks,
    }
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(printed(report))
    return 0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
