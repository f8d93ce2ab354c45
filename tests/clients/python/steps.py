"""What every client program shares: named steps, run in order, each printed as one JSON line without ids and times."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

URL = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
MODEL = "gpt-4o-mini"
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
QUESTIONS: list[str] = json.loads((Path(__file__).parents[1] / "questions.json").read_text())
"""As unlike as can be: two steps must not be taken for each other."""
_FRESH = {"id", "created", "created_at", "completed_at", "item_id", "response_id", "call_id", "tool_call_id"}
_steps: list[tuple[str, Callable[[str], Any]]] = []


def ask(name: str, question: str = "") -> str:
    """Return a prompt with the mark by which the backend knows the step."""
    place = [known for known, _ in _steps].index(name)
    return f"{question or QUESTIONS[place]} (step:{name})"


def step(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a function a step. It gets its name, and returns what the user of the client would see."""
    _steps.append((function.__name__.replace("_", "-"), function))
    return function


def plain(value: Any) -> Any:
    """Return a result as JSON values, without what is new in every answer."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items() if name not in _FRESH}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def run() -> None:
    """Run all steps. One that raises prints what it raised: errors are results, too."""
    loop = asyncio.new_event_loop()  # one for all: some clients keep connections open in it
    asyncio.set_event_loop(loop)
    for name, function in _steps:
        try:
            result = function(name)
            if inspect.isawaitable(result):
                result = loop.run_until_complete(result)
            told: dict[str, Any] = {"step": name, "result": plain(result)}
        except Exception as exc:  # whatever a client makes of an answer must be the same through the proxy
            told = {"step": name, "raised": type(exc).__name__, "status": getattr(exc, "status_code", None)}
            told["message"] = str(exc)[:300]
        sys.stdout.write(json.dumps(told, sort_keys=True) + "\n")
        sys.stdout.flush()
