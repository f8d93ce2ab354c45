"""What load adaptation brings and costs: `python -m tests.benchmarks.load_replay --data DIRECTORY --out FILE`

A day of arrivals goes through the real line (policy, store, index, real embeddings) in virtual time. Simulated: the
backend (so many slots, a service time by tokens, a queue with a deadline) and the clock. Arrivals: the hours of a day
as BurstGPT has them, times the bursts of Azure's conversation trace in bins of ten seconds. Tokens: drawn from Azure's
conversation trace. Questions: see `QUESTIONS`, asked by the model of `corpus.Asking`.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import heapq
import itertools
import json
import statistics
import sys
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.replay import Asked, KnownVectors, answer_of, open_replay
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.model import Hit, Miss
from cacheproxy.policy.adapt import LoadWatch, Sample
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.prepare import prepared
from cacheproxy.settings import Encoder, Load, Settings
from cacheproxy.upstream.recent import RecentTimes
from tests.benchmarks.corpus import Asking, duplicates, intents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.evaluate.replay import Replay
    from cacheproxy.journey import Journey
    from cacheproxy.model import Outcome
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Pack
    from tests.benchmarks.corpus import Answer

HOME = Path(__file__).parents[2] / ".cacheproxy"
QUESTIONS = {"banking77": ("support", 0.25, 1.0), "clinc150": ("support", 0.25, 1.0), "qqp": ("chat", 0.5, 1.0)}
"""By source: the category it is asked under, its share of the traffic, the exponent of Zipf's law."""
DAY_S, BIN_S, TICK_S, HIT_S, PATIENCE_S = 21_600.0, 10.0, 0.5, 0.01, 10.0
"""A day passes in six hours, so that the backend is more than two slots at a bearable number of requests."""
OVERHEAD_S, IN_TOKEN_S, OUT_TOKEN_S = 0.3, 0.0002, 0.05
OVERLOAD = 1.25
"""Work that the misses of the busiest hour bring without adaptation, over what the backend can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the trace."""

    at_s: float
    asked: Asked
    source: str
    service_s: float


@dataclass(slots=True, kw_only=True)
class Job:
    """Work for the backend, and everybody who waits for it."""

    request: Request
    journey: Journey
    miss: Miss | None
    since_s: float
    waiters: list[int]


@dataclass(slots=True, kw_only=True)
class Record:
    """What became of each request: kinds are `hit`, `backend`, `joined` and `shed`."""

    kinds: list[str] = field(default_factory=list)
    false: list[bool] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    lams: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of lam by minute of the day."""


def arrivals(data: Path, count: int, source: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return about `count` moments of one day: Poisson, by the day's hours and the bursts within them."""
    with gzip.open(data / "trace_burstgpt_minutes.json.gz", "rt") as file:
        hours = np.array([hour["norm"] for hour in json.load(file)["hourly_avg"]])
    times = np.array([row["t"] for row in _trace(data)])
    bursts = np.bincount((times[times < 3500] / BIN_S).astype(int)).astype(float)
    bins = int(DAY_S / BIN_S)
    shape = hours[(np.arange(bins) * BIN_S * 24 / DAY_S).astype(int)]
    shape = shape * bursts[(np.arange(bins) + int(source.integers(len(bursts)))) % len(bursts)]
    counts = source.poisson(shape * count / shape.sum())
    return np.sort(np.repeat(np.arange(bins) * BIN_S, counts) + source.random(int(counts.sum())) * BIN_S)


def trace(data: Path, answers: Mapping[str, list[Answer]], count: int, seed: int) -> list[Request]:
    """Return one day of requests."""
    source = np.random.default_rng(seed)
    asking = {name: Asking(answers[name], QUESTIONS[name][2], source) for name in QUESTIONS}
    names, shares = list(QUESTIONS), [share for _, share, _ in QUESTIONS.values()]
    lengths = [(row["in"], row["out"]) for row in _trace(data)]
    made = []
    for at_s in arrivals(data, count, source):
        name = names[int(source.choice(len(names), p=shares))]
        answer, text = asking[name].draw()
        read, written = lengths[int(source.integers(len(lengths)))]
        made.append(
            Request(
                at_s=float(at_s),
                asked=Asked(text=text, answer_id=answer.answer_id, category=QUESTIONS[name][0]),
                source=name,
                service_s=OVERHEAD_S + read * IN_TOKEN_S + written * OUT_TOKEN_S,
            )
        )
    return made


