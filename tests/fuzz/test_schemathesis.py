"""Requests made from our own documents, valid and not: never a 5xx, and every answer is as the document says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rawhttp import request_bytes, send_raw

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
)
EXAMPLES, LONGEST_S = 60, int(os.environ.get("FUZZ_SECONDS", "30"))


async def schemathesis(document_url: str, key: str, *more: str) -> tuple[int | None, str]:
    """Run it in a process of its own: its worker threads and its pytest plugin stay out of this one."""
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).parent / "schemathesis", "run", document_url),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
        *(
            "--max-time",
            str(LONGEST_S),
            "--seed",
            "3",
            "--request-timeout",
            "10",
            "--continue-on-failure",
            "--no-color",
        ),
        *("--suppress-health-check", "all", "--no-shrink", "--header", f"authorization: Bearer {key}", *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(3 * LONGEST_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, said.decode("utf-8", "replace")


async def test_the_data_port_keeps_its_word(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    code, said = await schemathesis(f"{proxy.url}/openapi.json", key)
    assert code == 0, said[-6000:]
    assert upstream.calls > EXAMPLES
    assert (await send_raw(proxy.url, request_bytes("GET", "/readyz"), "GET")).status == 200


async def test_the_admin_port_keeps_its_word(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    code, said = await schemathesis(f"{proxy.admin_url}/admin/v1/openapi.json", key)
    assert code == 0, said[-6000:]
    assert upstream.calls == 0
