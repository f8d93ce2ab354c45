"""The embeddings dialect: how an answer's bytes become vectors of single inputs, and vectors become an answer.

The canonical form of a kept input is the answer that the backend would have given for it alone: the live answer's
fields in their order, its data object as it came, and its share of the usage. A vector of numbers is kept as the text
that it came in: it is served as it came, and a thousand vectors are a thousand strings, not millions of objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.dialect.bodies import media_type, read_object
from cacheproxy.dialect.ids import new_id, new_tail
from cacheproxy.dialect.splitter import ArraySplitter
from cacheproxy.dialect.vectors import floats_of, length_of, to_base64, to_numbers
from cacheproxy.model import Reply
from cacheproxy.query.embeddings import Encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

LARGEST_ANSWER_BYTES = 256 * 1024 * 1024
"""2,048 vectors of 4,096 numbers are 180 MB as text."""
LARGEST_FOLDED_BYTES = 160 * 1024 * 1024
"""An answer beyond this passes through and is not kept."""

_PLAIN = frozenset({"object", "index", "embedding"})

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_index = msgspec.json.Decoder(int).decode
_embedding = msgspec.json.Decoder(list[float] | str).decode
_numbers = msgspec.json.Decoder(list[float]).decode
_string = msgspec.json.Decoder(str).decode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One data object. Its `fields` are in their order, each as JSON or as a value that JSON can write."""

    fields: Mapping[str, Any] = field(repr=False)
    index: int
    length: int
    """Dimensions of the vector."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A whole, sound answer: its items by index, and its other fields (with `data` in its place, to be filled)."""

    envelope: Mapping[str, Any] = field(repr=False)
    items: tuple[Item, ...]

    @property
    def model(self) -> object:
        """Which model answered, as it names itself."""
        return self.envelope.get("model")

    @property
    def length(self) -> int:
        """Dimensions of every vector."""
        return self.items[0].length


class EmbeddingsFold:
    """Reads an answer of at most `most` data objects as it passes, one data object at a time."""

    def __init__(self, headers: Iterable[tuple[str, str]], *, most: int | None = None) -> None:
        self._json = media_type(headers) == "application/json"
        self._room = LARGEST_FOLDED_BYTES
        self._splitter = ArraySplitter("data", most=most)

    @property
    def elements(self) -> Sequence[bytes]:
        """The data objects that have come."""
        return self._splitter.elements

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; the caller gets them as they are."""
        if self._json and self._room >= 0:
            self._room -= len(chunk)
            if self._room < 0:
                self._splitter = ArraySplitter("data")  # let go of what was held
            else:
                self._splitter.feed(chunk)
        return chunk

    def flush(self) -> bytes:
        """Return nothing: no byte is held back."""
        return b""

    @property
    def spoken(self) -> bool:
        """Whether something of the answer was read; not known before its end."""
        return False

    def reply(self) -> Reply | str:
        """Return the answer without its data objects, or why these bytes make none; the objects are not looked at."""
        if not self._json:
            return "not_json"
        if self._room < 0:
            return "too_large"
        body = read_object(bytes(self._splitter.rest), "malformed_body")
        if isinstance(body, str):
            return body
        data, elements = body.get("data"), self.elements
        if self._splitter.crowded or self._splitter.doubled or (isinstance(data, list) and data != [0] * len(elements)):
            return "malformed_body"
        return Reply(body=body, source="body")


def read_item(element: bytes) -> Item | str:
    """Return a data object whose index is a number and whose vector is whole and finite, or what it lacks."""
    try:
        fields = _object(element)
        index, embedding = _index(fields["index"]), _embedding(fields["embedding"])
        rest = {name: _decode(raw) for name, raw in fields.items() if name != "embedding"}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return "malformed_item"
    if isinstance(read_object(_encode(rest), "malformed_item"), str):
        return "nested_too_deep"
    if isinstance(embedding, str) and floats_of(embedding) is None:
        return "vector_not_sound"
    if not embedding:
        return "vector_empty"
    return Item(fields=fields, index=index, length=length_of(embedding), size_bytes=len(element))


def flaw(items: Sequence[Item], expected: int, dimensions: int | None) -> str:
    """Return why these items are not the answer to `expected` inputs of `dimensions` (None for any), or ""."""
    if sorted(item.index for item in items) != list(range(expected)):
        return "wrong_indexes"
    lengths = {item.length for item in items}
    if len(lengths) != 1 or (dimensions is not None and lengths != {dimensions}):
        return "wrong_dimensions"
    return ""


def single(envelope: Mapping[str, Any], item: Item, usage: object) -> dict[str, Any]:
    """Return the canonical body of one input: what the backend would have said to it alone."""
    fields = {name: _text(raw) if name == "embedding" else _decode(raw) for name, raw in item.fields.items()}
    body = {**envelope, "data": [{**fields, "index": 0}]}
    return {**body, "usage": usage} if "usage" in body else body


def said(batch: Batch) -> list[dict[str, Any]]:
    """Return what an answer says beside its vectors and places."""
    items = ({name: _decode(raw) for name, raw in item.fields.items() if name not in _PLAIN} for item in batch.items)
    return [{name: value for name, value in batch.envelope.items() if name != "data"}, *filter(None, items)]


def item_of(body: Mapping[str, Any], encoding: Encoding) -> Item | None:
    """Return a kept input's data object with its vector as the caller wants it, or None when it cannot be had so."""
    fields: dict[str, Any] = body["data"][0]
    kept: str = fields["embedding"]
    numbers = kept.startswith("[")
    raw: bytes | None
    if numbers is (encoding is Encoding.FLOAT):
        raw = kept.encode() if numbers else _encode(kept)
    elif numbers:
        raw = _quoted(to_base64(_numbers(kept)))
    else:
        raw = to_numbers(kept)
    if raw is None:
        return None
    length = kept.count(",") + 1 if numbers else length_of(kept)
    return Item(fields={**fields, "embedding": msgspec.Raw(raw)}, index=0, length=length, size_bytes=len(raw))


