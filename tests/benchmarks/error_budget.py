"""How many hits an error budget allows, and whether it holds: our rule against vCache's and against one threshold.

`python -m tests.benchmarks.error_budget --data DIR` reads question pairs from a directory and prints the tables of
docs/verification.md. Simulated: candidates of a stream are what a store would propose, and labels are told as shadow
samples and explorations would find them. All is chosen on one half of the data and reported on the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import beta

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.bound import share
from cacheproxy.policy.loader import find_pack, load_pack
from tests.benchmarks.error_budget_data import Asked, halves
from tests.benchmarks.error_budget_rules import Ours, Rule, Shown, Static, VCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PACKS = ("balanced", "frugal", "strict", "compliance")
ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
DELTAS = (0.01, 0.02, 0.05)
SEEDS = 5
SHADOW, EXPLORE = 0.1, 0.5
_TIMES = 4
"""How often what was drawn is asked: so long that a small budget allows 5,000 hits, too."""
_AT_ONCE = 256
"""As in earnest: the ceiling is taken anew with each label."""
_STEEPER, _HIGHER = 1.5, 1.0
"""What drift does to log-odds: an overconfident scorer."""
_EVEN = 1.0
_HARD = 0.33
_ADAPTS = 3000
"""Hits after the drift that are told apart: so long it may take to notice."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Candidates in no order: arrays of shape (n,)."""

    entry: NDArray[np.int64]
    similarity: Floats
    probability: Floats
    right: NDArray[np.bool_]
    repeat: NDArray[np.bool_]
    """Whether it is a rewording: what a cache is asked most."""

    def drawn(self, seed: int) -> NDArray[np.int64]:
        """Return the places of a random part of it, in a random order: nine rewordings in ten, a third of all else."""
        random = np.random.default_rng(seed)
        kept = random.random(self.right.size) < np.where(self.repeat, 0.9, _HARD)
        return random.permutation(np.flatnonzero(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """What came of one run: hits in order, whether each was wrong, after how many questions; and what was learnt."""

    wrong: list[bool]
    asked: list[int]
    labels: int
    explored: int


def run(rule: Rule, stream: Stream, order: Sequence[int], drift_from: int | None = None) -> Came:
    """Ask a rule about a stream. From `drift_from` questions on the scorer is overconfident."""
    wrong: list[bool] = []
    asked: list[int] = []
    entry, similarity = stream.entry.tolist(), stream.similarity.tolist()
    probability, right = stream.probability.tolist(), stream.right.tolist()
    drifted = _overconfident(stream.probability).tolist()
    for count, at in enumerate(order):
        p = drifted[at] if drift_from is not None and count >= drift_from else probability[at]
        shown = Shown(entry[at], similarity[at], p)
        served = rule.serves(shown)
        if served:
            wrong.append(not right[at])
            asked.append(count)
        rule.tell(shown, served=served, right=right[at])
    return Came(wrong=wrong, asked=asked, labels=rule.labels, explored=rule.explored)


def rules(delta: float, seed: int, static: float, best: float, first: float) -> Iterator[tuple[str, Rule]]:
    """Yield the rules by name; `static` was chosen on the other half, `best` in hindsight on this very stream."""
    yield (
        "ours",
        Ours(delta=delta, shadow=SHADOW, explore=EXPLORE, random=Random(seed), first=first),
    )
    yield (
        "ours, no entry effects",
        Ours(delta=delta, shadow=SHADOW, explore=EXPLORE, random=Random(seed), first=first, shrink=False),
    )
    yield "vCache, similarity", VCache(delta=delta, random=Random(seed))
    yield "vCache, probability", VCache(delta=delta, random=Random(seed), by_probability=True)
    yield "vCache within hits", VCache(delta=delta, random=Random(seed), by_probability=True, strict=True)
    yield "one threshold", Static(threshold=static)
    yield "best threshold in hindsight", Static(threshold=best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What a pack says of a category that is verified, and of which packs that is."""

    names: str
    min_probability: float
    delta: float
    shadow: float
    explore: float


def shipped() -> list[Shipped]:
    """Return the different terms under which the shipped packs verify hits."""
    found: dict[tuple[float, float, float, float], list[str]] = {}
    for name in PACKS:
        for rules in load_pack(find_pack(name)).categories.values():
            if rules.allow_caching and rules.semantic and rules.verify:
                terms = rules.min_probability, rules.delta, rules.shadow_rate, rules.explore_rate
                names = found.setdefault(terms, [])
                names.extend([name] if name not in names else [])
    return [
        Shipped(names=", ".join(names), min_probability=least, delta=delta, shadow=shadow, explore=explore)
        for (least, delta, shadow, explore), names in found.items()
    ]


def threshold_for(delta: float, probability: Floats, right: NDArray[np.bool_]) -> float:
    """Return the lowest threshold at which the exact upper bound of the share of wrong ones stays within delta."""
    order = np.argsort(-probability)
    wrong = np.cumsum(~right[order])
    served = np.arange(1, order.size + 1)
    upper = beta.ppf(0.975, wrong + 1, np.maximum(served - wrong, 1))
    within = np.flatnonzero(upper <= delta)
    return float(probability[order[within[-1]]]) if within.size else 1.1


class Scorer:
    """A plain logistic regression on a few features of a pair, fitted to one half."""

    def __init__(self, features: Floats, right: NDArray[np.bool_]) -> None:
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0)
        x, theta = self._rows(features), np.zeros(features.shape[1] + 1)
        for _ in range(30):
            p = 1 / (1 + np.exp(-x @ theta))
            bend = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(theta.size)
            theta = theta + np.linalg.solve(bend, x.T @ (right - p))
        self._theta = theta

    def __call__(self, features: Floats) -> Floats:
        """Return probabilities of shape (n,)."""
        return np.asarray(1 / (1 + np.exp(-self._rows(features) @ self._theta)))

    def _rows(self, features: Floats) -> Floats:
        return np.hstack([(features - self._mean) / self._scale, np.ones((features.shape[0], 1))])


def streams(directory: Path, verifier: Path | None, cache: Path, most: int = 0) -> tuple[Stream, Stream]:
    """Return both halves with similarities and probabilities: of a verifier, else of a scorer fitted to the first.

    With `most`, so many of each half are taken.
    """
    first, second = halves(directory)
    if most:
        first, second = (Random(most).sample(half, min(most, len(half))) for half in (first, second))
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent)
    texts = dict.fromkeys(text for asked in (*first, *second) for text in (asked.stored, asked.text))
    seen = {text: one.vector for text, one in embed_texts(texts, encoder, cache).items()}
    cosines = [np.array([float(seen[a.stored] @ seen[a.text]) for a in half]) for half in (first, second)]
    if verifier is not None:
        chances = [_verified(verifier, half, seen, c) for half, c in zip((first, second), cosines, strict=True)]
    else:
        rows = [_features(half, c) for half, c in zip((first, second), cosines, strict=True)]
        scorer = Scorer(rows[0], np.array([a.right for a in first]))
        chances = [scorer(one) for one in rows]
    made = [_stream(half, c, p) for half, c, p in zip((first, second), cosines, chances, strict=True)]
    return (made[0], made[1]) if verifier is not None else calibrated(made[0], made[1])


def calibrated(first: Stream, second: Stream) -> tuple[Stream, Stream]:
    """Return both with probabilities that mean what they say on the first: above an even chance, where they decide."""
    order = first.drawn(0)
    odds, right = _odds(first.probability), first.right
    likely = order[odds[order] > _EVEN]
    fit = Scorer(odds[likely, None], right[likely])
    made = []
    for stream in (first, second):
        raised = _odds(fit(_odds(stream.probability)[:, None]))
        made.append(
            replace(
                stream, probability=np.where(_odds(stream.probability) > _EVEN, _chance(raised), stream.probability / 4)
            )
        )
    return made[0], made[1]


def _verified(directory: Path, half: list[Asked], seen: dict[str, NDArray[np.float32]], cosines: Floats) -> Floats:
    from cacheproxy.verifying import open_verifier  # heavy, and only where one is given

    base = settings.Settings(verifier=settings.Verifier(path=str(directory)))
    scorer = open_verifier(base)
    if scorer is None:
        raise SystemExit(f"{directory}: no verifier")
    found = []
    for asked, cosine in zip(half, cosines.tolist(), strict=True):
        word = scorer.verify(asked.text, [(asked.stored, cosine)])[0]
        found.append(0.0 if word.veto else word.probability)
    return np.array(found)


def _features(half: list[Asked], cosines: Floats) -> Floats:
    rows = []
    for asked, cosine in zip(half, cosines.tolist(), strict=True):
        one, other = (set(text.lower().strip(" ?.!").split()) for text in (asked.stored, asked.text))
        digits = {word for word in one if any(map(str.isdigit, word))} ^ {
            word for word in other if any(map(str.isdigit, word))
        }
        overlap = len(one & other) / max(1, len(one | other))
        missing = len(one - other) / max(1, len(one))
        rows.append([cosine, cosine**4, overlap, missing, float(bool(digits)), cosine * overlap])
    return np.array(rows)


def _stream(half: list[Asked], cosines: Floats, chances: Floats) -> Stream:
    entries: dict[str, int] = {}
    return Stream(
        entry=np.array([entries.setdefault(asked.stored, len(entries)) for asked in half]),
        similarity=cosines,
        probability=np.clip(chances, 1e-6, 1 - 1e-6),
        right=np.array([asked.right for asked in half]),
        repeat=np.array([asked.kind == "reworded" for asked in half]),
    )


def _overconfident(probability: Floats) -> Floats:
    return _chance(_STEEPER * _odds(probability) + _HIGHER)


def _odds(probability: Floats) -> Floats:
    return np.asarray(np.log(probability) - np.log1p(-probability))


def _chance(odds: Floats) -> Floats:
    return np.clip(1 / (1 + np.exp(-odds)), 1e-6, 1 - 1e-6)


def compare(chosen: Stream, stream: Stream, seeds: int, deltas: Sequence[float] = DELTAS) -> list[dict[str, Any]]:
    """Run every rule on `stream`; what is to be chosen is chosen on the other half."""
    rows = []
    for delta in deltas:
        other = chosen.drawn(0)
        static = threshold_for(delta, chosen.probability[other], chosen.right[other])
        for seed in range(seeds):
            order = np.concatenate([stream.drawn(seed + 100 * times) for times in range(_TIMES)]).tolist()
            best = threshold_for(delta, stream.probability[order], stream.right[order])
            for name, rule in rules(delta, seed, static, best, static):
                came = run(rule, stream, order)
                rows.append({"delta": delta, "seed": seed, "rule": name, "asked": len(order), **_told(came)})
                sys.stderr.write(f"{rows[-1]}\n")
    return rows


def as_shipped(stream: Stream, seeds: int, packs: Sequence[Shipped] | None = None) -> list[dict[str, Any]]:
    """Run the rule as each pack has it set, and that pack's minimum without an error budget; nothing is chosen."""
    rows = []
    for pack in packs or shipped():
        least = pack.min_probability
        for seed in range(seeds):
            order = np.concatenate([stream.drawn(seed + 100 * times) for times in range(_TIMES)]).tolist()
            ours = Ours(
                delta=pack.delta,
                shadow=pack.shadow,
                explore=pack.explore,
                random=Random(seed),
                first=least,
                least=least,
                patience=_AT_ONCE,
            )
            told = {"pack": pack.names, "least": least, "delta": pack.delta, "seed": seed, "asked": len(order)}
            for name, rule in (("as shipped", ours), ("the minimum alone", Static(threshold=least))):
                came = run(rule, stream, order)
                rows.append({**told, "rule": name, **_told(came)})
                sys.stderr.write(f"{rows[-1]}\n")
    return rows


def drift(chosen: Stream, stream: Stream, seeds: int, deltas: Sequence[float] = DELTAS) -> list[dict[str, Any]]:
    """Let the scorer turn overconfident in mid-stream; tell the hits before, just after, and from then on, apart."""
    rows = []
    for delta in deltas:
        other = chosen.drawn(0)
        static = threshold_for(delta, chosen.probability[other], chosen.right[other])
        for seed in range(seeds):
            order = np.concatenate([stream.drawn(seed + 100 * times) for times in range(_TIMES)]).tolist()
            turn = len(order) // 3
            for name, rule in list(rules(delta, seed, static, 1.1, static))[:1]:
                came = run(rule, stream, order, drift_from=turn)
                first = sum(at < turn for at in came.asked)
                for part, hits in (
                    ("before", came.wrong[:first]),
                    (f"first {_ADAPTS} hits after", came.wrong[first : first + _ADAPTS]),
                    ("then", came.wrong[first + _ADAPTS :]),
                ):
                    told = _share_of(hits)
                    rows.append({"delta": delta, "seed": seed, "rule": name, "part": part, **told})
                    sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _told(came: Came) -> dict[str, Any]:
    return {**_share_of(came.wrong), "labels": came.labels, "explored": came.explored}


def _share_of(wrong: list[bool]) -> dict[str, Any]:
    found = share(sum(wrong), len(wrong))
    return {"hits": len(wrong), "wrong": sum(wrong), "error": found.estimate, "upper": found.high}


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report."""
    first, second = streams(arguments.data, arguments.verifier, arguments.cache, arguments.most)
    reported, other = (first, second) if arguments.choosing else (second, first)
    report: dict[str, Any] = {"simulated": True, "seeds": arguments.seeds, "runs": [], "shipped": [], "drift": []}
    report["runs"] = compare(other, reported, arguments.seeds)
    report["shipped"] = as_shipped(reported, arguments.seeds)
    report["drift"] = drift(other, reported, arguments.seeds)
    return report


def table(rows: Sequence[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Return means over seeds as a Markdown table; the bound is the worst of the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [
        f"| {' | '.join(keys)} | hits | wrong | worst upper bound | holds | labels |",
        "|" + "---|" * (len(keys) + 5),
    ]
    for group, found in groups.items():
        hits, error, labels = (np.mean([row.get(name) or 0 for row in found]) for name in ("hits", "error", "labels"))
        holds = sum(row["upper"] <= row["delta"] for row in found)
        lines.append(
            f"| {' | '.join(map(str, group))} | {hits:,.0f} | {error:.2%} "
            f"| {max(row['upper'] for row in found):.2%} | {holds} of {len(found)} | {labels:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--verifier", type=Path)
    parser.add_argument("--cache", type=Path, default=ENCODERS.parent / "vectors")
    parser.add_argument("--most", type=int, default=0, help="pairs of each half: a verifier reads 200 a second")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--choosing", action="store_true", help="report on the half that is for choosing")
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    found = main(parsed)
    tables = (
        ("runs", ("delta", "rule")),
        ("shipped", ("pack", "least", "delta", "rule")),
        ("drift", ("delta", "part")),
    )
    sys.stdout.write("\n\n".join(table(found[part], keys) for part, keys in tables) + "\n")
    if parsed.out:
        parsed.out.write_text(json.dumps(found, indent=1) + "\n")
