"""A SuperNode that runs the app that is installed beside it, and no other: what a server sends is only compared.

Flower hands a node its app's code together with the work, and runs it. Here the node says no to any but its own, so
that what may leave it is decided by what its operator has installed. Run as `python -m cacheproxy_federated.supernode`
with the options of `flower-supernode`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flwr.supernode.start_client_internal as flower
import structlog
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supernode.cli import flower_supernode

if TYPE_CHECKING:
    from collections.abc import Callable

APP = Path(__file__).parents[1]
"""The app of this installation."""
_MOST_BYTES = 32 << 20
_VOUCHED = {"valid_license": "the app of this installation"}

_log = structlog.get_logger()


def own_digest() -> str:
    """Return the digest of this installation's app."""
    return digest_of(build_fab_from_disk(APP))


def digest_of(packed: bytes) -> str:
    """Return SHA-256 over the names and contents of all files in an app as Flower packs it; "" for what is no such.

    Not over the archive: machines compress differently.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            files = archive.infolist()
            if sum(file.file_size for file in files) > _MOST_BYTES:
                return ""
            told = [(file.filename, hashlib.sha256(archive.read(file)).hexdigest()) for file in files]
    except Exception:  # the border to strangers: broken, encrypted, compressed in ways that are not here, too large
        return ""
    return hashlib.sha256(repr(sorted(told)).encode()).hexdigest()


def only(digest: str) -> None:
    """Let this process run no app but that of a digest; a server that sends another one gets an error reply."""
    pull = flower._pull_and_store_message

    def checked(get_fab: Callable[[str, int], Fab]) -> Callable[[str, int], Fab]:
        def get(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            same = digest_of(fab.content) == digest
            if not same:
                _log.error("app_refused", todo="install the server's version of cacheproxy here, or this one there")
            return Fab(fab.hash_str, fab.content, _VOUCHED if same else {})

        return get

    def guarded(*, get_fab: Callable[[str, int], Fab], trusted_entities: Any, **rest: Any) -> int | None:
        # Flower asks for a signature only where somebody is trusted: it is the digest that vouches here.
        return pull(get_fab=checked(get_fab), trusted_entities={"installed": digest}, **rest)

    flower._pull_and_store_message = guarded  # type: ignore[assignment]  # it is called by keywords alone
    flower._verify_fab = lambda fab, trusted_entities: fab.verifications == _VOUCHED


if __name__ == "__main__":
    only(own_digest())
    flower_supernode()
