"""The legacy completions dialect: plain texts told in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.dialect.choices import ChoicesDialect, Shape
from cacheproxy.dialect.merge import Malformed, Texts, update
from cacheproxy.dialect.pieces import pieces
from cacheproxy.query.completions import DIALECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class CompletionsDialect(ChoicesDialect):
    """`POST /v1/completions`."""

    def __init__(self, *, max_reply_bytes: int, ask_stream_usage: bool) -> None:
        super().__init__(COMPLETIONS, max_reply_bytes=max_reply_bytes, ask_stream_usage=ask_stream_usage)


def _join(choice: dict[str, Any], part: Mapping[str, Any], texts: Texts) -> None:
    text = part.get("text")
    if not isinstance(text, str | None):
        raise Malformed
    if text and choice.get("finish_reason") is not None:
        raise Malformed  # words after the end
    texts.add(choice, "text", text or "")
    update(choice, part, "index", "text")


def _split(choice: Mapping[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """Yield the parts of one choice: its text in pieces, then the finish. With token data, the text is one piece."""
    closing = {key: value for key, value in choice.items() if key not in ("index", "text", "logprobs")}
    silent = {"logprobs": None} if "logprobs" in choice else {}
    if choice.get("logprobs") is not None:
        told = {"logprobs": choice["logprobs"], "finish_reason": None}
        yield {"text": choice["text"], "index": index, **told}
    else:
        for piece in pieces(choice["text"]):
            yield {"text": piece, "index": index, **silent, "finish_reason": None}
    yield {"text": "", "index": index, **silent, **closing}


COMPLETIONS = Shape(
    name=DIALECT,
    whole="text_completion",
    piece="text_completion",
    id_prefix="cmpl-",
    join=_join,
    split=_split,
)
