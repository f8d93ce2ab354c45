"""The install that replicas share: all of them key scopes with one secret, else none would know another's callers.

Kept under the prefix are a fingerprint of the secret and, unless every replica has it from a file, the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.shared.script import Script

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

SECRET_BYTES = 32
_LEAST_BYTES = 32
_MOST_BYTES = 4096
AGREE_S = 3.0
"""Longest wait for the engine's word: no request waits for it, and a start that is busy would do without it."""

# Whoever comes first says which install this is; nobody changes it afterwards.
_AGREE = Script("""
local mark = redis.call('HGET', KEYS[1], 'mark')
if mark then
  return {mark, redis.call('HGET', KEYS[1], 'secret') or ''}
end
if ARGV[3] == '' then
  return {'', ''}
end
redis.call('HSET', KEYS[1], 'mark', ARGV[1], 'secret', ARGV[2])
return {ARGV[1], ARGV[2]}
""")


def fingerprint(secret: bytes) -> str:
    """Return what tells whether two secrets are the same one, and nothing else of them."""
    return hmac.new(secret, b"cacheproxy: the install that replicas share", hashlib.sha256).hexdigest()[:32]


def secret_of(path: Path) -> bytes:
    """Return the secret that a file gives, whatever it holds: at least 32 bytes besides blanks at its ends.

    Raises ConfigError.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).strip()
    except OSError as exc:
        raise ConfigError(f"replicas.secret_file: {path} cannot be read ({exc.strerror})") from exc
    if len(text) < _LEAST_BYTES:
        raise ConfigError(
            f"replicas.secret_file: {path} holds fewer than {_LEAST_BYTES} bytes; make one with `openssl rand -hex 32`"
        )
    return hashlib.sha256(b"cacheproxy install secret\0" + text).digest()


class Installs:
    """Which install the prefix belongs to."""

    def __init__(self, link: Link, layout: Layout, *, by_file: bool) -> None:
        """`by_file`: every replica has the secret from a file, and the engine never sees it."""
        self._link = link
        self._key = layout.key("c", "install")
        self._prefix = layout.prefix
        self._by_file = by_file

    async def agree(self, secret: bytes, *, ours: bool, publish: bool = True) -> bytes:
        """Return the secret that all replicas have: `secret` where they have none yet, and then it is theirs.

        With `ours` it is the one this data directory was used with. Raises ConfigError where another install has this
        prefix, and SharedUnavailable, also where there is none yet and this one is not to `publish` its own.
        """
        own = fingerprint(secret)
        given: list[bytes | str | int] = [own, b"" if self._by_file else secret, "publish" if publish else ""]
        mark, told = await self._link.slow_run(_AGREE, [self._key], given, AGREE_S)
        if not mark:
            raise SharedUnavailable("no replica has said yet which install this engine is of", fault="install")
        if mark.decode() == own:
            return secret
        if self._by_file:
            raise ConfigError(
                f"replicas.secret_file: the replicas at store.prefix {self._prefix!r} have another secret; give all of "
                "them the same file"
            )
        if ours:
            raise ConfigError(
                f"store.prefix: {self._prefix!r} belongs to another install than this data directory; give this one a "
                "--data-dir of its own, empty at first, or another store.prefix"
            )
        if len(told) != SECRET_BYTES:
            raise ConfigError(
                f"replicas.secret_file: the replicas at store.prefix {self._prefix!r} have their secret from a file; "
                "give this one the same"
            )
        if not hmac.compare_digest(fingerprint(told), mark.decode()):
            raise ConfigError(f"store.prefix: what is kept of the install at {self._prefix!r} is damaged")
        return bytes(told)
