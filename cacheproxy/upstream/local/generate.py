"""One answer: tokens in, text out, and the reason why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from cacheproxy.upstream.local.text import Detokenizer, StopFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cacheproxy.upstream.local.request import Ask, Sampling


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of the answer. `reason` is `stop` or `length`, as OpenAI means them."""

    reason: str
    prompt_tokens: int
    completion_tokens: int


Event = Piece | Finish


class LanguageModel(Protocol):
    """What a model must do to answer; `engine.Engine` is the one."""

    @property
    def context_tokens(self) -> int:
        """Length of the context window."""
        ...

    @property
    def pieces(self) -> Sequence[str | None]:
        """The vocabulary as `text.Detokenizer` takes it."""
        ...

    def encode(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Return the prompt's tokens, fewer than the context window holds. Raises ContextExceeded."""
        ...

    def tokens(self, prompt: Sequence[int], rules: Sampling, cancelled: Callable[[], bool]) -> Iterator[int]:
        """Yield the answer's tokens up to its own end or until `cancelled()`."""
        ...


def generate(model: LanguageModel, ask: Ask, cancelled: Callable[[], bool]) -> Iterator[Event]:
    """Yield the answer's pieces, then its Finish; ends without one when cancelled. Raises ContextExceeded."""
    prompt = model.encode(ask.messages)
    limit = min(ask.max_tokens, model.context_tokens - len(prompt))
    answer = _Answer(ask.stops, model.pieces)
    yield from answer.read(islice(model.tokens(prompt, ask.sampling, cancelled), limit))
    if not cancelled():
        ended_early = answer.stopped or answer.count < limit
        yield Finish(
            reason="stop" if ended_early else "length", prompt_tokens=len(prompt), completion_tokens=answer.count
        )


class _Answer:
    def __init__(self, stops: Iterable[str], pieces: Sequence[str | None]) -> None:
        self._text = Detokenizer(pieces)
        self._filter = StopFilter(stops)
        self.count = 0

    @property
    def stopped(self) -> bool:
        return self._filter.stopped

    def read(self, tokens: Iterator[int]) -> Iterator[Piece]:
        for token in tokens:
            self.count += 1
            if text := self._filter.feed(self._text.feed(token)):
                yield Piece(text)
            if self.stopped:
                return
        if text := self._filter.feed(self._text.flush()) + self._filter.flush():
            yield Piece(text)
