"""curl, as a shell user types it: bodies, streams, uploads, downloads and statuses, byte for byte."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from steps import KEY, MODEL, PIXEL, URL, ask, run, step

JSON = ("-H", "content-type: application/json")
_FRESH = re.compile(rb'"(id|item_id|created|created_at|completed_at)":("[^"]*"|[0-9]+)')


def curl(path: str, *arguments: str, key: str = KEY) -> Any:
    """Run curl; return its exit code, the status, the content type and the body without ids and times."""
    body, told = Path("body.bin"), "%{http_code} %{content_type}"
    body.unlink(missing_ok=True)
    command = ["curl", "-sS", "-o", str(body), "-w", told, "-H", f"authorization: Bearer {key}", *arguments, URL + path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    data = body.read_bytes() if body.exists() else b""
    return done.returncode, done.stdout, _FRESH.sub(rb'"\1":0', data).decode("latin-1")


def post(path: str, body: dict[str, Any], *arguments: str, **more: Any) -> Any:
    return curl(path, *JSON, "-d", json.dumps(body), *arguments, **more)


def chatting(name: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": ask(name)}], **more}


def text_of(answered: Any) -> Any:
    """What the events of a stream say: a hit may cut the text elsewhere."""
    code, told, data = answered
    lines = [line.removeprefix("data: ") for line in data.encode("latin-1").decode().splitlines() if line]
    deltas = [json.loads(line) for line in lines[:-1]]
    return code, told, "".join(one["choices"][0]["delta"].get("content") or "" for one in deltas), lines[-1]


@step
def chat(name: str) -> Any:
    return post("/chat/completions", chatting(name))


@step
def compressed(name: str) -> Any:
    return post("/chat/completions", chatting(name), "--compressed")


@step
def http_1_0(name: str) -> Any:
    return post("/chat/completions", chatting(name), "--http1.0")


@step
def stream(name: str) -> Any:
    return text_of(post("/chat/completions", chatting(name, stream=True), "-N"))


@step
def stream_1_0(name: str) -> Any:
    return text_of(post("/chat/completions", chatting(name, stream=True), "-N", "--http1.0"))


@step
def vision(name: str) -> Any:
    parts = [{"type": "text", "text": ask(name)}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    Path("body.json").write_text(json.dumps(chatting(name, messages=[{"role": "user", "content": parts}])))
    return curl("/chat/completions", *JSON, "--data-binary", "@body.json")


@step
def large_vision(name: str) -> Any:
    parts = [{"type": "text", "text": ask(name)}, {"type": "image_url", "image_url": {"url": PIXEL + "A" * 6_000_000}}]
    Path("body.json").write_text(json.dumps(chatting(name, messages=[{"role": "user", "content": parts}])))
    return curl("/chat/completions", *JSON, "-H", "expect: 100-continue", "--data-binary", "@body.json")


@step
def chunked_body(name: str) -> Any:
    return post("/chat/completions", chatting(name), "-H", "transfer-encoding: chunked")


@step
def completions(name: str) -> Any:
    return post("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": ask(name)})


@step
def responses(name: str) -> Any:
    return post("/responses", {"model": MODEL, "input": ask(name), "store": False})


@step
def embed(name: str) -> Any:
    return post("/embeddings", {"model": "text-embedding-3-small", "input": [ask(name, "a"), ask(name, "b")]})


@step
def models(_: str) -> Any:
    return curl("/models"), curl("/models/gpt-4o-mini"), curl("/models", "-I")


@step
def files(name: str) -> Any:
    Path("a b.jsonl").write_bytes(ask(name).encode() + bytes(range(256)) * 5000)
    stored = curl("/files", "-F", "purpose=batch", "-F", "file=@a b.jsonl;filename=a b.jsonl")
    return stored, curl("/files/file-1/content"), curl("/files?limit=2&limit=3"), curl("/files/file-1", "-X", "DELETE")


@step
def unauthorized(name: str) -> Any:
    return post("/chat/completions", chatting(name), key="sk-wrong")


@step
def rate_limited(name: str) -> Any:
    return post("/chat/completions", chatting(name), "--retry", "2")


@step
def bad_request(name: str) -> Any:
    return post("/chat/completions", chatting(name))


@step
def malformed(_: str) -> Any:
    return curl("/chat/completions", *JSON, "-d", "{nonsense")[:2]  # the words are the proxy's own


@step
def server_error(name: str) -> Any:
    return post("/chat/completions", chatting(name))


@step
def slow(name: str) -> Any:
    return post("/chat/completions", chatting(name), "--max-time", "0.4")


@step
def endless(name: str) -> Any:
    return post("/chat/completions", chatting(name, stream=True), "-N", "--max-time", "0.5")


if __name__ == "__main__":
    run()
