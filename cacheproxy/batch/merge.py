"""One answer out of two: what was found in the cache, and what the backend says to the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cacheproxy.dialect import usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.batch.lookup import Found
    from cacheproxy.dialect.embeddings import Batch, Item
    from cacheproxy.query.embeddings import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The whole answer: the live one's envelope, an item for each input in the caller's order, usage of all of them.

    `usage` is None where the live answer told none.
    """

    envelope: Mapping[str, Any] = field(repr=False)
    items: tuple[Item, ...] = field(repr=False)
    usage: Any
    cached: int
    """How many of the items came from the cache."""


def merge(asked: Asked, found: Found, batch: Batch) -> Merged | None:
    """Join a live answer to what was found; None when they are of different models or lengths.

    An input that was asked for more than once counts each time, as the backend would have counted it.
    """
    alike = all(
        entry.reply.body.get("model") == batch.model and found.items[key].length == batch.length
        for key, entry in found.entries.items()
    )
    if not alike:
        return None
    shares = usage.shares(batch.envelope.get("usage"), [one.weight for one in found.missing])
    parts: dict[bytes, tuple[Item, object]] = {
        one.fingerprint: (item, share) for one, item, share in zip(found.missing, batch.items, shares, strict=True)
    }
    for key, item in found.items.items():
        parts[key] = item, found.entries[key].reply.body.get("usage")
    told = [parts[one.fingerprint] for one in asked.inputs]
    return Merged(
        envelope=batch.envelope,
        items=tuple(item for item, _ in told),
        usage=usage.added([share for _, share in told]) if "usage" in batch.envelope else None,
        cached=sum(one.fingerprint in found.items for one in asked.inputs),
    )
