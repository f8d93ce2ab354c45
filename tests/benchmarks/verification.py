"""How right verified hits are: every table of the section Verified hits of docs/benchmarks.md.

`python -m tests.benchmarks.verification --data DIR [--verifier DIR] --out docs/benchmarks-verification.json` reads data
sets from a directory (verification_data.py says which), writes the figures, and writes the section between its markers
in docs/benchmarks.md anew. Without `--verifier` the shipped verifier and the thresholds alone are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.ablation import Seen, ablate, reads_less
from cacheproxy.evaluate.conversations import evaluate_conversations
from cacheproxy.evaluate.pairs import cosine_baseline, intervals_of, measure, rule_pairs
from cacheproxy.evaluate.stream import Ask, evaluate_stream
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.evaluate.verdicts import Scorer
from cacheproxy.evaluate.vetoes import refused_of
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.sweep import DOUBTED
from cacheproxy.verify import chains
from cacheproxy.verify.open import SHIPPED, open_scorer
from cacheproxy.verify.scorer import PairScorer, Steps
from cacheproxy.verifying import base_of
from tests.benchmarks import verification_data as data
from tests.benchmarks.verification_report import render, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.evaluate.pairfile import LabelledPair
    from cacheproxy.evaluate.pairs import Ruled
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Verify

ROOT = Path(__file__).parents[2]
ENCODERS = ROOT / ".cacheproxy" / "encoders"
DOCS = ROOT / "docs" / "benchmarks.md"
COSINES = (0.80, 0.95)
_LOOKUPS = 300
_CANDIDATES = 4


class Cascade(Scorer, chains.PairScorer, Protocol):
    """A verifier whose rules can be taken off."""

    def without_rules(self) -> Verify:
        """Return the same one with its rules off."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What everything is measured with."""

    directory: Path
    adversarial: Path
    encoder: TextEncoder
    pack: Pack
    cache: Path

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of shape (n, dim)."""
        seen = embed_texts(texts, self.encoder, self.cache)
        return np.stack([seen[text].vector for text in texts])


def measured(bench: Bench, scorer: Cascade | None) -> dict[str, Any]:
    """Return every figure of one verifier, or of the pack's thresholds alone."""
    return {
        "verifier": scorer.fingerprint if scorer else "",
        "adversarial": _pairs(bench, data.adversarial(bench.adversarial), scorer),
        "question_pairs": _pairs(bench, data.question_pairs(bench.directory), scorer),
        "stream": _stream(bench, scorer),
        "conversations": _conversations(bench, scorer),
    }


def cosines(bench: Bench) -> dict[str, Any]:
    """Return what plain cosine does on the same pairs, at usual thresholds and at those tuned on them."""
    found: dict[str, Any] = {}
    for name, pairs in (
        ("adversarial", data.adversarial(bench.adversarial)),
        ("question_pairs", data.question_pairs(bench.directory)),
    ):
        near = np.sum(bench.vectors([p.a for p in pairs]) * bench.vectors([p.b for p in pairs]), axis=1)
        labels = np.array([pair.label for pair in pairs])
        tuned = cosine_baseline(near.astype(np.float64), labels)
        rows = {f"at {level:g}": (level, near >= level) for level in COSINES}
        for which, score in (("tuned for F1", tuned.tuned_f1), ("tuned for F0.5", tuned.tuned_f05)):
            if score is not None and score.threshold is not None:
                rows[which] = (score.threshold, near >= score.threshold)
        found[name] = {
            which: {"threshold": level, **_score(served, labels, near.astype(np.float64))}
            for which, (level, served) in rows.items()
        }
    return found


def latency(bench: Bench, folder: Path) -> dict[str, Any]:
    """Return what verifying a lookup of one or four candidates adds, on one thread: wall time, and on the processor."""
    questions = [one.text for one in data.stream(bench.directory, bench.vectors)]
    stored, asked = questions[: data.STORED], questions[data.STORED :][:_LOOKUPS]
    near = bench.vectors(asked) @ bench.vectors(stored).T
    best = np.argsort(-near, axis=1)[:, :_CANDIDATES]
    lookups = [(text, [(stored[at], float(near[row, at])) for at in best[row]]) for row, text in enumerate(asked)]
    base = base_of("all-MiniLM-L6-v2")
    found = {}
    for name, steps in (("rules and features", Steps(cross=False)), ("with the cross-encoder", Steps())):
        scorer = PairScorer(folder, base, steps)
        scorer.verify(*lookups[0])
        for most in (1, _CANDIDATES):
            asked_of = f"{name}, {most} candidate{'s' * (most > 1)}"
            found[asked_of] = _timed(scorer, [(text, kept[:most]) for text, kept in lookups])
    return {"lookups": len(lookups), "steps": found}


def _timed(scorer: PairScorer, lookups: Sequence[tuple[str, list[tuple[str, float]]]]) -> dict[str, dict[str, float]]:
    wall, cpu = [], []
    for text, kept in lookups:
        began, began_cpu = time.perf_counter(), time.thread_time()
        scorer.verify(text, kept)
        wall.append((time.perf_counter() - began) * 1000)
        cpu.append((time.thread_time() - began_cpu) * 1000)
    return {"wall_ms": _quantiles(wall), "cpu_ms": _quantiles(cpu)}


