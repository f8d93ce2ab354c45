"""Who answers under load: the router against fixed rules, on a replayed trace, with a large model of limited capacity.

`python -m tests.benchmarks.augmentation_load --data DIR --out docs/benchmarks-augmentation-load.json`. Real: the
router, what it learnt (`augmentation.py`), the small model's answers and whether each is right, the load as a proxy
measures it, and the arrivals and lengths of Azure's conversation trace. *Simulated*: time, both models' slots and
speeds, and who says what of an answer. Lengths are the trace's, drawn apart from the questions: the tasks' own answers
are short. Each question asked is one of the last reported ones, drawn by chance, none of which was looked at when the
router's features were chosen; no cache answers anything.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import itertools
import json
import statistics
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cacheproxy import settings
from cacheproxy.augment.arms import Arm, Router
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.adapt import LoadWatch, Sample
from cacheproxy.small import TERMS
from cacheproxy.upstream.recent import RecentTimes
from tests.benchmarks.augmentation import HOME, taught
from tests.benchmarks.augmentation_data import Sizes, task
from tests.benchmarks.augmentation_line import Bench, Learnt, Line, Rules, situation
from tests.benchmarks.augmentation_model import Remembered
from tests.benchmarks.augmentation_routing import Seen
from tests.benchmarks.augmentation_routing import taught as told_to
from tests.benchmarks.load_replay import IN_TOKEN_S, OUT_TOKEN_S, OVERHEAD_S, rounded, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.augment.arms import Situation

TASKS = ("banking77", "clinc150", "clinc_banking", "commonsenseqa", "nq_open", "gsm8k")
MIXES = {
    "all six tasks alike": dict.fromkeys(TASKS, 1.0),
    "half intents of one domain": {name: 5.0 if name == "clinc_banking" else 1.0 for name in TASKS},
    "intents only": dict.fromkeys(TASKS[:3], 1.0),
}
SLOTS = 16
"""Requests that the large model answers at once."""
SMALL_SLOTS = 16
"""Of the small model: each a core, for the speeds below are of one."""
SMALL_TOKENS = 2048
"""The small model's context: a request that is longer than it, with examples and answer, is the large one's."""
SMALL_IN_S, SMALL_OUT_S = 0.0013, 0.0233
"""Seconds a token that the embedded model takes to read and to write on one core (docs/benchmarks.md, 43 tokens/s)."""
EXAMPLES_TOKENS = 200.0
"""Tokens that examples add to a prompt, at the mean of the tasks."""
TICK_S = 0.5
FEEDBACK = 0.05
"""Share of answers that a caller says something of, rightly."""
RHO = {"below its limit": 0.85, "beyond its limit": 2.5}
"""Work that all requests bring to the large model, over what it can do: at the first, latency is told, at the second,
throughput."""
STATIC = 0.8
"""Cosine of the nearest example from which a static rule asks the small model."""
STATIC_RIGHT = 0.95
"""Share of the lessons at or above the cosine of the tuned static rule that the small model answers rightly."""
ASSUMED = {
    "slots": {"large": SLOTS, "small": SMALL_SLOTS},
    "large_s": {"overhead": OVERHEAD_S, "token_in": IN_TOKEN_S, "token_out": OUT_TOKEN_S},
    "small_s": {"token_in": SMALL_IN_S, "token_out": SMALL_OUT_S},
    "small_tokens": SMALL_TOKENS,
    "examples_tokens": EXAMPLES_TOKENS,
    "feedback": FEEDBACK,
}
"""What is simulated, as the report tells it."""
BASE = 10.0
"""Of the weights by similarity, as RouteLLM's similarity-weighted ranking has it (2406.18665, section 4.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One question, and what each arm's answer to it is worth."""

    task: str
    seen: Seen
    like: float
    """Chance of the small model with examples, by lessons alike: what similarity-weighted routing knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the trace; `lengths` are the tokens of prompt and answer."""

    at_s: float
    known: Known
    lengths: tuple[int, int]


class Rule(Protocol):
    """Who answers."""

    def choose(self, known: Known, load: float, random: Random) -> Arm:
        """Return an arm."""
        ...

    def told(self, known: Known, load: float, arm: Arm, random: Random) -> None:
        """Hear how an answer was, perhaps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A rule that neither learns nor looks at the load."""

    rule: Callable[[Known], Arm]

    def choose(self, known: Known, load: float, random: Random) -> Arm:
        """Return an arm."""
        return self.rule(known)

    def told(self, known: Known, load: float, arm: Arm, random: Random) -> None:
        """Learn nothing."""


@dataclass(slots=True, kw_only=True)
class Ours:
    """The proxy's router; it goes on learning from what callers say."""

    router: Router

    def choose(self, known: Known, load: float, random: Random) -> Arm:
        """Return an arm."""
        return self.router.choose(known.task, _at(known, load), random, 0.0).arm

    def told(self, known: Known, load: float, arm: Arm, random: Random) -> None:
        """Take a caller's word."""
        if random.random() < FEEDBACK:
            self.router.reward(known.task, arm, _at(known, load), known.seen.reward(arm), 0.5)


