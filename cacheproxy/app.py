"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.open import open_encoder
from cacheproxy.errors import ConfigError, IndexUnavailable
from cacheproxy.explain import explain
from cacheproxy.flight import Flights
from cacheproxy.http.admin import create_admin_app
from cacheproxy.http.cached import CachedRoute
from cacheproxy.http.edge import Edge
from cacheproxy.http.listener import Listener, bind, data_app, is_loopback, listener, url_of
from cacheproxy.http.protocol import capped
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.install import claim, install_secret, open_data_dir
from cacheproxy.pipeline import Parts, Pipeline
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.query.chat import read_chat
from cacheproxy.settings import load
from cacheproxy.store.open import open_store
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Figures, Telemetry
from cacheproxy.upstream.client import HttpUpstream
from cacheproxy.upstream.local.process import LocalModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from litestar import Litestar

    from cacheproxy.explain import ExplainRequest, Explanation
    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.install import Claim
    from cacheproxy.policy.pack import Pack
    from cacheproxy.settings import Settings
    from cacheproxy.store.memory import MemoryStore
    from cacheproxy.store.sqlite import SqliteStore

log = structlog.get_logger()

_SWEEP_INTERVAL_S = 1.0
_LAG_INTERVAL_S = 0.5


class HasHealth(Protocol):
    """A part that can say how it is."""

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return time.monotonic()


