"""What training the encoder's own layers gains over a head: the table of modes in docs/benchmarks.md.

`python -m tests.benchmarks.federated_modes --data DIR --out docs/benchmarks-federated-modes.json` trains a head,
adapters and the two top layers by the same clients, pairs and rounds, few of each, on banking77, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cacheproxy_federated.layers import Tuner
from cacheproxy_federated.task import Pairs, Training, chosen, counted, summed, trained

from cacheproxy import settings
from cacheproxy.embed.head import Head
from cacheproxy.embed.layers import Form
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.embed.tuned import form_of
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.federated_cli import LR
from tests.benchmarks.federated_data import deal, source
from tests.benchmarks.federated_learning import mean
from tests.benchmarks.federated_scores import SCORES, Ranked, difference, interval, resamples, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Round = Callable[[NDArray[np.float32], Pairs, int], NDArray[np.float32]]
    See = Callable[[NDArray[np.float32], Pairs], Pairs]

ROOT = Path(__file__).parents[2]
ENCODERS = ROOT / ".cacheproxy" / "encoders"
MODEL = "all-MiniLM-L6-v2"
DATA = "banking77"
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is spent: `pairs` of a client are trained on, half as many held back, and `tested` measured, at most."""

    clients: int
    rounds: int
    pairs: int
    tested: int


class Texts:
    """Embeds, and remembers which text a vector is of."""

    def __init__(self, encoder: Any, cache: Path) -> None:
        self._encoder = encoder
        self._cache = cache
        self._known: dict[bytes, str] = {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of shape (n, d)."""
        seen = embed_texts(texts, self._encoder, self._cache)
        made = np.stack([seen[text].vector for text in texts])
        self._known.update({vector.tobytes(): text for vector, text in zip(made, texts, strict=True)})
        return made

    def told(self, pairs: Pairs, most: int) -> Pairs:
        """Return at most so many pairs, drawn by a seed, with their texts."""
        rows = np.sort(np.random.default_rng(SEED).permutation(len(pairs))[:most])
        chosen_ = pairs.at(rows)
        texts = tuple(
            (self._known[a.tobytes()], self._known[b.tobytes()]) for a, b in zip(chosen_.a, chosen_.b, strict=True)
        )
        return replace(chosen_, texts=texts)


def measured(directory: Path, cache: Path, budget: Budget) -> dict[str, Any]:
    """Return the figures of all modes."""
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent)
    texts = Texts(encoder, cache)
    data = source(DATA, directory, texts.embed)
    clients = deal(data, SEED, "even")[: budget.clients]
    train = [texts.told(one.train, budget.pairs) for one in clients]
    held = [texts.told(one.held, budget.pairs // 2) for one in clients]
    test = texts.told(data.test, budget.tested)
    weights = resamples(test.group)
    found: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    shape, where = form_of(locate(MODEL)), locate(MODEL).directory
    head = Training(epochs=2, batch=64, lr=LR["head"])
    modes: list[tuple[str, NDArray[np.float32], Round, See]] = [
        (
            "head",
            np.eye(shape["dim"], dtype=np.float32),
            lambda flat, pairs, seed: trained(flat, pairs, head, seed),
            lambda flat, pairs: replace(
                pairs, a=Head(matrix=flat).project(pairs.a), b=Head(matrix=flat).project(pairs.b)
            ),
        )
    ]
    for form in (Form(mode="lora", layers=6, rank=8, **shape), Form(mode="top-layers", layers=2, **shape)):
        modes.append((form.mode, form.start(SEED), *_of_layers(Tuner(where, form), form)))
    identity = Head.identity(shape["dim"])
    with progress("training", len(modes) * budget.rounds * budget.clients) as advance:
        for name, start, round_, see in modes:
            flat, used = start, 0.0
            for number in range(budget.rounds):
                made = []
                for at, pairs in enumerate(train):
                    began = time.process_time()
                    made.append(round_(flat, pairs, SEED * 1_000_000 + number * 1000 + at) - flat)
                    used += time.process_time() - began
                    advance(1)
                flat = flat + mean(made, [len(pairs) for pairs in train])
            for system, weights_ in ((name, flat), ("base", start)):
                if system in kept:
                    continue
                level = chosen(summed(counted(identity, see(weights_, pairs)) for pairs in held))["*"]
                seen = see(weights_, test)
                near = (seen.a * seen.b).sum(axis=1).astype(np.float64)
                kept[system] = scores(Ranked(near=near, threshold=level), test.right, weights)
                found[system] = {"threshold": level}
            found[name] |= {
                "message_bytes": int(start.nbytes),
                "cpu_s_a_round": used / (budget.rounds * budget.clients),
            }
    for name, told in kept.items():
        found[name] |= {
            "scores": {score: float(told[score][0]) for score in SCORES},
            "intervals": {score: interval(told[score]) for score in SCORES},
            "minus_base": difference(told, kept["base"]),
            "minus_head": difference(told, kept["head"]),
        }
    return {
        "data": DATA, "clients": budget.clients, "rounds": budget.rounds, "seed": SEED, "machine": platform.platform(),
        "pairs": {"trained": [len(one) for one in train], "held": [len(one) for one in held], "measured": len(test)},
        "systems": found,
    }  # fmt: skip


def _projected(flat: NDArray[np.float32], pairs: Pairs) -> Pairs:
    head = Head(matrix=flat)
    return replace(pairs, a=head.project(pairs.a), b=head.project(pairs.b))


def _of_layers(tuner: Tuner, form: Form) -> tuple[Round, See]:
    how = Training(epochs=2, batch=32, lr=LR[form.mode])

    def see(flat: NDArray[np.float32], pairs: Pairs) -> Pairs:
        a, b = (tuner.embedded(flat, [pair[side] for pair in pairs.texts]) for side in (0, 1))
        return replace(pairs, a=a, b=b)

    return lambda flat, pairs, seed: tuner.trained(flat, pairs, how, seed), see


def table(figures: dict[str, Any]) -> str:
    """Return the table for the docs."""
    rows = ["| | F0.5 | AUC | over base, F0.5 | over the head, F0.5 | a message | CPU of a client's round |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name in ("base", "head", "lora", "top-layers"):
        one = figures["systems"][name]
        cells = [name, f"{one['scores']['f05']:.3f}", f"{one['scores']['auc']:.3f}"]
        for other in ("base", "head"):
            told = one[f"minus_{other}"]["f05"]
            low, high = told["interval"]
            own = name in ("base", other) and (name == other or name == "base")
            cells.append("" if own else f"{told['by']:+.3f} [{low:+.3f}, {high:+.3f}]")
        sent = one.get("message_bytes")
        cells += ["", ""] if sent is None else [f"{sent / 1e6:.2f} MB", f"{one['cpu_s_a_round']:.2f} s"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("clients", 4), ("rounds", 3), ("pairs", 120), ("tested", 1500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args()
    budget = Budget(clients=told.clients, rounds=told.rounds, pairs=told.pairs, tested=told.tested)
    figures = measured(told.data, ROOT / ".cacheproxy" / "vectors", budget)
    told.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))  # noqa: T201 - it is what the command is for


if __name__ == "__main__":
    main()
