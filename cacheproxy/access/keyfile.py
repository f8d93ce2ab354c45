"""The file of virtual keys: read with clear errors, changed under a lock, replaced by one rename."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.access.keyring import KeyRecord, can_be_sent, install_mark
from cacheproxy.errors import ConfigError
from cacheproxy.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_VERSION = 1


class _Numbered(msgspec.Struct, frozen=True):
    number: int = 0


def read_keys(path: Path, secret: bytes) -> list[KeyRecord]:
    """Return every record. Raises ConfigError naming file, entry and key; what an entry holds is never quoted."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: there is no such file; make the first key with `cacheproxy keys new NAME`") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
    return parse_keys(data, path, secret)


def parse_keys(data: bytes, path: Path | str, secret: bytes) -> list[KeyRecord]:
    """Return every record of a document that came from `path`. Raises as `read_keys`."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: not valid JSON ({type(exc).__name__}); restore it from a copy") from exc
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ConfigError(f'{path}: must be an object with a list "keys", as `cacheproxy keys new` writes it')
    if document.get("version") != _VERSION:
        raise ConfigError(f"{path}: version must be {_VERSION}; this file is of another version of cacheproxy")
    if document.get("install") != install_mark(secret):
        raise ConfigError(
            f"{path}: made under another install.key, so none of its keys could be known; restore that install.key "
            "beside the data, or remove this file and make new keys"
        )
    if unknown := sorted(document.keys() - {"version", "install", "number", "keys"}):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known: version, install, number, keys")
    records = [_record(path, number, entry) for number, entry in enumerate(document["keys"])]
    _check_distinct(path, records)
    return records


def change_keys(path: Path, secret: bytes, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> list[KeyRecord]:
    """Replace the records by what `change` makes of them, with no other writer in between; a missing file is empty.

    Readers see the old file or the new one, whole. Raises ConfigError.
    """
    try:
        with _locked(path):
            records = change(read_keys(path, secret) if path.exists() else [])
            replace_file(path, format_keys(records, secret))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written ({exc.strerror}); check who owns its directory") from exc
    return records


def format_keys(records: list[KeyRecord], secret: bytes) -> bytes:
    """Return the document that holds these records."""
    document = {"version": _VERSION, "install": install_mark(secret), "keys": records}
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=_reveal), indent=2) + b"\n"


def numbered(document: bytes, number: int) -> bytes:
    """Return a document with its number among those that replicas share. Raises ConfigError for what is none."""
    try:
        found = msgspec.json.decode(document, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"the keys that replicas share: not valid JSON ({type(exc).__name__})") from exc
    return msgspec.json.format(msgspec.json.encode({**found, "number": number}), indent=2) + b"\n"


def number_of(document: bytes) -> int:
    """Return the number of a document; 0 where it has none, since replicas never shared it."""
    try:
        return max(0, msgspec.json.decode(document, type=_Numbered).number)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0


def replace_file(path: Path, data: bytes) -> None:
    """Put a private file (mode 0600) in place by one rename, on disk before it is seen. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever the file is replaced or written, or None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Beside the file, since a rename gives the file itself a new identity.
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _record(path: Path | str, number: int, entry: Any) -> KeyRecord:
    told = entry.get("id") if isinstance(entry, dict) else None
    where = f"{path}: keys[{number}]" + (f" ({told[:32]!r})" if isinstance(told, str) else "")
    try:
        record = msgspec.convert(entry, KeyRecord, strict=True, dec_hook=_secret)
    except msgspec.ValidationError as exc:
        # msgspec names what it expected and where, never the value.
        raise ConfigError(f"{where}: {exc}") from exc
    if record.upstream_key is not None and record.upstream_key_env:
        raise ConfigError(f"{where}: upstream_key and upstream_key_env exclude each other; keep one")
    return record


def _check_distinct(path: Path | str, records: list[KeyRecord]) -> None:
    for field in ("id", "hash"):
        seen: set[str] = set()
        for number, record in enumerate(records):
            value = getattr(record, field)
            if value in seen:
                raise ConfigError(f"{path}: keys[{number}] ({record.id!r}): {field} is another entry's too; remove one")
            seen.add(value)


def _reveal(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(type(value))


def _secret(type_: type, value: object) -> object:
    if type_ is not Secret:
        raise NotImplementedError(type_)
    if not isinstance(value, str) or not can_be_sent(value):
        raise ValueError("Expected a key: printable ASCII without blanks")
    return Secret(value)
