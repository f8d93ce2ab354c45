"""What live requests feel while an encoder with changed layers takes over: latency before, during and after.

`python -m tests.benchmarks.federated_swap [--entries 800] [--rps 10]` starts a proxy in this process with the default
encoder, keeps so many answers, asks questions that nobody asked before at a steady rate, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.embed.headfile import ANY, pack
from cacheproxy.embed.layers import Form, Layers
from cacheproxy.embed.locate import locate
from cacheproxy.embed.tuned import form_of
from tests.support.admin import ask_admin, told
from tests.support.encoders import real_encoder
from tests.support.heads import manifest_of
from tests.support.proxy import chat, proxy_settings, started
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy

WORDS = (
    *("refund", "invoice", "password", "delivery", "account", "order", "card", "address", "coupon", "receipt"),
    *("cancel", "find", "change", "print", "lose", "share", "monthly", "plan", "phone", "device", "screen"),
    *("battery", "charger", "cable", "store", "return", "window", "warranty", "gift", "wrap"),
)
_WARM_S = 10.0


def question(draw: random.Random) -> str:
    """Return a question that was hardly asked before."""
    return f"How do I {' '.join(draw.choices(WORDS, k=8))}?"


async def asked(live: Proxy, rps: float, took: list[tuple[float, float]], stop: asyncio.Event) -> int:
    """Ask at a steady rate until told to stop; note when each was due and how long it took. Return the failures."""
    draw, failed, running = random.Random(1), 0, set[asyncio.Task[None]]()

    async def one(due: float) -> None:
        nonlocal failed
        answer = await live.ask(chat(question(draw)), key="sk-test")
        failed += answer.status != 200
        took.append((due, time.monotonic() - due))

    due = time.monotonic()
    while not stop.is_set():
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / rps
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)
    return failed


def told_of(took: list[tuple[float, float]], begin: float, end: float) -> dict[str, float]:
    """Return percentiles, in milliseconds, of what was due within a time."""
    chosen = [seconds * 1000 for due, seconds in took if begin <= due < end]
    return {"n": len(chosen)} | {f"p{at}_ms": round(float(np.percentile(chosen, at)), 1) for at in (50, 95, 99)}


async def measured(folder: Path, entries: int, rps: float) -> dict[str, Any]:
    """Return latencies of the three phases."""
    shape, base = form_of(locate("all-MiniLM-L6-v2")), real_encoder("fp32").fingerprint
    form = Form(mode="lora", layers=6, rank=8, **shape)
    flat = form.start(0) + np.random.default_rng(0).normal(0, 0.01, form.size).astype(np.float32)
    manifest, weights = pack(Layers(form=form, flat=flat), manifest_of(base, thresholds={ANY: 0.9}))
    body = {"manifest": msgspec.to_builtins(manifest), "weights": base64.b64encode(weights).decode()}
    draw, took, stop = random.Random(0), list[tuple[float, float]](), asyncio.Event()
    async with ScriptedUpstream() as upstream, started(proxy_settings(upstream.url, folder)) as live:
        for _ in range(entries):
            await live.ask(chat(question(draw)), key="sk-test", headers={"x-cacheproxy-threshold": "1"})
        # The export is made first: it is another process, once, and not what is measured.
        await ask_admin(live, "POST", "/encoders?dry_run=true", {"promote": body})
        load = asyncio.create_task(asked(live, rps, took, stop))
        await asyncio.sleep(_WARM_S)
        begun = time.monotonic()
        done = await ask_admin(live, "POST", "/encoders", {"promote": body, "force": True})
        while (await told(live, "/encoders"))["progress"]["step"]:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.5)
        ended = time.monotonic()
        await asyncio.sleep(_WARM_S)
        stop.set()
        failed = await load
        serving = (await told(live, "/encoders"))["in_use"]
    return {
        "began": done.json()["began"], "serves": serving["searched"] != serving["epoch"], "failed": failed,
        "entries": serving["entries"], "filled_s": round(ended - begun, 1), "before": told_of(took, 0, begun),
        "during": told_of(took, begun, ended), "after": told_of(took, ended, ended + _WARM_S),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=800)
    parser.add_argument("--rps", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measured(Path(folder) / "data", options.entries, options.rps))
    print(json.dumps(found))  # noqa: T201 - it is what the command is for


if __name__ == "__main__":
    main()
