"""Prompt: a caller's request made over for the small model, with examples or without. Pure.

The caller's own system prompt comes first and stays as it is, then the examples (`quoting.py`), then the caller's turns
as they are. Every other field of the body is the caller's, too: what the small model cannot be asked at all,
`augmentable.py` says before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, assert_never

from cacheproxy.augment.quoting import block, line, neutral, quoted, turns_heading
from cacheproxy.augment.tokens import MESSAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.augment.example import Example
    from cacheproxy.augment.select import Selection
    from cacheproxy.ports import TokenCounter

Dialect = Literal["chat", "completions", "responses"]

Form = Literal["block", "turns"]
"""How examples are told. `block`: one message with all of them, quoted; for models that follow instructions. `turns`:
as exchanges, questions quoted, answers in the assistant's own words, which is all that the smallest models learn from
(docs/decisions/0038-augmentation.md). A legacy completion has no turns: it gets a block."""

_LEADING = ("system", "developer")
_APART = "\n\n"


def augmented(
    body: Mapping[str, Any], selection: Selection, *, dialect: Dialect, model: str, form: Form = "block"
) -> dict[str, Any]:
    """Return a new body that asks the small model; without examples, only the model's name is another one.

    The body must be augmentable (`augmentable.why_not`). It is not changed, and what it holds is shared.
    """
    made = {**body, "model": model}
    examples = selection.examples
    if not examples:
        return made
    turns = list(_exchanges(examples)) if form == "turns" else []
    told = turns_heading(len(examples)) if form == "turns" else block(examples)
    match dialect:
        case "chat":
            led, rest = _apart(body["messages"])
            role = led[-1]["role"] if led else "system"  # templates that know `developer` may not know both
            made["messages"] = [*led, {"role": role, "content": told}, *turns, *rest]
        case "responses":
            made["instructions"] = _APART.join(filter(None, (body.get("instructions"), told)))
            if turns:
                led, rest = _apart(_items(body["input"]))
                made["input"] = [*led, *turns, *rest]
        case "completions":
            prompt, before = body["prompt"], block(examples) + _APART
            made["prompt"] = [before + prompt[0]] if isinstance(prompt, list) else before + prompt
        case _:
            assert_never(dialect)
    return made


def prompt_tokens(body: Mapping[str, Any], counter: TokenCounter, *, dialect: Dialect) -> int:
    """Return what the caller's own prompt takes in the small model, its chat template's marks included."""
    return sum(counter.count(text) + MESSAGE_TOKENS for text in _texts(body, dialect)) + MESSAGE_TOKENS


def prompt_chars(body: Mapping[str, Any], *, dialect: Dialect) -> int:
    """Return how many characters `prompt_tokens` would count."""
    return sum(map(len, _texts(body, dialect)))


def frame_tokens(counter: TokenCounter, *, form: Form = "block") -> int:
    """Return what is written for examples beside themselves: taken from their budget once."""
    return counter.count(block(()) if form == "block" else turns_heading(10)) + MESSAGE_TOKENS


def example_tokens(question: str, answer: str, counter: TokenCounter, *, form: Form = "block") -> int:
    """Return what one example takes: `Example.tokens`."""
    if form == "block":
        return counter.count(line(question, answer) + "\n")
    return counter.count(quoted(question)) + counter.count(neutral(answer)) + 2 * MESSAGE_TOKENS


def _exchanges(examples: Sequence[Example]) -> Iterator[dict[str, str]]:
    for example in examples:
        yield {"role": "user", "content": quoted(example.question)}
        yield {"role": "assistant", "content": neutral(example.answer)}


def _apart(messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the messages that lead, and the caller's turns."""
    led = next((at for at, message in enumerate(messages) if message.get("role") not in _LEADING), len(messages))
    return messages[:led], messages[led:]


def _items(given: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _texts(body: Mapping[str, Any], dialect: Dialect) -> Iterator[str]:
    """Yield every text of a body that is part of its prompt."""
    match dialect:
        case "chat":
            yield from map(_told, body["messages"])
        case "responses":
            yield from filter(None, (body.get("instructions"),))
            yield from map(_told, _items(body["input"]))
        case "completions":
            prompt = body["prompt"]
            yield from prompt if isinstance(prompt, list) else (prompt,)
        case _:
            assert_never(dialect)


def _told(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
