"""A conversation as a list of messages, in chat and in responses: the last one's text apart, the rest to be equal."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.chain import read_chain
from cacheproxy.query.keys import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_MOST_EARLIER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a dialect writes a conversation, in the field `content` of a body.

    `text` is the type of a user's text parts, and `parts` has the trait, if any, of each type of part that is known.
    `traits` tells those of a message beside its parts. What is no message by `is_message` holds no text and no parts.
    """

    dialect: str
    content: str
    text: str
    parts: Mapping[str, Trait | None]
    traits: Callable[[Mapping[str, Any]], Iterable[Trait]]
    is_message: Callable[[Mapping[str, Any]], bool]


def read_talk(messages: object, form: Form, traits: Iterable[Trait], instructions: str = "") -> Reading:
    """Understand a conversation. Never raises: an unknown shape becomes a trait.

    `traits` are those of the body's other fields; `instructions` is what it tells the model beside the messages.
    """
    known = set(traits)
    content = frozenset({form.content})
    if not (isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)):
        return Reading(
            dialect=form.dialect,
            content=content,
            blanked=messages,
            texts=[],
            traits=frozenset({*known, Trait.UNREADABLE}),
            system=instructions,
        )
    for message in messages:
        known.update(form.traits(message))
        if form.is_message(message):
            known.update(_part_traits(message, form))
    question, texts = _blank_text(messages[-1], form)
    if not _is_users(messages[-1], form):
        known.add(Trait.LAST_MESSAGE)
    if not any(text.strip() for text in texts):
        known.add(Trait.NO_TEXT)
    blanked, chain, history = _chained(messages, question)
    return Reading(
        dialect=form.dialect,
        content=content,
        blanked=blanked,
        texts=texts,
        traits=frozenset(known),
        system="\n".join(filter(None, (instructions, *_told_in(messages, "system", "developer")))),
        earlier=_earlier_questions(messages, last=bool(texts)),
        chain=chain,
        history=history,
    )


def _part_traits(message: Mapping[str, Any], form: Form) -> Iterator[Trait]:
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        trait = form.parts.get(kind, Trait.MIXED_CONTENT) if isinstance(kind, str) else Trait.MIXED_CONTENT
        if trait is not None:
            yield trait


def _is_users(message: Mapping[str, Any], form: Form) -> bool:
    return form.is_message(message) and message.get("role") == "user"


def _blank_text(message: Mapping[str, Any], form: Form) -> tuple[dict[str, Any], list[str]]:
    """Return the message with its texts taken out, and the texts. A plain string counts as one text part."""
    content = message.get("content")
    parts = [{"type": form.text, "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not _is_users(message, form):
        return dict(message), []
    texts: list[str] = []
    blanked: list[Any] = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == form.text and isinstance(part.get("text"), str):
            texts.append(part["text"])
            blanked.append(["text", {key: value for key, value in part.items() if key != "text"}])
        else:
            blanked.append(["part", part])
    return {**message, "content": blanked}, texts


def _told_in(messages: Sequence[Mapping[str, Any]], *roles: str) -> Iterator[str]:
    """Yield the texts that messages of these roles hold, one string a message, empty ones left out."""
    for message in messages:
        if message.get("role") in roles:
            content = message.get("content")
            parts = content if isinstance(content, list) else ({"text": content},)
            texts = (part.get("text") for part in parts if isinstance(part, dict))
            text = "\n".join(text for text in texts if isinstance(text, str) and text.strip())
            if text:
                yield text


def _earlier_questions(messages: Sequence[Mapping[str, Any]], *, last: bool) -> tuple[str, ...]:
    """Return the last questions of a conversation, at most four; `last`: whether its last message is another one."""
    latest = islice(_told_in(messages[-2 if last else -1 :: -1], "user"), _MOST_EARLIER)
    return tuple(latest)[::-1]


def _chained(messages: Sequence[Mapping[str, Any]], last: object) -> tuple[object, tuple[str, ...], Sequence[object]]:
    """Return `blanked`, `chain` and `history` of a Reading, for a question whose message is `last` without its text."""
    history = messages[:-1]
    chain = read_chain(history)
    if chain is None:
        return [*history, last], (), ()
    return ["chain", *chain.shape, last], chain.texts, history
