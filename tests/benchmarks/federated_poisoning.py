"""What clients that lie cost, and what the gate at a proxy then says: the part Poisoning of docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import federated_attacks as attacks
from tests.benchmarks import federated_learning as learning
from tests.benchmarks.federated_data import Questions, deal
from tests.benchmarks.federated_scores import Ranked, interval, mean_scores, resamples, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tests.benchmarks.federated_data import Source
    from tests.benchmarks.federated_scores import Floats

    Every = Callable[[str, Sequence[Callable[[], Any]]], list[Any]]
    """Runs jobs under a name, and returns what they return."""

OTHERS_SEEDS = 3
"""Of courses that are not the default."""
_MOST_LOST = 1.0
"""Points of F0.5 that a head may lose against what it would replace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What came of a run among clients that lie; `ranked` is None where it made no head: there is nothing to promote.

    `opened` is the share of the backdoor's pairs of other questions that would be served, `promoted` at how many
    proxies the gate lets the head serve, `serving` what served there before.
    """

    ranked: Ranked | None
    serving: Ranked
    opened: float = 0.0
    promoted: int = 0


def attacked(data: Source, seed: int, attack: str, told: str) -> Attacked:
    """Run the app among clients that lie, and ask the gate of proxies."""
    if not isinstance(data.pool, Questions):
        raise TypeError("a backdoor joins two intents, and these questions have none")
    pairs, tried = attacks.door(data.pool, seed)
    honest = deal(data, seed, "even")
    reported, own = attacks.proxies(data.test)
    test, base = data.test.at(reported), learning.base(honest)
    serving = Ranked(near=learning.similarities(base.head, test), threshold=base.threshold)
    artefact = attacks.trained(honest, pairs, told, attack, seed)
    if artefact is None:
        return Attacked(ranked=None, serving=serving)
    level = attacks.level_of(artefact)
    verdicts = attacks.asked(artefact.head, level, honest, own)
    return Attacked(
        ranked=Ranked(near=learning.similarities(artefact.head, test), threshold=level),
        serving=serving,
        opened=float((learning.similarities(artefact.head, tried) >= level).mean()),
        promoted=sum(one.passed for one in verdicts),
    )


def poisoning(
    found: dict[tuple[str, str], list[Attacked]], right: NDArray[np.bool_], weights: Floats
) -> list[dict[str, Any]]:
    """Return by course and attack what was lost, in points, against the same course and seeds without an attack."""
    rows = []
    for (told, attack), many in found.items():
        honest = found[told, "none"][: len(many)]
        kept = [(one, plain.ranked) for one, plain in zip(many, honest, strict=True) if one.ranked and plain.ranked]
        row: dict[str, Any] = {"course": told, "attack": attack, "seeds": len(many), "no_head": len(many) - len(kept)}
        if kept:
            made, plain = (
                mean_scores([one for one in heads if one], right, weights)
                for heads in ([one.ranked for one, _ in kept], [before for _, before in kept])
            )
            each = [_lost(one.ranked, before, right) for one, before in kept if one.ranked]
            worse = [_lost(one.ranked, one.serving, right)["f05"] > _MOST_LOST for one, _ in kept if one.ranked]
            row |= {name: float(made[name][0]) for name in ("f1", "f05", "auc")}
            row |= {
                "lost_points": {name: float((plain[name] - made[name])[0] * 100) for name in ("f1", "f05", "auc")},
                "intervals": {name: interval((plain[name] - made[name]) * 100) for name in ("f1", "f05", "auc")},
                "lost_by_seed": [{name: round(value, 2) for name, value in one.items()} for one in each],
                "opened": float(np.mean([one.opened for one, _ in kept])),
                "opened_by_seed": [one.opened for one, _ in kept],
                "asked": attacks.PROXIES * len(kept),
                "promoted": sum(one.promoted for one, _ in kept),
                "promoted_and_worse": sum(one.promoted for (one, _), bad in zip(kept, worse, strict=True) if bad),
            }
        rows.append(row)
    return rows


def _lost(one: Ranked, before: Ranked, right: NDArray[np.bool_]) -> dict[str, float]:
    """Return the points that one is below another."""
    once = np.ones((1, len(right)))
    found, other = (scores(each, right, once) for each in (one, before))
    return {name: float((other[name] - found[name])[0] * 100) for name in ("f1", "f05", "auc")}


def poisoned(
    data: Source, most: int, every_job: Callable[[str, Sequence[Callable[[], Any]]], list[Any]]
) -> dict[str, Any]:
    """Return the figures of runs among clients that lie, which `every_job` runs."""
    seeds = {told: most if told == attacks.DEFAULT else min(most, OTHERS_SEEDS) for told in attacks.COURSES}
    keys = [(told, attack) for told in attacks.COURSES for attack in attacks.tried(told)]
    every = [(seed, attack, told) for told, attack in keys for seed in range(seeds[told])]
    told_by = dict(zip(every, every_job("poisoning", [partial(attacked, data, *one) for one in every]), strict=True))
    by_key = {(told, attack): [told_by[seed, attack, told] for seed in range(seeds[told])] for told, attack in keys}
    reported, own = attacks.proxies(data.test)
    test = data.test.at(reported)
    rows = poisoning(by_key, test.right, resamples(test.group))
    pairs = [len(one) for one in own]
    return {"data": data.name, "test_pairs": len(test), "proxies_pairs": pairs, "rows": rows}