def renewed(envelope: Mapping[str, Any], entry_id: str, now_s: float) -> dict[str, Any]:
    """Return a hit's envelope: where the live answer had an id and a time of creation, they are new."""
    fresh: dict[str, Any] = {}
    if "id" in envelope:
        fresh["id"] = new_id(envelope["id"], new_tail(entry_id, envelope["id"]), "embd-")
    if "created" in envelope:
        fresh["created"] = int(now_s)
    return {**envelope, **fresh}


def written(envelope: Mapping[str, Any], items: Iterable[Item], usage: object, piece_bytes: int) -> Iterator[bytes]:
    """Yield an answer in pieces of at least `piece_bytes` (but for the last), its items numbered anew.

    Without a `usage` (None) the envelope's own stays.
    """
    held: list[bytes] = []
    size = 0
    for part in _parts({**envelope, "usage": usage} if usage is not None else envelope, items):
        held.append(part)
        size += len(part)
        if size >= piece_bytes:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _parts(told: Mapping[str, Any], items: Iterable[Item]) -> Iterator[bytes]:
    names = list(told)
    place = names.index("data")
    before, after = {name: told[name] for name in names[:place]}, {name: told[name] for name in names[place + 1 :]}
    head = _encode(before)[:-1]
    yield head + (b"," if before else b"") + b'"data":['
    for number, item in enumerate(items):
        yield (b"," if number else b"") + _encode({**item.fields, "index": number})
    yield b"]" + (b"," + _encode(after)[1:] if after else b"}")


def _text(raw: msgspec.Raw) -> str:
    """Return a vector as it is kept: numbers as their JSON text, base64 as itself. Only the former begins with [."""
    told = bytes(raw)
    return told.decode() if told.startswith(b"[") else _string(told)


def _quoted(value: object) -> bytes | None:
    return None if value is None else _encode(value)


def batch_of(envelope: Mapping[str, Any], items: Iterable[Item]) -> Batch:
    """Return a sound answer as a Batch, its items in order of their indexes."""
    return Batch(envelope=envelope, items=tuple(sorted(items, key=lambda item: item.index)))
