"""One frozen tree of settings, read once: flag > environment > file > default.

Every leaf is a TOML key (`[store] url = ...`) and an environment variable (`CACHEPROXY_STORE__URL`); a secret may be in
a file that a variable names (`CACHEPROXY_ADMIN__TOKEN_FILE`). Policy numbers (thresholds, TTLs, caps of a category) are
not settings: they live in packs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

ENV_PREFIX = "CACHEPROXY_"

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Secret(str):
    """A string whose repr and str are `***`; `reveal()` gives the value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***" if self.reveal() else "''"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def reveal(self) -> str:
        """Return the value itself."""
        return str.__str__(self)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Server(_Section, frozen=True):
    """The two listeners."""

    host: str = "127.0.0.1"
    """Address of the data port."""
    port: Port = 8080
    """Data port: OpenAI's API, /healthz, /readyz."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port; anything but loopback needs admin.token."""
    admin_port: Port = 8081
    """Admin port: /metrics, health, /admin/v1."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Processes on the data port; more than one need a store that they can share. Worker i has `admin_port` + i."""
    drain_s: Positive = 30.0
    """How long streams in flight may go on after SIGTERM."""
    lookup_timeout_ms: Count = 3000
    """Longest time both tiers together may take before a request goes on as a miss."""
    max_body_bytes: Count = 32 * 1024 * 1024
    """Largest request body of a cached route."""
    max_upload_bytes: Count = 1024 * 1024 * 1024
    """Largest request body of a passed-through route (streamed, never held)."""
    max_headers: Count = 100
    """Most headers of a request; above it 431."""
    max_header_bytes: Count = 32 * 1024
    """Most bytes of all headers together; above it 431."""
    max_target_bytes: Count = 16 * 1024
    """Longest path with query; above it 414."""
    max_depth: Count = 64
    """Deepest JSON nesting of a request."""
    header_timeout_s: Positive = 10.0
    """Longest time from a connection, or a request's first byte, until its head is whole; then 408."""
    body_timeout_s: Positive = 30.0
    """Longest silence while a request's body is awaited; then 408."""
    min_body_bytes_per_s: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Slowest body: fewer bytes over a whole `body_timeout_s` are a 408 as well; 0 allows any."""
    write_timeout_s: Positive = 60.0
    """Longest time a caller may take nothing of what was written; then the connection is cut."""
    keep_alive_s: Positive = 75.0
    """Longest pause between two requests of a connection; longer than clients pool one, so that they close first."""
    max_connections: Count = 10_000
    """Most connections of a port, fewer where the file limit asks for it; above it 503 and closed."""
    max_connections_per_client: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The same for one address; 0 is no limit, since all behind a front proxy or a NAT share one."""
    max_requests: Count = 2048
    """Most requests being answered at once; above it 503 with Retry-After. Health is exempt."""
    max_lag_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 50.0
    """Event loop lag which, while it lasts, has some requests told 503 with Retry-After: misses first; 0 has none."""
    max_held_body_bytes: Count = 512 * 1024 * 1024
    """Most bytes of request bodies held in memory at once; above it 503 with Retry-After."""


class Upstream(_Section, frozen=True):
    """The backend."""

    url: str = "https://api.openai.com/v1"
    """Base URL, or `local` for the embedded small model."""
    api_key: Secret = Secret("")
    """Sent to the backend in place of callers' own keys; with `access.mode = "pass"` on loopback only."""
    local_cache_dir: str = ""
    """Where the embedded model's converted weights are kept; empty means the data directory."""
    connect_timeout_s: Positive = 5.0
    """Longest wait for a connection; then 502."""
    first_byte_timeout_s: Positive = 120.0
    """Longest wait for the head of an answer; then 504."""
    idle_timeout_s: Positive = 60.0
    """Longest silence between two pieces of a body."""
    total_timeout_s: Positive = 900.0
    """Longest answer, first to last byte."""
    max_connections: Count = 1024
    """Most connections to a backend at once."""
    max_concurrency: Count = 1024
    """Most requests a backend answers at once, at most `max_connections`; more wait in its queue."""
    queue: Annotated[int, msgspec.Meta(ge=0)] = 1024
    """Most requests waiting for a backend, a quarter of them of one tenant; above it 503 with Retry-After."""
    queue_timeout_s: Positive = 10.0
    """Longest wait in that queue; then 503 with Retry-After."""
    retry_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10
    """Most second attempts in a hundred requests, all before the first byte; 0 is none."""
    max_decoded_bytes: Count = 16 * 1024 * 1024
    """Largest answer body of a cached route, after decoding; embeddings may have 160 MiB."""
    ask_stream_usage: bool = True
    """Ask for usage on every cacheable stream, so that its entry can serve any form; only callers who ask see it."""


