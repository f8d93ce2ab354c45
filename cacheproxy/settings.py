"""One frozen tree of settings, read once: flag > environment > file > default.

Every leaf is a TOML key (`[store] url = ...`) and an environment variable (`CACHEPROXY_STORE__URL`). Policy numbers
(thresholds, TTLs, caps of a category) are not settings: they live in packs.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """Admin port: /metrics, health, /admin/v1/explain."""
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


class Upstream(_Section, frozen=True):
    """The backend."""

    url: str = "https://api.openai.com/v1"
    """Base URL, or `local` for the embedded small model."""
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
    """Most connections to the backend at once; more requests wait for one."""
    max_decoded_bytes: Count = 16 * 1024 * 1024
    """Largest answer body of a cached route, after decoding."""
    ask_stream_usage: bool = True
    """Ask for usage on every cacheable stream, so that its entry can serve any form; only callers who ask see it."""


class Store(_Section, frozen=True):
    """Documents."""

    url: str = ""
    """`sqlite:///FILE` or `memory://`; empty means `entries.sqlite3` in the data directory."""
    max_entries: Count = 1_000_000
    """Above it, expired and then least recently used entries go."""
    max_bytes: Count = 4 * 1024**3
    """The same for bytes of records and vectors."""
    max_entry_bytes: Count = 1024 * 1024
    """Largest answer kept."""
    hot_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 * 1024 * 1024
    """Decoded documents held in memory in front of the file."""
    busy_timeout_ms: Count = 100
    """Longest wait for a file another program has locked."""


class Encoder(_Section, frozen=True):
    """The embedding model."""

    name: str = "all-MiniLM-L6-v2"
    """A known name or a directory with a sentence-transformers model (safetensors)."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`. The GPU path runs in half precision and is untested on a GPU."""
    precision: str = "fp32"
    """On a CPU: `fp32` or `int8`. Each has its own fingerprint and its own calibrated thresholds."""
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Worker threads of one core each; 0 means one per core, at most four."""
    max_batch: Count = 32
    """Most texts encoded together."""
    queue: Count = 4096
    """Most texts waiting; above it a request goes on as a miss."""
    cache_dir: str = ""
    """Where exported encoders are kept; empty means `encoders` in the data directory."""
    timeout_ms: Count = 2000
    """Longest wait for an embedding before the request goes on as a miss."""


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
    snapshot_interval_s: Positive = 300.0
    """Pause between snapshots; one more is taken at a clean stop."""


class Flight(_Section, frozen=True):
    """Single-flight."""

    coalesce_timeout_s: Positive = 60.0
    """Longest wait of a follower for the leader's first byte before it goes alone."""
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
    """Bearer token of the admin port; health needs none."""


class Settings(_Section, frozen=True):
    """The whole tree."""

    server: Server = Server()
    upstream: Upstream = Upstream()
    store: Store = Store()
    encoder: Encoder = Encoder()
    index: Index = Index()
    flight: Flight = Flight()
    policies: Policies = Policies()
    data: Data = Data()
    log: Log = Log()
    admin: Admin = Admin()


_CHOICES = {
    ("encoder", "device"): ("auto", "cpu", "cuda", "mps"),
    ("encoder", "precision"): ("fp32", "int8"),
    ("log", "format"): ("json", "text"),
    ("log", "level"): ("debug", "info", "warning", "error"),
}


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Merge file, environment and flags into one checked tree. Raises ConfigError naming where a bad value is from."""
    tree: dict[str, dict[str, object]] = {}
    origin: dict[tuple[str, str], str] = {}
    for source, layer in (
        (str(file), _read_file(file) if file else {}),
        ("environment", _read_environment(os.environ if environ is None else environ)),
        ("command line", flags or {}),
    ):
        for section, values in layer.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{source}: {section} must be a table, such as [{section}]")
            for key, value in values.items():
                tree.setdefault(section, {})[key] = value
                origin[section, key] = source
    _check_names(tree, origin)
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{_where(str(exc), origin)}: {exc}; see docs/operations.md for every key") from exc
    for (section, key), allowed in _CHOICES.items():
        value = getattr(getattr(settings, section), key)
        if value not in allowed:
            where = origin.get((section, key), "default")
            raise ConfigError(f"{where}: {section}.{key} must be one of {', '.join(allowed)}, got {value!r}")
    return settings


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); give an existing TOML file to --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: not valid TOML: {exc}") from exc


def _read_environment(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    tree: dict[str, dict[str, object]] = {}
    for name, value in environ.items():
        section, found, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and found:
            tree.setdefault(section, {})[key] = value
    return tree


def _check_names(tree: Mapping[str, Mapping[str, object]], origin: Mapping[tuple[str, str], str]) -> None:
    sections = Settings.__struct_fields__
    for section, values in tree.items():
        for key in values:
            where = origin[section, key]
            if section not in sections:
                raise ConfigError(f"{where}: unknown section {section!r}; known: {', '.join(sections)}")
            known = type(getattr(Settings(), section)).__struct_fields__
            if key not in known:
                raise ConfigError(f"{where}: unknown key {section}.{key}; known: {', '.join(known)}")


def _where(problem: str, origin: Mapping[tuple[str, str], str]) -> str:
    path = re.search(r"`\$\.(\w+)\.(\w+)`", problem)
    return origin.get((path[1], path[2]), "settings") if path else "settings"


def _decode_secret(type_: type, value: object) -> object:
    if type_ is not Secret:
        raise NotImplementedError(type_)
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)
