"""Variants: what sets two requests apart when a backend chose its answer by their headers (RFC 9111 section 4.1)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cacheproxy.query.canonical import canonical
from cacheproxy.query.scope import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Query

    Headers = tuple[tuple[bytes, bytes], ...]

# They are the scope: every entry a request can meet came of the same ones.
_SCOPE = frozenset(CREDENTIALS)


def selectable(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the request headers that a backend may choose an answer by; credentials, which are the scope, left out."""
    return tuple([header for header in headers if header[0] not in _SCOPE])


def variant(query: Query, names: tuple[str, ...]) -> bytes:
    """Return a digest (32 bytes) of these headers' values in a request; b"" for no names.

    A header sent several times is one list, white space around values does not count, and an absent header is a value
    of its own. The digest covers the scope, as fingerprints do: equal values of two tenants have nothing in common.
    """
    if not names:
        return b""
    values = [
        [value.strip().decode("latin-1") for key, value in query.headers if key == name.encode()] for name in names
    ]
    told = [[name, ", ".join(value) if value else None] for name, value in zip(names, values, strict=True)]
    return hashlib.sha256(canonical(["vary", query.scope.tenant, query.scope.namespace, told])).digest()


def variant_key(query: Query, digest: bytes) -> bytes:
    """Return what stands for one variant of a request as its fingerprint stands for the request (32 bytes)."""
    return hashlib.sha256(query.fingerprint + digest).digest()
