"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cacheproxy.access.keeper import open_keeper
from cacheproxy.access.meter import MeteredUpstream
from cacheproxy.configure import load
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.dialect.completions import CompletionsDialect
from cacheproxy.dialect.responses import ResponsesDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.open import open_encoder
from cacheproxy.errors import ConfigError, IndexUnavailable
from cacheproxy.figures import Counted
from cacheproxy.flight import Flights
from cacheproxy.house import ActivePack, House, Readiness, SystemClock
from cacheproxy.http.aliases import Aliases
from cacheproxy.http.cached import CachedRoute
from cacheproxy.http.callers import tenant_of
from cacheproxy.http.door import Door, room_for
from cacheproxy.http.edge import Edge
from cacheproxy.http.embeddings import EmbeddingsRoute
from cacheproxy.http.feedback import PATH as FEEDBACK_PATH
from cacheproxy.http.feedback import FeedbackRoute
from cacheproxy.http.listener import data_app, is_loopback
from cacheproxy.http.openapi import PATH as OPENAPI_PATH
from cacheproxy.http.openapi import DocumentRoute
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.install import claim, install_secret, open_data_dir
from cacheproxy.learn.feedback import Feedback
from cacheproxy.learn.verdicts import Verdicts
from cacheproxy.pipeline import Parts, Pipeline
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion
from cacheproxy.query.responses import read_responses
from cacheproxy.query.scope import read_scope
from cacheproxy.store.open import open_store
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from cacheproxy.upstream.local.process import LocalModel
from cacheproxy.upstream.open import open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from litestar import Litestar

    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.model import Controls, Query, Scope
    from cacheproxy.ports import Clock, Dialect, Upstream
    from cacheproxy.settings import Settings

    Read = Callable[[Mapping[str, Any], Scope, Controls, bytes], Query]

log = structlog.get_logger()

_SWEEP_INTERVAL_S = 1.0
_LAG_INTERVAL_S = 0.5
_KEYS_INTERVAL_S = 0.5


@asynccontextmanager
async def assemble(settings: Settings, clock: Clock | None = None) -> AsyncIterator[House]:
    """Open every part in order and close them in reverse; `clock` is the machine's unless given.

    Raises ConfigError naming what the operator must change.
    """
    _refuse_open_relay(settings)
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        telemetry, pack = Telemetry(), ActivePack(settings.policies.pack)
        data_dir = open_data_dir(settings)
        owned, secret = stack.enter_context(claim(data_dir)), install_secret(data_dir)
        keeper = open_keeper(settings, data_dir, secret, clock)
        if keeper is not None:
            stack.callback(keeper.save)  # after the supervisor's end: calls that it cancels are charged, too
        identify = keeper.gate.identify if keeper else partial(read_scope, secret=secret)
        store = open_store(settings.store, data_dir, clock)
        await stack.enter_async_context(store)
        encoder = await asyncio.to_thread(open_encoder, settings.encoder, data_dir)
        embedder = await stack.enter_async_context(MicroBatcher(encoder, settings.encoder))
        partitions = PartitionedIndex(settings.index, dim=embedder.dim, epoch=embedder.epoch)
        index = await stack.enter_async_context(partitions)
        await index.restore(data_dir / "index", store.scan(embedder.epoch))
        model = await _open_local_model(settings, data_dir, stack)
        pool = await stack.enter_async_context(
            open_pool(
                settings,
                clock,
                socket_path=model.socket_path if model else None,
                observe=lambda name, seconds: telemetry.upstream_first_byte_seconds.labels(name).observe(seconds),
            )
        )
        backend: Upstream = MeteredUpstream(pool) if keeper else pool
        supervisor = await stack.enter_async_context(Supervisor())
        flights = Flights(
            supervisor.spawn, window_bytes=settings.flight.window_bytes, keep_bytes=settings.store.max_entry_bytes
        )
        verdicts = await stack.enter_async_context(Verdicts(data_dir / "feedback.sqlite3"))
        feedback = Feedback(verdicts, clock)
        crowded = asyncio.Event()
        parts = Parts(
            store=store,
            index=index,
            embedder=embedder,
            upstream=backend,
            clock=clock,
            telemetry=telemetry,
            make_room=crowded.set,
            feedback=feedback,
            resolve=pool.resolve,
        )
        pipeline = Pipeline(
            parts,
            pack,
            flights,
            lookup_timeout_s=settings.server.lookup_timeout_ms / 1000,
            coalesce_timeout_s=settings.flight.coalesce_timeout_s,
        )
        local = {"local_model": model} if model else {}
        server = settings.server
        to_backends = settings.upstream.max_connections * (1 + len(settings.upstreams))
        door = Door(server, room_for(server.max_connections, to_backends))
        ready = Readiness({"store": store, "encoder": embedder, "index": index, **local})
        threads = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="understand"))
        aliases = Aliases(pipeline, feedback, secret, timeout_s=settings.server.lookup_timeout_ms / 1000)
        cached: dict[str, CachedRoute | EmbeddingsRoute] = {
            path: CachedRoute(pipeline, settings, secret, dialect, read, threads, aliases)
            for path, (dialect, read) in _dialects(settings).items()
        }
        cached["/v1/embeddings"] = EmbeddingsRoute(pipeline, settings, secret, threads)
        edge = Edge(
            backend,
            telemetry,
            cached,
            own={FEEDBACK_PATH: FeedbackRoute(pipeline, feedback, secret), OPENAPI_PATH: DocumentRoute()},
            aliases=aliases,
            max_upload_bytes=settings.server.max_upload_bytes,
            tenant_of=partial(tenant_of, secret=secret),
            readiness=ready,
            upstreams=lambda: {backend.name: backend.state for backend in pool.states()},
            door=door,
            gate=keeper.gate if keeper else None,
        )

        telemetry.export(
            Counted(
                store=store,
                embedder=embedder,
                index=index,
                flights=flights,
                supervisor=supervisor,
                door=door,
                pool=pool,
            )
        )

        async def sweep() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(crowded.wait(), _SWEEP_INTERVAL_S)
            crowded.clear()
            while removed := await store.sweep():
                index.remove(removed)
                telemetry.removed.inc(len(removed))

        async def snapshot() -> None:
            await index.save(data_dir / "index")

        supervisor.every(0, sweep, "sweep")
        supervisor.every(settings.index.snapshot_interval_s, snapshot, "snapshot")
        supervisor.spawn(_watch_loop(telemetry))
        if keeper is not None:
            supervisor.every(_KEYS_INTERVAL_S, keeper.tend, "keys")
        try:
            yield House(
                settings=settings,
                pipeline=pipeline,
                pack=pack,
                edge=edge,
                ready=ready,
                claim=owned,
                identify=identify,
                keeper=keeper,
            )
        finally:
            try:
                await snapshot()
            except IndexUnavailable as exc:  # the next start rebuilds from the store
                log.warning("snapshot_failed", reason=exc.message)