class Day:
    """One day in virtual time: requests, the cache, and a simulated backend with `slots`."""

    def __init__(self, replay: Replay, watch: LoadWatch, slots: int) -> None:
        self.record = Record()
        self._replay = replay
        self._watch = watch
        self._slots = slots
        self._running = 0
        self._queue: deque[Job] = deque()
        self._flying: dict[bytes, Job] = {}
        self._events: list[tuple[float, int, str, Job]] = []
        self._number = itertools.count()
        self._recent = RecentTimes()
        self._tick_s = 0.0

    async def run(self, requests: list[Request]) -> Record:
        """Ask everything; return what became of it."""
        for request in requests:
            while self._events and self._events[0][0] <= request.at_s:
                await self._happen()
            self._tick(request.at_s)
            await self._ask(request)
        while self._events:
            await self._happen()
        return self.record

    async def _ask(self, request: Request) -> None:
        journey, outcome = await self._replay.look_up(request.asked, request.at_s)
        place = self._note(request, outcome)
        if isinstance(outcome, Hit):
            return
        flying = self._flying.get(journey.key)
        if flying is not None and isinstance(outcome, Miss):
            self.record.kinds[place] = "joined"
            flying.waiters.append(place)
            flying.waiters.sort()
            return
        job = Job(
            request=request,
            journey=journey,
            miss=outcome if isinstance(outcome, Miss) else None,
            since_s=request.at_s,
            waiters=[place],
        )
        if job.miss is not None:
            self._flying[journey.key] = job
        if self._running < self._slots:
            self._begin(job, request.at_s)
        else:
            self._queue.append(job)
            self._push(request.at_s + PATIENCE_S, "give up", job)

    def _note(self, request: Request, outcome: Outcome) -> int:
        hit = isinstance(outcome, Hit)
        self.record.kinds.append("hit" if hit else "backend")
        self.record.false.append(isinstance(outcome, Hit) and answer_of(outcome.entry) != request.asked.answer_id)
        self.record.latency_s.append(HIT_S if hit else -request.at_s)  # until it is answered
        return len(self.record.kinds) - 1

    def _begin(self, job: Job, at_s: float) -> None:
        self._running += 1
        self._push(at_s + job.request.service_s, "answer", job)

    def _push(self, at_s: float, what: str, job: Job) -> None:
        heapq.heappush(self._events, (at_s, next(self._number), what, job))

    async def _happen(self) -> None:
        at_s, _, what, job = heapq.heappop(self._events)
        self._tick(at_s)
        if what == "give up":
            if job in self._queue:
                self._queue.remove(job)
                self._land(job)
                for place in job.waiters:
                    self.record.kinds[place] = "shed"
            return
        self._running -= 1
        self._recent.add(job.request.service_s, at_s)
        self._land(job)
        for place in job.waiters:
            self.record.latency_s[place] += at_s + HIT_S
        if job.miss is not None:
            await self._replay.answer(job.journey, job.miss, job.request.asked, at_s)
        if self._queue:
            self._begin(self._queue.popleft(), at_s)

    def _land(self, job: Job) -> None:
        if self._flying.get(job.journey.key) is job:
            del self._flying[job.journey.key]

    def _tick(self, at_s: float) -> None:
        while self._tick_s <= at_s:
            in_flight = self._running + len(self._queue)
            sample = Sample(in_flight=in_flight, limit=self._slots, p95_s=self._recent.p95_s(self._tick_s))
            lam = self._watch.observe("", sample, self._tick_s).lam
            self.record.lams[int(self._tick_s // 60)] += lam
            self._tick_s += TICK_S


async def run(policy: Policy, vectors: KnownVectors, requests: list[Request], slots: int, *, adapts: bool) -> Record:
    """Run one day, with adaptation or with a load that always is 0."""
    watch = LoadWatch(Load())
    load = (lambda model: watch.lam("")) if adapts else (lambda model: 0.0)
    async with open_replay(lambda: policy, vectors, Settings(), load) as replay:
        return await Day(replay, watch, slots).run(requests)


def figures(requests: list[Request], record: Record, busy: set[int] | None) -> dict[str, float]:
    """Return what one day was like, of all minutes or of the busy ones."""
    chosen = [place for place, one in enumerate(requests) if busy is None or int(one.at_s // 60) in busy]
    kinds = Counter(record.kinds[place] for place in chosen)
    told: dict[str, float] = {"requests": len(chosen), **kinds}
    told["sent"] = kinds["backend"] + kinds["shed"]
    told["false_hits"] = sum(record.false[place] for place in chosen)
    answered = [record.latency_s[place] for place in chosen if record.kinds[place] != "shed"]
    waited = [record.latency_s[place] for place in chosen if record.kinds[place] in ("backend", "joined")]
    told["mean_s"] = statistics.fmean(answered)
    told["p50_s"], told["p95_s"] = (float(np.percentile(answered, q)) for q in (50, 95))
    told["miss_p95_s"] = float(np.percentile(waited, 95))
    for name in QUESTIONS:
        own = [place for place in chosen if requests[place].source == name]
        told[f"{name}.requests"] = len(own)
        told[f"{name}.hits"] = sum(record.kinds[place] == "hit" for place in own)
        told[f"{name}.false_hits"] = sum(record.false[place] for place in own)
    return told


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return a mean with its 95 % interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    reach = quantile[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def rounded(value: Any) -> Any:
    """Return figures with four decimals, to be written."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def _trace(data: Path) -> list[dict[str, float]]:
    with gzip.open(data / "trace_azure_conv.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def deeper(pack: Pack, drop: float) -> Pack:
    """Return a pack whose adapting categories may fall that far, their floors with them."""
    adapting = [name for name, rules in pack.categories.items() if rules.load_threshold_drop]
    return msgspec.structs.replace(
        pack,
        categories={
            name: msgspec.structs.replace(rules, load_threshold_drop=drop) if name in adapting else rules
            for name, rules in pack.categories.items()
        },
        encoders={
            key: msgspec.structs.replace(
                encoder,
                floors={name: encoder.thresholds[name] - drop for name in adapting if name in encoder.thresholds},
            )
            for key, encoder in pack.encoders.items()
        },
    )


def slots_for(requests: list[Request], record: Record) -> int:
    """Return how many slots the busiest hour's misses of a day without limits ask for, less the overload wanted."""
    work: defaultdict[int, float] = defaultdict(float)
    for request, kind in zip(requests, record.kinds, strict=True):
        if kind == "backend":
            work[int(request.at_s * 24 // DAY_S)] += request.service_s
    return max(1, round(max(work.values()) / (DAY_S / 24) / OVERLOAD))


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all packs over all seeds, without and with adaptation."""
    answers = {"qqp": duplicates(arguments.data)}
    answers |= {name: intents(arguments.data, name) for name in ("banking77", "clinc150")}
    days = [trace(arguments.data, answers, arguments.requests, seed) for seed in range(1, arguments.seeds + 1)]
    encoder = open_encoder(Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    texts = dict.fromkeys(one.asked.text for day in days for one in day)
    vectors = KnownVectors(embed_texts(texts, encoder, HOME / "vectors"), encoder.fingerprint)
    shipped = {name: load_pack(find_pack(name)) for name in ("balanced", "frugal")}
    packs = shipped | {f"balanced, drop {arguments.drop:g}": deeper(shipped["balanced"], arguments.drop)}
    policies = {name: prepared(pack, remembering(encoder, HOME / "vectors")) for name, pack in packs.items()}
    free = await run(policies["balanced"], vectors, days[0], 10**6, adapts=False)
    slots = slots_for(days[0], free)
    runs: list[dict[str, Any]] = []
    for seed, requests in enumerate(days, start=1):
        offs = {name: await run(policies[name], vectors, requests, slots, adapts=False) for name in shipped}
        for name, policy in policies.items():
            off = offs.get(name, offs["balanced"])
            on = await run(policy, vectors, requests, slots, adapts=True)
            busy = {minute for minute, total in off.lams.items() if total * TICK_S / 60 >= 0.5}
            for adapts, record in ((False, off), (True, on)):
                whole, loaded = figures(requests, record, None), figures(requests, record, busy)
                runs.append({"pack": name, "seed": seed, "adapts": adapts, "day": whole, "overload": loaded})
            runs[-1]["busy_minutes"] = len(busy)
            lam = sum(on.lams.values()) * TICK_S / 60 / max(1, len(on.lams))
            sys.stderr.write(f"seed {seed}, {name}: {len(busy)} busy minutes, mean lam {lam:.2f}\n")
    return {
        "simulated": "backend and clock",
        "slots": slots,
        "requests": arguments.requests,
        "seeds": arguments.seeds,
        "service_s": {"overhead": OVERHEAD_S, "in_token": IN_TOKEN_S, "out_token": OUT_TOKEN_S},
        "overload": OVERLOAD,
        "questions": QUESTIONS,
        "encoder": encoder.fingerprint,
        "runs": runs,
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the tables of docs/benchmarks.md."""
    lines = [
        "| pack | requests sent to the backend, off -> on | traffic cut | hit rate | turned away (503) "
        "| latency p50 s | p95 s | mean s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    packs = list(dict.fromkeys(one["pack"] for one in report["runs"]))
    for pack in packs:
        off, on = (_of(report, pack, adapts, "overload") for adapts in (False, True))
        cut = spread([100 * (1 - b["sent"] / a["sent"]) for a, b in zip(off, on, strict=True)])
        cells = [pack, f"{_mean(off, 'sent'):,.0f} -> {_mean(on, 'sent'):,.0f}", f"{_told(cut)} %"]
        cells += [f"{100 * _share(off, key):.1f} -> {100 * _share(on, key):.1f} %" for key in ("hit", "shed")]
        cells += [f"{_mean(off, key):.2f} -> {_mean(on, key):.2f}" for key in ("p50_s", "p95_s", "mean_s")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| pack | questions | hits off -> on | false hits off -> on, of all hits | more false hits in 1,000 requests |",
        "|---|---|---|---|---|",
    ]
    for pack, name in itertools.product(packs, QUESTIONS):
        off, on = (_of(report, pack, adapts, "overload") for adapts in (False, True))
        rates = [[one[f"{name}.false_hits"] / max(1, one[f"{name}.hits"]) for one in ran] for ran in (off, on)]
        more = spread(
            [
                1000 * (b[f"{name}.false_hits"] - a[f"{name}.false_hits"]) / max(1, a[f"{name}.requests"])
                for a, b in zip(off, on, strict=True)
            ]
        )
        lines.append(
            f"| {pack} | {name} ({QUESTIONS[name][0]}) | {_mean(off, f'{name}.hits'):.0f} -> "
            f"{_mean(on, f'{name}.hits'):.0f} | {100 * statistics.fmean(rates[0]):.1f} % -> "
            f"{100 * statistics.fmean(rates[1]):.1f} % | {_told(more)} |"
        )
    return "\n".join(lines)


def _of(report: Mapping[str, Any], pack: str, adapts: bool, when: str) -> list[dict[str, float]]:
    return [one[when] for one in report["runs"] if one["pack"] == pack and one["adapts"] is adapts]


def _mean(ran: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(one.get(key, 0.0) for one in ran)


def _share(ran: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(one.get(key, 0.0) / one["requests"] for one in ran)


def _told(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets and traces")
    parser.add_argument("--requests", type=int, default=40_000, help="requests of a day, about")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--drop", type=float, default=0.05, help="of the third pack: balanced, with this drop")
    parser.add_argument("--out", type=Path, help="raw figures, as JSON")
    given = parser.parse_args()
    found = asyncio.run(main(given))
    if given.out:
        given.out.write_text(json.dumps(rounded(found)) + "\n", encoding="utf-8")
    sys.stdout.write(render(found) + "\n")
