"""OpenAI's embeddings as a real backend gives them: a vector that only its input decides, in either encoding."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PATH = "/v1/embeddings"
MODEL = "text-embedding-3-small"
DIMENSIONS = 8


def request(value: object, **fields: Any) -> dict[str, Any]:
    """Return an embeddings request; `fields` are added."""
    return {"model": MODEL, "input": value, **fields}


def inputs(value: object) -> list[str | list[int]]:
    """Return the inputs in the field `input`."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []
    return [value] if value and all(isinstance(item, int) for item in value) else value


def vector(model: str, one: str | list[int], dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return the unit vector of an input, shape (dimensions,)."""
    digest = hashlib.sha256(f"{model}:{one!r}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest)).standard_normal(dimensions)
    return (drawn / np.linalg.norm(drawn)).astype("<f4")


def embedding(model: str, one: str | list[int], dimensions: int, encoding: str | None) -> list[float] | str:
    """Return the vector of an input as it is written."""
    floats = vector(model, one, dimensions)
    if encoding == "base64":
        return base64.b64encode(floats.tobytes()).decode()
    return [float(str(number)) for number in floats]  # the shortest decimals, as OpenAI writes them


def tokens(one: str | list[int]) -> int:
    """Return what an input counts for: its tokens, or its words."""
    return len(one) if isinstance(one, list) else len(str(one).split())


def whole(body: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the answer to a request; `fields` replace or add top-level fields."""
    model, asked = str(body.get("model") or MODEL), inputs(body.get("input"))
    dimensions, encoding = body.get("dimensions") or DIMENSIONS, body.get("encoding_format")
    data = [
        {"object": "embedding", "index": index, "embedding": embedding(model, one, dimensions, encoding)}
        for index, one in enumerate(asked)
    ]
    counted = sum(map(tokens, asked))
    usage = {"prompt_tokens": counted, "total_tokens": counted}
    return {"object": "list", "data": data, "model": model, "usage": usage, **fields}


def default_answer(body: Mapping[str, Any], call: int) -> tuple[bytes, list[bytes]]:
    """Answer a request deterministically, whatever the number of the call: a vector has nothing to tell of it."""
    return msgspec.json.encode(whole(body)), []
