"""What live requests feel while an encoder with changed layers takes over: latency before, during and after.

`python -m tests.benchmarks.federated_swap --out docs/benchmarks-federated-swap.json` starts `cacheproxy serve` with the
default encoder, keeps some answers, and asks at a steady rate: questions that nobody asked before, rephrasings of kept
ones, and kept ones. Then an encoder with LoRA on all its layers is promoted, and everything kept is encoded anew. A hit
is of two epochs if it was told by another similarity or threshold than the same question before the change, or after.
Two minutes. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy import settings
from cacheproxy.embed.headfile import ANY, pack, unpack
from cacheproxy.embed.layers import Form, Layers
from cacheproxy.embed.locate import locate
from cacheproxy.embed.tuned import form_of, open_tuned
from cacheproxy.policy.loader import POLICY_FILE
from tests.support.admin import ask_admin, told
from tests.support.encoders import ENCODERS, real_encoder
from tests.support.heads import manifest_of
from tests.support.process import serving
from tests.support.proxy import chat
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.proxy import Answered, Proxy

WORDS = (
    *("refund", "invoice", "password", "delivery", "account", "order", "card", "address", "coupon", "receipt"),
    *("cancel", "find", "change", "print", "lose", "share", "monthly", "plan", "phone", "device", "screen"),
    *("battery", "charger", "cable", "store", "return", "window", "warranty", "gift", "wrap"),
)
KNOWN = tuple(
    f"{verb} my {thing}"
    for verb in ("reset", "replace", "insure")
    for thing in ("password", "phone", "passport", "car")
)
"""What is asked of as `How do I ...?` and kept, and then as `How can I ...?`."""
PLAIN, LEARNT = 0.85, 0.9
KINDS = ("new question", "rephrased", "asked before")
_BEFORE_S = 20.0
_AFTER_S = 20.0
_SAME = 2e-4
"""Similarities are told with four digits."""
KEY = "sk-bench"


@dataclass(slots=True)
class Asked:
    """What came of the load: by when each was due (monotonic seconds), its kind and the seconds that it took."""

    took: list[tuple[float, str, float]] = field(default_factory=list)
    hits: dict[str, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    """By question, when each hit of a rephrasing was due, its similarity and its threshold."""
    failed: int = 0

    def note(self, due: float, kind: str, text: str, answer: Answered) -> None:
        """Note an answer."""
        self.took.append((due, kind, time.monotonic() - due))
        self.failed += answer.status != 200
        near, threshold = answer.get("x-cacheproxy-similarity"), answer.get("x-cacheproxy-threshold")
        if kind == "rephrased" and answer.outcome == "hit" and near and threshold:
            self.hits[text].append((due, float(near), float(threshold)))

    def told(self, begin: float, end: float) -> dict[str, dict[str, float]]:
        """Return percentiles in milliseconds of what was due within a time, of all and of each kind."""
        found = {"all": [seconds for due, _, seconds in self.took if begin <= due < end]}
        for name in KINDS:
            found[name] = [seconds for due, kind, seconds in self.took if kind == name and begin <= due < end]
        return {name: _percentiles(seconds) for name, seconds in found.items()}

    def of_two_epochs(self, begun: float, ended: float) -> tuple[int, int]:
        """Return how many hits were told by neither epoch's numbers, and how many there were while it changed."""
        crossed = changing = 0
        for hits in self.hits.values():
            known = [(near, bar) for due, near, bar in hits if due < begun or due > ended + 1]
            for due, near, bar in hits:
                changing += begun <= due <= ended + 1
                crossed += not any(abs(near - one) < _SAME and abs(bar - other) < _SAME for one, other in known)
        return crossed, changing


