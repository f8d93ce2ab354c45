"""A legacy completions body to a Query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.keys import Reading, asks_for_format, query_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "completions"

_CONTENT = frozenset({"prompt"})


def read_completion(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    A prompt of one text may be matched by similarity; a list of prompts and token ids only as they are. `variant` is
    what else of the HTTP request changes the answer (the query string, beta features).
    """
    prompt = body.get("prompt")
    text = _one_text(prompt)
    reading = Reading(
        dialect=DIALECT,
        content=_CONTENT,
        blanked=["prompt", prompt] if text is None else ["text"],
        texts=[] if text is None else [text],
        traits=frozenset((*_prompt_traits(prompt, text), *_body_traits(body))),
    )
    return query_of(reading, body, scope, controls, variant)


def _one_text(prompt: object) -> str | None:
    """Return the text of a prompt that is one text, as such or alone in a list: both are answered alike."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def _prompt_traits(prompt: object, text: str | None) -> Iterator[Trait]:
    if text is not None:
        if not text.strip():
            yield Trait.NO_TEXT
        return
    if prompt is None:
        yield Trait.NO_TEXT
    elif not isinstance(prompt, list) or not prompt:
        yield Trait.UNREADABLE
    elif all(isinstance(item, str) for item in prompt):
        yield Trait.MANY_PROMPTS
    elif _token_ids(prompt) or all(_token_ids(item) for item in prompt):
        yield Trait.NO_TEXT
        if not _token_ids(prompt) and len(prompt) > 1:
            yield Trait.MANY_PROMPTS
    else:
        yield Trait.UNREADABLE


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _body_traits(body: Mapping[str, Any]) -> Iterator[Trait]:
    if body.get("n") not in (None, 1):
        yield Trait.MANY_CHOICES
    if body.get("best_of") not in (None, 1):
        yield Trait.BEST_OF
    if body.get("logprobs") is not None and body["logprobs"] is not False:  # 0 asks for the chosen tokens' own
        yield Trait.LOGPROBS
    if body.get("echo"):  # the answer repeats the prompt: another one's would be put in the caller's mouth
        yield Trait.ECHO
    if body.get("suffix"):  # what fits between two texts is decided by both, to the letter
        yield Trait.SUFFIX
    if asks_for_format(body.get("response_format")):
        yield Trait.RESPONSE_FORMAT
