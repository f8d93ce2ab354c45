"""A responses body to a Query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.keys import asks_for_audio, asks_for_format, query_of
from cacheproxy.query.talk import Form, read_talk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "responses"

# Anything but null in these ties the answer to what the backend keeps, or makes it keep something.
_STATE_FIELDS = ("previous_response_id", "conversation", "prompt")
_STATE_FLAGS = ("store", "background")
# Tools that the caller runs. Any other one the backend runs itself, on a world that changes.
_CALLERS_TOOLS = frozenset({"function", "custom", "apply_patch", "local_shell"})


def read_responses(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    A plain string as input means one user message. `variant` is what else of the HTTP request changes the answer.
    """
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    told = body.get("instructions")
    instructions = told if isinstance(told, str) else ""
    return query_of(read_talk(items, _FORM, _body_traits(body), instructions), body, scope, controls, variant)


def _body_traits(body: Mapping[str, Any]) -> Iterator[Trait]:
    yield from _tool_traits(body.get("tools"))
    if body.get("tool_choice") not in (None, "auto", "none"):
        yield Trait.TOOLS
    if any(body.get(name) is not None for name in _STATE_FIELDS) or any(body.get(name) for name in _STATE_FLAGS):
        yield Trait.STATEFUL
    if not all(isinstance(body.get(name), bool | None) for name in _STATE_FLAGS):
        yield Trait.UNREADABLE
    include = body.get("include")
    if body.get("top_logprobs") or (isinstance(include, list) and "message.output_text.logprobs" in include):
        yield Trait.LOGPROBS
    if asks_for_audio(body):
        yield Trait.AUDIO
    text = body.get("text")
    if asks_for_format(text.get("format") if isinstance(text, dict) else text):
        yield Trait.RESPONSE_FORMAT


def _tool_traits(tools: object) -> Iterator[Trait]:
    if tools:
        yield Trait.TOOLS
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace":
            yield from _tool_traits(tool.get("tools"))
        elif not isinstance(kind, str) or kind not in _CALLERS_TOOLS:
            yield Trait.LIVE_SEARCH if isinstance(kind, str) and "search" in kind else Trait.STATEFUL


def _is_message(item: Mapping[str, Any]) -> bool:
    return item.get("type") in (None, "message") and "role" in item


def _item_traits(item: Mapping[str, Any]) -> Iterator[Trait]:
    if _is_message(item):
        return
    kind = item.get("type")
    is_call = isinstance(kind, str) and kind.endswith(("_call", "_call_output"))
    if kind in (None, "item_reference"):  # only the backend knows what it stands for
        yield Trait.STATEFUL
    yield Trait.TOOLS if is_call else Trait.MIXED_CONTENT
    yield from _tool_traits(item.get("tools"))


_FORM = Form(
    dialect=DIALECT,
    content="input",
    text="input_text",
    parts={
        "input_text": None,
        "output_text": None,
        "refusal": None,
        "input_image": Trait.IMAGE,
        "input_audio": Trait.AUDIO,
    },
    traits=_item_traits,
    is_message=_is_message,
)
