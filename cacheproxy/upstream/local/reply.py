"""OpenAI's objects: one answer as a `chat.completion` or as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.upstream.local import MODEL_ID

if TYPE_CHECKING:
    from cacheproxy.errors import CacheProxyError
    from cacheproxy.upstream.local.generate import Finish

DONE = b"data: [DONE]\n\n"


def model_card() -> dict[str, Any]:
    """Return the one entry of the model list."""
    return {"id": MODEL_ID, "object": "model", "created": 1730419200, "owned_by": "huggingface"}


def problem(error: CacheProxyError) -> dict[str, Any]:
    """Return the error body of OpenAI's API."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def event(data: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class Reply:
    """The id and time that all parts of one answer share, and the shapes they take."""

    def __init__(self, *, include_usage: bool = False) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._include_usage = include_usage

    def body(self, text: str, finish: Finish) -> dict[str, Any]:
        """Return the whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish.reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(finish)}

    def opening(self) -> bytes:
        """Return the first chunk: the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """Return a chunk of text."""
        return self._chunk({"content": text})

    def closing(self, finish: Finish) -> bytes:
        """Return the chunk with the finish reason, the usage when it was asked for, and the end mark."""
        usage = b""
        if self._include_usage:
            usage = event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(finish)})
        return self._chunk({}, finish.reason) + usage + DONE

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": MODEL_ID}


def _usage(finish: Finish) -> dict[str, int]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }
