"""On what condition a change is made: that what was read is still what is there."""

from __future__ import annotations


def matches(if_match: str | None, etag: str) -> bool:
    """Whether an `If-Match` header allows a change of what has this strong entity tag (RFC 9110 section 13.1.1)."""
    return if_match is None or if_match.strip() == "*" or etag in (tag.strip() for tag in if_match.split(","))
