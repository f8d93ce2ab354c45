"""The `llm` command: prompts, streams, conversations, tools, schemas, attachments and embeddings, from the shell."""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from llm.cli import cli
from steps import KEY, MODEL, PIXEL, URL, ask, run, step

HOME = Path("llm-home")
BASE = {"api_base": URL, "api_key_name": "openai"}
CHAT = {"model_id": "scripted", "model_name": MODEL, "supports_tools": True, "supports_schema": True, "vision": True}
KINDS = [
    CHAT | BASE,
    {"model_id": "instruct", "model_name": "gpt-3.5-turbo-instruct", "completion": True} | BASE,
    {"model_id": "responding", "model_name": MODEL, "responses": True, "supports_tools": True} | BASE,
]
TOOL = """
def weather(city: str, days: int) -> str:
    return f"{days} days of sun in {city}"
"""


def llm(*arguments: str, given: bytes = b"", key: str = KEY) -> Any:
    """Run the command; return its exit code and what it printed.

    In a process of its own, as from the shell, but one that has imported already what takes the most of a second.
    """
    HOME.mkdir(exist_ok=True)
    (HOME / "extra-openai-models.yaml").write_text(json.dumps(KINDS))
    sys.stdout.flush()
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate((stdin, stdout, stderr)):
                os.dup2(file.fileno(), number)
            _command(arguments, key)
        _, status = os.waitpid(child, 0)
        stdout.seek(0)
        stderr.seek(0)
        return os.waitstatus_to_exitcode(status), stdout.read().decode(), stderr.read().decode()[-300:]


def _command(arguments: tuple[str, ...], key: str) -> None:
    """Be the command `llm`; this process ends with it."""
    os.environ |= {"OPENAI_API_KEY": key, "LLM_USER_PATH": str(HOME.resolve())}
    code = 1
    try:
        cli(arguments, prog_name="llm")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@step
def prompt(name: str) -> Any:
    return llm("-m", "scripted", "--no-stream", ask(name))


@step
def stream(name: str) -> Any:
    return llm("-m", "scripted", ask(name))


@step
def system(name: str) -> Any:
    return llm("-m", "scripted", "-s", "Be brief.", "-o", "temperature", "0", ask(name))


@step
def piped(name: str) -> Any:
    return llm("-m", "scripted", given=ask(name).encode())


@step
def conversation(name: str) -> Any:
    first = llm("-m", "scripted", ask(name))
    return first, llm("-c", ask(name, "Are you sure?"))


@step
def tools(name: str) -> Any:
    return llm("-m", "scripted", "--functions", TOOL, "--td", ask(name))


@step
def schema(name: str) -> Any:
    return llm("-m", "scripted", "--schema", "name, uses int", ask(name))


@step
def attachment(name: str) -> Any:
    Path("pixel.png").write_bytes(base64.b64decode(PIXEL.partition(",")[2]))
    return llm("-m", "scripted", "-a", "pixel.png", ask(name))


@step
def completions(name: str) -> Any:
    return llm("-m", "instruct", ask(name))


@step
def responses(name: str) -> Any:
    return llm("-m", "responding", ask(name)), llm("-m", "responding", "--no-stream", ask(name))


@step
def embed(name: str) -> Any:
    return llm("embed", "-m", "3-small", "-c", ask(name))


@step
def unauthorized(name: str) -> Any:
    return llm("-m", "scripted", ask(name), key="sk-wrong")


@step
def bad_request(name: str) -> Any:
    return llm("-m", "scripted", ask(name))


@step
def rate_limited(name: str) -> Any:
    return llm("-m", "scripted", ask(name))


if __name__ == "__main__":
    run()
