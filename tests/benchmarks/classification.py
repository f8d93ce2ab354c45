"""How well queries are classified: by examples drawn from data sets, and by those that the packs ship.

`python -m tests.benchmarks.classification --data DIR --out docs/classification.json` reads public data sets from a
directory (classification_data.py says which) and prints the tables of docs/benchmarks.md. Nothing else needs them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.calibrate import wilson
from cacheproxy.policy.classify import NONE as NONE_OF_THEM
from cacheproxy.policy.classify import ExampleClassifier
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.pack import Classifier
from tests.benchmarks.classification_data import NONE, OWN_INTENTS, Row, Task, general, read, tasks
from tests.benchmarks.classification_report import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
KINDS = ("prototype", "logistic")
SIZES = (5, 10, 20, 40)
SEEDS = 5
_CAP = 300
"""Most test questions of one category from one source, so that the largest source does not decide."""
_BINS = 15
_RESAMPLES = 300
_GENERAL = 5_000
_QUERIES = 2_000

Vectors = dict[str, "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """What a classifier said of n questions, and what is right: arrays of shape (n,), names by their column."""

    right: NDArray[np.int64]
    best: NDArray[np.int64]
    second: NDArray[np.int64]
    """-1 where none is named."""
    chance: NDArray[np.float64]
    columns: int


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report."""
    found = list(tasks(arguments.data))
    drawn = [(task, _test(task), [_examples(task, max(SIZES), seed) for seed in range(SEEDS)]) for task in found]
    pack = load_pack(find_pack("balanced"))
    shipped = {name: rules.examples for name, rules in pack.categories.items() if rules.examples}
    asked = general(arguments.data, _GENERAL)
    own = _own(arguments.data)
    texts = [
        row.text for _, test, seeds in drawn for row in [*test, *(r for e in seeds for rs in e.values() for r in rs)]
    ]
    texts += [text for group in (*shipped.values(), asked, *own.values()) for text in group]
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent)
    seen = embed_texts(texts, encoder, arguments.cache)
    vectors = {text: embedding.vector for text, embedding in seen.items()}
    report: dict[str, Any] = {"encoder": encoder.fingerprint, "seeds": SEEDS, "cap": _CAP, "runs": [], "shipped": []}
    for task, test, seeds in drawn:
        for kind in KINDS:
            for size in SIZES:
                sys.stderr.write(f"{task.name}: {kind}, {size} examples\n")
                report["runs"].append(_run(task, test, [_first(one, size) for one in seeds], kind, vectors))
                report["runs"][-1]["examples"] = size
    for kind in KINDS:
        classify = _fit({name: list(questions) for name, questions in shipped.items()}, kind, vectors)
        mixed = next(test for task, test, _ in drawn if task.name == "subjects")
        report["shipped"].append(
            {
                "kind": kind,
                "examples": {name: len(questions) for name, questions in shipped.items()},
                "sources": _by_source(classify, mixed, vectors),
                "general": _general(classify, asked, vectors),
                "own affairs": {name: _private(classify, questions, vectors) for name, questions in own.items()},
                **_cost({name: list(questions) for name, questions in shipped.items()}, kind, vectors),
            }
        )
    return report


def _test(task: Task) -> list[Row]:
    """Return the test part, at most `_CAP` questions of each category from each source."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in task.rows:
        if not row.train:
            groups[row.category, row.source].append(row)
    rng = np.random.default_rng(0)
    return [group[at] for _, group in sorted(groups.items()) for at in rng.permutation(len(group))[:_CAP]]


def _examples(task: Task, size: int, seed: int) -> dict[str, list[Row]]:
    """Draw `size` questions of each category from the training part; a smaller size is a prefix of a larger one."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in task.rows:
        if row.train and (task.taught or row.category != NONE):
            groups[row.category].append(row)
    rng = np.random.default_rng(seed)
    return {name: [group[at] for at in rng.permutation(len(group))[:size]] for name, group in sorted(groups.items())}


def _first(examples: Mapping[str, Sequence[Row]], size: int) -> dict[str, list[str]]:
    return {name: [row.text for row in rows[:size]] for name, rows in examples.items()}


def _fit(examples: Mapping[str, Sequence[str]], kind: Any, vectors: Vectors) -> ExampleClassifier:
    return ExampleClassifier.fit(
        {name: np.stack([vectors[text] for text in texts]) for name, texts in examples.items()},
        default=NONE,
        settings=Classifier(kind=kind),
        cautious=frozenset({"personal"} & examples.keys()),
    )


def _tell(classify: ExampleClassifier, rows: Sequence[Row], vectors: Vectors) -> Told:
    names = [NONE if name == NONE_OF_THEM else name for name in classify.names]
    found = [classify(vectors[row.text]) for row in rows]
    return Told(
        right=np.array([names.index(row.category) for row in rows]),
        best=np.array([names.index(one.category) for one in found]),
        second=np.array([names.index(one.second) if one.second else -1 for one in found]),
        chance=np.array([one.scores[0][1] for one in found]),
        columns=len(names),
    )


