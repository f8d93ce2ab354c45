"""Whose key a backend is sent: its own, the caller's, or none. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError
from cacheproxy.query.scope import ACCOUNTS, CREDENTIALS
from cacheproxy.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.ports import Call
    from cacheproxy.settings import Settings

_CALLERS_OWN = frozenset(name.decode() for name in (*CREDENTIALS, *ACCOUNTS)) | {"cookie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What one backend may be sent: `own` is its own key; `callers` says whether callers' own headers may go to it.

    `assigned`: whether the upstream key of a caller's virtual key is meant for it, as it is for the default backend.
    """

    own: Secret = field(default=Secret(""), repr=False)
    callers: bool = False
    assigned: bool = False

    @property
    def of_caller(self) -> bool:
        """Whether limits the backend puts on a key are the caller's own affair."""
        return self.callers and not self.own.reveal()


def check_key(key: Secret, section: str) -> None:
    """Raise ConfigError naming `section`.api_key for a key that cannot be sent in a header."""
    if not all("!" <= character <= "~" for character in key.reveal()):
        raise ConfigError(f"{section}.api_key: a key is visible ASCII, without spaces or line breaks; copy it again")


def operators_own(settings: Settings, names: Iterable[str]) -> bool:
    """Whether each of these backends is asked with a key of the operator's own, or is the embedded model.

    Only then a call may be made that nobody asked for: elsewhere a caller would pay for it.
    """
    embedded = settings.upstream.url == "local"
    keys = {name: bool(one.api_key.reveal()) for name, one in settings.upstreams.items()}
    return all(keys.get(name, embedded or bool(settings.upstream.api_key.reveal())) for name in names)


def keyed(call: Call, keys: Keys) -> list[tuple[str, str]]:
    """Return the call's headers with the right key: who calls with whose key, and for which account, go together."""
    key = call.upstream_key if keys.assigned and call.upstream_key else keys.own
    if not key.reveal() and keys.callers:
        return [*call.headers]
    kept = [(name, value) for name, value in call.headers if name.lower() not in _CALLERS_OWN]
    return [*kept, ("authorization", f"Bearer {key.reveal()}")] if key.reveal() else kept