def _at(known: Known, load: float) -> Situation:
    return replace(known.seen.situation, load=load)


# What is asked


def learnt_by(lessons: Mapping[str, Sequence[Seen]]) -> Router:
    """Return a router that double runs taught: each lesson tells of all three arms."""
    router = Router(TERMS)
    for name, seen in lessons.items():
        told_to(name, seen, router)
    return router


def questions(line: Line, lessons: Sequence[Seen], vectors: Mapping[str, Any], seen_before: int) -> list[Known]:
    """Ask the small model the reported questions of a task but the first ones, with examples and without."""
    taught_by = np.stack([vectors[item.text].vector for item in line.task.training])
    right = np.array([one.augmented for one in lessons])
    found = []
    with progress(line.task.name, len(line.task.reported) - seen_before) as advance:
        for item in line.task.reported[seen_before:]:
            asked = line.shelf.question(item)
            arms = line.arms(asked)
            (_, helped), (_, alone) = line.ask(asked, arms["selected"]), line.ask(asked, arms["alone"])
            seen = Seen(situation=situation(asked, arms["selected"]), augmented=float(helped), small=float(alone))
            like = weighted(taught_by @ vectors[item.text].vector, right)
            found.append(Known(task=line.task.name, seen=seen, like=like))
            advance(1)
    return found


def weighted(cosines: NDArray[np.float32], right: NDArray[np.float64]) -> float:
    """Return the chance of a right answer by lessons alike, the more alike the more they weigh."""
    weights = BASE ** (1.0 + cosines / max(float(np.abs(cosines).max()), 1e-6))
    return float((weights * right).sum() / weights.sum())


def trace(
    rows: Sequence[Mapping[str, float]], pools: Mapping[str, Sequence[Known]], mix: str, rho: float, random: Random
) -> list[Request]:
    """Return the trace at a speed at which the large model, asked everything, would be so busy."""
    names, weights = list(MIXES[mix]), list(MIXES[mix].values())
    work = sum(large_s((int(row["in"]), int(row["out"]))) for row in rows)
    slower = work / (rho * SLOTS) / max(rows[-1]["t"], 1.0)
    return [
        Request(
            at_s=row["t"] * slower,
            known=random.choice(pools[random.choices(names, weights)[0]]),
            lengths=(int(row["in"]), int(row["out"])),
        )
        for row in rows
    ]


def large_s(lengths: tuple[int, int]) -> float:
    """Return how long the large model takes, in seconds."""
    return OVERHEAD_S + lengths[0] * IN_TOKEN_S + lengths[1] * OUT_TOKEN_S


def small_s(lengths: tuple[int, int], arm: Arm) -> float:
    """Return how long the small model takes, in seconds."""
    return _read(lengths, arm) * SMALL_IN_S + lengths[1] * SMALL_OUT_S


def fits(lengths: tuple[int, int], arm: Arm) -> bool:
    """Whether prompt, examples and answer are within the small model's context."""
    return _read(lengths, arm) + lengths[1] <= SMALL_TOKENS


def _read(lengths: tuple[int, int], arm: Arm) -> float:
    return lengths[0] + (EXAMPLES_TOKENS if arm is Arm.AUGMENTED else 0.0)


# Virtual time


@dataclass(slots=True, kw_only=True)
class Record:
    """What became of each request."""

    latency_s: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)


class _Model:
    """So many requests at once; the others wait in turn."""

    def __init__(self, slots: int) -> None:
        self.slots, self.running = slots, 0
        self.queue: deque[tuple[Request, Arm, float]] = deque()

    @property
    def inside(self) -> int:
        return self.running + len(self.queue)