class NamedUpstream(_Section, frozen=True):
    """One more backend, `[upstreams.NAME]`; its deadlines and its queue are those of `[upstream]`."""

    url: str
    """Base URL."""
    models: tuple[str, ...]
    """Names and patterns (`*`, `?`, `[...]`) of the models it answers for, after aliases."""
    weight: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1
    """Its share among the backends of the same pattern; 0 only stands in when all the others are out."""
    api_key: Secret = Secret("")
    """Sent to it in place of the caller's own key."""
    pass_key: bool = False
    """Whether callers' own keys go to it, too."""
    max_concurrency: Count | None = None
    """Most requests it answers at once; without it `upstream.max_concurrency`."""


class Small(_Section, frozen=True):
    """The small model that may answer where no kept answer may be served (docs/operations.md, "A small model")."""

    url: str = ""
    """Base URL, or `local` for the embedded one; empty means none."""
    model: str = ""
    """The name it is asked for by; required for a URL, `smollm2-135m-instruct` for `local`."""
    api_key: Secret = Secret("")
    """Its own key, the only one it is sent."""
    context_tokens: Count = 2048
    """What a prompt and its answer have together."""
    form: str = "auto"
    """How it is told examples: as `block` or as `turns`; `auto` is turns for `local`, else a block."""
    tokenizer: str = ""
    """A `tokenizer.json` to count its tokens with; empty means the embedded model's own, for a URL an estimate."""
    first_byte_timeout_s: Positive = 10.0
    """Longest wait for the first words of a stream, beside at most 2 s in its queue; then the large model answers."""
    answer_timeout_s: Positive = 20.0
    """Longest wait for the whole of an answer that is not streamed; then the large model answers."""
    total_timeout_s: Positive = 60.0
    """Longest stream; then it is cut."""
    max_concurrency: Count = 4
    """Most requests it answers at once; more wait in its queue."""
    queue: Annotated[int, msgspec.Meta(ge=0)] = 8
    """Most requests waiting for it, a quarter of them of one tenant; above it the large model answers."""
    example_capacity_tokens: Count = 2_000_000
    """Most tokens of all examples together; who helps least for its tokens rests."""


class Load(_Section, frozen=True):
    """When a backend counts as loaded: then thresholds and lifetimes give way, as far as a pack's categories let them.

    Its load is the higher of requests in flight and waiting against `max_concurrency`, and latency against `slo_ms`.
    """

    slo_ms: Positive = 60_000.0
    """The time to first byte that 19 in 20 answers should keep (a whole answer's, where it is not streamed)."""
    low: Positive = 0.7
    """Load at which policy begins to give way."""
    high: Positive = 1.0
    """Load at which it has given way as far as it may."""
    alpha: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2
    """Weight of each new sample, two a second, in the moving average."""
    hold_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """How long the average must have been lower before the load in force falls; it rises at once."""


class Learn(_Section, frozen=True):
    """What the proxy finds out about its own hits, beside the answers; how much of it, a category's pack says."""

    shadow: bool = True
    """Whether hits and refusals are compared with fresh answers, and judged, where a category asks for it."""
    queue: Count = 64
    """Most comparisons at a time; more are not begun."""
    timeout_s: Positive = 60.0
    """Longest time one comparison may take."""
    judge_model: str = ""
    """The model that judges; empty means the one that was asked."""
    judge_timeout_ms: Count = 1500
    """Longest wait for a judge before an answer is served; then it is a miss."""


