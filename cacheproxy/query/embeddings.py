"""An embeddings body to a Query of the whole request and one fingerprint for each of its inputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cacheproxy.model import Tier, Trait
from cacheproxy.query.canonical import canonical
from cacheproxy.query.keys import Reading, query_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "embeddings"
MAX_INPUTS = 2048
"""OpenAI's limit of a request; a longer list is left to the backend."""

# What is not part of an input's key: the inputs themselves, and the form in which vectors are written.
_NOT_SHARED = frozenset({"input", "encoding_format"})


class Encoding(StrEnum):
    """How a caller wants its vectors written: a list of numbers, or base64 of little-endian float32."""

    FLOAT = "float"
    BASE64 = "base64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One text or one list of tokens to embed; `weight` is its length in UTF-8 bytes or tokens."""

    fingerprint: bytes
    value: str | list[int] = field(repr=False)
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An embeddings request, understood.

    `query` stands for the whole of it: its plan holds for every input. `inputs` are in the caller's order, repeated
    ones repeated; none when the shape is not understood.
    """

    query: Query
    inputs: tuple[Input, ...]
    listed: bool
    """Whether the caller sent a list of inputs, even of one."""
    encoding: Encoding
    dimensions: int | None

    @property
    def distinct(self) -> dict[bytes, Input]:
        """The inputs by fingerprint, in order of first mention."""
        return {one.fingerprint: one for one in self.inputs}

    def key(self, inputs: Sequence[Input]) -> bytes:
        """Return what two requests to the backend for these inputs must share to be one."""
        form = b"%s,%d," % (self.encoding.encode(), self.listed)
        return hashlib.sha256(form + b"".join(one.fingerprint for one in inputs)).digest()


def read_embeddings(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Asked:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    An input's fingerprint covers scope, `variant` and every field but `encoding_format`; its place in the list does
    not count. A text and its tokens are different inputs. Nothing here is found by similarity. Policy's rules see the
    texts (`Query.inputs`); what tokens say nobody here can read.
    """
    values, listed = _inputs(body.get("input"))
    encoding, dimensions = body.get("encoding_format"), body.get("dimensions")
    sound = (
        bool(values)
        and (encoding is None or encoding in tuple(Encoding))
        and (dimensions is None or (_is_int(dimensions) and dimensions > 0))
    )
    reading = Reading(
        dialect=DIALECT,
        content=_NOT_SHARED,
        blanked=None,
        texts=(),
        traits=frozenset() if sound else frozenset({Trait.UNREADABLE}),
    )
    query = query_of(reading, body, scope, replace(controls, tiers=controls.tiers & {Tier.EXACT}), variant)
    inputs = tuple(
        Input(
            fingerprint=hashlib.sha256(query.compatibility + canonical([value])).digest(),
            value=value,
            weight=len(value.encode()) if isinstance(value, str) else len(value),
        )
        for value in (values if sound else ())
    )
    texts = dict.fromkeys(one.value for one in inputs if isinstance(one.value, str))
    return Asked(
        query=replace(query, inputs=tuple(texts)),
        inputs=inputs,
        listed=listed,
        encoding=Encoding(encoding) if sound and encoding is not None else Encoding.FLOAT,
        dimensions=dimensions if sound else None,
    )


def _inputs(value: Any) -> tuple[list[str | list[int]], bool]:
    """Return the inputs and whether they came as a list of inputs; no inputs for a shape that is not understood."""
    if isinstance(value, str) or _is_tokens(value):
        return ([value] if value else []), False
    if not isinstance(value, list) or len(value) > MAX_INPUTS:
        return [], True
    alike = all(isinstance(item, str) for item in value) or all(_is_tokens(item) for item in value)
    return (value if alike and all(value) else []), True


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_int(item) and item >= 0 for item in value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
