"""All attacks, and how often they succeed, as tables: `python -m tests.attacks.report [--verifier DIR] [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import structlog

from cacheproxy.verify.cross import Words
from cacheproxy.verifying import base_of
from tests.attacks import across, inside
from tests.attacks.defence import Defence, RulesAlone, Vectors, verifier
from tests.attacks.rates import Rate, table
from tests.attacks.suffix import Climb, surrogate

PACKS = ("strict", "balanced", "frugal")
_COSINE = 0.8


def main(arguments: list[str]) -> int:
    """Print the tables; 0 when G2 and G3 hold, else 1."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.report")
    parser.add_argument("--verifier", default="", help="a directory made by `cacheproxy verifier train`")
    parser.add_argument("--quick", action="store_true", help="a tenth of the attempts")
    options = parser.parse_args(arguments)
    others = asyncio.run(_across(100 if options.quick else 1000))
    _say(table("Against other principals (G2)", others))
    within = _inside(options.verifier, quick=options.quick)
    _say(table("Within one scope (G3)", within))
    verified = [rate for rate in within if rate.policy.endswith("verifier")]
    failed = [rate for rate in others if rate.succeeded] + [*inside.over(verified)]
    for rate in failed:
        _say(f"over: {rate.policy}, {rate.family}: {rate.percent:.2f} %")
    return 1 if failed else 0


async def _across(attempts: int) -> list[Rate]:
    rates = []
    for share in ("never", "agreed"):
        rates += [await across.against_others(share, family, attempts) for family in across.FAMILIES]
        rates.append(await across.flood(share, attempts))
    return rates


def _inside(folder: str, *, quick: bool) -> list[Rate]:
    vectors, words = Vectors(), Words(base_of("all-MiniLM-L6-v2"))
    attempts = inside.collect(
        vectors.encode,
        surrogate(words),
        known_many=4 if quick else 40,
        transferred_many=100 if quick else 1000,
        how=Climb(places=6, tried=24, rounds=1) if quick else Climb(),
        targets=11 if quick else None,
    )
    verify = verifier(folder)
    defences = [Defence("balanced", vectors, None, at_least=_COSINE)]
    defences += [Defence(name, vectors, None) for name in PACKS]
    defences.append(Defence("balanced", vectors, RulesAlone(_COSINE)))
    if verify is not None:
        defences += [Defence(name, vectors, verify) for name in PACKS]
    rates = []
    for defence in defences:
        rates += inside.rates(defence, attempts)
        sys.stderr.write(f"{defence.label}: done\n")
    return rates + (inside.by_kind(defences[-2]) if verify is not None else [])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