def _pairs(bench: Bench, pairs: Sequence[LabelledPair], scorer: Cascade | None) -> dict[str, Any]:
    ruled = rule_pairs(pairs, bench.pack, bench.encoder, bench.cache, scorer)
    kinds = sorted({pair.category for pair in pairs} - {""})
    found = _scored(ruled)
    found["by_kind"] = {kind: _scored([one for one in ruled if one.group == kind]) for kind in kinds}
    refused = [one for one in ruled if not one.ruling.served and _near(one)]
    found["by_veto"] = msgspec.to_builtins(refused_of(Counter((one.ruling.reason, not one.label) for one in refused)))
    if scorer is not None:
        found["judged"] = _score(
            np.array([one.ruling.served or (one.label and _grey(one, bench.pack)) for one in ruled]),
            np.array([one.label for one in ruled]),
            np.array([one.rank for one in ruled]),
        )
        free = scorer.without_rules()
        seen = [_seen(pair, one, free) for pair, one in zip(pairs, ruled, strict=True)]
        served = np.array([one.ruling.served for one in ruled])
        found["ablation"] = msgspec.to_builtins(ablate(pairs, seen, served))
    return found


def _near(one: Ruled) -> bool:
    return one.ruling.threshold is not None and one.ruling.similarity >= one.ruling.threshold


def _grey(one: Ruled, pack: Pack) -> bool:
    """Whether a judge is asked of a pair: a near miss by its probability, and nothing else against it."""
    rules, said = pack.categories[one.ruling.category], one.ruling.verified
    lowest = rules.min_probability - rules.probability_band
    return said is not None and one.ruling.reason in DOUBTED and said.probability >= lowest


def _seen(pair: LabelledPair, one: Ruled, free: Verify) -> Seen:
    said = one.ruling.verified
    again = said is not None and reads_less(said)
    unruled = free.verify(pair.b, [(pair.a, one.ruling.similarity)])[0] if again else said
    return Seen(similarity=one.ruling.similarity, verified=said, without_rules=unruled)


def _scored(ruled: Sequence[Ruled]) -> dict[str, Any]:
    return _score(
        np.array([one.ruling.served for one in ruled]),
        np.array([one.label for one in ruled]),
        np.array([one.rank for one in ruled]),
    )


def _score(served: NDArray[np.bool_], labels: NDArray[np.bool_], ranks: NDArray[np.float64]) -> dict[str, Any]:
    score = measure(served, labels, ranks)
    return {**msgspec.structs.asdict(score), "intervals": msgspec.to_builtins(intervals_of(score))}


def _stream(bench: Bench, scorer: Cascade | None) -> dict[str, Any]:
    questions = data.stream(bench.directory, bench.vectors)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream.jsonl"
        rows = [{"text": one.text, "answer_id": one.answer_id} for one in questions]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        began = time.perf_counter()
        asked = evaluate_stream(
            file,
            bench.pack,
            bench.encoder,
            bench.cache,
            settings.Settings(),
            scorer=scorer,
            ask=Ask(baseline=scorer is None),
        )
        report = asyncio.run(asked)
    told: dict[str, Any] = msgspec.to_builtins(report)
    return {**told, "seconds": time.perf_counter() - began}


def _conversations(bench: Bench, scorer: Cascade | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "conversations.jsonl"
        kept = data.conversations(bench.directory)
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        report = evaluate_conversations(
            file, bench.pack, bench.encoder, bench.cache, scorer=scorer, baseline=scorer is None
        )
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def _quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(times_ms, share)) for share in (50, 90, 99)}


def main() -> int:
    """Measure what is there, write the figures, and write the section of the documentation anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--verifier", type=Path, help="directory of a verifier of your own")
    parser.add_argument("--adversarial", type=Path, default=data.ADVERSARIAL, help="adversarial pairs")
    parser.add_argument("--policies", default="balanced", help="pack")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Markdown file whose section is written anew")
    asked = parser.parse_args()
    bench = Bench(
        directory=asked.data,
        adversarial=asked.adversarial,
        encoder=open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent),
        pack=load_pack(find_pack(asked.policies)),
        cache=ROOT / ".cacheproxy" / "vectors",
    )
    folders = {"built": asked.verifier, "shipped": SHIPPED if SHIPPED.exists() else None}
    base = base_of("all-MiniLM-L6-v2")
    report: dict[str, Any] = {
        "encoder": bench.encoder.fingerprint,
        "policies": bench.pack.name,
        "machine": {"cpu": _processor(), "python": platform.python_version()},
        "cosine": cosines(bench),
        "verifiers": {
            name: _built_from(scorer) | measured(bench, scorer)
            for name, folder in folders.items()
            if folder and (scorer := open_scorer(str(folder), base)) is not None
        },
        "thresholds": measured(bench, None),
        "latency": {name: latency(bench, folder) for name, folder in folders.items() if folder},
    }
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    section = render(report)
    sys.stdout.write(f"{section}\n")
    asked.docs.write_text(written(asked.docs.read_text(encoding="utf-8"), section), encoding="utf-8")
    return 0


def _built_from(scorer: PairScorer) -> dict[str, Any]:
    return {"sources": [msgspec.to_builtins(source) for source in scorer.manifest.sources]}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