def run(rule: Rule, requests: Sequence[Request], seed: int) -> Record:
    """Replay a trace by a rule. Where the small model has no place at once, the large one is asked."""
    random, record, watch, recent = Random(seed), Record(), LoadWatch(settings.Load()), RecentTimes()
    large, little = _Model(SLOTS), _Model(SMALL_SLOTS)
    events: list[tuple[float, int, Request, Arm, float]] = []
    number, tick_s = itertools.count(), 0.0

    def begin(model: _Model, request: Request, arm: Arm, load: float, now_s: float) -> None:
        model.running += 1
        takes_s = large_s(request.lengths) if arm is Arm.LARGE else small_s(request.lengths, arm)
        heapq.heappush(events, (now_s + takes_s, next(number), request, arm, load))

    def end() -> None:
        now_s, _, request, arm, load = heapq.heappop(events)
        model = large if arm is Arm.LARGE else little
        model.running -= 1
        if arm is Arm.LARGE:
            recent.add(large_s(request.lengths), now_s)
        record.latency_s.append(now_s - request.at_s)
        record.right.append(request.known.seen.reward(arm))
        record.arms.append(arm)
        record.done_s.append(now_s)
        rule.told(request.known, load, arm, random)
        if model.queue:
            begin(model, *model.queue.popleft(), now_s)

    for request in requests:
        while events and events[0][0] <= request.at_s:
            end()
        while tick_s <= request.at_s:
            watch.observe("", Sample(in_flight=large.inside, limit=SLOTS, p95_s=recent.p95_s(tick_s)), tick_s)
            tick_s += TICK_S
        load = watch.lam("")
        arm = rule.choose(request.known, load, random)
        if arm is not Arm.LARGE and (little.running >= little.slots or not fits(request.lengths, arm)):
            arm = Arm.LARGE
        model = large if arm is Arm.LARGE else little
        if model.running < model.slots:
            begin(model, request, arm, load, request.at_s)
        else:
            model.queue.append((request, arm, load))
    while events:
        end()
    return record


def figures(record: Record, requests: Sequence[Request]) -> dict[str, float]:
    """Return what a replay was like."""
    end_s = requests[-1].at_s
    latency = np.array(record.latency_s)
    offloaded = [right for right, arm in zip(record.right, record.arms, strict=True) if arm is not Arm.LARGE]
    return {
        "throughput": sum(at_s <= end_s for at_s in record.done_s) / end_s,
        "mean_s": float(latency.mean()),
        "p50_s": float(np.percentile(latency, 50)),
        "p99_s": float(np.percentile(latency, 99)),
        "quality": statistics.fmean(record.right),
        "offloaded": len(offloaded) / len(record.right),
        "offloaded_right": statistics.fmean(offloaded) if offloaded else 1.0,
    }


def rules(lessons: Mapping[str, Sequence[Seen]], pools: Mapping[str, Sequence[Known]], mix: str) -> dict[str, Rule]:
    """Return what is compared. The similarity rule sends as large a share to the small model as ours without load."""
    quiet, random, tuned = Ours(router=learnt_by(lessons)), Random(0), _tuned(lessons)
    share, likely = [], []
    for name, weight in MIXES[mix].items():
        for known in pools[name]:
            share.append((quiet.choose(known, 0.0, random) is not Arm.LARGE, weight / len(pools[name])))
            likely.append((known.like, weight / len(pools[name])))
    wanted = sum(weight for chosen, weight in share if chosen)
    bar, taken = 1.1, 0.0
    for like, weight in sorted(likely, reverse=True):
        if taken >= wanted:
            break
        bar, taken = like, taken + weight
    return {
        "always large": Fixed(rule=lambda known: Arm.LARGE),
        "always small": Fixed(rule=lambda known: Arm.SMALL),
        "always small + examples": Fixed(rule=small),
        f"static, {STATIC}": Fixed(rule=_near(STATIC)),
        f"static, tuned: {tuned:.2f}": Fixed(rule=_near(tuned)),
        "similarity (RouteLLM-like)": Fixed(rule=lambda known: small(known) if known.like >= bar else Arm.LARGE),
        "router, no load": Ours(router=_heedless(learnt_by(lessons))),
        "router": Ours(router=learnt_by(lessons)),
    }


def small(known: Known) -> Arm:
    """Return the small model's arm: with examples where there are some."""
    return Arm.AUGMENTED if known.seen.situation.examples else Arm.SMALL


