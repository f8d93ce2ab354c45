"""What a bench is of: a proxy that runs, or one that is started for it, with its backend."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.bench.client import read_target
from cacheproxy.bench.target import own_proxy, scripted
from cacheproxy.bench.watching import Watch
from cacheproxy.configure import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.bench.client import Target
    from cacheproxy.bench.upstream import Pace

SCRIPTED = "scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What is loaded. With `url` "" a proxy is started, before `upstream`: the scripted backend at a pace, or a URL."""

    pace: Pace
    seed: int
    url: str = ""
    allow_remote: bool = False
    admin_url: str = ""
    admin_token: str = field(default="", repr=False)
    pid: int | None = None
    upstream: str = SCRIPTED
    serve: str = ""
    """More flags of the proxy that is started."""
    data_dir: Path | None = None
    """Where prepared encoders are; None: where `serve` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A target, who watches it, and what of it is not real."""

    target: Target
    watch: Watch
    simulated: list[str]
    scripted: bool
    """Whether the backend is ours, and may be told how long an answer is to be."""


@asynccontextmanager
async def opened(where: Where) -> AsyncIterator[Opened]:
    """Yield what is to be loaded; what was started for it ends with the block. Raises ConfigError."""
    if where.url:
        target = read_target(where.url, anywhere=where.allow_remote)
        watch = Watch(where.pid, where.admin_url.rstrip("/"), where.admin_token)
        yield Opened(target=target, watch=watch, simulated=[], scripted=False)
        return
    async with contextlib.AsyncExitStack() as stack:
        own = where.upstream == SCRIPTED
        if own:
            upstream = (await stack.enter_async_context(scripted(where.pace, where.seed))).url
        else:
            read_target(where.upstream, anywhere=where.allow_remote)
            upstream = where.upstream
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="cacheproxy-bench-"))
        more = shlex.split(where.serve)
        proxy = await stack.enter_async_context(own_proxy(upstream, Path(scratch), _encoders(where.data_dir), more))
        pace = ", ".join(f"{name} {value:g}" for name, value in where.pace.told().items())
        yield Opened(
            target=read_target(proxy.url, anywhere=False),
            watch=Watch(proxy.pid, proxy.admin_url),
            simulated=[f"the backend ({pace})"] if own else [],
            scripted=own,
        )


def _encoders(data_dir: Path | None) -> Path:
    settings = load(None, flags={"data": {"dir": str(data_dir)}} if data_dir is not None else {})
    return Path(settings.encoder.cache_dir or settings.data.path() / "encoders").absolute()
