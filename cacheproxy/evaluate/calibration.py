"""Choose thresholds for an encoder on labelled pairs, and write the table to paste into a pack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.pairfile import read_pairs
from cacheproxy.evaluate.pairs import rank
from cacheproxy.evaluate.split import chosen, components
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.calibrate import (
    average_precision,
    best_net_benefit,
    counts_at,
    curve,
    round_up,
    threshold_for_precision,
    wilson,
)
from cacheproxy.policy.pairrule import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.policy.calibrate import Counts, Curve, Interval
    from cacheproxy.policy.pack import Pack

GRID = (0.75, 0.80, 0.85, 0.90, 0.95, 0.97, 0.99)
"""Thresholds of the table that shows the trade, in every calibration's comment."""

_RESAMPLES = 200
_TAIL = 2.5
"""Per cent of resamples outside each end of the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a threshold is chosen for: a precision where one is given, else the best net benefit.

    With `target_precision` it is the smallest threshold where the lower end of precision's 95 % Wilson interval
    reaches it. Net benefit counts a right hit as 1 and a wrong one as -`wrong_cost`. `seed` splits the pairs and draws
    the resamples.
    """

    target_precision: float | None = None
    wrong_cost: float = 2.0
    seed: int = 0

    def threshold(self, swept: Curve) -> float | None:
        """Return the threshold, or None when no threshold serves the aim."""
        if self.target_precision is not None:
            return threshold_for_precision(swept, self.target_precision, confidence=0.95)
        best = best_net_benefit(swept, self.wrong_cost)
        return best[1] if best else None

    def __str__(self) -> str:
        if self.target_precision is not None:
            return f"precision of at least {self.target_precision:g} (lower 95 % bound)"
        return f"best net benefit, a wrong answer costing {self.wrong_cost:g} times what a right one saves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A category's threshold with its 95 % bootstrap interval, and what it does on the half it was not chosen on."""

    threshold: float
    interval: Interval
    average_precision: float | None
    held_out: dict[str, dict[float, Counts]]
    """By file name ("all" for all of them), then by threshold: the chosen one and GRID's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One encoder's thresholds by category. `pairs` counts by file name."""

    fingerprint: str
    aim: Aim
    pairs: dict[str, int]
    choices: dict[str, Choice]
    unmeasured: tuple[str, ...] = ()
    """Categories that the pack serves by similarity, and no pair is of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Pairs of one category as arrays of shape (n,); `chosen_on` marks the half that the threshold is chosen on."""

    ranks: NDArray[np.float64]
    labels: NDArray[np.bool_]
    component: NDArray[np.int64]
    chosen_on: NDArray[np.bool_]
    file: NDArray[np.int64]

    def only(self, mask: NDArray[np.bool_]) -> _Sample:
        return _Sample(
            ranks=self.ranks[mask],
            labels=self.labels[mask],
            component=self.component[mask],
            chosen_on=self.chosen_on[mask],
            file=self.file[mask],
        )


def calibrate(files: Sequence[Path], pack: Pack, encoder: TextEncoder, cache_dir: Path | None, aim: Aim) -> Calibration:
    """Choose a threshold for each of the pack's categories that the pairs cover.

    A pair that names none of them counts for the default one. Half of the pairs choose, the other half measure; no
    question is in both halves. The same files, encoder and aim give the same result. Raises ConfigError when a file is
    bad or the aim cannot be met.
    """
    by_file = [read_pairs(file) for file in files]
    pairs = [pair for group in by_file for pair in group]
    seen = embed_texts((text for pair in pairs for text in (pair.a, pair.b)), encoder, cache_dir)
    component = components(pairs)
    sample = _Sample(
        ranks=np.array([rank(Text(text=p.a, embedding=seen[p.a]), Text(text=p.b, embedding=seen[p.b])) for p in pairs]),
        labels=np.array([pair.label for pair in pairs]),
        component=component,
        chosen_on=chosen(pairs, component, aim.seed),
        file=np.repeat(np.arange(len(files)), [len(group) for group in by_file]),
    )
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    category = np.array(
        [pair.category if pair.category in pack.categories else pack.default_category for pair in pairs]
    )
    choices = {str(name): _choose(str(name), sample.only(category == name), names, aim) for name in np.unique(category)}
    semantic = (name for name, rules in pack.categories.items() if rules.semantic and rules.allow_caching)
    return Calibration(
        fingerprint=encoder.fingerprint,
        aim=aim,
        pairs={name: len(group) for name, group in zip(names, by_file, strict=True)},
        choices=choices,
        unmeasured=tuple(name for name in semantic if name not in choices),
    )


