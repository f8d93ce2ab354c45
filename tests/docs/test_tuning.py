"""The walk through the admin API does what it says, command by command."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.markdown import read
from tests.support.process import OURS, serving

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

TUNING = read("docs/tuning.md")
STEPS = [
    (commands, (expected or "").splitlines())
    for commands, expected in re.findall(r"```sh\n(.*?)```(?:\s*```text\n(.*?)```)?", TUNING.text, re.DOTALL)
]
_MARK = "== the next step =="


def test_every_block_is_a_step() -> None:
    assert len(STEPS) == len(TUNING.blocks("sh"))
    assert sum(bool(expected) for _, expected in STEPS) == len(TUNING.blocks("text"))


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_the_walk_shows_what_it_promises(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with serving(tmp_path, upstream.url) as server:
        script = f"\nsleep 0.5; echo '{_MARK}'\n".join(
            commands.replace("http://127.0.0.1:8080", server.proxy.url) for commands, _ in STEPS
        )
        commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-u", "-c", script),
            env={**OURS, "PATH": commands, "HOME": str(tmp_path), "CACHEPROXY_DATA__DIR": str(tmp_path)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(100):
            printed = (await process.communicate())[0].decode()
        assert await server.stop() == 0
    shown = printed.split(f"{_MARK}\n")
    assert len(shown) == len(STEPS)
    for (commands, expected), told in zip(STEPS, shown, strict=True):
        rest = told
        for line in expected:
            assert line in rest, f"after\n{commands}\nthere is no {line!r} in\n{told}"
            rest = rest.partition(line)[2]
