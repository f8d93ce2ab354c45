"""A responses body to a Query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.keys import Reading, asks_for_format, chained, earlier_questions, query_of, told_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "responses"

_CONTENT = frozenset({"input"})
# Anything but null in these ties the answer to what the backend keeps, or makes it keep something.
_STATE_FIELDS = ("previous_response_id", "conversation", "prompt")
_STATE_FLAGS = ("store", "background")
_PART_TRAITS = {
    "input_text": None,
    "output_text": None,
    "refusal": None,
    "input_image": Trait.IMAGE,
    "input_audio": Trait.AUDIO,
}
# Tools that the caller runs. Any other one the backend runs itself, on a world that changes.
_CALLERS_TOOLS = frozenset({"function", "custom", "apply_patch", "local_shell"})


def read_responses(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    A plain string as input means one user message. `variant` is what else of the HTTP request changes the answer.
    """
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    traits = set(_body_traits(body))
    texts: list[str] = []
    blanked, instructions = items, body.get("instructions")
    system = instructions if isinstance(instructions, str) else ""
    earlier: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    history: Sequence[object] = ()
    if isinstance(items, list) and items and all(isinstance(item, dict) for item in items):
        for item in items:
            traits.update(_item_traits(item))
        last, texts = _blank_text(items[-1])
        blanked, chain, history = chained(items, last)
        if not _is_message(items[-1]) or items[-1].get("role") != "user":
            traits.add(Trait.LAST_MESSAGE)
        if not any(text.strip() for text in texts):
            traits.add(Trait.NO_TEXT)
        system = "\n".join(filter(None, (system, *told_in(items, "system", "developer"))))
        earlier = earlier_questions(items, last=bool(texts))
    else:
        traits.add(Trait.UNREADABLE)
    if not all(isinstance(body.get(name), bool | None) for name in _STATE_FLAGS):
        traits.add(Trait.UNREADABLE)
    reading = Reading(
        dialect=DIALECT,
        content=_CONTENT,
        blanked=blanked,
        texts=texts,
        traits=frozenset(traits),
        system=system,
        earlier=earlier,
        chain=chain,
        history=history,
    )
    return query_of(reading, body, scope, controls, variant)


def _body_traits(body: Mapping[str, Any]) -> Iterator[Trait]:
    yield from _tool_traits(body.get("tools"))
    if body.get("tool_choice") not in (None, "auto", "none"):
        yield Trait.TOOLS
    if any(body.get(name) is not None for name in _STATE_FIELDS) or any(body.get(name) for name in _STATE_FLAGS):
        yield Trait.STATEFUL
    include = body.get("include")
    if body.get("top_logprobs") or (isinstance(include, list) and "message.output_text.logprobs" in include):
        yield Trait.LOGPROBS
    modalities = body.get("modalities")
    if body.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
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
    if not _is_message(item):
        kind = item.get("type")
        is_call = isinstance(kind, str) and kind.endswith(("_call", "_call_output"))
        if kind in (None, "item_reference"):  # only the backend knows what it stands for
            yield Trait.STATEFUL
        yield Trait.TOOLS if is_call else Trait.MIXED_CONTENT
        yield from _tool_traits(item.get("tools"))
        return
    content = item.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        trait = _PART_TRAITS.get(kind, Trait.MIXED_CONTENT) if isinstance(kind, str) else Trait.MIXED_CONTENT
        if trait is not None:
            yield trait


def _blank_text(item: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the item with its texts taken out, and the texts. A plain string counts as one text part."""
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or item.get("role") != "user" or not _is_message(item):
        return dict(item), []
    texts: list[str] = []
    blanked: list[Any] = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "input_text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            blanked.append(["text", {key: value for key, value in part.items() if key != "text"}])
        else:
            blanked.append(["part", part])
    return {**item, "content": blanked}, texts
