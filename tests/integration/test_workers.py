"""`cacheproxy serve --workers N` as its user starts it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("store", ["", "memory://", "sqlite:///entries.db"])
async def test_more_than_one_on_an_embedded_store_is_refused_in_one_line(tmp_path: Path, store: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", "serve", "--workers", "2", "--port", "0", "--data-dir", "data"),
        *(("--store", store) if store else ()),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    assert process.returncode == 2
    assert said.decode().startswith("cacheproxy: server.workers: 2 processes cannot share a store")
    assert "--store redis://127.0.0.1:6379/0" in said.decode()
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "data").exists()
