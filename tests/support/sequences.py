"""Request sequences as data, in the manner of http-tests/cache-tests: what is asked, what is said, what must come.

A file in tests/sequences is a group: `pack` changes keys of the default category, `case` is a list. A case is a claim
and its steps; every step is one request, answered before the next one begins and with its answer kept or refused by
then. Unless a case says `wire = "whole"` or `"stream"`, it is run with all its requests asking for a body, and again
with all of them asking for a stream.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tests.support import embeddings_wire, openai_wire, responses_wire
from tests.support.proxy import CHAT, COMPLETIONS, PARAPHRASE, QUESTION, UNRELATED, chat, complete
from tests.support.upstream import CUT, Cut, Send, answer, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.upstream import Received, Step

FOLDER = Path(__file__).resolve().parents[1] / "sequences"
PATHS = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": responses_wire.PATH,
    "embeddings": embeddings_wire.PATH,
}
BODIES: dict[str, Callable[..., dict[str, Any]]] = {
    "chat": chat,
    "completions": complete,
    "responses": lambda text, **fields: {"model": openai_wire.MODEL, "input": text, **fields},
    "embeddings": embeddings_wire.request,
}
TEXTS = {"question": QUESTION, "paraphrase": PARAPHRASE, "unrelated": UNRELATED}

Fields = dict[str, str | list[str]]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    pass


class Request(_Table, frozen=True):
    """What is asked: `text` is one of `TEXTS`, `cc` is short for a Cache-Control header."""

    dialect: Literal["chat", "completions", "responses", "embeddings"] = "chat"
    text: Literal["question", "paraphrase", "unrelated"] = "question"
    cc: str | None = None
    headers: Fields = {}
    cache: Any = None
    fields: dict[str, Any] = {}
    stream: bool | None = None
    tenant: str = "a"

    @property
    def path(self) -> str:
        """Where it is sent."""
        return PATHS[self.dialect]

    def body(self, streamed: bool) -> dict[str, Any]:
        """Return the body, for a caller that wants a stream or not unless the request itself says so."""
        body = BODIES[self.dialect](TEXTS[self.text], **self.fields)
        if self.dialect != "embeddings" and (streamed if self.stream is None else self.stream):
            body["stream"] = True
        if self.cache is not None:
            body["cache"] = self.cache
        return body

    def sent(self) -> list[tuple[str, str]]:
        """Return the headers to send."""
        return [*flat(self.headers), *([] if self.cc is None else [("cache-control", self.cc)])]


class Backend(_Table, frozen=True):
    """What the backend says to every request of a step; `cut` ends its connection before the head, or in the body."""

    status: int = 200
    headers: Fields = {}
    content: str | None = None
    finish: str = "stop"
    cut: Literal["", "head", "body"] = ""

    def steps(self, request: Received, call: int) -> Sequence[Step]:
        """Return the answer to one request; without a `content` of its own it tells the number of the call."""
        headers, body = flat(self.headers), request.json()
        if self.cut == "head":
            return [CUT]
        if self.status != 200:
            error = {"message": "scripted", "type": "server_error", "param": None, "code": None}
            return answer({"error": error}, status=self.status, headers=headers)
        if request.target != CHAT:
            return _other_dialect(request, call, headers)
        content = self.content or f"Answer {call}."
        if body.get("stream") is True:
            events = openai_wire.events(content, finish=self.finish, include_usage="stream_options" in body)
            return stream(*events[:2], CUT, headers=headers) if self.cut else stream(*events, headers=headers)
        whole = answer(openai_wire.completion(content, finish=self.finish), headers=headers)
        return [Send(data.data[:-9]) for data in whole if isinstance(data, Send)] + [Cut()] if self.cut else whole


class Expect(_Table, frozen=True):
    """What must come. `same-as` counts steps from 1; `calls` are those of this step, its background work included."""

    status: int = 200
    code: str | None = None
    outcome: Literal["hit", "miss", "bypass"] | None = None
    reason: str | None = None
    tier: str | None = None
    age: int | None = None
    cache_status: dict[str, str | int | bool] = {}
    without: list[str] = []
    headers: dict[str, str | list[str]] = {}
    no_headers: list[str] = []
    same_as: int | None = None
    calls: int | None = None
    broken: bool = False


class Turn(_Table, frozen=True):
    """One step: time passes, then a request is sent and answered."""

    advance_s: float = 0.0
    request: Request = Request()
    backend: Backend = Backend()
    expect: Expect = Expect()


class Case(_Table, frozen=True):
    """A claim, and the steps that show it."""

    claim: str
    steps: list[Turn]
    wire: Literal["both", "whole", "stream"] = "both"


class Group(_Table, frozen=True):
    """A file."""

    about: str
    case: list[Case]
    pack: dict[str, float] = {}


class Run(_Table, frozen=True):
    """One run of a case."""

    name: str
    pack: tuple[tuple[str, float], ...]
    streamed: bool
    case: Case


def sequences() -> list[Run]:
    """Return every case of every file, once for each form. Raises on an unknown key or a claim made twice."""
    found: list[Run] = []
    for file in sorted(FOLDER.glob("*.toml")):
        group = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Group)
        pack = tuple(sorted(group.pack.items()))
        for case in group.case:
            for streamed in (False, True):
                if case.wire in ("both", "stream" if streamed else "whole"):
                    name = f"{file.stem}: {case.claim} [{'stream' if streamed else 'whole'}]"
                    found.append(Run(name=name, pack=pack, streamed=streamed, case=case))
    names = [one.name for one in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return found


def flat(fields: Fields) -> list[tuple[str, str]]:
    """Return fields as header lines; a list is one line each."""
    return [(name, value) for name, held in fields.items() for value in ([held] if isinstance(held, str) else held)]


def _other_dialect(request: Received, call: int, headers: list[tuple[str, str]]) -> Sequence[Step]:
    if request.target == COMPLETIONS:
        whole, events = _completion(request.json(), call)
    else:
        write = responses_wire if request.target == responses_wire.PATH else embeddings_wire
        whole, events = write.default_answer(request.json(), call)
    return stream(*events, headers=headers) if whole is None else answer(whole, headers=headers)


def _completion(body: dict[str, Any], call: int) -> tuple[bytes | None, list[bytes]]:
    choice = {"text": f"Answer {call}.", "index": 0, "logprobs": None, "finish_reason": "stop"}
    whole = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}
    if body.get("stream") is not True:
        return openai_wire.encode(whole), []
    return None, [openai_wire.event(whole), openai_wire.DONE]
