"""Exchanges of every legal kind, drawn from a seed: what a caller sends, to the byte, and what the backend answers."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.openai_wire import encode, events
from tests.support.upstream import CUT, RESET, Cut, Send, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from tests.support.upstream import Step

CACHED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
PATHS = (
    "/v1/files",
    "/v1/files/file-abc/content",
    "/v1/audio/transcriptions",
    "/v1/fine_tuning/jobs",
    "/v1/odd/%2Fslash/%e2%82%ac/a+b;p=1,2/",
    "/v1//double",
    "/v1/threads/runs",
    "/v1/chat/completions/chatcmpl-1",
    "/v1/responses/resp_1/cancel",
    "/v1/images/edits",
    "/v1/~tilde/(paren)'quote!*@:$&=",
)
QUERIES = (
    "",
    "?",
    "?limit=2&after=x&limit=3&limit=2",
    "?q=%20+%2B%2b&empty=&flag&&=x",
    "?metadata[a]=1&metadata[a]=2&include[]=x",
    "?u=%E2%82%AC&bad=%zz&semi=a;b?c/d",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "PURGE", "LOCK")
STATUSES = (
    200,
    200,
    200,
    201,
    202,
    203,
    204,
    206,
    304,
    400,
    401,
    403,
    404,
    409,
    413,
    422,
    429,
    500,
    502,
    503,
    504,
    529,
)
REQUEST_HEADERS = (
    ("X-Custom", "Kept  as it is"),
    ("x-many", "one"),
    ("x-many", "two, three"),
    ("x-stainless-lang", "python"),
    ("x-stainless-retry-count", "0"),
    ("OpenAI-Beta", "assistants=v2"),
    ("OpenAI-Organization", "org-1"),
    ("idempotency-key", "a b"),
    ("x-empty", ""),
    ("accept", "text/event-stream, */*;q=0.5"),
    ("accept-encoding", "gzip, br, zstd"),
    ("user-agent", "Rig/1.0 (differential)"),
    ("cookie", "a=1; b=2"),
    ("x-latin", "caf\xe9"),
    ("x-utf-8", "東京".encode().decode("latin-1")),
    ("range", "bytes=0-99"),
    ("if-none-match", '"abc"'),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("x-forwarded-for", "203.0.113.7"),
    ("via", "1.1 other"),
)
RESPONSE_HEADERS = (
    ("Set-Cookie", "a=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT; Path=/"),
    ("set-cookie", "b=2; HttpOnly"),
    ("x-request-id", "req_123"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-tokens", "149984"),
    ("x-ratelimit-reset-requests", "6m0s"),
    ("retry-after", "3"),
    ("retry-after-ms", "2500"),
    ("x-should-retry", "false"),
    ("x-stainless-marker", "kept"),
    ("openai-processing-ms", "17"),
    ("openai-version", "2020-10-01"),
    ("ETag", 'W/"x"'),
    ("vary", "Accept-Encoding"),
    ("vary", "Origin"),
    ("cache-control", "max-age=0, private"),
    ("cache-status", "cdn.test; hit; ttl=3"),
    ("age", "12"),
    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("server", "backend/1.0"),
    ("x-many", "one"),
    ("x-many", "two,  three"),
    ("x-empty", ""),
    ("x-latin", "caf\xe9 \xfc"),
    ("x-utf-8", "Zürich 東京 🗼".encode().decode("latin-1")),
    ("content-disposition", "attachment; filename=\"a.b\"; filename*=UTF-8''%e2%82%ac"),
    ("www-authenticate", 'Bearer realm="a", error="b"'),
    ("link", '</v1/files?after=x>; rel="next"'),
    ("access-control-allow-origin", "*"),
    ("x-long", "y" * 9000),
)

_CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "br": bytes}
"""There is no brotli here: for the proxy, its bytes are as good as any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One exchange. `steps` is what the backend says, `framing` how it ends its body, `cut` where it breaks off."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: tuple[bytes, ...] | None = field(repr=False)
    """Pieces of a chunked body, one piece with a length, or None for no body at all."""
    chunked: bool
    trailers: bool
    steps: Sequence[Step] = field(repr=False)
    status: int
    framing: str
    cut: Cut | None

    def request(self) -> bytes:
        """Return the request as bytes."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "host: rig.test", "cache-control: no-store"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        pieces = self.body or ()
        if self.chunked:
            lines.append("transfer-encoding: chunked")
            data = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n"
            data += b"x-trailer: late\r\nauthorization: Bearer late\r\n\r\n" if self.trailers else b"\r\n"
        else:
            data = b"".join(pieces)
            if self.body is not None:
                lines.append(f"content-length: {len(data)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def draw(random: Random) -> Draw:
    """Draw one exchange."""
    method = random.choice(METHODS)
    cached = method == "POST" and random.random() < 0.4
    headers = [("authorization", "Bearer sk-differential")]
    headers += random.sample(REQUEST_HEADERS, random.randint(0, 9))
    target = random.choice(CACHED if cached else PATHS + CACHED[:1] * (method != "POST")) + random.choice(QUERIES)
    chunked = trailers = False
    body: tuple[bytes, ...] | None = None
    if cached:
        body = (_cached_body(random),)
        headers.append(("content-type", random.choice(("application/json", "application/json; charset=utf-8"))))
        chunked = random.random() < 0.3
    elif method not in ("GET", "HEAD", "OPTIONS") and random.random() < 0.8:
        kind, body, coding = _free_body(random)
        headers += [("content-type", kind), *coding]
        chunked = random.random() < 0.5
    if chunked and body is not None:
        trailers = random.random() < 0.3
        body = tuple(_pieces(random, b"".join(body)))
    random.shuffle(headers)
    status, framing, cut, steps = _answer(random, method)
    return Draw(
        method=method,
        target=target,
        headers=tuple(headers),
        body=body,
        chunked=chunked,
        trailers=trailers,
        steps=steps,
        status=status,
        framing=framing,
        cut=cut,
    )


def _cached_body(random: Random) -> bytes:
    told = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": f"Où? 🗼 \u2028 {random.random()}"}],
        "prompt": "x",
        "input": "x",
        "stream": random.random() < 0.5,
        "vendor": {"b": 1, "a": [1.0, None]},
    }
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * random.choice((10, 200_000))}}
    if random.random() < 0.2:
        told["messages"] = [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]
    # Spaces, escapes and number forms as no encoder of ours would write them.
    return b"{ \n" + encode(told)[1:-1].replace(b'":', b'" :  ') + b',"big": 1e2, "esc": "\\u00e9\\/" }\n'


def _free_body(random: Random) -> tuple[str, tuple[bytes, ...], list[tuple[str, str]]]:
    binary = random.randbytes(random.choice((0, 1, 700, 70_000)))
    match random.randrange(6):
        case 0:
            form = b'--b\r\ncontent-disposition: form-data; name="f"; filename="\xe2\x82\xac"\r\n\r\n' + binary
            return "multipart/form-data; boundary=b", (form + b"\r\n--b--\r\n",), []
        case 1:
            return "application/json", (b'{"a": 1,   "a": 2, "n": 1e999, "u": "\xff"}',), []
        case 2:
            return "application/json", (gzip.compress(b'{"x": 1}' * 99),), [("content-encoding", "gzip")]
        case 3:
            return "application/json", (b"",), []
        case 4:
            return "application/json", (b'{"model": "gpt-4o-mini", "deep": ' + b"[" * 100 + b"]" * 100 + b"}",), []
    return "application/octet-stream", (binary,), []


def _answer(random: Random, method: str) -> tuple[int, str, Cut | None, list[Step]]:
    status = random.choice(STATUSES)
    kind, data = _answer_body(random)
    headers = [("content-type", kind), *random.sample(RESPONSE_HEADERS, random.randint(0, 12))]
    coding = random.choice(("", "", "gzip", "deflate", "br"))
    if coding and status not in (204, 304):
        data = _CODINGS[coding](data)
        headers.append(("content-encoding", coding))
    random.shuffle(headers)
    bodiless = method == "HEAD" or status in (204, 304)
    framing = random.choice(("length", "chunked", "close"))
    if status == 204 or (bodiless and framing == "close"):
        framing = "none"
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers)]
    lines += {"length": [f"content-length: {len(data)}"], "chunked": ["Transfer-Encoding: chunked"]}.get(framing, [])
    whole = "\r\n".join([*lines, "", ""]).encode("latin-1")
    start = len(whole)
    if framing == "chunked" and not bodiless:
        data = b"".join(b"%X;x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(random, data) if piece)
        data += b"0\r\n" + (b"x-checksum: 1\r\n" if random.random() < 0.3 else b"") + b"\r\n"
    whole += b"" if bodiless else data
    cut: Cut | None = None
    if not bodiless and len(whole) > start + 1 and random.random() < 0.25:
        cut = random.choice((CUT, RESET))
        whole = whole[: random.randrange(start, len(whole) - 1)]
    elif framing == "close":
        cut = CUT
    steps: list[Step] = []
    if random.random() < 0.3:
        steps.append(Send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"))
    for piece in _pieces(random, whole):
        steps += [Send(piece), Wait(0)]
    return status, framing, cut, steps + ([cut] if cut else [])


def _answer_body(random: Random) -> tuple[str, bytes]:
    stream = b"".join(events("Voilà, c'est \u2028 東京 🗼.", include_usage=True))
    match random.randrange(8):
        case 0:
            return "application/json", encode({"object": "list", "data": [random.random()] * 50})
        case 1:
            return "application/octet-stream", random.randbytes(random.choice((0, 1, 100_000)))
        case 2:
            return "text/event-stream", stream.replace(b"\n", b"\r\n")
        case 3:
            return "text/event-stream; charset=utf-8", b"\xef\xbb\xbf" + stream.replace(b"\n", b"\r")
        case 4:
            return "text/event-stream", b": ping\n\nevent: x\nid: 1\nretry: 5\n" + stream + b"data: tail without end"
        case 5:
            return "text/event-stream", b"garbage \xff\xfe" + stream + b"\x00"
        case 6:
            return "audio/mpeg", random.randbytes(3000)
    return "text/event-stream", stream


def _pieces(random: Random, data: bytes) -> list[bytes]:
    """Cut bytes anywhere, at most a dozen times."""
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.randint(0, 12)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
