"""Virtual keys: what is known of each, how a key is made and recognised, and when it is in force."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import msgspec

from cacheproxy.errors import ConfigError, ModelNotAllowed, NotAuthenticated
from cacheproxy.query.scope import tenant_of
from cacheproxy.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEY_PREFIX = "sk-cp-"
_KEY_BYTES = 32
_LONGEST_MODEL = 256

Limit = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Money = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Label = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]([\x20-\x7e]{0,62}[\x21-\x7e])?$")]
"""1 to 64 printable ASCII characters, no blank at either end."""
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_MODEL)]


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One virtual key as the file keeps it: everything but the key.

    `hash` is the hex of the key's HMAC-SHA256 under the install's secret. `models` are shell patterns; none means all.
    `expires` is the last day, in UTC, on which the key works. Where a small model may answer, `answer_ms` and
    `answer_usd` say how long one answer should take and what it should cost: whoever most probably keeps both answers.
    With `train` its callers let a similarity model be trained on what they ask.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    name: Label
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    tenant: Label
    models: tuple[Pattern, ...] = ()
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    answer_ms: Limit | None = None
    answer_usd: Money | None = None
    expires: date | None = None
    revoked: bool = False
    train: bool = False
    upstream_key: Secret | None = None
    upstream_key_env: str = ""

    def __repr__(self) -> str:
        """Show what names the key and nothing that helps to forge it."""
        return f"KeyRecord(id={self.id!r}, name={self.name!r})"

    def state(self, today: date) -> str:
        """Return `active`, `revoked` or `expired`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires is not None and self.expires < today else "active"

    def allows(self, model: str) -> bool:
        """Whether a model may be asked for; "", a model that cannot be seen, only with a key that is for all."""
        if not self.models:
            return True
        return 0 < len(model) <= _LONGEST_MODEL and any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A virtual key ready for use. `tenant` is the partition it shares, `upstream_key` what the backend gets."""

    record: KeyRecord
    tenant: str = field(repr=False)
    expires_s: float
    upstream_key: Secret | None = None

    def check_in_force(self, now_s: float) -> None:
        """Raise NotAuthenticated for a key that was revoked or has expired."""
        if self.record.revoked:
            raise NotAuthenticated("this API key has been revoked; ask the operator of this proxy for a new one")
        if now_s >= self.expires_s:
            raise NotAuthenticated(f"this API key expired after {self.record.expires}; ask the operator for a new one")

    def check_model(self, model: str) -> None:
        """Raise ModelNotAllowed unless the key is for this model ("": the model cannot be seen)."""
        if model.isprintable() and self.record.allows(model):
            return
        if not model:
            raise ModelNotAllowed(
                "this API key is for certain models only, and this request does not show its model: send a JSON body "
                "of at most 1 MiB, uncompressed, with a declared content-length, that names it in `model`",
                param="model",
            )
        raise ModelNotAllowed("this API key is not for that model; ask the operator of this proxy", param="model")


class Keyring:
    """All keys, found by what their HMAC is: comparing digests tells nothing about keys by the time it takes."""

    def __init__(self, keys: Mapping[bytes, Key], secret: bytes) -> None:
        self._keys = keys
        self._secret = secret

    def __len__(self) -> int:
        return len(self._keys)

    def records(self) -> list[KeyRecord]:
        """Return what is known of every key."""
        return [key.record for key in self._keys.values()]

    def find(self, key: bytes) -> Key | None:
        """Return the key, in force or not, or None for one that is not known."""
        return self._keys.get(key_digest(key, self._secret))


def key_digest(key: bytes, secret: bytes) -> bytes:
    """Return what stands for a key at rest.

    A keyed hash without a work factor is enough: a key has 256 random bits, so there is nothing to guess, with or
    without the install's secret. (A work factor, as bcrypt's, is for passwords that people choose, and would cost
    every request its milliseconds.)
    """
    return hmac.digest(secret, b"virtual-key=" + key, "sha256")


def can_be_sent(key: str) -> bool:
    """Whether a key is visible ASCII without blanks: what a header carries as it is."""
    return bool(key) and all("!" <= character <= "~" for character in key)


def install_mark(secret: bytes) -> str:
    """Return what tells which install a file of keys belongs to: under another secret none of them would be known."""
    return hmac.digest(secret, b"virtual-key-file", "sha256")[:8].hex()


def new_key() -> str:
    """Return a new key: `sk-cp-` and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def new_id(taken: set[str]) -> str:
    """Return a short public id that is not taken."""
    while (made := f"k{secrets.token_hex(4)}") in taken:
        pass
    return made


def ring_of(records: Sequence[KeyRecord], secret: bytes, environ: Mapping[str, str]) -> Keyring:
    """Return the ring of these records.

    Raises ConfigError when an `upstream_key_env` is not set or holds no key (revoked keys aside).
    Two keys share answers exactly when their tenant labels are equal.
    """
    return Keyring(
        {
            bytes.fromhex(record.hash): Key(
                record=record,
                tenant=tenant_of(record.tenant, secret),
                expires_s=_end_of(record.expires),
                upstream_key=_upstream_key(record, environ),
            )
            for record in records
        },
        secret,
    )


def _end_of(day: date | None) -> float:
    if day is None or day == date.max:
        return float("inf")
    return datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC).timestamp()


def _upstream_key(record: KeyRecord, environ: Mapping[str, str]) -> Secret | None:
    if not record.upstream_key_env or record.revoked:
        return record.upstream_key
    value = environ.get(record.upstream_key_env, "")
    if not value:
        raise ConfigError(
            f"key {record.id} ({record.name}): upstream_key_env: the environment variable {record.upstream_key_env} "
            "is not set; set it where the proxy runs"
        )
    if not can_be_sent(value):
        raise ConfigError(
            f"key {record.id} ({record.name}): upstream_key_env: the environment variable {record.upstream_key_env} "
            "holds no key: a key is visible ASCII, without blanks or line breaks; copy it again"
        )
    return Secret(value)
