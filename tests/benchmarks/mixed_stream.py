"""Per-category policy against one rule for all: `python -m tests.benchmarks.mixed_stream --data DIRECTORY --out FILE`.

Days of mixed questions go through the real line (policy, store, index, real embeddings) in virtual time; an oracle
answers what misses. What stands for which category, how questions repeat, and how long an answer stays right is in
`KINDS`. The single threshold and the single lifetime are the best of a grid on other questions than those measured.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.replay import Asked, KnownVectors, answer_of, open_replay
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.model import Bypass, Hit
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.pack import Category
from cacheproxy.policy.prepare import prepared
from cacheproxy.settings import Encoder, Settings
from tests.benchmarks.corpus import Answer, Asking, duplicates, intents, rows, singles
from tests.benchmarks.load_replay import HOME, rounded, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator

    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Pack

DAYS = 3.0
DAY_S = 86_400.0
WRONG_COST = 2.0
"""Right hits that a wrong one costs, where the single rules are chosen: what the balanced pack was calibrated for."""
COUNTED = ("hits", "false", "stale", "bypassed")
THRESHOLDS = (0.80, 0.84, 0.86, 0.88, 0.90, 0.92, 0.94, 0.97, 1.0)
LIFETIMES_S = (60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one category of the stream behaves.

    `changes_s` is the mean time for which an answer stays right (it changes as a Poisson process); infinite: for good;
    0: each time a question is asked it has another answer. `reworded`: the source has one wording of each question,
    others are made by `_reword`; `traps`: share of the times when it is asked with one number changed, which is
    another question.
    """

    share: float
    changes_s: float
    reworded: bool = False
    traps: float = 0.0


