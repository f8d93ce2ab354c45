"""`cacheproxy` that notes when its models are at work: a script for `overhead.py`, run by the Python of any checkout.

The first argument is the file for what was noted; the others are cacheproxy's own.
"""

from __future__ import annotations

import json
import sys
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Run the command, then write [model, began, ended, CPU seconds] of every call, by `perf_counter`."""
    from cacheproxy.cli import main as command
    from cacheproxy.embed.onnx import OnnxEncoder
    from cacheproxy.verify.cross import CrossEncoder

    calls: list[tuple[str, float, float, float]] = []

    def noted(model: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run(*args: Any) -> Any:
            began_s, cpu_s = time.perf_counter(), time.thread_time()
            try:
                return call(*args)
            finally:
                calls.append((model, began_s, time.perf_counter(), time.thread_time() - cpu_s))

        return run

    OnnxEncoder.encode = noted("encoder", OnnxEncoder.encode)  # type: ignore[method-assign]  # timed from outside, or all would pay
    CrossEncoder.logit = noted("verifier", CrossEncoder.logit)  # type: ignore[method-assign]  # as above
    file = Path(sys.argv.pop(1))
    try:
        command()
    finally:
        file.write_text(json.dumps(calls), encoding="utf-8")


if __name__ == "__main__":
    main()
