"""Short limits of the edge, and requests to it."""

from __future__ import annotations

from tests.support.rawhttp import request_bytes

CHAT, FILES = "/v1/chat/completions", "/v1/files"
HASTY = {
    "header_timeout_s": 0.4,
    "body_timeout_s": 0.6,
    "min_body_bytes_per_s": 2000,
    "write_timeout_s": 0.8,
    "keep_alive_s": 0.7,
    "max_body_bytes": 4 * 1024 * 1024,
}
MB = 1024 * 1024


def post(target: str, key: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    sent = [("content-type", "application/json"), ("authorization", f"Bearer {key}"), *headers]
    return request_bytes("POST", target, sent, body)
