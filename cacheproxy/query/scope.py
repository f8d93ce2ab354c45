"""Who asks: the tenant behind a credential, without keeping the credential."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CREDENTIALS = (b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key")
ACCOUNTS = (b"openai-organization", b"openai-project")


def tenant_of(label: str, secret: bytes) -> str:
    """Return the tenant of a virtual key's tenant label.

    What `read_scope` digests begins with the name of a credential header, so no credential can pass for a label.
    """
    return hmac.digest(secret, b"virtual-tenant=" + label.encode(), "sha256").hex()


def common_of(secret: bytes) -> str:
    """Return the scope in which answers of several tenants may meet; no credential and no label can pass for it."""
    return hmac.digest(secret, b"common-to-tenants", "sha256").hex()


def user_of(name: object, secret: bytes) -> str:
    """Return what stands for an end user of this name, digested as a tenant is; "" for no name."""
    if not isinstance(name, str) or not name.strip():
        return ""
    return hmac.digest(secret, b"user=" + name.strip().encode("utf-8", "surrogatepass"), "sha256").hex()


def read_user(body: Mapping[str, Any], secret: bytes) -> str:
    """Return the end user that a body names, as `user_of`: its `safety_identifier` or else its `user`; "" for none."""
    return user_of(body.get("safety_identifier"), secret) or user_of(body.get("user"), secret)


def read_scope(headers: Iterable[tuple[bytes, bytes]], secret: bytes, namespace: str = "") -> Scope:
    """Return the scope of a request.

    The tenant is the HMAC-SHA256, under the install's secret, of the credential (`Authorization`, `api-key`,
    `x-api-key`, `x-goog-api-key`) with the OpenAI organisation and project it acts for; "" when there is no credential.
    The scheme's case does not count, the key's does. Raises InvalidRequest when a credential header comes twice.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in CREDENTIALS or name in ACCOUNTS:
            if name in found:
                raise InvalidRequest(f"the header {name.decode()} was sent more than once; send one credential")
            found[name] = value.strip()
    if b"authorization" in found:
        scheme, _, key = found[b"authorization"].partition(b" ")
        found[b"authorization"] = scheme.lower() + b" " + key.strip() if key.strip() else b""
    if not any(found.get(name) for name in CREDENTIALS):
        return Scope(tenant="", namespace=namespace)
    # Each value is written after its length, so that no value can pass for the next header.
    material = b"".join(
        b"%s=%d:%s" % (name, len(found[name]), found[name]) for name in (*CREDENTIALS, *ACCOUNTS) if found.get(name)
    )
    return Scope(tenant=hmac.digest(secret, material, "sha256").hex(), namespace=namespace)
