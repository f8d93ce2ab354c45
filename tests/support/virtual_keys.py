"""Virtual keys for tests: records, rings, and a proxy that asks for them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec import structs

from cacheproxy.access.keyfile import change_keys
from cacheproxy.access.keyring import KeyRecord, Keyring, key_digest, new_key, ring_of
from cacheproxy.install import install_secret
from tests.support.proxy import Proxy, proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

SECRET = b"s" * 32
KEY = "sk-cp-" + "k" * 43


def record(key: str = KEY, secret: bytes = SECRET, **fields: Any) -> KeyRecord:
    """Return the record of a key."""
    named: dict[str, Any] = {"id": "k1", "name": "first", "tenant": "first", **fields}
    return KeyRecord(hash=key_digest(key.encode(), secret).hex(), **named)


def ring(*records: KeyRecord, environ: Mapping[str, str] | None = None) -> Keyring:
    """Return a ring of records."""
    return ring_of(records, SECRET, environ or {})


class KeyFile:
    """The keys of one data directory, as an operator changes them."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "keys.json"
        self._secret = install_secret(data_dir)
        self._made = 0

    def add(self, **fields: Any) -> str:
        """Make a key and return it."""
        self._made += 1
        name = f"key{self._made}"
        key = new_key()
        made = record(key, self._secret, **{"id": name, "name": name, "tenant": name, **fields})
        change_keys(self.path, self._secret, lambda records: [*records, made])
        return key

    def revoke(self, key_id: str) -> None:
        """Revoke a key."""

        def each(records: list[KeyRecord]) -> list[KeyRecord]:
            return [structs.replace(found, revoked=True) if found.id == key_id else found for found in records]

        change_keys(self.path, self._secret, each)


@asynccontextmanager
async def keyed_proxy(upstream_url: str, data_dir: Path, **sections: Mapping[str, object]) -> AsyncIterator[Proxy]:
    """Run a proxy that asks for virtual keys; the directory must hold some."""
    sections = {**sections, "access": {"mode": "keys", **sections.get("access", {})}}
    async with started(proxy_settings(upstream_url, data_dir, **sections)) as live:
        yield live