KINDS = {
    "code": Kind(share=0.20, changes_s=30 * DAY_S, reworded=True, traps=0.1),
    "api_docs": Kind(share=0.15, changes_s=7 * DAY_S, reworded=True),
    "support": Kind(share=0.20, changes_s=2 * DAY_S),
    "chat": Kind(share=0.20, changes_s=DAY_S),
    "math": Kind(share=0.10, changes_s=float("inf"), reworded=True, traps=0.2),
    "finance": Kind(share=0.10, changes_s=600.0),
    "personal": Kind(share=0.05, changes_s=0.0),
}
_WRAPS = ("{}", "Please {}", "Hi, {}", "{} Thanks!", "Can you help me with this? {}", "{} Explain briefly.")
_CODING = {"coding", "hard_prompt/coding"}
_OWN = {"calendar", "email", "lists", "alarm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the stream; its right answer is `about` as of `version`."""

    at_s: float
    text: str
    category: str
    about: str
    version: int

    @property
    def asked(self) -> Asked:
        return Asked(text=self.text, answer_id=f"{self.about}@{self.version}", category=self.category)


def catalogues(data: Path, half: int) -> dict[str, list[Answer]]:
    """Return the answers that each category is asked for, of one half (0 or 1) of all."""
    clinc = {row["intent"] for row in rows(data, "clinc150") if row["category"] in ("banking", "credit_cards")}
    money = [one for one in intents(data, "clinc150") if one.texts]
    named = {row["text"]: row["intent"] for row in rows(data, "clinc150")}
    coding = [row["prompt"] for row in rows(data, "prompts") if row["category"] in _CODING]
    own = {row["text"] for row in rows(data, "hwu64") if row["category"] in _OWN}
    found = {
        "code": singles("code", [row["prompt"] for row in rows(data, "code")] + coding),
        "api_docs": singles("squad", [row["question"] for row in rows(data, "squad_xquad_en")]),
        "support": intents(data, "banking77"),
        "chat": duplicates(data),
        "math": singles("gsm8k", [row["question"] for row in rows(data, "gsm8k")][:1500]),
        "finance": [one for one in money if named[one.texts[0]] in clinc],
        "personal": singles("hwu64", sorted(own)),
    }
    return {name: [one for one in answers if _half(one.answer_id) == half] for name, answers in found.items()}


def stream(answers: Mapping[str, list[Answer]], count: int, seed: int) -> list[Question]:
    """Return questions at even chances over the days."""
    source = np.random.default_rng(seed)
    asking = {name: Asking(found, 1.0, source) for name, found in answers.items()}
    names, shares = list(KINDS), [kind.share for kind in KINDS.values()]
    changes: dict[str, list[float]] = {}
    made: list[Question] = []
    for at_s in np.sort(source.random(count)) * DAYS * DAY_S:
        name = names[int(source.choice(len(names), p=shares))]
        kind = KINDS[name]
        answer, text = asking[name].draw()
        about = answer.answer_id
        if kind.traps and source.random() < kind.traps:
            changed = _trap(text, source)
            about, text = (about, text) if changed == text else (f"{about}/{_digest(changed)}", changed)
        if kind.reworded:
            text = _reword(text, source)
        if kind.changes_s:
            version = _version(changes.setdefault(about, []), float(at_s), kind.changes_s, source)
        else:
            about, version = f"{about}/{len(made)}", 0
        made.append(Question(at_s=float(at_s), text=text, category=name, about=about, version=version))
    return made


def _version(changes: list[float], at_s: float, mean_s: float, source: Generator) -> int:
    """Return how often an answer has changed until a moment, remembering the moments in `changes`."""
    if mean_s == float("inf"):
        return 0
    while not changes or changes[-1] <= at_s:
        changes.append((changes[-1] if changes else 0.0) + float(source.exponential(mean_s)))
    return sum(moment <= at_s for moment in changes)


def _reword(text: str, source: Generator) -> str:
    return _WRAPS[int(source.integers(len(_WRAPS)))].format(text) if source.random() > 0.3 else text


def _trap(text: str, source: Generator) -> str:
    numbers = list(re.finditer(r"\d+", text))
    if not numbers:
        return text
    chosen = numbers[int(source.integers(len(numbers)))]
    return text[: chosen.start()] + str(int(chosen.group()) + int(source.integers(1, 4))) + text[chosen.end() :]


def _half(answer_id: str) -> int:
    return blake2b(answer_id.encode(), digest_size=1).digest()[0] % 2


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


# Policies


def one_threshold(pack: Pack, epoch: str, threshold: float) -> Pack:
    """Return a pack with one threshold for everything that it caches, and all else as it was."""
    return _altered(
        pack, epoch, {n: msgspec.structs.replace(c, semantic=True) for n, c in pack.categories.items()}, threshold
    )


def one_lifetime(pack: Pack, ttl_s: float) -> Pack:
    """Return a pack with one lifetime for everything, and all else as it was."""
    categories = {name: msgspec.structs.replace(rules, ttl_s=ttl_s) for name, rules in pack.categories.items()}
    return msgspec.structs.replace(pack, categories=categories)


def one_rule(pack: Pack, epoch: str, threshold: float, ttl_s: float) -> Pack:
    """Return a pack that knows no categories: one threshold, one lifetime, everything cached."""
    plain = Category(semantic=True, ttl_s=ttl_s)
    return _altered(pack, epoch, dict.fromkeys(pack.categories, plain), threshold)


def _altered(pack: Pack, epoch: str, categories: dict[str, Category], threshold: float) -> Pack:
    encoders = {
        key: msgspec.structs.replace(encoder, thresholds=dict.fromkeys(categories, threshold), floors={})
        for key, encoder in pack.encoders.items()
        if encoder.fingerprint == epoch
    }
    return msgspec.structs.replace(pack, categories=categories, encoders=encoders)


# Measuring


async def measure(policy: Policy, vectors: KnownVectors, questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """Return counts by category: of questions, hits, false hits (of another question), stale hits (an older answer's),
    and what policy kept out.
    """
    counts = {name: dict.fromkeys(("n", *COUNTED), 0) for name in KINDS}
    async with open_replay(lambda: policy, vectors, Settings()) as replay:
        for question in questions:
            asked = question.asked
            journey, outcome = await replay.look_up(asked, question.at_s)
            own = counts[question.category]
            own["n"] += 1
            if isinstance(outcome, Hit):
                served = answer_of(outcome.entry)
                own["hits"] += 1
                own["stale"] += served != asked.answer_id and served.rpartition("@")[0] == question.about
                own["false"] += served.rpartition("@")[0] != question.about
            elif isinstance(outcome, Bypass):
                own["bypassed"] += 1
            else:
                await replay.answer(journey, outcome, asked, question.at_s)
    return counts


def benefit(counts: Mapping[str, Mapping[str, int]]) -> float:
    """Return right hits less what the wrong ones cost, a question."""
    wrong = sum(one["false"] + one["stale"] for one in counts.values())
    hits = sum(one["hits"] for one in counts.values())
    return (hits - wrong - WRONG_COST * wrong) / sum(one["n"] for one in counts.values())


async def chosen(
    options: Mapping[Any, Pack], vectors: KnownVectors, questions: Sequence[Question], prepare: Any
) -> tuple[Any, dict[str, float]]:
    """Return the option of best benefit, and what each gave."""
    found = {}
    for option, pack in options.items():
        found[option] = benefit(await measure(prepare(pack), vectors, questions))
        sys.stderr.write(f"{option}: {found[option]:.4f}\n")
    return max(found, key=lambda option: found[option]), {str(option): value for option, value in found.items()}


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Choose the single rules on one half of the answers, measure everything on the other."""
    tuning = stream(catalogues(arguments.data, 0), arguments.questions // 2, seed=0)
    other = catalogues(arguments.data, 1)
    streams = [stream(other, arguments.questions, seed) for seed in range(1, arguments.seeds + 1)]
    encoder = open_encoder(Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    texts = dict.fromkeys(one.text for one in itertools.chain(tuning, *streams))
    vectors = KnownVectors(embed_texts(texts, encoder, HOME / "vectors"), encoder.fingerprint)
    encode = remembering(encoder, HOME / "vectors")

    def prepare(pack: Pack) -> Policy:
        return prepared(pack, encode)

    balanced, frugal = (load_pack(find_pack(name)) for name in ("balanced", "frugal"))
    epoch = encoder.fingerprint
    threshold, by_threshold = await chosen(
        {one: one_threshold(balanced, epoch, one) for one in THRESHOLDS}, vectors, tuning, prepare
    )
    ttl_s, by_ttl = await chosen({one: one_lifetime(balanced, one) for one in LIFETIMES_S}, vectors, tuning, prepare)
    grid = itertools.product(THRESHOLDS[1::2], LIFETIMES_S[1::2])
    both, by_both = await chosen({one: one_rule(balanced, epoch, *one) for one in grid}, vectors, tuning, prepare)
    policies = {
        "balanced": balanced,
        "frugal": frugal,
        f"balanced with one threshold ({threshold:g})": one_threshold(balanced, epoch, threshold),
        f"balanced with one lifetime ({ttl_s:g} s)": one_lifetime(balanced, ttl_s),
        f"no categories ({both[0]:g}, {both[1]:g} s)": one_rule(balanced, epoch, *both),
    }
    runs = []
    for seed, questions in enumerate(streams, start=1):
        for name, pack in policies.items():
            counts = await measure(prepare(pack), vectors, questions)
            runs.append({"policy": name, "seed": seed, "counts": counts, "benefit": benefit(counts)})
            sys.stderr.write(f"seed {seed}, {name}: {runs[-1]['benefit']:.4f}\n")
    return {
        "simulated": "the backend (an oracle), the clock, repetition, and how long answers stay right",
        "questions": arguments.questions,
        "seeds": arguments.seeds,
        "days": DAYS,
        "wrong_cost": WRONG_COST,
        "encoder": epoch,
        "tuning": {"threshold": by_threshold, "ttl_s": by_ttl, "both": by_both},
        "runs": runs,
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the tables of docs/benchmarks.md."""
    policies = list(dict.fromkeys(one["policy"] for one in report["runs"]))
    lines = [
        "| policy | hit rate | false hits, of all questions | stale hits, of all questions | kept out | net benefit |",
        "|---|---|---|---|---|---|",
    ]
    for policy in policies:
        cells = [_rate(report, policy, list(KINDS), key) for key in COUNTED]
        net = spread([100 * one["benefit"] for one in report["runs"] if one["policy"] == policy])
        lines.append(f"| {policy} | {' | '.join(cells)} | {net[0]:.1f} [{net[1]:.1f}, {net[2]:.1f}] |")
    lines += ["", "| category | policy | hit rate | false hits | stale hits | kept out |", "|---|---|---|---|---|---|"]
    for name, policy in itertools.product(KINDS, policies):
        cells = [_rate(report, policy, [name], key) for key in COUNTED]
        lines.append(f"| {name} | {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(report: Mapping[str, Any], policy: str, names: list[str], key: str) -> str:
    """Return a share of questions in percent, with its interval over seeds."""
    shares = []
    for one in report["runs"]:
        if one["policy"] == policy:
            counts = [one["counts"][name] for name in names]
            shares.append(100 * sum(own[key] for own in counts) / sum(own["n"] for own in counts))
    mean, low, high = spread(shares)
    return f"{mean:.1f} [{max(low, 0.0):.1f}, {min(high, 100.0):.1f}] %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--questions", type=int, default=20_000, help="of one stream")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="raw figures, as JSON")
    given = parser.parse_args()
    found = asyncio.run(main(given))
    if given.out:
        given.out.write_text(json.dumps(rounded(found)) + "\n", encoding="utf-8")
    sys.stdout.write(render(found) + "\n")
