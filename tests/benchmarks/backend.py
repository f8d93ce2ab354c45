"""The scripted backend as a process: `python -m tests.benchmarks.backend`."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from tests.support.upstream import ScriptedUpstream


async def main() -> None:
    """Serve until ended."""
    async with ScriptedUpstream() as upstream:
        sys.stderr.write(json.dumps({"event": "server_started", "port": upstream.port}) + "\n")
        sys.stderr.flush()
        while True:
            await asyncio.sleep(1)
            upstream.reset()  # what it recorded


if __name__ == "__main__":
    uvloop.run(main())