class Federated(_Section, frozen=True):
    """What is collected here so that a similarity model can be trained beside it; it stays on this machine."""

    collect: str = "none"
    """Whose questions: `none`, `consenting` (virtual keys with `train`), or `all`, for whom the operator answers."""
    keep_texts: bool = False
    """Whether texts are kept beside vectors; only training of the encoder's own layers takes them."""
    max_pairs: Count = 200_000
    """Most labelled pairs kept, of 3.6 KB each with the default encoder; the oldest go first."""


class Store(_Section, frozen=True):
    """Documents."""

    url: str = ""
    """`sqlite:///FILE` or `memory://`; empty means `entries.sqlite3` in the data directory. `redis://HOST`,
    `redis+sentinel://HOST,.../SERVICE` or `redis+cluster://HOST,...` (`rediss` for TLS) make this proxy a replica."""
    password: Secret = Secret("")
    """Of the Redis that `url` names; it may also stand in the address itself."""
    prefix: str = "cacheproxy"
    """What keys of a shared engine begin with; replicas of one cache share it. 1 to 64 lower-case letters, digits, `_`,
    `.` or `-`, beginning with a letter or a digit."""
    max_entries: Count = 1_000_000
    """Above it, expired entries go, then those of categories above their quota."""
    max_bytes: Count = 4 * 1024**3
    """The same for bytes of records and vectors."""
    max_entry_bytes: Count = 1024 * 1024
    """Largest answer kept."""
    max_inserts_per_minute: Annotated[int, msgspec.Meta(ge=0)] = 60_000
    """Most answers kept a minute for one tenant; what comes beyond is answered, and not kept. 0 is no limit."""
    hot_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 * 1024 * 1024
    """Decoded documents held in memory in front of the file."""
    busy_timeout_ms: Count = 100
    """Longest wait for a file another program has locked."""


class Replicas(_Section, frozen=True):
    """Proxies that share one cache, which `store.url` names (docs/operations.md, "Replicas")."""

    timeout_ms: Count = 75
    """Longest wait for the engine in a request; then it goes on as a miss."""
    lease_ms: Annotated[int, msgspec.Meta(ge=400, le=60_000)] = 2000
    """How long a replica may serve after it last heard from the engine."""
    ack_timeout_ms: Count = 1000
    """Longest wait of a purge for the other replicas; then it answers who is behind."""
    reconcile_s: Positive = 60.0
    """Pause between comparisons of what a replica knows with what the engine holds."""
    flight_wait_ms: Count = 5000
    """Longest wait for another replica that asks the backend the same; then this one asks itself."""
    stream_wait_ms: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """The same for a caller who streams: he has no word until that answer is whole. 0 never waits."""
    secret_file: str = ""
    """A file with the secret that all replicas key their scopes with; empty lets them agree on one in the engine."""
    log_messages: Count = 100_000
    """About how many changes a log of the engine holds; who missed more reads everything again."""
    max_connections: Count = 64
    """Most connections to each server of the engine, of requests; as many again for logs and scans."""
    allow_eviction: bool = False
    """Whether to use an engine that may evict: with a `maxmemory-policy` other than `noeviction`."""
    ca_file: str = ""
    """Certificates that `rediss` trusts; empty means the system's."""


class Encoder(_Section, frozen=True):
    """The embedding model."""

    name: str = "all-MiniLM-L6-v2"
    """A known name or a directory with a sentence-transformers model (safetensors)."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`. The GPU path runs in half precision and is untested on a GPU."""
    precision: str = "fp32"
    """On a CPU: `fp32` or `int8`. Each has its own fingerprint and its own calibrated thresholds."""
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Worker threads of one core each; 0 means one per core, at most four. Lookups that wait for the verifier take
    cores first."""
    max_batch: Count = 32
    """Most texts encoded together; on a CPU 16 at most, since more gain nothing."""
    queue: Count = 4096
    """Most texts waiting; above it a request goes on as a miss."""
    cache_dir: str = ""
    """Where the exported encoder is kept; empty means `encoders` in the data directory."""
    timeout_ms: Count = 2000
    """Longest wait for an embedding before the request goes on as a miss."""
    max_wait_ms: Count = 500
    """Longest wait in the encoder's queue that more may join; meanwhile what comes goes on as a miss at once."""
    head_keys: str = ""
    """Public keys in hexadecimal digits, separated by commas, one of which must have signed a similarity head to be
    promoted; empty takes any that an operator gives."""