class ActivePack:
    """The pack in force; each request sees one value of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pack = load_pack(find_pack(name))

    def __call__(self) -> Pack:
        """Return the pack in force."""
        return self._pack

    def reload(self) -> None:
        """Read the pack again; a pack with problems leaves the old one in force. Raises PackError."""
        self._pack = load_pack(find_pack(self._name))


class Readiness:
    """Every part's own word on whether it can serve."""

    def __init__(self, parts: Mapping[str, HasHealth]) -> None:
        self._parts = parts
        self.draining = False

    def __call__(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        state = {name: part.health() for name, part in self._parts.items()}
        state["listener"] = "draining" if self.draining else ""
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One proxy, assembled and ready to be listened to."""

    settings: Settings
    pipeline: Pipeline
    pack: ActivePack
    edge: Edge
    ready: Readiness
    claim: Claim
    secret: bytes

    def readiness(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        return self.ready()

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Show every step of one decision. Raises RequestError."""
        return await explain(self.pipeline, request, self.secret)


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[House]:
    """Open every part in order and close them in reverse. Raises ConfigError naming what the operator must change."""
    async with AsyncExitStack() as stack:
        clock, telemetry, pack = SystemClock(), Telemetry(), ActivePack(settings.policies.pack)
        data_dir = open_data_dir(settings)
        owned, secret = stack.enter_context(claim(data_dir)), install_secret(data_dir)
        store = open_store(settings.store, data_dir, clock)
        await stack.enter_async_context(store)
        encoder = await asyncio.to_thread(open_encoder, settings.encoder, data_dir)
        embedder = await stack.enter_async_context(MicroBatcher(encoder, settings.encoder))
        partitions = PartitionedIndex(settings.index, dim=embedder.dim, epoch=embedder.epoch)
        index = await stack.enter_async_context(partitions)
        await index.restore(data_dir / "index", store.scan(embedder.epoch))
        model = await _open_local_model(settings, data_dir, stack)
        upstream = HttpUpstream(settings.upstream, socket_path=model.socket_path if model else None)
        await stack.enter_async_context(upstream)
        supervisor = await stack.enter_async_context(Supervisor())
        flights = Flights(
            supervisor.spawn, window_bytes=settings.flight.window_bytes, keep_bytes=settings.store.max_entry_bytes
        )
        crowded = asyncio.Event()
        parts = Parts(
            store=store,
            index=index,
            embedder=embedder,
            upstream=upstream,
            clock=clock,
            telemetry=telemetry,
            make_room=crowded.set,
        )
        pipeline = Pipeline(
            parts,
            pack,
            flights,
            lookup_timeout_s=settings.server.lookup_timeout_ms / 1000,
            coalesce_timeout_s=settings.flight.coalesce_timeout_s,
        )
        local = {"local_model": model} if model else {}
        ready = Readiness({"store": store, "encoder": embedder, "index": index, **local})
        threads = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="understand"))
        dialect = ChatDialect(
            max_reply_bytes=settings.store.max_entry_bytes, ask_stream_usage=settings.upstream.ask_stream_usage
        )
        edge = Edge(
            upstream,
            telemetry,
            {"/v1/chat/completions": CachedRoute(pipeline, settings, secret, dialect, read_chat, threads)},
            max_upload_bytes=settings.server.max_upload_bytes,
            readiness=ready,
        )

        telemetry.export(lambda: _figures(store, embedder, index, flights, supervisor))

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
        try:
            yield House(
                settings=settings,
                pipeline=pipeline,
                pack=pack,
                edge=edge,
                ready=ready,
                claim=owned,
                secret=secret,
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
    rooms: list[House] = []

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with assemble(settings) as house:
            rooms.append(house)
            yield

    async def edge(scope: Any, receive: Receive, send: Send) -> None:
        await rooms[0].edge(scope, receive, send)

    return data_app(edge, lifespan)


class Running:
    """A proxy that is being listened to."""

    def __init__(self, house: House, data: Listener, admin: Listener, url: str, admin_url: str) -> None:
        self.house = house
        self.pipeline = house.pipeline
        self.url = url
        self.admin_url = admin_url
        self._data = data
        self._admin = admin

    def drain(self) -> None:
        """Stop accepting, let answers in flight finish."""
        self.house.ready.draining = True
        self._data.should_exit = True

    def abandon(self) -> None:
        """Stop without waiting for answers in flight."""
        self.drain()
        self._data.force_exit = self._admin.force_exit = True


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Assemble a proxy and listen on both ports until the block ends or it was drained. Port 0 takes any free port."""
    server = settings.server
    with contextlib.ExitStack() as sockets:
        data_socket = sockets.enter_context(bind(server.host, server.port, "server.host, server.port"))
        admin_host = server.admin_host
        if not settings.admin.token.reveal() and not is_loopback(admin_host):
            raise ConfigError("server.admin_host is not loopback: set admin.token first (CACHEPROXY_ADMIN__TOKEN)")
        admin_keys = "server.admin_host, server.admin_port"
        admin_socket = sockets.enter_context(bind(admin_host, server.admin_port, admin_keys))
        own_port = data_socket.getsockname()[1]
        if settings.upstream.url != "local" and HttpUpstream(settings.upstream).leads_to(own_port):
            raise ConfigError("upstream.url is this proxy's own address (is OPENAI_BASE_URL?); give the backend's")
        async with assemble(settings) as house:
            admin_app = create_admin_app(house, settings.admin.token)
            data = listener(data_app(house.edge), http=capped(server), drain_s=server.drain_s)
            admin = listener(admin_app, http="httptools", drain_s=1)
            async with asyncio.TaskGroup() as group:
                data_task = group.create_task(data.serve([data_socket]))
                admin_task = group.create_task(admin.serve([admin_socket]))
                await data.until_started()
                await admin.until_started()
                house.claim.announce(url_of(admin_host, admin_socket))
                proxy = Running(house, data, admin, url_of(server.host, data_socket), url_of(admin_host, admin_socket))
                try:
                    yield proxy
                finally:
                    proxy.drain()
                    await asyncio.wait([data_task])
                    admin.should_exit = True
                    await asyncio.wait([admin_task])


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT: drain on the first, stop at once on the second. SIGHUP reads the pack again."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with running(settings) as proxy:

        def on_stop() -> None:
            if stop.is_set():
                log.warning("server_abandoned", reason="second signal")
                proxy.abandon()
            else:
                log.info("server_draining", limit_s=settings.server.drain_s)
                proxy.drain()
                stop.set()

        def on_reload() -> None:
            try:
                proxy.house.pack.reload()
                log.info("pack_reloaded", pack=proxy.house.pack().name)
            except ConfigError as exc:
                log.error("pack_refused", reason=exc.message)  # noqa: TRY400 - its message says it all

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        loop.add_signal_handler(signal.SIGHUP, on_reload)
        port, admin_port = (url.rpartition(":")[2] for url in (proxy.url, proxy.admin_url))
        log.info("server_started", url=f"{proxy.url}/v1", port=int(port), admin_port=int(admin_port))
        await stop.wait()


async def _open_local_model(settings: Settings, data_dir: Path, stack: AsyncExitStack) -> LocalModel | None:
    if settings.upstream.url != "local":
        return None
    return await stack.enter_async_context(LocalModel(_model_dir(settings, data_dir)))


def _model_dir(settings: Settings, data_dir: Path) -> Path:
    chosen = settings.upstream.local_cache_dir
    return Path(chosen).expanduser() if chosen else data_dir


def _figures(
    store: SqliteStore | MemoryStore,
    embedder: MicroBatcher,
    index: PartitionedIndex,
    flights: Flights,
    supervisor: Supervisor,
) -> Figures:
    encoded, indexed = embedder.stats, index.stats()
    return Figures(
        flights=flights.aloft,
        background_failures=supervisor.failures,
        store_entries=len(store),
        store_bytes=store.size_bytes,
        store_corrupt_records=store.corrupt_records,
        store_quarantined=store.quarantined,
        encoder_queue=embedder.queued,
        encoder_running=embedder.running,
        encoder_batches=encoded.batches,
        encoder_texts=encoded.texts,
        encoder_memo_hits=encoded.memo_hits,
        encoder_shared=encoded.shared,
        encoder_left=encoded.left,
        encoder_failures={flaw.value: count for flaw, count in encoded.failures.items()},
        entries_indexed=indexed.live,
        index_partitions=indexed.partitions,
        index_graphs=indexed.graphs,
        index_dead=indexed.dead,
        index_tail=indexed.tail,
        index_due=indexed.due,
        index_bytes=indexed.bytes,
        index_merged_rows=indexed.merged_rows,
        index_rebuilds=indexed.rebuilds,
        index_upkeep_failures=indexed.failures,
        index_snapshots=indexed.snapshots,
        index_snapshots_refused=indexed.snapshot_refused,
    )


async def _watch_loop(telemetry: Telemetry) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        telemetry.loop_lag_seconds.observe(max(0.0, loop.time() - due))