def _run(
    task: Task, test: Sequence[Row], draws: Sequence[Mapping[str, Sequence[str]]], kind: str, vectors: Vectors
) -> dict[str, Any]:
    told = [_tell(_fit(examples, kind, vectors), test, vectors) for examples in draws]
    every = np.arange(len(test))
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(test), len(test)) for _ in range(_RESAMPLES)]
    measures = {"accuracy": _accuracy, "macro_f1": _macro_f1, "ece": _ece}
    figures: dict[str, Any] = {}
    for name, measure in measures.items():
        by_seed = [measure(one, every) for one in told]
        figures[name] = {"mean": float(np.mean(by_seed)), "seeds": [min(by_seed), max(by_seed)]}
        if name != "ece":
            resampled = [float(np.mean([measure(one, sample) for one in told])) for sample in samples]
            figures[name]["interval"] = [float(end) for end in np.percentile(resampled, [2.5, 97.5])]
    return {
        "task": task.name,
        "kind": kind,
        "n": len(test),
        "categories": told[0].columns - 1,
        **figures,
        "doubt": float(np.mean([(one.second >= 0).mean() for one in told])),
        "right_without_doubt": float(np.mean([(one.best == one.right)[one.second < 0].mean() for one in told])),
        "either_right": float(np.mean([((one.best == one.right) | (one.second == one.right)).mean() for one in told])),
        "to_default": float(np.mean([(one.best == one.columns - 1).mean() for one in told])),
        "default_truly": float((told[0].right == told[0].columns - 1).mean()),
    }


def _accuracy(told: Told, rows: NDArray[np.int64]) -> float:
    return float((told.best[rows] == told.right[rows]).mean())


def _macro_f1(told: Told, rows: NDArray[np.int64]) -> float:
    table = np.bincount(told.right[rows] * told.columns + told.best[rows], minlength=told.columns**2)
    table = table.reshape(told.columns, told.columns)
    there = table.sum(axis=1) > 0
    return float((2 * np.diag(table) / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1))[there].mean())


def _ece(told: Told, rows: NDArray[np.int64]) -> float:
    """Expected calibration error: how far stated probability and accuracy are apart, in bins of equal width."""
    chance, right = told.chance[rows], told.best[rows] == told.right[rows]
    bins = np.minimum((chance * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float(chance[bins == at].sum() - right[bins == at].sum())) for at in range(_BINS)]
    return sum(gaps) / rows.size


def _by_source(classify: ExampleClassifier, rows: Sequence[Row], vectors: Vectors) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.category, row.source].append(row)
    found = []
    for (category, source), group in sorted(groups.items()):
        decisions = [classify(vectors[row.text]) for row in group]
        right = sum(one.category == category for one in decisions)
        found.append(
            {
                "category": category,
                "source": source,
                "n": len(group),
                "right": right / len(group),
                "interval": wilson(right, len(group)),
                "either": sum(category in {one.category, one.second} for one in decisions) / len(group),
                "told": dict(Counter(one.category for one in decisions).most_common(4)),
            }
        )
    return found


def _general(classify: ExampleClassifier, texts: Sequence[str], vectors: Vectors) -> dict[str, Any]:
    decisions = [classify(vectors[text]) for text in texts]
    kept_out = sum("personal" in {one.category, one.second} for one in decisions)
    return {
        "n": len(texts),
        "told": dict(Counter(one.category for one in decisions).most_common()),
        "doubt": sum(one.second != "" for one in decisions) / len(texts),
        "never_cached": kept_out / len(texts),
        "never_cached_interval": wilson(kept_out, len(texts)),
    }


def _private(classify: ExampleClassifier, texts: Sequence[str], vectors: Vectors) -> dict[str, Any]:
    decisions = [classify(vectors[text]) for text in texts]
    best = sum(one.category == "personal" for one in decisions)
    kept_out = sum("personal" in {one.category, one.second} for one in decisions)
    return {
        "n": len(texts),
        "personal": best / len(texts),
        "never_cached": kept_out / len(texts),
        "never_cached_interval": wilson(kept_out, len(texts)),
    }


def _own(directory: Path) -> dict[str, list[str]]:
    """Return questions about the asker's own affairs, and banking77, where hardly anybody can tell the two apart."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in read(directory, "clinc150"):
        if row["intent"] in OWN_INTENTS:
            found["clinc150, own affairs"].append(row["text"])
            found[f"clinc150 {row['intent']}"].append(row["text"])
    found["banking77, all intents"] = [row["text"] for row in read(directory, "banking77")]
    return found


def _cost(examples: Mapping[str, Sequence[str]], kind: str, vectors: Vectors) -> dict[str, float]:
    """Return milliseconds of CPU to fit, and microseconds to classify one query, medians of five."""
    fits, queries = [], []
    some: Iterable[str] = list(vectors)[:_QUERIES]
    asked = [vectors[text] for text in some]
    for _ in range(5):
        began = time.process_time()
        classify = _fit(examples, kind, vectors)
        fits.append((time.process_time() - began) * 1e3)
        began = time.process_time()
        for vector in asked:
            classify(vector)
        queries.append((time.process_time() - began) / len(asked) * 1e6)
    return {"fit_ms": float(np.median(fits)), "query_us": float(np.median(queries))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.classification", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument("--cache", type=Path, help="directory that remembers vectors for the next run")
    parsed = parser.parse_args()
    finished = main(parsed)
    if parsed.out:
        parsed.out.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(finished))
