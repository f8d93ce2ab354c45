"""HTTP requests as a hostile or broken client sends them: valid ones by a small grammar, then damaged in many ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.support import openai_wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

REQUEST_LINE = re.compile(rb" HTTP/1\.[01]\r?\n", re.IGNORECASE)
"""Nothing that reached a backend may have come without one of these."""

_INNER = b"GET /v1/inner HTTP/1.1\r\nhost: inner\r\n\r\n"
_TARGETS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/gpt-4o",
    "/v1/files?purpose=a&purpose=b",
    "/v1/audio/speech",
    "/v1/cache/feedback",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/nowhere",
]
_ADMIN_TARGETS = ["/healthz", "/readyz", "/metrics", "/admin/v1/explain", "/admin/v1/openapi.json", "/admin/v1/nowhere"]
_BODIES: dict[str, list[object]] = {
    "/v1/chat/completions": [
        {"model": "m", "messages": [{"role": "user", "content": "What is the tallest tower?"}]},
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "n": 2,
        },
        {"model": "m", "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "messages": []},
    ],
    "/v1/completions": [{"model": "m", "prompt": "Once upon"}, {"model": "m", "prompt": ["a", "b"], "stream": True}],
    "/v1/responses": [
        {"model": "m", "input": "Say hello."},
        {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "stream": True},
        {"model": "m", "input": "x", "previous_response_id": "resp_1", "store": True},
    ],
    "/v1/embeddings": [
        {"model": "e", "input": "text"},
        {"model": "e", "input": ["a", "b"], "encoding_format": "base64"},
    ],
    "/v1/cache/feedback": [{"id": "chatcmpl-1", "verdict": "bad", "comment": "no"}],
    "/admin/v1/explain": [{"text": ""}, {"request": {"model": "m", "messages": []}, "category": "nonsense"}],
}
_HEADERS = [
    b"accept: */*",
    b"accept-encoding: gzip, deflate",
    b"cache-control: no-cache",
    b'cache-control: max-age=5, min-fresh=1, x="y"',
    b"connection: keep-alive",
    b"connection: x-a, close",
    b"content-encoding: identity",
    b"cookie: a=b",
    b"expect: 100-continue",
    b"openai-beta: assistants=v2",
    b"te: trailers",
    b"upgrade: h2c",
    b"x-a: \xc3\xa9\xff",
    b"x-cacheproxy-namespace: a",
    b"x-cacheproxy-tags: a,b",
    b"x-cacheproxy-tier: exact",
    b"x-cacheproxy-ttl: 5",
    b"x-stainless-lang: python",
]
_NASTY = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"\xff",
    b"\xed\xa0\x80",
    b"%00",
    b"%0d%0a",
    b"../",
    b"//",
    b"chunked",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"-1",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"host: evil\r\n",
    b" HTTP/1.1\r\n",
    b"HTTP/1.0",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 200,
    b'{"a":' * 200,
    b'"' * 3,
    b"9" * 400,
    _INNER,
]


class Mutator:
    """Makes requests, valid and damaged, from one seeded source of chance."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ways: list[Callable[[bytearray], bytes]] = [
            self._flip,
            self._flip,
            self._insert,
            self._insert,
            self._delete,
            self._repeat,
            self._splice,
            self._cut,
            self._header_game,
            self._length_game,
            self._line_ends,
        ]

    def valid(self, *, admin: bool = False) -> bytes:
        """Return a well-formed request; its body may hold the text of another one."""
        return self._request(admin=admin, damage=False)

    def damaged(self, *, admin: bool = False) -> bytes:
        """Return a request with one to four damages: half the time of its body alone, rightly framed."""
        if self._random.random() < 0.5:
            return self._request(admin=admin, damage=True)
        return self._hurt(self.valid(admin=admin))

    def _hurt(self, data: bytes) -> bytes:
        for _ in range(self._random.choice([1, 1, 1, 2, 2, 3, 4])):
            data = self._random.choice(self._ways)(bytearray(data or b" "))
        return data

    def _request(self, *, admin: bool, damage: bool) -> bytes:
        random = self._random
        target = random.choice(_ADMIN_TARGETS if admin else _TARGETS)
        bodies = _BODIES.get(target)
        method = "POST" if bodies else random.choice(["GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT"])
        body = openai_wire.encode(random.choice(bodies)) if bodies else b"" if method == "GET" else _INNER
        if bodies and random.random() < 0.1:
            body = body[:-1] + b',"x":"' + _INNER.replace(b"\r\n", b"\\r\\n") + b'"}'
        if damage:
            body = self._hurt(body)
        lines = [f"{method} {target} HTTP/1.1".encode(), b"host: fuzz", b"authorization: Bearer sk-fuzz"]
        lines += random.sample(_HEADERS, random.randrange(4))
        if bodies:
            lines += [b"content-type: application/json", b"x-cacheproxy-tier: exact"]
        if random.random() < 0.3 and body:
            lines.append(b"transfer-encoding: chunked")
            body = self._chunks(body)
        elif body or method != "GET":
            lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join([*lines, b"", body])

    def _chunks(self, body: bytes) -> bytes:
        random, out, rest = self._random, [], body
        while rest:
            size = random.randint(1, len(rest))
            piece, rest = rest[:size], rest[size:]
            out.append(b"%x%b\r\n%b\r\n" % (size, random.choice([b"", b"", b";a=b", b';x="y;z"']), piece))
        out.append(random.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n", b"00\r\n\r\n"]))
        return b"".join(out)

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> bytes:
        for _ in range(self._random.choice([1, 1, 2, 8])):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        return bytes(data)

    def _insert(self, data: bytearray) -> bytes:
        at = self._place(data)
        return bytes(data[:at] + self._random.choice(_NASTY) * self._random.choice([1, 1, 1, 3]) + data[at:])

    def _delete(self, data: bytearray) -> bytes:
        at = self._place(data)
        return bytes(data[:at] + data[at + self._random.choice([1, 1, 2, 10, 50]) :])

    def _repeat(self, data: bytearray) -> bytes:
        at = self._place(data)
        piece = data[at : at + self._random.choice([1, 4, 20, 100])]
        return bytes(data[:at] + piece * self._random.choice([2, 3, 40]) + data[at:])

    def _splice(self, data: bytearray) -> bytes:
        other = self.valid()
        return bytes(data[: self._place(data)]) + other[self._random.randrange(len(other)) :]

    def _cut(self, data: bytearray) -> bytes:
        return bytes(data[: max(1, self._place(data))])

    def _header_game(self, data: bytearray) -> bytes:
        lines = bytes(data).split(b"\r\n")
        at = self._random.randrange(len(lines))
        match self._random.randrange(6):
            case 0:
                lines.insert(at, lines[at])
            case 1:
                del lines[at]
            case 2:
                lines[at] = lines[at].swapcase()
            case 3:
                lines[at] = b" " + lines[at]
            case 4:
                lines[at] = lines[at].replace(b":", self._random.choice([b" :", b"", b"::", b":\x0b"]), 1)
            case _:
                lines[at:at] = [b"x-%d: %b" % (number, b"v" * 40) for number in range(self._random.choice([3, 120]))]
        return b"\r\n".join(lines)

    def _length_game(self, data: bytearray) -> bytes:
        wrong = self._random.choice([b"0", b"1", b"+5", b"-1", b"5, 5", b"0x10", b"99", b"9" * 25, b" ", b"1e1"])
        return re.sub(rb"content-length: \d+", b"content-length: " + wrong, bytes(data))

    def _line_ends(self, data: bytearray) -> bytes:
        end = self._random.choice([b"\n", b"\r", b"\r\n\r\n", b"\n\r"])
        return bytes(data).replace(b"\r\n", end, self._random.choice([1, 2, -1]))