def render_calibration(result: Calibration) -> str:
    """Return the TOML table to paste into a pack, with the held-out figures in comments above it.

    The table is named by the variant in the fingerprint (`model/variant/digest`), else by all of it.
    """
    _, _, rest = result.fingerprint.partition("/")
    name = rest.partition("/")[0] or result.fingerprint
    files = ", ".join(f"{file} ({count:,} pairs)" for file, count in result.pairs.items())
    method = f"{files}; half of them, seed {result.aim.seed}; {result.aim}"
    lines = []
    for category, choice in result.choices.items():
        low, high = choice.interval
        lines += [
            f"# {category}: threshold {choice.threshold:.3f}, 95 % bootstrap interval [{low:.3f}, {high:.3f}].",
            f"# On the other half, with 95 % Wilson intervals; average precision {_measure(choice.average_precision)}:",
            *(f"# {line}" for line in _table(choice)),
        ]
    chosen = {key: f"{choice.threshold:.3f}" for key, choice in result.choices.items()}
    if result.unmeasured:
        lines.append(
            f"# No pair is of {', '.join(result.unmeasured)}: until some are, only what encodes the same is served."
        )
        chosen |= dict.fromkeys(result.unmeasured, "1.0")
    thresholds = ", ".join(f"{json.dumps(key)} = {value}" for key, value in chosen.items())
    return "\n".join(
        [
            *lines,
            f"[encoders.{json.dumps(name)}]",
            f"fingerprint = {json.dumps(result.fingerprint)}",
            f"calibrated_on = {json.dumps(method, ensure_ascii=False)}",
            f"thresholds = {{ {thresholds} }}",
        ]
    )


def _choose(category: str, sample: _Sample, files: Sequence[str], aim: Aim) -> Choice:
    chosen, held_out = sample.only(sample.chosen_on), sample.only(~sample.chosen_on)
    if not chosen.labels.any() or not held_out.labels.size:
        raise ConfigError(
            f"category {category}: {sample.labels.size} pairs are too few to split and choose on; bring more"
        )
    swept = curve(chosen.ranks, chosen.labels)
    exact = aim.threshold(swept)
    if exact is None:
        raise ConfigError(
            f"category {category}: on {chosen.labels.size} pairs, no threshold gives {aim}; aim lower or bring more"
        )
    threshold = round_up(exact)
    groups = {"all": held_out} | {name: held_out.only(held_out.file == at) for at, name in enumerate(files)}
    return Choice(
        threshold=threshold,
        interval=_bootstrap(chosen, aim, exact),
        average_precision=average_precision(curve(held_out.ranks, held_out.labels)),
        held_out={
            name: {at: counts_at(group.ranks, group.labels, at) for at in sorted({*GRID, threshold})}
            for name, group in groups.items()
            if group.labels.size and (name != "all" or len(files) > 1)
        },
    )


def _bootstrap(sample: _Sample, aim: Aim, exact: float) -> Interval:
    """Resample whole components, since pairs that share a question are not independent."""
    rng = np.random.default_rng(aim.seed)
    number, component = np.unique(sample.component, return_inverse=True)
    thresholds = []
    for _ in range(_RESAMPLES):
        draws = np.bincount(rng.integers(0, number.size, number.size), minlength=number.size)
        weights = draws[component]
        kept = weights > 0
        found = aim.threshold(curve(sample.ranks[kept], sample.labels[kept], weights[kept]))
        thresholds.append(exact if found is None else found)
    low, high = np.percentile(thresholds, [_TAIL, 100 - _TAIL])
    return float(low), float(high)


def _table(choice: Choice) -> list[str]:
    lines = [f"{'pairs':24} {'threshold':>9}  {'precision':20} {'recall':20} {'hit rate':20} {'false-hit rate':20}"]
    for name, by_threshold in choice.held_out.items():
        for threshold, tally in by_threshold.items():
            mark = "*" if threshold == choice.threshold else " "
            shares = (
                (tally.tp, tally.tp + tally.fp),
                (tally.tp, tally.tp + tally.fn),
                (tally.tp + tally.fp, tally.n),
                (tally.fp, tally.fp + tally.tn),
            )
            lines.append(
                f"{name:24} {threshold:8.3f}{mark}  {' '.join(f'{_share(*share):20}' for share in shares)}".rstrip()
            )
    return lines


def _measure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(part: int, whole: int) -> str:
    bounds = wilson(part, whole)
    return f"{part / whole:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "-"
