"""The benchmark of examples as tables: who was right how often, with intervals, and who was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.policy.calibrate import wilson
from tests.benchmarks.augmentation_flaws import MISTAKEN, MOST_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tests.benchmarks.augmentation_model import Answer

ARMS: Mapping[str, str] = {
    "alone": "small alone",
    "random": "small + random",
    "nearest": "small + nearest",
    "selected": "small + selected",
    "replayed": "nearest answer as it is",
    "large": "large",
}
ASKED = ("alone", "random", "nearest", "selected")
"""Arms that the small model answers."""
RESAMPLES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One reported question: which arms were right, and what their answers took."""

    right: Mapping[str, bool]
    answers: Mapping[str, Answer]
    examples: Mapping[str, int]


def summary(asked: Sequence[Asked], seed: int) -> dict[str, Any]:
    """Return accuracies with Wilson intervals, and differences to `selected` of the same questions."""
    right = {arm: np.array([one.right[arm] for one in asked], dtype=np.float64) for arm in (*ASKED, "replayed")}
    return {
        "arms": {arm: accuracy(values) | _taken(asked, arm) for arm, values in right.items()}
        | {"large": {"accuracy": 1.0, "by_construction": True}},
        "selected_less": {
            arm: difference(right["selected"], right[arm], seed) for arm in (*ASKED, "replayed") if arm != "selected"
        },
    }


def accuracy(right: NDArray[np.float64]) -> dict[str, Any]:
    """Return how many are right, with the Wilson interval of 95 %."""
    hits, asked = int(right.sum()), len(right)
    return {"right": hits, "n": asked, "accuracy": hits / asked if asked else None, "interval": wilson(hits, asked)}


def difference(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Return how much more often the one arm is right than the other, with the bootstrap interval over questions."""
    apart = one - other
    if not len(apart):
        return {"mean": None, "interval": None}
    drawn = np.random.default_rng(seed).integers(0, len(apart), (RESAMPLES, len(apart)))
    low, high = np.percentile(apart[drawn].mean(axis=1), (2.5, 97.5))
    return {
        "mean": float(apart.mean()),
        "interval": (float(low), float(high)),
        "won": int((apart > 0).sum()),
        "lost": int((apart < 0).sum()),
    }


def _taken(asked: Sequence[Asked], arm: str) -> dict[str, Any]:
    if arm not in ASKED or not asked:
        return {}
    answers = [one.answers[arm] for one in asked]
    return {
        "examples": float(np.mean([one.examples[arm] for one in asked])),
        "without_examples": float(np.mean([not one.examples[arm] for one in asked])),
        "prompt_tokens": float(np.mean([one.prompt_tokens for one in answers])),
        "completion_tokens": float(np.mean([one.completion_tokens for one in answers])),
        "cpu_s": float(np.mean([one.cpu_s for one in answers])),
        "wall_s": float(np.mean([one.wall_s for one in answers])),
    }


def method() -> list[str]:
    """Return what a reader has to know to believe the figures, or not to."""
    return [
        "The large model is the recorded reference answer of each question: 1.0 by construction, not measured.",
        "Parts are disjoint by a digest of each question's text; only training questions teach, before any is asked.",
        "Each training question is answered with examples (half by select with no threshold, a quarter each by "
        "nearest and by chance, 1 to 5 of them) and without; one state for all tasks, as a proxy has it.",
        "Examples are recorded answers of other questions of the same task, quality unknown (0.5), one hour old.",
        "clinc_flawed has the questions of clinc_banking. Simulated: 20 % of its past answers have another label; each "
        f"was spoken of 0 to {MOST_WORDS} times, {MISTAKEN:.0%} of it wrong, and its quality is what the proxy makes "
        "of that.",
        "Intents are listed in the caller's prompt, so that the small model alone can know them.",
        "Accuracies: 95 % Wilson intervals. Differences: paired, 95 % percentile bootstrap over questions.",
        "nq_open counts an accepted answer anywhere in the reply; commonsenseqa the letter, or else the text.",
        "Router: real, told the measured rewards of all three arms of each training question in order.",
        "'nearest answer as it is' asks no model: the recorded answer of the nearest past question is checked.",
    ]


def printed(report: Mapping[str, Any]) -> str:
    """Return the tables, as Markdown."""
    tasks = report["tasks"]
    lines = [
        "",
        f"| task | n | {' | '.join(ARMS.values())} |",
        "|---|---|" + "---|" * len(ARMS),
        *(f"| {name} | {one['questions']} | {_cells(one['arms'])} |" for name, one in tasks.items()),
        "",
        "| task | selected less alone | less random | less nearest | examples | theta |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {_apart(one)} |" for name, one in tasks.items()),
        "",
        "| task | rewards | load | augmented | small | large | quality | of those offloaded |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {_routing(row)} |" for name, one in tasks.items() for row in one["routing"]),
        "",
    ]
    return "\n".join(lines)


def _cells(arms: Mapping[str, Any]) -> str:
    return " | ".join(_percent(arms[arm]) for arm in ARMS)


def _percent(one: Mapping[str, Any]) -> str:
    if one["accuracy"] is None:
        return "-"
    told = f"{one['accuracy']:.1%}"
    interval = one.get("interval")
    return told if interval is None else f"{told} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _apart(one: Mapping[str, Any]) -> str:
    cells = []
    for arm in ("alone", "random", "nearest"):
        found = one["selected_less"][arm]
        interval = found["interval"]
        told = "-" if interval is None else f"{found['mean']:+.1%} [{interval[0]:+.0%}, {interval[1]:+.0%}]"
        cells.append(told)
    examples = one["arms"]["selected"].get("examples", 0.0)
    return " | ".join((*cells, f"{examples:.1f}", f"{one['learnt']['threshold']:.1f}"))


def _routing(row: Mapping[str, Any]) -> str:
    shares = " | ".join(f"{row['shares'][arm]:.0%}" for arm in ("augmented", "small", "large"))
    qualities = (row["quality"], row["quality_offloaded"])
    return " | ".join(
        (str(row["after"]), f"{row['load']:g}", shares, *("-" if one is None else f"{one:.1%}" for one in qualities))
    )
