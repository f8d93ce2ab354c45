"""The encoder on this machine's GPU, where there is one.

    python -m tests.benchmarks.gpu --out FILE

Milliseconds of a text alone, and texts a second by batch and by threads that encode at once, on the GPU and on the CPU
of the same machine; how far the two disagree about the cosines of the same pairs. Without a GPU it says so and measures
nothing; `--device cpu` runs the GPU's code on the CPU, which says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cacheproxy import settings
from cacheproxy.embed.device import choose_device
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.embed.sentence import SentenceEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy.embed.encoder import Encoder

WORDS = (10, 30, 120)
BATCHES = (1, 8, 32, 128)
THREADS = (1, 2, 4)


def texts(words: int, count: int) -> list[str]:
    """Return that many different texts of that many words."""
    stock = (
        "how",
        "to",
        "reset",
        "the",
        "password",
        "of",
        "my",
        "old",
        "account",
        "when",
        "its",
        "phone",
        "was",
        "lost",
    )
    return [f"{at} " + " ".join(stock[(at + word) % len(stock)] for word in range(words)) for at in range(count)]


def alone_ms(encoder: Encoder, asked: Sequence[str]) -> float:
    """Return the median time of one text by itself."""
    encoder.encode(asked[:4])
    took = []
    for text in asked:
        began = time.perf_counter()
        encoder.encode([text])
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 3)


def texts_per_s(encoder: Encoder, asked: Sequence[str], batch: int, threads: int) -> float:
    """Return how many texts a second several threads encode in batches."""
    batches = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(encoder.encode, batches[:threads]))
        began = time.perf_counter()
        list(pool.map(encoder.encode, batches))
        return round(len(asked) / (time.perf_counter() - began), 1)


def measure(
    encoder: Encoder, repeats: int, lengths: Sequence[int], batches: Sequence[int], threads: Sequence[int]
) -> dict[str, Any]:
    """Return the figures of one encoder, by words in a text."""
    found: dict[str, Any] = {"fingerprint": encoder.fingerprint}
    for words in lengths:
        asked = texts(words, max(repeats, max(batches) * max(threads)))
        found[f"{words} words"] = {
            "alone_ms": alone_ms(encoder, asked[: min(repeats, 100)]),
            "texts_per_s": {
                f"batches of {batch}, {count} threads": texts_per_s(encoder, asked, batch, count)
                for batch in batches
                for count in threads
            },
        }
    return found


def disagreement(one: Encoder, other: Encoder) -> float:
    """Return the largest difference of a cosine that the two give to a pair of texts."""
    asked = [text for words in WORDS for text in texts(words, 8)]
    first, second = (encoder.encode(asked)[0] for encoder in (one, other))
    return round(float(np.abs(first @ first.T - second @ second.T).max()), 5)


def main() -> int:
    """Measure and print; 3 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--repeats", type=int, default=2000, help="texts for each figure")
    parser.add_argument("--smoke", action="store_true", help="one length, few batches, few threads")
    args = parser.parse_args()
    device = choose_device(args.device)
    if device == "cpu" and args.device != "cpu":
        sys.stderr.write("no GPU that torch can use on this machine: nothing measured\n")
        return 3
    lengths, batches, threads = ((30,), (1, 8), (1, 2)) if args.smoke else (WORDS, BATCHES, THREADS)
    name = settings.Encoder().name
    on_device = SentenceEncoder(locate(name), device)
    on_cpu = open_encoder(settings.Encoder(device="cpu"), Path(".cacheproxy"))
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "gpu": measure(on_device, args.repeats, lengths, batches, threads),
        "cpu": measure(on_cpu, min(args.repeats, 200), lengths, batches[:2], threads[:2]),
        "largest_difference_of_a_cosine": disagreement(on_device, on_cpu),
    }
    if device == "cuda":
        report["device_memory_mb"] = round(torch.cuda.max_memory_reserved() / 1e6)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
