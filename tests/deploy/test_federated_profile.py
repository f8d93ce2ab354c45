"""The profile `federated` of docker-compose.yml, its commands run as they stand: one run over two nodes, to its end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from cacheproxy.embed import headfile
from cacheproxy.federation.keys import make_keys, public_half
from cacheproxy.learn.pairfile import FILE
from tests.federated.test_apps import write_pairs
from tests.federated.test_deployment import ENCODER, ENCODER_DIM, cacheproxy
from tests.support.compose import read
from tests.support.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

SERVICES = read()["services"]


def words_of(name: str, folder: Path, port: int) -> list[str]:
    """Return a service's command after `federated`, with this machine's folders, address and port."""
    first, *rest = map(str, SERVICES[name]["command"])
    assert first == "federated"
    here = {
        "/var/lib/federated": str(folder / "federated"),
        "/var/lib/cacheproxy": str(folder / "proxy"),
        "superlink:9092": f"localhost:{port}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=9092": f"--port={port}",
    }
    for told, own in here.items():
        rest = [word.replace(told, own) for word in rest]
    return rest


@pytest.mark.slow
@pytest.mark.timeout(420)
async def test_a_run_of_the_profile_makes_a_signed_head(tmp_path: Path) -> None:
    port, keys = free_port(), tmp_path / "federated/keys"
    keys.parent.mkdir()
    make_keys(keys, ["superlink", "localhost", "127.0.0.1"], ["replica-1", "replica-2"])
    for number in (1, 2):
        folder = tmp_path / f"proxy/replica-{number}"
        folder.mkdir(parents=True, mode=0o700)
        await write_pairs(folder / FILE, number, base=ENCODER, dim=ENCODER_DIM, n=200)
    served = [*words_of("superlink", tmp_path, port), "--rounds=1", "--data-dir", str(tmp_path)]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(cacheproxy(tmp_path / "serve.log", *served))
        for name in ("node-1", "node-2"):
            await stack.enter_async_context(cacheproxy(tmp_path / f"{name}.log", *words_of(name, tmp_path, port)))
        async with asyncio.timeout(300):
            code = await server.wait()
    assert code == 0, (tmp_path / "serve.log").read_text()
    signer = public_half(keys / "signing.pem")
    assert headfile.read(tmp_path / "federated/trained/final", [signer]).manifest.base == ENCODER