def create_app(settings: Settings | None = None) -> Litestar:
    """Return the data application for a server of your own: `uvicorn --factory cacheproxy.app:create_app`.

    It assembles its parts when it starts. One process owns its store: a second one on the same file is refused.
    """
    settings = settings or load()
    house: House | None = None

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        nonlocal house
        async with assemble(settings) as house:
            try:
                yield
            finally:
                house = None

    async def edge(scope: Any, receive: Receive, send: Send) -> None:
        if house is None:
            raise RuntimeError("the data application takes requests only within its lifespan")
        await house.edge(scope, receive, send)

    return data_app(edge, lifespan)


def _dialects(settings: Settings) -> dict[str, tuple[Dialect, Read]]:
    """Return the cached APIs by path: what knows their bytes, and what reads their requests."""
    limit, usage = settings.store.max_entry_bytes, settings.upstream.ask_stream_usage
    return {
        "/v1/chat/completions": (ChatDialect(max_reply_bytes=limit, ask_stream_usage=usage), read_chat),
        "/v1/completions": (CompletionsDialect(max_reply_bytes=limit, ask_stream_usage=usage), read_completion),
        "/v1/responses": (ResponsesDialect(max_reply_bytes=limit), read_responses),
    }


def _refuse_open_relay(settings: Settings) -> None:
    """Raise ConfigError where anybody on the network could spend the operator's key."""
    keyed = [name for name, backend in settings.upstreams.items() if backend.api_key.reveal()]
    where = ["upstream.api_key"] * bool(settings.upstream.api_key.reveal()) + [f"upstreams.{n}.api_key" for n in keyed]
    if where and settings.access.mode == "pass" and not is_loopback(settings.server.host):
        raise ConfigError(
            f"{where[0]}: anybody who reaches {settings.server.host} could spend this key; set access.mode to `keys` "
            "and hand out keys made by `cacheproxy keys new`, or listen on 127.0.0.1"
        )


async def _open_local_model(settings: Settings, data_dir: Path, stack: AsyncExitStack) -> LocalModel | None:
    if settings.upstream.url != "local":
        return None
    return await stack.enter_async_context(LocalModel(_model_dir(settings, data_dir)))


def _model_dir(settings: Settings, data_dir: Path) -> Path:
    chosen = settings.upstream.local_cache_dir
    return Path(chosen).expanduser() if chosen else data_dir


async def _watch_loop(telemetry: Telemetry) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        telemetry.loop_lag_seconds.observe(max(0.0, loop.time() - due))
