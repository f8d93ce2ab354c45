"""What every dialect's reading of a request shares: wire fields, soundness, state, and the two fingerprints.

The fingerprints are SHA-256 over canonical JSON; the exact one extends the compatibility one by the last user text.
Entries of earlier versions are found by them: their form is not to be changed (tests/unit/test_query_keys.py). Of a
conversation that is a chain (query/chain.py) the earlier texts are part of the exact one alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cacheproxy.model import Common, Query, Trait, Wire
from cacheproxy.query.canonical import canonical
from cacheproxy.query.chain import asks_again

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.model import Controls, Scope

# Fields that shape only the wire. Everything else, known or not, is part of both fingerprints.
_WIRE_FIELDS = frozenset({"stream", "stream_options"})
_WIRE_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
_STATE_FIELDS = ("previous_response_id", "conversation", "conversation_id", "thread_id", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a dialect made of a body.

    `content` names the fields that hold the conversation; `blanked` is their value with `texts`, which may be matched
    by similarity, taken out. With a `chain`, `blanked` holds its shape, and `history` the messages as they came.
    """

    dialect: str
    content: frozenset[str]
    blanked: object = field(repr=False)
    texts: Sequence[str] = field(repr=False)
    traits: frozenset[Trait]
    system: str = field(default="", repr=False)
    earlier: tuple[str, ...] = field(default=(), repr=False)
    chain: tuple[str, ...] = field(default=(), repr=False)
    history: Sequence[object] = field(default=(), repr=False)


def query_of(reading: Reading, body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes) -> Query:
    """Return the Query of a decoded body.

    `variant` is what else of the HTTP request changes the answer (the query string, beta features).
    """
    options = body.get("stream_options")
    wire_options = options if isinstance(options, dict) else {}
    rest = {key: value for key, value in body.items() if key not in _WIRE_FIELDS and key not in reading.content}
    extra = {key: value for key, value in wire_options.items() if key not in _WIRE_OPTIONS}
    head = [reading.dialect, scope.tenant, scope.namespace, variant.decode("latin-1")]
    texts = [list(reading.history), list(reading.texts)] if reading.chain else reading.texts
    compatibility, fingerprint = keys([head, rest, extra, reading.blanked], texts)
    model, temperature, text = body.get("model"), body.get("temperature"), "\n".join(reading.texts)
    return Query(
        dialect=reading.dialect,
        scope=scope,
        model=model if isinstance(model, str) else "",
        text=text,
        text_digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(),
        fingerprint=fingerprint,
        compatibility=compatibility,
        wire=Wire(stream=body.get("stream") is True, include_usage=wire_options.get("include_usage") is True),
        controls=controls,
        traits=reading.traits | frozenset(_shared_traits(body, scope)) | _repeats(text, reading.earlier),
        temperature=temperature if isinstance(temperature, int | float) else None,
        system=reading.system,
        earlier=reading.earlier,
        chain=reading.chain,
        common=_common(reading.dialect, scope, variant, [rest, extra, reading.blanked], texts),
    )


def keys(fixed: object, texts: Sequence[object]) -> tuple[bytes, bytes]:
    """Return the compatibility fingerprint of what must be equal, and the exact one, which adds the texts."""
    compatibility = hashlib.sha256(canonical(fixed)).digest()
    return compatibility, hashlib.sha256(compatibility + canonical(texts)).digest()


def _common(
    dialect: str, scope: Scope, variant: bytes, fixed: Sequence[object], texts: Sequence[object]
) -> Common | None:
    """Return what a request is in the scope that tenants share: nothing but the tenant is left out."""
    if not scope.common:
        return None
    head = [dialect, scope.common, scope.namespace, variant.decode("latin-1")]
    compatibility, fingerprint = keys([head, *fixed], texts)
    return Common(tenant=scope.common, compatibility=compatibility, fingerprint=fingerprint)


def asks_for_format(response_format: object) -> bool:
    """Whether an answer in another form than plain text is asked for."""
    return response_format is not None and response_format != {"type": "text"}


def asks_for_audio(body: Mapping[str, Any]) -> bool:
    """Whether a spoken answer is asked for."""
    modalities = body.get("modalities")
    return bool(body.get("audio")) or (isinstance(modalities, list) and "audio" in modalities)


def _repeats(text: str, earlier: Sequence[str]) -> frozenset[Trait]:
    return frozenset({Trait.ASKED_AGAIN} if asks_again(text, earlier) else ())


def _shared_traits(body: Mapping[str, Any], scope: Scope) -> Iterator[Trait]:
    if not scope.tenant:
        yield Trait.ANONYMOUS
    if not _sound(body):
        yield Trait.UNREADABLE
    if any(body.get(name) for name in _STATE_FIELDS):
        yield Trait.STATEFUL


def _sound(body: Mapping[str, Any]) -> bool:
    """Whether the fields this module reads have the types it reads them as (a backend may take "1.5" for a number)."""
    options, temperature = body.get("stream_options"), body.get("temperature")
    return (
        isinstance(body.get("stream"), bool | None)
        and isinstance(options, dict | None)
        and all(isinstance((options or {}).get(option), bool | None) for option in _WIRE_OPTIONS)
        and isinstance(temperature, int | float | None)
        and not isinstance(temperature, bool)
    )
