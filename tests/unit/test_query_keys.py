"""The fingerprints of stored entries: an earlier version's entries must still be found."""

from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.model import Controls, Scope
from cacheproxy.query.chat import read_chat

SCOPE = Scope(tenant="a" * 64, namespace="n")


def talk(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **fields}


HI = {"role": "user", "content": "Hi"}
PARTS = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "é\u2028"}]
PICTURE = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]

# As version 0.1 wrote them: request, compatibility fingerprint, exact fingerprint.
GOLDEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": (
        talk(HI),
        "f5407682f1e013590cc528570e4b979038c59c02666a9a90a000c7ac652cc4f1",
        "3b2f07c1d156b58ec40be3f3b0c07c56fc644c1f30a67eab92ccb1b77446fec4",
    ),
    "rich": (
        talk(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": PARTS},
            temperature=0.2,
            stop=["\n"],
            vendor={"b": 1, "a": [None, 2.5]},
        )
        | {"model": "gpt-4o-mini"},
        "c2e5f9cb01c41c8ac5fa9657a0d1361211c06d69288ba6509fbf2f71f3a00e32",
        "958861eee7219d02dd9152215e5e77cb53d24410845373c535cfd86a0244f1fe",
    ),
    "streamed": (
        talk(HI, stream=True, stream_options={"include_usage": True, "chunk_size": 5}),
        "523453ecdc29363625d4c86985081cc288f36a01f11ad131f316d874fd824390",
        "f2a75d268ea1502d2aeacc047ecf42e7645f1c1c72ecd4de156f9c46aaf99578",
    ),
    "tools": (
        talk(
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
            tools=[{"type": "function", "function": {"name": "weather"}}],
            tool_choice="none",
        ),
        "220538a2ac1b122c4d56e314f2ce2163011f00af373881c25d7827488f19e27e",
        "c5e29b5dc38161a8e51d9748d8fb0355c3ba4a7b6ec2ed9fc982e7044af13cdc",
    ),
    "image": (
        talk({"role": "user", "content": PICTURE}),
        "ff0dea89c57bc29b4d08052e342cb94d7fe3b8c0eff1f3d52d4005dacb882b32",
        "ea9aad8eed5ae5b90c6949f2f6ce6a1fff02d019f69956a75fd0619980ff47a9",
    ),
    "unreadable": (
        {"model": "m", "messages": "Hi"},
        "cb71b000686a63ef80057cc45399001c922429b05222737c857dc900764700e8",
        "dd34a9cae57896c7a907ddf88277462a207b8845becde86ac6d3191b1f10a8ec",
    ),
}


@pytest.mark.parametrize(("body", "compatibility", "fingerprint"), GOLDEN.values(), ids=GOLDEN)
def test_the_entries_of_earlier_versions_are_still_found(
    body: dict[str, Any], compatibility: str, fingerprint: str
) -> None:
    query = read_chat(body, SCOPE, Controls(), b"?api-version=1")
    assert (query.compatibility.hex(), query.fingerprint.hex()) == (compatibility, fingerprint)
