"""From the bytes of a chat request to what the model is asked, or an OpenAI-shaped 400 that names the field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from cacheproxy.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 512
"""Tokens of an answer whose caller set no limit: a small model that starts to loop must end some day."""

_MAX_STOPS = 4
# The chat template knows three roles; OpenAI's newer name for the system's is read as such.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Tokens = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One validated request. `messages` are (role, text) with the roles of the model's chat template."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int = DEFAULT_MAX_TOKENS
    stops: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    stream: bool = False
    include_usage: bool = False


class ContextExceeded(InvalidRequest):
    """The prompt leaves no room for an answer in the model's context window."""

    code = "context_length_exceeded"


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    n: Tokens | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None


_decoder = msgspec.json.Decoder(_Body)


def parse(body: bytes) -> Ask:
    """Return what is asked. Raises InvalidRequest with the offending field as its param.

    Fields it does not know are ignored, as a drop-in backend must. An absent temperature means 0 here, not OpenAI's 1:
    this model wanders when it samples, and a cache is best tried on answers that repeat.
    """
    try:
        wire = _decoder.decode(body)
    except msgspec.ValidationError as exc:
        message = str(exc)
        found = _PATH.search(message)
        path = found["path"] if found else ""
        if missing := _MISSING.search(message):
            path = f"{path}.{missing['field']}".lstrip(".")
        raise InvalidRequest(_PATH.sub("", message), param=path or None) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest("the body is not valid JSON in UTF-8, or is nested too deep") from exc
    _refuse_unsupported(wire)
    return Ask(
        messages=tuple(_message(message, at) for at, message in enumerate(wire.messages)),
        max_tokens=wire.max_completion_tokens or wire.max_tokens or DEFAULT_MAX_TOKENS,
        stops=_stops(wire.stop),
        sampling=Sampling(
            temperature=wire.temperature or 0.0,
            top_p=1.0 if wire.top_p is None else wire.top_p,
            seed=wire.seed,
            frequency_penalty=wire.frequency_penalty or 0.0,
            presence_penalty=wire.presence_penalty or 0.0,
        ),
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
    )


def _refuse_unsupported(wire: _Body) -> None:
    asked = {
        "n": wire.n not in (None, 1),
        "tools": wire.tools,
        "functions": wire.functions,
        "logprobs": wire.logprobs,
        "response_format": wire.response_format and wire.response_format.get("type") != "text",
        "modalities": wire.modalities and wire.modalities != ["text"],
    }
    for field, unsupported in asked.items():
        if unsupported:
            raise InvalidRequest(f"the embedded model writes one plain text: {field} is not supported", param=field)


def _message(message: _Message, at: int) -> tuple[str, str]:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(
            f"the embedded model knows the roles {', '.join(_ROLES)} only", param=f"messages[{at}].role"
        )
    return role, _text(message.content, at)


def _text(content: str | list[_Part] | None, at: int) -> str:
    if isinstance(content, str):
        return content
    for part in content or ():
        if part.type != "text" or part.text is None:
            raise InvalidRequest("the embedded model reads text parts only", param=f"messages[{at}].content")
    return "".join(part.text or "" for part in content or ())


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > _MAX_STOPS:
        raise InvalidRequest(f"at most {_MAX_STOPS} stop strings", param="stop")
    return tuple(text for text in stops if text)
