"""A chat completions body to a Query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.keys import asks_for_audio, asks_for_format, query_of
from cacheproxy.query.talk import Form, read_talk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "chat"

_TOOL_FIELDS = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")


def read_chat(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    `variant` is what else of the HTTP request changes the answer (the query string, beta features).
    """
    return query_of(read_talk(body.get("messages"), _FORM, _body_traits(body)), body, scope, controls, variant)


def _body_traits(body: Mapping[str, Any]) -> Iterator[Trait]:
    if any(body.get(field) for field in _TOOL_FIELDS):
        yield Trait.TOOLS
    if body.get("n") not in (None, 1):
        yield Trait.MANY_CHOICES
    if body.get("logprobs") or body.get("top_logprobs"):
        yield Trait.LOGPROBS
    if asks_for_audio(body):
        yield Trait.AUDIO
    if body.get("web_search_options") is not None:
        yield Trait.LIVE_SEARCH
    if asks_for_format(body.get("response_format")):
        yield Trait.RESPONSE_FORMAT


def _message_traits(message: Mapping[str, Any]) -> Iterator[Trait]:
    if message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        yield Trait.TOOLS
    if message.get("audio"):
        yield Trait.AUDIO


_FORM = Form(
    dialect=DIALECT,
    content="messages",
    text="text",
    parts={"text": None, "image_url": Trait.IMAGE, "input_image": Trait.IMAGE, "input_audio": Trait.AUDIO},
    traits=_message_traits,
    is_message=lambda message: True,
)
