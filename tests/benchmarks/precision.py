"""What the int8 encoder costs in quality: `python -m tests.benchmarks.precision --data DIR --out FILE`.

The pairs of `verification` (adversarial ones, and question pairs that are kept back), decided by the shipped verifier
and the pack as a proxy would, once with the fp32 and once with the int8 encoder, and how many are decided otherwise.
Writes its section of docs/benchmarks.md; some three minutes the first time, while texts are embedded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.pairs import intervals_of, measure, rule_pairs
from cacheproxy.policy.calibrate import wilson
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.verify.open import open_scorer
from cacheproxy.verifying import base_of
from tests.benchmarks import verification_data as data
from tests.benchmarks.page import written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.evaluate.pairfile import LabelledPair
    from cacheproxy.evaluate.pairs import Ruled
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Verify

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cacheproxy"
PAGE = ROOT / "docs" / "benchmarks.md"
SECTION = "precision"
PRECISIONS = ("fp32", "int8")
_NAMES = {"adversarial": "adversarial pairs", "question_pairs": "question pairs"}


def compared(
    pairs: Sequence[LabelledPair], pack: Pack, encoders: Mapping[str, TextEncoder], cache: Path, scorer: Verify | None
) -> dict[str, Any]:
    """Return the score of each encoder on the same pairs, and what the two decide otherwise.

    Without a scorer the pack's thresholds decide, of each encoder its own.
    """
    ruled = {name: rule_pairs(pairs, pack, encoder, cache, scorer) for name, encoder in encoders.items()}
    first, second = (np.array([one.ruling.served for one in ruled[name]]) for name in PRECISIONS)
    labels = np.array([pair.label for pair in pairs])
    found: dict[str, Any] = {name: _score(kept) for name, kept in ruled.items()}
    for name, only in (("only_fp32", first & ~second), ("only_int8", second & ~first)):
        found[name] = {"n": int(only.sum()), "rightly": int((only & labels).sum())}
    otherwise = found["only_fp32"]["n"] + found["only_int8"]["n"]
    return {**found, "otherwise": otherwise, "otherwise_interval": msgspec.to_builtins(wilson(otherwise, len(pairs)))}


def _score(ruled: Sequence[Ruled]) -> dict[str, Any]:
    score = measure(
        np.array([one.ruling.served for one in ruled]),
        np.array([one.label for one in ruled]),
        np.array([one.rank for one in ruled]),
    )
    return {**msgspec.structs.asdict(score), "intervals": msgspec.to_builtins(intervals_of(score))}


def render(report: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [
        f"Pack {report['policies']}; encoders {' and '.join(report['encoders'].values())}; the shipped verifier "
        f"({report['verifier']}). 95 % Wilson intervals.",
        "",
        "| pairs | decided by | encoder | n | precision | recall | false-hit rate | F0.5 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [(_NAMES[name], who, one) for name, found in report["pairs"].items() for who, one in found.items()]
    for name, who, one in rows:
        for precision in PRECISIONS:
            score = one[precision]
            shares = [_share(score[key], score["intervals"][key]) for key in ("precision", "recall", "false_hit_rate")]
            cells = [name, who, precision, f"{score['n']:,}", *shares, f"{score['f05']:.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| pairs | decided by | decided otherwise | served with fp32 only, rightly | with int8 only, rightly |",
        "|---|---|---|---|---|",
    ]
    for name, who, one in rows:
        low, high = one["otherwise_interval"]
        share = one["otherwise"] / one["fp32"]["n"]
        told = [f"{one[only]['n']}, {one[only]['rightly']}" for only in ("only_fp32", "only_int8")]
        lines.append(f"| {name} | {who} | {share:.3f} [{low:.3f}, {high:.3f}] | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def _share(value: float | None, bounds: Sequence[float] | None) -> str:
    return "-" if value is None or bounds is None else f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def main(arguments: argparse.Namespace) -> None:
    """Measure both encoders, and write the figures and the section."""
    pack, scorer = load_pack(find_pack("balanced")), open_scorer("", base_of("all-MiniLM-L6-v2"))
    if scorer is None:
        raise SystemExit("no verifier is shipped for all-MiniLM-L6-v2: nothing to measure")
    cache = str(HOME / "encoders")
    encoders = {
        name: open_encoder(settings.Encoder(device="cpu", precision=name, cache_dir=cache), HOME) for name in PRECISIONS
    }
    asked = {
        "adversarial": data.adversarial(data.ADVERSARIAL),
        "question_pairs": data.question_pairs(arguments.data),
    }
    report = {
        "policies": pack.name,
        "encoders": {name: encoder.fingerprint for name, encoder in encoders.items()},
        "verifier": scorer.fingerprint,
        "pairs": {
            name: {
                "verified": compared(pairs, pack, encoders, arguments.vectors, scorer),
                "thresholds alone": compared(pairs, pack, encoders, arguments.vectors, None),
            }
            for name, pairs in asked.items()
        },
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    section = render(report)
    sys.stdout.write(section)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), SECTION, section), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.precision", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets (qqp_dev.jsonl.gz)")
    parser.add_argument("--vectors", type=Path, default=HOME / "vectors", help="where embedded texts are kept")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    main(parser.parse_args())
