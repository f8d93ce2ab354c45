"""Names: how an operator names a tenant or an end user, and what stands for them in entries."""

from __future__ import annotations

import re

from cacheproxy.errors import InvalidRequest
from cacheproxy.query.scope import tenant_of, user_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Names:
    """Digests names under the install's secret. `keyed`: callers have virtual keys, whose tenants have labels."""

    def __init__(self, secret: bytes, *, keyed: bool) -> None:
        self._secret = secret
        self._keyed = keyed

    def tenant(self, told: str) -> str:
        """Return the tenant (hex) that a label of virtual keys names, or the hex itself. Raises InvalidRequest."""
        if _DIGEST.fullmatch(told):
            return told
        if not self._keyed:
            raise InvalidRequest(
                "without virtual keys a tenant has no label: give its 64 hex digits, which entries and explain tell",
                param="tenant",
            )
        return tenant_of(told, self._secret)

    def user(self, name: str) -> str:
        """Return what stands for an end user whom bodies name like this. Raises InvalidRequest for a blank name."""
        digest = user_of(name, self._secret)
        if not digest:
            raise InvalidRequest("a user's name may not be blank", param="user")
        return digest
