"""Traces: what is remembered of somebody's question beside the entries, and which of it an erasure means."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cacheproxy.model import Selector

_HALF = 16
"""As much of a question's fingerprint as the id of its entry holds."""


class Trace(NamedTuple):
    """When, of whom, and about what: an entry, and a question by its exact fingerprint or the first half of it."""

    at_s: float
    tenant: str
    entry_id: str
    question: bytes
    category: str
    user: str


def meant(selector: Selector, erased: frozenset[str], trace: Trace) -> bool:
    """Whether an erasure means a trace: by one of the entries `erased`, or because all that the selector gives holds.

    Ids, tags, words, namespaces and models are known of entries only: what is chosen by them is meant as `erased`.
    """
    if trace.entry_id in erased or trace.question[:_HALF].hex() in erased:
        return True
    return (
        bool(selector)
        and not of_entries(selector)
        and selector.tenant in ("", trace.tenant)
        and selector.user in ("", trace.user)
        and selector.category in ("", trace.category)
        and (selector.before_s is None or trace.at_s < selector.before_s)
    )


def of_entries(selector: Selector) -> bool:
    """Whether a selector means by what is known of entries only."""
    named = selector.ids or selector.parents
    return bool(named or selector.tag or selector.text or selector.namespace or selector.model)
