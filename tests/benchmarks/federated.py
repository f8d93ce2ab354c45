"""What federated training of the similarity head gains: the section Federated similarity of docs/benchmarks.md.

`python -m tests.benchmarks.federated --data DIR --out docs/benchmarks-federated.json [--seeds 5] [--only PART]` reads
data sets from a directory (federated_data.py says which), writes the figures, and writes the section between its
markers anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.verify.open import open_scorer
from cacheproxy.verifying import base_of
from tests.benchmarks import federated_learning as learning
from tests.benchmarks import federated_stream as streams
from tests.benchmarks import verification_data
from tests.benchmarks.federated_data import CLIENTS, DEALS, REPORTED, Questions, deal, source
from tests.benchmarks.federated_poisoning import poisoned
from tests.benchmarks.federated_report import render, written
from tests.benchmarks.federated_scores import SCORES, Ranked, difference, interval, mean_scores, resamples, scores
from tests.benchmarks.federated_storage import ranked, search_times, smaller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.head import Head
    from cacheproxy.evaluate.vectors import TextEncoder
    from tests.benchmarks.federated_data import Source
    from tests.benchmarks.federated_scores import Floats

ROOT = Path(__file__).parents[2]
ENCODERS = ROOT / ".cacheproxy" / "encoders"
DOCS = ROOT / "docs" / "benchmarks.md"
POISONED = "banking77"
UNTOLD = "centralised, untold"
SMALLER = {"384 x float32": None, "64 x float32": False, "64 x int8": True}
_VERIFY_FROM, _PROBABILITY = 0.35, 0.68
"""Of the pack balanced (policies/balanced), for this encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What one seed and one deal gave: the measured pairs under each head."""

    systems: dict[str, list[Ranked]]
    """By name; `local` has one for each client that could learn."""
    federated: Head
    seed: int
    deal: str


def learnt(data: Source, seed: int, dealt: str) -> Learnt:
    """Learn in all ways from the clients of one seed."""
    clients = deal(data, seed, dealt)
    head = learning.federated(clients, seed)
    whole = learning.centralised(clients, seed)
    base = learning.base(clients)
    systems = {
        "base": [_seen(base, data)],
        "local": [_seen(one, data) for one in learning.alone(clients, seed)],
        "federated": [ranked(head, clients, data.test)],
        "centralised": [_seen(whole, data)],
    }
    if isinstance(data.pool, Questions):
        systems[UNTOLD] = [_seen(learning.centralised(clients, seed, told=False), data)]
    for name, int8 in SMALLER.items():
        if int8 is not None:
            systems[name] = [ranked(smaller(head, clients, int8=int8), clients, data.test)]
            plain = smaller(base.head, clients, int8=int8)
            systems[f"base, {name}"] = [ranked(plain, clients, data.test)]
    return Learnt(systems=systems, federated=head, seed=seed, deal=dealt)


def _seen(one: learning.Learnt, data: Source) -> Ranked:
    return Ranked(near=learning.similarities(one.head, data.test), threshold=one.threshold)


def summary(found: Sequence[Learnt], right: NDArray[np.bool_], weights: Floats) -> dict[str, Any]:
    """Return the scores of each way, a mean over seeds, the differences that matter, and the share of the gain."""
    heads = {name: [head for one in found for head in one.systems[name]] for name in found[0].systems}
    made = {name: mean_scores(many, right, weights) for name, many in heads.items()}
    untold = made.get(UNTOLD, made["centralised"])
    gain = {name: _share(made["base"][name], made["federated"][name], made["centralised"][name]) for name in SCORES}
    return {
        "systems": {
            name: {
                "scores": {score: float(told[score][0]) for score in SCORES},
                "intervals": {score: interval(told[score]) for score in SCORES},
                "threshold": float(np.mean([head.threshold for head in heads[name]])),
                "thresholds": _range(head.threshold for head in heads[name]),
                "f05_by_seed": [float(_f05(one.systems[name], right)) for one in found],
            }
            for name, told in made.items()
        },
        "federated_minus_base": difference(made["federated"], made["base"]),
        "federated_minus_centralised": difference(made["federated"], made["centralised"]),
        "local_minus_base": difference(made["local"], made["base"]),
        "centralised_minus_base": difference(made["centralised"], made["base"]),
        "smaller_minus_base": {
            name: difference(made[name], made["base"]) for name, int8 in SMALLER.items() if int8 is not None
        },
        "smaller_minus_federated": {
            name: difference(made[name], made["federated"]) for name, int8 in SMALLER.items() if int8 is not None
        },
        "share_of_gain": gain,
        "federated_minus_untold": difference(made["federated"], untold),
        "share_of_gain_untold": {
            name: _share(made["base"][name], made["federated"][name], untold[name]) for name in SCORES
        },
    }


def _f05(heads: Sequence[Ranked], right: NDArray[np.bool_]) -> float:
    once = np.ones((1, len(right)))
    return float(np.mean([scores(one, right, once)["f05"][0] for one in heads]))


def _range(values: Iterable[float]) -> tuple[float, float]:
    every = list(values)
    return min(every), max(every)


def _share(base: Floats, federated: Floats, centralised: Floats) -> dict[str, Any]:
    """Return which share of the gain of pairs in one place the federated head has. No interval where there is none."""
    share = (federated - base) / np.where(np.abs(centralised - base) < 1e-9, np.nan, centralised - base)
    clear = interval(centralised - base)[0] > 0
    return {"share": float(share[0]), "interval": interval(share) if clear else None}


def full_cache(directory: Path, heads: Sequence[tuple[Head, float, float]], bench: Bench) -> dict[str, Any]:
    """Return what caches make of one stream: plain cosine, the heads (with threshold, and where to verify from)."""
    questions = verification_data.stream(directory, bench.embed)
    stream = streams.Stream(questions=questions, vectors=bench.embed([one.text for one in questions]))
    scorer = open_scorer("", base_of("all-MiniLM-L6-v2"))
    if scorer is None:
        raise ValueError("no verifier is shipped for this encoder; the full cache needs one")
    plain = stream.vectors
    rows: dict[str, Any] = {
        f"cosine, {name}": {"threshold": level, **streams.replay(stream, plain, streams.at_least(level), f"{level:g}")}
        for name, level in (("GPTCache's default", streams.GPTCACHE), ("common default", streams.COMMON))
    }
    swept = {
        level: streams.replay(stream, plain, streams.at_least(level), f"cosine {level:.2f}") for level in streams.TUNED
    }
    best = max(swept, key=lambda level: float(swept[level]["f05"]))
    rows["cosine, tuned on the stream"] = {"threshold": best, **swept[best]}
    judged = streams.verified(stream, scorer, _VERIFY_FROM, _PROBABILITY)
    rows["encoder + verifier"] = streams.replay(stream, plain, judged, "verified")
    by_seed: dict[str, list[dict[str, Any]]] = {}
    for head, level, from_ in heads:
        seen = head.project(plain)
        ways = {
            "head at its threshold": streams.at_least(level),
            "head + verifier": streams.verified(stream, scorer, from_, _PROBABILITY),
            "head at its threshold + verifier": streams.verified(stream, scorer, level, _PROBABILITY),
        }
        for name, decide in ways.items():
            by_seed.setdefault(name, []).append(streams.replay(stream, seen, decide, name))
    rows |= {name: _mean_row(many) for name, many in by_seed.items()}
    return {"verifier": scorer.fingerprint, "questions": len(questions), "rows": rows}


def _mean_row(many: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("n", "hits", "precision", "recall", "f1", "f05", "hit_rate")
    return {name: float(np.mean([one[name] for one in many])) for name in names} | {
        "f05_by_seed": [one["f05"] for one in many]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What everything is measured with."""

    encoder: TextEncoder
    cache: Path

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of shape (n, dim)."""
        seen = embed_texts(texts, self.encoder, self.cache)
        return np.stack([seen[text].vector for text in texts])


def _all(label: str, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the jobs return, in their order; a process a core, one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool,
        progress(label, len(jobs)) as advance,
    ):
        running = [pool.submit(job) for job in jobs]
        for _ in as_completed(running):
            advance(1)
        return [one.result() for one in running]


def measured(directory: Path, bench: Bench, seeds: int) -> dict[str, Any]:
    """Return every figure."""
    report: dict[str, Any] = {"data": {}, "poisoning": {}}
    for name in REPORTED:
        data = source(name, directory, bench.embed)
        weights = resamples(data.test.group)
        jobs = [partial(learnt, data, seed, dealt) for dealt in DEALS for seed in range(seeds)]
        found: list[Learnt] = _all(f"{name}: learning", jobs)
        clients = deal(data, 0, "even")
        report["data"][name] = {
            "test_pairs": len(data.test),
            "test_right": float(data.test.right.mean()),
            "trained_pairs": sum(len(one.train) for one in clients),
            "held_pairs": sum(len(one.held) for one in clients),
            "pairs_a_client": {dealt: _range(float(len(one.train)) for one in deal(data, 0, dealt)) for dealt in DEALS},
            **{
                dealt: summary([one for one in found if one.deal == dealt], data.test.right, weights) for dealt in DEALS
            },
        }
        if name == POISONED:
            report["poisoning"] = poisoned(data, seeds, _all)
        if name == "qqp":
            heads = [
                (one.federated, *learning.thresholds(one.federated, deal(data, one.seed, "even")))
                for one in found
                if one.deal == "even"
            ]
            report["full_cache"] = full_cache(directory, heads, bench)
            head = smaller(found[0].federated, clients, int8=True)
            [report["search_ms"]] = _all("searching", [partial(search_times, head)])
            report["vector_bytes"] = {
                "384 x float32": 4 * head.dim_in,
                "64 x float32": 4 * head.dim,
                "64 x int8": head.vector_bytes,
            }
    return report


def main() -> int:
    """Measure, write the figures, and write the section of the documentation anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=5, help="how often clients are dealt and trained anew")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Markdown file whose section is written anew")
    told = "measure this part alone anew; the others stay as --out holds them"
    parser.add_argument("--only", choices=("poisoning",), help=told)
    asked = parser.parse_args()
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent)
    bench = Bench(encoder=encoder, cache=ROOT / ".cacheproxy" / "vectors")
    if asked.only == "poisoning":
        report = json.loads(asked.out.read_text(encoding="utf-8"))
        report["poisoning"] = poisoned(source(POISONED, asked.data, bench.embed), asked.seeds, _all)
        _write(asked, report)
        return 0
    report = {
        "encoder": encoder.fingerprint,
        "seeds": asked.seeds,
        "clients": CLIENTS,
        "rounds": learning.ROUNDS,
        "clients_train": asdict(learning.HOW),
        "centralised_trains": asdict(learning.CENTRAL),
        "machine": {"cpu": _processor(), "python": platform.python_version()},
        **measured(asked.data, bench, asked.seeds),
    }
    _write(asked, report)
    return 0


def _write(asked: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write the figures, and the section of the documentation that tells them."""
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    section = render(report)
    sys.stdout.write(f"{section}\n")
    asked.docs.write_text(written(asked.docs.read_text(encoding="utf-8"), section), encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
