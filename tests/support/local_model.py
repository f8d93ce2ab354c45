"""A scripted language model, and the embedded model's server around it on a real Unix socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import uvicorn

from cacheproxy.upstream.local.request import ContextExceeded
from cacheproxy.upstream.local.server import create_app
from cacheproxy.upstream.local.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from cacheproxy.upstream.local.generate import LanguageModel
    from cacheproxy.upstream.local.request import Sampling

CHAT = "/v1/chat/completions"
_WAIT_S = 10.0


class ScriptedModel:
    """Answers with the given pieces, one a token, in byte-level form: `Ġ` is a space. A prompt is a token a character.

    With `gated`, every token waits for a permit of `gate`.
    """

    def __init__(self, answer: Sequence[str], *, context_tokens: int = 64, gated: bool = False) -> None:
        self.pieces: Sequence[str | None] = answer
        self.context_tokens = context_tokens
        self.gate = threading.Semaphore(0)
        self.gated = gated
        self.begun = 0
        self.failure: Exception | None = None

    def encode(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Return as many tokens as the messages have characters."""
        size = sum(len(text) for _, text in messages)
        if size >= self.context_tokens:
            raise ContextExceeded("too long", param="messages")
        return [0] * size

    def tokens(self, prompt: Sequence[int], rules: Sampling, cancelled: Callable[[], bool]) -> Iterator[int]:
        """Yield the answer's tokens."""
        self.begun += 1
        for token in range(len(self.pieces)):
            if self.failure is not None:
                raise self.failure
            while self.gated and not self.gate.acquire(timeout=0.005):
                if cancelled():
                    return
            yield token


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to pytest."""
        yield


class LocalClient:
    """A client of one Unix socket."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    def post(self, body: object, path: str = CHAT) -> Any:
        """Return aiohttp's request context."""
        return self.session.post(f"http://local{path}", json=body)

    async def get(self, path: str) -> tuple[int, Any]:
        """Return status and decoded body."""
        async with self.session.get(f"http://local{path}") as response:
            return response.status, await response.json()

    async def ask(self, text: str = "Hi", **fields: object) -> tuple[int, Any]:
        """Return status and decoded body of a chat request that is not streamed."""
        async with self.post(chat(text, **fields)) as response:
            return response.status, await response.json()

    async def places(self) -> int:
        """Return how many requests are being answered or wait."""
        return int((await self.get("/health"))[1]["places"])


def chat(text: str = "Hi", **fields: object) -> dict[str, object]:
    """Return a chat request's body."""
    return {"model": "any", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def client_of(socket_path: Path) -> AsyncIterator[LocalClient]:
    """Yield a client of the socket."""
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(socket_path), limit=0), timeout=timeout
    ) as session:
        yield LocalClient(session)


@asynccontextmanager
async def serving(model: LanguageModel, folder: Path, *, queue: int = 8) -> AsyncIterator[LocalClient]:
    """Serve the model as the child process does, in this process."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        worker = Worker(model, queue=queue)
        server = _Server(
            uvicorn.Config(
                create_app(worker), log_config=None, timeout_graceful_shutdown=1, http="httptools", ws="none"
            )
        )
        task = asyncio.create_task(server.serve([listener]))
        try:
            async with client_of(path) as client, asyncio.timeout(_WAIT_S):
                yield client
        finally:
            server.should_exit = True
            await task
