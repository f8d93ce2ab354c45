"""Whom a node and a server let do what, beyond what Flower asks for."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import flwr.supernode.start_client_internal as flower
import pytest
from cacheproxy_federated import supernode
from cacheproxy_federated.superlink import FleetOnly
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's, as it packs apps
HERE, ELSEWHERE = ("127.0.0.1", 40000), ("203.0.113.7", 40000)


def with_file(packed: bytes, name: str, content: str) -> bytes:
    """Return an app with one more file."""
    made = io.BytesIO(packed)
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(name, content)
    return made.getvalue()


def handed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> tuple[Fab, bool]:
    """Return what a guarded node gets of an app that a server sends, and whether Flower would run it."""
    got: list[Any] = []

    def pull(*, get_fab: Any, trusted_entities: dict[str, str], **rest: Any) -> int:
        fab = get_fab("hash", 1)
        # As in Flower: an app without a valid licence is refused before its signatures are looked at.
        runs = bool(trusted_entities and fab.verifications.get("valid_license", ""))
        got.extend((fab, runs and flower._verify_fab(fab, trusted_entities)))
        return 1

    monkeypatch.setattr(flower, "_verify_fab", flower._verify_fab)
    monkeypatch.setattr(flower, "_pull_and_store_message", pull)
    supernode.only(supernode.own_digest())
    flower._pull_and_store_message(get_fab=lambda told, run: Fab(told, content, {}), trusted_entities=None)  # type: ignore[call-arg]  # ours
    return got[0], got[1]


def test_a_node_runs_the_app_that_is_installed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = build_fab_from_disk(supernode.APP)
    fab, runs = handed(monkeypatch, own)
    assert (fab.content, runs) == (own, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("cacheproxy_federated/more.py", "x = 1"), ("cacheproxy_federated/client_app.py", "import os"), ("a", "")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_node_refuses_any_other_app(name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, runs = handed(monkeypatch, with_file(build_fab_from_disk(supernode.APP), name, content))
    assert not runs


def spoiled(flags: int, method: int) -> bytes:
    """Return an archive of one file that is said to be encrypted, or compressed by other means than it is."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("name", b"content" * 100)
    content = bytearray(made.getvalue())
    for start, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        header = content.index(start) + at
        content[header], content[header + 2] = flags, method
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", b"PK\x03\x04 cut off", spoiled(1, 0), spoiled(0, 8), spoiled(0, 14), spoiled(0, 99)],
)
def test_a_node_refuses_what_is_no_app(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not handed(monkeypatch, content)[1]


def test_the_digest_of_an_app_does_not_depend_on_how_it_was_packed() -> None:
    packed = build_fab_from_disk(supernode.APP)
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_STORED) as new:
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    assert again.getvalue() != packed
    assert supernode.digest_of(again.getvalue()) == supernode.digest_of(packed) != ""


@pytest.mark.parametrize(
    ("client", "path", "status"),
    [
        (HERE, "/v1/control/start-run", 200),
        (("::1", 1), "/v1/runtime/pull", 200),
        (("10.0.0.5", 1), "/v1/control/start-run", 200),
        (ELSEWHERE, "/v1/fleet/pull-messages", 200),
        (ELSEWHERE, "/health", 200),
        (ELSEWHERE, "/v1/control/start-run", 403),
        (ELSEWHERE, "/v1/runtime/pull", 403),
        (ELSEWHERE, "/v1/fleet/../control/start-run", 403),
        (ELSEWHERE, "/v1/fleetcontrol", 403),
        (ELSEWHERE, "/docs", 403),
        (("somewhere", 1), "/v1/control/start-run", 403),
        (None, "/v1/control/start-run", 403),
    ],
)
async def test_only_nodes_may_call_the_server_from_another_machine(
    client: tuple[str, int] | None, path: str, status: int
) -> None:
    async def flower_app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request"}

    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "client": client, "headers": []}
    await FleetOnly(flower_app)({**scope, "server": ("10.0.0.5", 9092)}, receive, send)
    assert sent[0]["status"] == status
