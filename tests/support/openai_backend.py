"""A backend that speaks the whole API, its answers derived from each request's content alone.

The same request gets the same answer, whoever asks and however often: an answer through the proxy, live or cached, can
be compared with one asked for directly. A mark in a prompt, `(step:NAME)`, names the request for the test, and some
names ask for trouble: see `Trouble`. Use as `upstream.always(OpenAIBackend())`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support import multipart, openai_answers, openai_wire
from tests.support.openai_answers import Asked, digest, whole_answer
from tests.support.upstream import Hold, Send, Wait, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.upstream import Received, Step

STEP = re.compile(rb"\(step:([a-z0-9-]+)\)")
SLOW_S = 1.5
MODELS = ("gpt-4o-mini", "gpt-3.5-turbo-instruct", "text-embedding-3-small", "whisper-1", "tts-1", "gpt-image-1")
AUDIO = bytes(range(256)) * 40
_WIRE_FIELDS = ("stream", "stream_options")


def step_of(request: Received) -> str:
    """Return the name that a request's last mark gives it, or ""."""
    found = STEP.findall(request.body)
    return found[-1].decode() if found else ""


class Trouble:
    """What a name asks for: an error once or always, an answer that comes late, or one that never ends."""

    RATE_LIMITED = "rate-limited"
    SERVER_ERROR = "server-error"
    BAD_REQUEST = "bad-request"
    SLOW = "slow"
    ENDLESS = "endless"


class OpenAIBackend:
    """A script for every request."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def __call__(self, request: Received) -> Sequence[Step]:
        """Answer one request."""
        if request.method == "HEAD":
            whole = self._answer(replace(request, method="GET"))[0]
            return [Send(whole.data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")] if isinstance(whole, Send) else []
        return self._answer(request)

    def _answer(self, request: Received) -> Sequence[Step]:
        key = request.header("authorization") or ""
        if "wrong" in key:
            return error(401, "Incorrect API key provided.", code="invalid_api_key")
        path = request.target.partition("?")[0].removeprefix("/v1")
        if request.method == "POST" and path in _JSON_ROUTES:
            try:
                body = msgspec.json.decode(request.body)
            except msgspec.DecodeError:
                return error(400, "We could not parse the JSON body of your request.")
            told = {name: value for name, value in body.items() if name not in _WIRE_FIELDS}
            asked = Asked(body=body, digest=digest(path, told), step=step_of(request))
            return self._troubled(asked) or _JSON_ROUTES[path](asked)
        if request.method == "POST" and path in _FORM_ROUTES:
            return _FORM_ROUTES[path](multipart.fields(request))
        return _resource(request.method, path)

    def _troubled(self, asked: Asked) -> Sequence[Step] | None:
        match asked.step:
            case Trouble.RATE_LIMITED:
                self._refused ^= {asked.digest}  # every other time
                if asked.digest in self._refused:
                    headers = [("retry-after", "1"), ("retry-after-ms", "20")]
                    return error(429, "Rate limit reached.", code="rate_limit_exceeded", headers=headers)
            case Trouble.SERVER_ERROR:
                return error(500, "The server had an error while processing your request.", kind="server_error")
            case Trouble.BAD_REQUEST:
                return error(400, "Unsupported value.", code="unsupported_value", param="messages")
            case Trouble.SLOW:
                return [Wait(SLOW_S), *answer(openai_wire.completion("late"))]
            case Trouble.ENDLESS:
                return stream(*map(openai_wire.event, openai_wire.chunks("It goes on")[:-1]), Hold(asyncio.Event()))
        return None


def error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> list[Step]:
    """Return OpenAI's error."""
    told = {"message": message, "type": kind, "param": param, "code": code}
    return answer({"error": told}, status=status, headers=[("x-request-id", "req_error"), *headers])


# Other routes


def _images(asked: Asked) -> Sequence[Step]:
    pixels = base64.b64encode(hashlib.shake_256(asked.digest.encode()).digest(5000)).decode()
    return whole_answer({"created": 1_700_000_000, "data": [{"b64_json": pixels}] * (asked.body.get("n") or 1)})


def _speech(asked: Asked) -> Sequence[Step]:
    data = asked.digest.encode() + AUDIO
    parts = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (data[:1000], data[1000:])]
    framing = head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
    return [Send(framing), *map(Send, parts), Send(b"0\r\n\r\n")]


def _moderations(asked: Asked) -> Sequence[Step]:
    result = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.25}}
    return whole_answer({"id": "modr-1", "model": "omni-moderation-latest", "results": [result]})


def _batches(asked: Asked) -> Sequence[Step]:
    return whole_answer(_batch(f"batch_{asked.digest}", str(asked.body["input_file_id"])))


def _batch(batch_id: str, file_id: str) -> dict[str, Any]:
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": file_id,
        "completion_window": "24h",
        "status": "validating",
        "created_at": 1_700_000_000,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }


def _file(file_id: str, name: str, size: int, purpose: str) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": 1_700_000_000,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }


def _upload(form: Mapping[str, multipart.Field]) -> Sequence[Step]:
    told = form["file"]
    file_id = f"file-{hashlib.sha256(told.data).hexdigest()[:12]}"
    return whole_answer(_file(file_id, told.filename, len(told.data), form["purpose"].data.decode()))


def _transcription(form: Mapping[str, multipart.Field]) -> Sequence[Step]:
    text = f"Heard {hashlib.sha256(form['file'].data).hexdigest()[:12]}"
    if "response_format" in form and form["response_format"].data == b"text":
        return answer(text.encode() + b"\n", content_type="text/plain; charset=utf-8")
    return whole_answer({"text": text})


def _resource(method: str, path: str) -> Sequence[Step]:
    """Answer what is read or deleted by its path."""
    match method, *path.strip("/").split("/"):
        case "GET", "models":
            return whole_answer({"object": "list", "data": [_model(name) for name in MODELS]})
        case "GET", "models", name if name in MODELS:
            return whole_answer(_model(name))
        case "GET", "files":
            listed = [_file(f"file-{at}", f"{at}.jsonl", at, "batch") for at in range(3)]
            return whole_answer(
                {"object": "list", "data": listed, "has_more": False, "first_id": "file-0", "last_id": "file-2"}
            )
        case "GET", "files", file_id:
            return whole_answer(_file(file_id, "a.jsonl", 7, "batch"))
        case "GET", "files", file_id, "content":
            return answer(file_id.encode() + AUDIO, content_type="application/octet-stream")
        case "DELETE", "files", file_id:
            return whole_answer({"id": file_id, "object": "file", "deleted": True})
        case "GET", "batches":
            return whole_answer({"object": "list", "data": [_batch("batch_1", "file-1")], "has_more": False})
        case "GET", "batches", batch_id:
            return whole_answer(_batch(batch_id, "file-1"))
        case "POST", "batches", batch_id, "cancel":
            return whole_answer({**_batch(batch_id, "file-1"), "status": "cancelling"})
    return error(404, f"Invalid URL ({method} /v1{path})")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "system"}


_JSON_ROUTES = {
    "/chat/completions": openai_answers.chat,
    "/completions": openai_answers.completions,
    "/responses": openai_answers.responses,
    "/embeddings": openai_answers.embeddings,
    "/images/generations": _images,
    "/audio/speech": _speech,
    "/moderations": _moderations,
    "/batches": _batches,
}
_FORM_ROUTES = {"/files": _upload, "/audio/transcriptions": _transcription}