def questions(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield kinds and texts, a half of them new."""
    while True:
        kind = draw.choices(KINDS, (2, 1, 1))[0]
        known = draw.choice(KNOWN)
        yield kind, {"new question": new(draw), "rephrased": f"How can I {known}?"}.get(kind, f"How do I {known}?")


def new(draw: random.Random) -> str:
    """Return a question that was hardly asked before."""
    return f"Tell me about {' '.join(draw.choices(WORDS, k=8))}, please."


async def ask(live: Proxy, rps: float, asked: Asked, stop: asyncio.Event) -> None:
    """Ask at a steady rate until told to stop, however long answers take."""
    running = set[asyncio.Task[None]]()

    async def one(due: float, kind: str, text: str) -> None:
        asked.note(due, kind, text, await live.ask(chat(text), key=KEY))

    due = time.monotonic()
    for kind, text in questions(random.Random(1)):
        if stop.is_set():
            break
        task = asyncio.create_task(one(due, kind, text))
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / rps
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)


async def measured(folder: Path, entries: int, rps: float) -> dict[str, Any]:
    """Return latencies of the three phases."""
    shape, base = form_of(locate("all-MiniLM-L6-v2")), real_encoder("fp32").fingerprint
    form = Form(mode="lora", layers=6, rank=8, **shape)
    flat = form.start(0) + np.random.default_rng(0).normal(0, 0.02, form.size).astype(np.float32)
    manifest, weights = pack(Layers(form=form, flat=flat), manifest_of(base, thresholds={ANY: LEARNT}))
    body = {"manifest": msgspec.to_builtins(manifest), "weights": base64.b64encode(weights).decode()}
    # The export is made first: it is another process, once, and not what is measured.
    usual = settings.Encoder(device="cpu", cache_dir=str(ENCODERS))
    data = folder / "data"
    data.mkdir(mode=0o700)
    await asyncio.to_thread(open_tuned, usual, data, unpack(manifest, weights, "it"))
    draw, asked, stop = random.Random(0), Asked(), asyncio.Event()
    environ = {
        "CACHEPROXY_POLICIES__PACK": str(_policy(folder, base)),
        "CACHEPROXY_VERIFIER__PATH": "off",
        "CACHEPROXY_ENCODER__DEVICE": "cpu",
    }
    async with ScriptedUpstream() as upstream, serving(data, upstream.url, environ=environ) as server:
        live = server.proxy
        kept = [*(f"How do I {known}?" for known in KNOWN), *(new(draw) for _ in range(entries - len(KNOWN)))]
        for text in kept:
            await live.ask(chat(text), key=KEY, headers={"x-cacheproxy-threshold": "1"})
        load = asyncio.create_task(ask(live, rps, asked, stop))
        await asyncio.sleep(_BEFORE_S)
        begun, used = time.monotonic(), server.cpu_s
        await ask_admin(live, "POST", "/encoders", {"promote": body, "force": True})
        before = (await told(live, "/encoders"))["in_use"]["entries"]
        while (way := (await told(live, "/encoders"))["progress"])["step"]:
            if way["step"] == "failed":
                raise SystemExit(f"it does not serve: {way['problem']}")
            await asyncio.sleep(0.25)
        ended, used = time.monotonic(), server.cpu_s - used
        serving_now = (await told(live, "/encoders"))["in_use"]
        await asyncio.sleep(_AFTER_S)
        stop.set()
        await load
    crossed, changing = asked.of_two_epochs(begun, ended)
    return {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "method": {"entries": entries, "rps": rps, "seconds": [_BEFORE_S, round(ended - begun, 1), _AFTER_S]},
        "serves": serving_now["searched"] != serving_now["epoch"],
        "entries": {
            "began": before,
            "served": serving_now["entries"],
            "waiting": serving_now["waiting"],
        },
        "cpu_s": round(used, 1),
        "failed": asked.failed,
        "asked": len(asked.took),
        "hits_while_it_changed": changing,
        "hits_of_two_epochs": crossed,
        "before": asked.told(begun - _BEFORE_S, begun),
        "during": asked.told(begun, ended),
        "after": asked.told(ended, ended + _AFTER_S),
    }


def rendered(report: dict[str, Any]) -> str:
    """Return the tables that docs/benchmarks.md shows."""
    method, entries = report["method"], report["entries"]
    lines = ["| kind | before p50 / p99 ms | during | after |", "|---|---|---|---|"]
    for kind in ("all", *KINDS):
        cells = (f"{report[when][kind]['p50_ms']:.1f} / {report[when][kind]['p99_ms']:.1f}" for when in _PHASES)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{entries['began']:,} entries, {method['rps']:g} requests a second, half of them new: filled in "
        f"{method['seconds'][1]:g} s, {report['cpu_s']:g} s of processor time with the requests; "
        f"{entries['waiting']} entries left to catch up with. {report['failed']} of {report['asked']:,} requests "
        f"failed; {report['hits_of_two_epochs']} of {report['hits_while_it_changed']} hits were of two epochs.",
    ]
    return "\n".join(lines)


_PHASES = ("before", "during", "after")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"n": 0, **{f"p{at}_ms": float("nan") for at in (50, 95, 99)}}
    return {"n": len(seconds)} | {
        f"p{at}_ms": round(1000 * float(np.percentile(seconds, at)), 2) for at in (50, 95, 99)
    }


def _policy(folder: Path, base: str) -> Path:
    """Write a pack without a verifier, so that what is measured is the encoder's; return its folder."""
    made = folder / "pack"
    made.mkdir()
    (made / POLICY_FILE).write_text(
        'schema = 1\nname = "swap"\ndescription = "x"\ndefault_category = "default"\n'
        "[categories.default]\nsemantic = true\nverify = false\nttl_s = 10000\n"
        f'[encoders.base]\nfingerprint = "{base}"\ncalibrated_on = "x"\nthresholds = {{ default = {PLAIN} }}\n'
    )
    return made


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1000, help="Answers that are kept when it begins.")
    parser.add_argument("--rps", type=float, default=30.0, help="Requests a second, half of them new questions.")
    parser.add_argument("--out", type=Path, help="Where the report goes as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(measured(Path(folder), options.entries, options.rps))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(rendered(report))  # noqa: T201 - it is what the command is for


if __name__ == "__main__":
    main()
