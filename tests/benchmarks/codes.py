"""What int8 codes and fewer components cost: `python -m tests.benchmarks.codes --data DIR`.

Real questions (every `*.jsonl.gz` in DIR), embedded once and kept. How far cosines are off; recall at 1 and 4 of flat
codes and of graphs over 64 to 192 components against exact search in float32, and of a graph of whole float32 vectors;
processor time of a lookup and of a row that is added; and, over labelled question pairs, F0.5 at a threshold that was
chosen on the first half of them by float32, reported on the second half.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.index.guard import Guard, Shape, capacity_for
from cacheproxy.index.reduced import Reduced, axes_of
from cacheproxy.index.rows import Coded, worst_error
from cacheproxy.settings import Encoder, Index
from tests.benchmarks.scale_index import HOME, vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cacheproxy.index.reduced import AnyGraph

ASKED, STEP, FIT_ROWS = 1000, 4, 1024
PAIRS = "qqp_dev.jsonl.gz"


def recall(found: list[list[int]], exact: NDArray[np.intp]) -> str:
    """Return recall at 1 and at 4."""
    first = float(np.mean([one[0] == best[0] for one, best in zip(found, exact.tolist(), strict=True)]))
    four = float(np.mean([len(set(one) & set(best)) / 4 for one, best in zip(found, exact.tolist(), strict=True)]))
    return f"{first:.3f}, {four:.3f}"


def graph_row(
    name: str, graph: AnyGraph, rows: NDArray[np.float32], asked: NDArray[np.float32], exact: NDArray[np.intp]
) -> str:
    """Return the table's row of one graph."""
    began = time.thread_time()
    for start in range(0, len(rows), STEP):
        graph.append(rows[start : start + STEP], range(start, min(start + STEP, len(rows))))
    added_us = (time.thread_time() - began) / len(rows) * 1e6
    began = time.thread_time()
    found = [[label for label, _ in graph.nearest(one, 4)] for one in asked]
    looked_us = (time.thread_time() - began) / len(asked) * 1e6
    return f"| {name} | {recall(found, exact)} | {looked_us:.0f} | {added_us:.0f} |"


def f_half(near: NDArray[np.float32], same: NDArray[np.bool_], threshold: float) -> float:
    """Return F0.5 of serving what is at least as near as a threshold."""
    served = near >= threshold
    right = int((served & same).sum())
    precision, reach = right / max(1, int(served.sum())), right / max(1, int(same.sum()))
    return 1.25 * precision * reach / max(1e-9, 0.25 * precision + reach)


def pairs(data: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return vectors of the kept and the asked question of each pair, and whether they mean the same."""
    with gzip.open(data / PAIRS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    encoder = open_encoder(Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    known = embed_texts({row[side][:400] for row in rows for side in "ab"}, encoder, HOME / "vectors")
    kept, asked = (np.stack([known[row[side][:400]].vector for row in rows]) for side in "ab")
    return kept, asked, np.array([row["label"] == 1 for row in rows])


def main(data: Path, entries: int) -> None:
    """Print the tables."""
    found = vectors(data, entries + ASKED)
    asked, rows = found[:ASKED], found[ASKED:]
    form = Coded(rows.shape[1])
    codes, cosines = form.kept(rows), asked @ rows.T
    exact = np.argsort(-cosines, axis=1)[:, :4]
    coded = np.stack([form.cosines(codes, one) for one in asked])
    off = np.abs(coded - cosines)
    say = sys.stdout.write
    say(
        f"{len(rows):,} vectors, {ASKED:,} questions. Cosines are off by {float(np.sqrt(np.mean(off**2))):.5f} (root "
        f"mean square), at most {off.max():.5f}; the bound is {worst_error(rows).mean():.4f} in the mean, "
        f"{worst_error(rows).max():.4f} at most.\n\n"
    )
    say("| | recall at 1, at 4 | us a lookup | us a row added |\n|---|---|---|---|\n")
    say(f"| int8, flat | {recall(np.argsort(-coded, axis=1)[:, :4].tolist(), exact)} | - | - |\n")
    config = Index()
    shape = Shape(dim=rows.shape[1], m=config.m, ef_construction=config.ef_construction, ef_search=config.ef_search)
    plain = Guard(shape, capacity=capacity_for(len(rows)))
    say(graph_row("float32, graph", plain, rows, asked, exact) + "\n")
    for components in (64, 96, 128, 192):
        narrow = replace(shape, components=components)
        graph = Reduced(narrow, axes_of(rows[:FIT_ROWS], components), capacity=capacity_for(len(rows)))
        say(graph_row(f"int8, graph over {components} components", graph, rows, asked, exact) + "\n")
    kept, sought, same = pairs(data)
    near = np.vecdot(kept, sought)
    coarse = np.concatenate(
        [form.cosines(form.kept(one[None]), other) for one, other in zip(kept, sought, strict=True)]
    )
    half = len(same) // 2
    steps = np.arange(0.6, 1.0, 0.005)
    threshold = float(max(steps, key=lambda step: f_half(near[:half], same[:half], step)))
    turned = int(((near >= threshold) != (coarse >= threshold))[half:].sum())
    exactly, coded_f = (f_half(one[half:], same[half:], threshold) for one in (near, coarse))
    say(
        f"\n{len(same) - half:,} pairs at {threshold:.3f}: F0.5 {exactly:.4f} in float32, {coded_f:.4f} with int8; "
        f"{turned} decided otherwise.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.codes", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of data sets with real questions")
    parser.add_argument("--entries", type=int, default=60_000)
    chosen = parser.parse_args()
    main(chosen.data, chosen.entries)