def _near(cosine: float) -> Callable[[Known], Arm]:
    return lambda known: small(known) if known.seen.situation.max_similarity >= cosine else Arm.LARGE


def _tuned(lessons: Mapping[str, Sequence[Seen]]) -> float:
    """Return the least cosine from which on `STATIC_RIGHT` of the lessons are answered rightly with examples."""
    told = sorted(
        ((one.situation.max_similarity, one.augmented) for each in lessons.values() for one in each), reverse=True
    )
    right = itertools.accumulate(one for _, one in told)
    good = [
        cosine for n, ((cosine, _), sum_) in enumerate(zip(told, right, strict=True), 1) if sum_ >= STATIC_RIGHT * n
    ]
    return min(good, default=1.0)


def _heedless(router: Router) -> Router:
    router.terms = replace(router.terms, lambda_0=0.0)
    return router


def measured(
    rows: Sequence[Mapping[str, float]],
    lessons: Mapping[str, Sequence[Seen]],
    pools: Mapping[str, Sequence[Known]],
    seeds: int,
) -> dict[str, Any]:
    """Return every figure, by mix and speed: each rule's over seeds, and against always asking the large model."""
    found: dict[str, Any] = {}
    for mix, (told, rho) in itertools.product(MIXES, RHO.items()):
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in range(1, seeds + 1):
            requests = trace(rows, pools, mix, rho, Random(seed))
            for name, rule in rules(lessons, pools, mix).items():
                runs.setdefault(name, []).append(figures(run(rule, requests, seed), requests))
        base = runs["always large"]
        found[f"{mix}; {told}"] = {
            name: {key: spread([one[key] for one in each]) for key in each[0]}
            | {
                "throughput_ratio": spread(
                    [a["throughput"] / b["throughput"] for a, b in zip(each, base, strict=True)]
                ),
                "latency_less": spread([1 - a["mean_s"] / b["mean_s"] for a, b in zip(each, base, strict=True)]),
            }
            for name, each in runs.items()
        }
    return found


def printed(found: Mapping[str, Any]) -> str:
    """Return the tables."""
    lines = []
    for title, told in found.items():
        lines += [f"#### {title[0].upper()}{title[1:]}", ""]
        lines.append("| who answers | throughput | mean s | less | p50 s | p99 s | right | offloaded | of them right |")
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for name, one in told.items():
            mean = {key: value[0] for key, value in one.items()}
            lines.append(
                f"| {name} | {mean['throughput_ratio']:.2f}x | {mean['mean_s']:.1f} | {mean['latency_less']:.0%} | "
                f"{mean['p50_s']:.1f} | {mean['p99_s']:.1f} | {mean['quality']:.1%} "
                f"[{one['quality'][1]:.1%}, {one['quality'][2]:.1%}] | {mean['offloaded']:.0%} "
                f"| {mean['offloaded_right']:.1%} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Measure, write the figures, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--cache", type=Path, default=HOME / "augmentation", help="directory of answers known already")
    parser.add_argument("--questions", type=int, default=120, help="reported questions of each task")
    parser.add_argument("--seen", type=int, default=60, help="of these, how many were looked at before: left out")
    parser.add_argument("--training", type=int, default=60, help="questions of each task to learn from")
    parser.add_argument("--requests", type=int, default=2500, help="requests of the trace, from its beginning")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    model = Remembered(HOME, asked.cache)
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    bench = Bench(small=model, counter=model.counter, encoder=encoder, vectors=HOME / "vectors", rules=Rules())
    learnt, sizes = Learnt(), Sizes(questions=asked.questions, training=asked.training, pool=2000)
    lines = [Line(task(name, asked.data, sizes, bench.seed), bench, learnt) for name in TASKS]
    lessons = taught(lines, bench.seed)
    texts = {item.text for line in lines for item in (*line.task.training, *line.task.reported)}
    vectors = embed_texts(texts, encoder, HOME / "vectors")
    pools = {line.task.name: questions(line, lessons[line.task.name], vectors, asked.seen) for line in lines}
    with gzip.open(asked.data / "trace_azure_conv.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in itertools.islice(file, asked.requests)]
    found = measured(rows, lessons, pools, asked.seeds)
    report = {"requests": len(rows), "seeds": asked.seeds, "questions": [asked.seen, asked.questions]} | ASSUMED
    report |= {"rho": RHO, "mixes": MIXES, "found": found}
    asked.out.write_text(json.dumps(rounded(report), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(printed(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