class Verifier(_Section, frozen=True):
    """What decides whether a similar question's answer is right (docs/verification.md)."""

    path: str = ""
    """A directory made by `cacheproxy verifier train`; empty means the shipped one; `off` means none: thresholds decide
    alone."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Worker threads of one core each."""
    queue: Count = 256
    """Most questions waiting to be verified; above it a request goes on as a miss."""
    timeout_ms: Count = 250
    """Longest wait for the verifier before the request goes on as a miss."""


class Index(_Section, frozen=True):
    """The vector index."""

    flat_limit: Count = 1024
    """Entries above which a partition becomes a graph (measured crossover)."""
    m: Count = 16
    """HNSW: links of a node."""
    ef_construction: Count = 100
    """HNSW: breadth of the search while building."""
    ef_search: Count = 64
    """HNSW: breadth of a lookup."""
    vectors: str = "float32"
    """How the index keeps vectors in memory: `float32`, or `int8` with graphs over fewer components: less memory."""
    components: Annotated[int, msgspec.Meta(ge=2)] = 128
    """With `int8`: components that graphs are built over. Vectors of no more than this stay as they are."""
    snapshot_interval_s: Positive = 300.0
    """Pause between snapshots; one more is taken at a clean stop."""


class Flight(_Section, frozen=True):
    """Single-flight."""

    coalesce_timeout_s: Positive = 60.0
    """Longest wait for a leader's first byte; then one follower leads anew, and who waited twice goes alone."""
    window_bytes: Count = 256 * 1024
    """How far the backend may run ahead of the fastest reader."""


class Policies(_Section, frozen=True):
    """The active pack."""

    pack: str = "balanced"
    """A shipped pack's name or a directory."""


class Data(_Section, frozen=True):
    """Files this install owns."""

    dir: str = ""
    """Empty means $XDG_DATA_HOME/cacheproxy or ~/.local/share/cacheproxy."""
    shared: bool = False
    """Whether several proxies share it: each takes a folder of its own in it, the first `replica-N` that is free."""

    def path(self) -> Path:
        """Return the data directory (not created here)."""
        if self.dir:
            return Path(self.dir).expanduser()
        return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "cacheproxy"


class Log(_Section, frozen=True):
    """Structured logs on stderr."""

    format: str = "text"
    """`text` or `json`."""
    level: str = "info"
    """`debug`, `info`, `warning` or `error`."""


class Admin(_Section, frozen=True):
    """The admin listener."""

    token: Secret = Secret("")
    """Bearer token of the admin port; health needs none. Without one the port listens on loopback only."""
    read_token: Secret = Secret("")
    """Another token, with which everything can be seen and nothing changed."""
    hosts: str = ""
    """Names, with commas, that the admin port may be asked under besides its address, `localhost` and loopback."""


class Access(_Section, frozen=True):
    """Whose key a request must carry."""

    mode: str = "pass"
    """`pass`: callers send the backend's key. `keys`: callers send a virtual key made by `cacheproxy keys new`."""
    file: str = ""
    """The virtual keys; empty means `keys.json` in the data directory."""


class Settings(_Section, frozen=True):
    """The whole tree. `upstreams` (by name) and `aliases` (name to model) are tables that may have any keys."""

    server: Server = Server()
    upstream: Upstream = Upstream()
    upstreams: dict[str, NamedUpstream] = msgspec.field(default_factory=dict)
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    small: Small = Small()
    load: Load = Load()
    learn: Learn = Learn()
    federated: Federated = Federated()
    store: Store = Store()
    replicas: Replicas = Replicas()
    encoder: Encoder = Encoder()
    verifier: Verifier = Verifier()
    index: Index = Index()
    flight: Flight = Flight()
    policies: Policies = Policies()
    data: Data = Data()
    log: Log = Log()
    admin: Admin = Admin()
    access: Access = Access()
