"""Keys and certificates of a federation, made at once: for TLS, for nodes, and for signing heads."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

AUTHORITY, CERTIFICATE, CERTIFICATE_KEY, SIGNING = "ca.crt", "server.crt", "server.key", "signing.pem"
_DAYS = 730
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TAKEN = ("ca", "server", "signing")
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)(\*\.)?({_LABEL}\.)*{_LABEL}")


def make_keys(folder: Path, hosts: Sequence[str], nodes: Sequence[str]) -> list[Path]:
    """Write an authority and a server's certificate for some hosts, a key pair a node, and a key that signs heads.

    Private files are readable by their owner alone. The authority's own key is not kept: who needs another certificate
    makes all anew. Raises ConfigError where one of the files is there already, and for names that cannot be.
    """
    _check(hosts, nodes)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be a folder ({exc.strerror}); name another --out") from exc
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("cacheproxy federation", authority_key, None)
    server = _certificate(hosts[0], server_key, (authority, authority_key), hosts)
    signing = ed25519.Ed25519PrivateKey.generate()
    contents = {
        AUTHORITY: authority.public_bytes(serialization.Encoding.PEM),
        CERTIFICATE: server.public_bytes(serialization.Encoding.PEM),
        CERTIFICATE_KEY: _pem(server_key),
        SIGNING: _pem(signing),
    }
    for node in nodes:
        key = ec.generate_private_key(ec.SECP384R1())
        contents[f"{node}.key"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        contents[f"{node}.pub"] = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    if there := [name for name in contents if (folder / name).exists()]:
        raise ConfigError(f"{folder}: {', '.join(there)} would be overwritten; name another --out")
    for name, content in contents.items():
        mode = 0o644 if name.endswith((".crt", ".pub")) else 0o600
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    return [folder / name for name in contents]


def _check(hosts: Sequence[str], nodes: Sequence[str]) -> None:
    """Raise ConfigError for a node's name that is no file's, or another's, and for a host that no certificate names."""
    for node in nodes:
        if not _NODE.fullmatch(node):
            raise ConfigError(f"--node {node!r}: is no name of a file; use letters, digits, - and _, at most 64")
        if node.lower() in _TAKEN:
            raise ConfigError(f"--node {node}: is the name of the server's own files; choose another one")
    if len({node.lower() for node in nodes}) < len(nodes):
        raise ConfigError("--node: two nodes of one name; give each its own, for a key is what tells them apart")
    for host in hosts:
        if not (_is_address(host) or _HOST.fullmatch(host)):
            raise ConfigError(f"--host {host!r}: is no host's name or address; write others than ASCII as xn--")


def public_half(signing: Path) -> str:
    """Return what `encoder.head_keys` takes for a signing key. Raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(signing.read_bytes(), None)
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(f"{signing}: is no signing key ({type(exc).__name__})") from exc
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{signing}: is no Ed25519 key")
    return key.public_key().public_bytes_raw().hex()


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    by, signer = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage(authority=issuer is None), critical=True)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    return made.sign(signer, hashes.SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # a zone means nothing to others


def _pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
