"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from cacheproxy.access.inserts import InsertRate
from cacheproxy.access.keeper import open_keeper
from cacheproxy.access.meter import MeteredUpstream
from cacheproxy.access.names import Names
from cacheproxy.assembly import Backends, Front, Ground, Kept, Line
from cacheproxy.clock import SystemClock
from cacheproxy.configure import load
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.dialect.completions import CompletionsDialect
from cacheproxy.dialect.responses import ResponsesDialect
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.examples import Examples
from cacheproxy.embed.open import open_encoder
from cacheproxy.erasure import Erasure, Part
from cacheproxy.errors import ConfigError
from cacheproxy.figures import Counted
from cacheproxy.flight import Flights
from cacheproxy.govern.audit import AuditLog
from cacheproxy.govern.book import PolicyBook, Records
from cacheproxy.govern.maker import Means, PolicyMaker
from cacheproxy.govern.versions import VersionFile
from cacheproxy.house import House, Readiness
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
from cacheproxy.learn import shadow as learning
from cacheproxy.learn.budget import Budget
from cacheproxy.learn.feedback import Feedback
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.learn.meter import LearningMeter
from cacheproxy.learn.shadow import Shadow
from cacheproxy.learn.verdicts import Verdicts
from cacheproxy.pipeline import Parts, Pipeline
from cacheproxy.policy.adapt import LoadWatch
from cacheproxy.policy.evict import quotas
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.prepare import fitted
from cacheproxy.privacy.gate import PresidioGate
from cacheproxy.promote import promote_judged
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion
from cacheproxy.query.responses import read_responses
from cacheproxy.query.scope import common_of, read_scope
from cacheproxy.query.scope import tenant_of as tenant_of_label
from cacheproxy.reconcile import Reconciler
from cacheproxy.sharing import Sharing, SharingMeans
from cacheproxy.stats.reader import Sources, Stats
from cacheproxy.store.open import open_store
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from cacheproxy.upkeep import Snapshots, Upkeep
from cacheproxy.upstream.local.process import LocalModel
from cacheproxy.upstream.open import open_pool
from cacheproxy.verify.verifier import ThreadedVerifier
from cacheproxy.verifying import open_verifier
from cacheproxy.warming import Warming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from litestar import Litestar

    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.model import Controls, Query, Scope
    from cacheproxy.ports import Clock, Dialect, Upstream
    from cacheproxy.settings import Settings

    Read = Callable[[Mapping[str, Any], Scope, Controls, bytes], Query]

_SNAPSHOTS = "index"
_BUDGET_INTERVAL_S = 2.0


@asynccontextmanager
async def assemble(settings: Settings, clock: Clock | None = None) -> AsyncIterator[House]:
    """Open every part in order and close them in reverse; `clock` is the machine's unless given.

    Raises ConfigError naming what the operator must change.
    """
    _refuse_open_relay(settings)
    async with AsyncExitStack() as stack:
        ground = _ground(settings, clock or SystemClock(), stack)
        kept = await _kept(ground, stack)
        backends = await _backends(ground, stack)
        line = await _line(ground, kept, backends, stack)
        front = _front(ground, kept, backends, line)
        stats = _stats(kept, backends, line)
        ground.telemetry.export(
            Counted(
                store=kept.store,
                embedder=kept.embedder,
                index=kept.index,
                flights=line.flights,
                supervisor=line.supervisor,
                door=front.edge.door,
                pool=backends.pool,
                load=backends.load,
                stats=stats,
            )
        )
        erasure = _tend(ground, kept, backends, line, stack)
        yield House(
            settings=settings,
            pipeline=line.pipeline,
            book=kept.book,
            audit=ground.audit,
            edge=front.edge,
            ready=front.ready,
            claim=ground.claim,
            identify=ground.identify,
            keeper=ground.keeper,
            names=ground.names,
            catalogue=kept.store,
            erasure=erasure,
            warming=_warming(ground, line),
            load=backends.load,
            lookups=line.lookups,
            sharing=line.sharing,
            stats=stats,
        )


def _ground(settings: Settings, clock: Clock, stack: AsyncExitStack) -> Ground:
    load_pack(find_pack(settings.policies.pack))  # what is wrong with it is told before anything is made
    telemetry, data_dir = Telemetry(), open_data_dir(settings)
    owned, secret = stack.enter_context(claim(data_dir)), install_secret(data_dir)
    keeper = open_keeper(settings, data_dir, secret, clock)
    if keeper is not None:
        stack.callback(keeper.save)  # after the supervisor's end: calls that it cancels are charged, too
    return Ground(
        settings=settings,
        clock=clock,
        telemetry=telemetry,
        data_dir=data_dir,
        claim=owned,
        secret=secret,
        keeper=keeper,
        identify=keeper.gate.identify if keeper else partial(read_scope, secret=secret),
        names=Names(secret, keyed=keeper is not None),
        audit=AuditLog(data_dir / "audit.jsonl", clock),
    )


async def _kept(ground: Ground, stack: AsyncExitStack) -> Kept:
    settings, data_dir, clock = ground.settings, ground.data_dir, ground.clock
    room = settings.store.max_entries, settings.store.max_bytes
    store = open_store(settings.store, data_dir, clock, lambda: quotas(book().pack, *room))
    await stack.enter_async_context(store)
    encoder = await asyncio.to_thread(open_encoder, settings.encoder, data_dir)
    embedder = await stack.enter_async_context(MicroBatcher(encoder, settings.encoder))
    partitions = PartitionedIndex(settings.index, dim=embedder.dim, epoch=embedder.epoch)
    index = await stack.enter_async_context(partitions)
    await index.restore(data_dir / _SNAPSHOTS, store.scan(embedder.epoch))
    verifier = await _verifier(settings, embedder.epoch, stack)
    records = Records(VersionFile(data_dir / "policies.sqlite3"), ground.audit)
    book = PolicyBook(settings.policies.pack, records, PolicyMaker(_means(ground, embedder, verifier)), clock)
    await book.open()
    return Kept(store=store, embedder=embedder, index=index, verifier=verifier, book=book)


async def _verifier(settings: Settings, epoch: str, stack: AsyncExitStack) -> ThreadedVerifier | None:
    chosen = settings.verifier
    scorer = await asyncio.to_thread(open_verifier, settings)
    if scorer is None:
        return None
    live = ThreadedVerifier(
        scorer, [epoch], threads=chosen.threads, timeout_s=chosen.timeout_ms / 1000, queue=chosen.queue
    )
    return await stack.enter_async_context(live)


def _means(ground: Ground, embedder: MicroBatcher, verifier: ThreadedVerifier | None) -> Means:
    chosen = ground.settings.encoder.cache_dir
    folder = Path(chosen).expanduser() if chosen else ground.data_dir / "encoders"
    return Means(
        epoch=embedder.epoch,
        tenant_of=partial(tenant_of_label, secret=ground.secret),
        embed_all=Examples(embedder, folder / "examples.sqlite3"),
        fit=fitted,
        verifier=verifier.scorer if verifier else None,
    )


async def _backends(ground: Ground, stack: AsyncExitStack) -> Backends:
    settings, told = ground.settings, ground.telemetry.upstream_first_byte_seconds
    model: LocalModel | None = None
    if settings.upstream.url == "local":
        model = await stack.enter_async_context(LocalModel(_model_dir(ground)))
    pool = await stack.enter_async_context(
        open_pool(
            settings,
            ground.clock,
            socket_path=model.socket_path if model else None,
            observe=lambda name, seconds: told.labels(name).observe(seconds),
        )
    )
    upstream: Upstream = MeteredUpstream(pool) if ground.keeper else pool
    return Backends(model=model, pool=pool, load=LoadWatch(settings.load), upstream=upstream)


def _model_dir(ground: Ground) -> Path:
    chosen = ground.settings.upstream.local_cache_dir
    return Path(chosen).expanduser() if chosen else ground.data_dir


async def _line(ground: Ground, kept: Kept, backends: Backends, stack: AsyncExitStack) -> Line:
    settings, clock, pool, watch = ground.settings, ground.clock, backends.pool, backends.load
    # What flights use while they end is opened before the supervisor that ends them, so that it closes after it.
    gate = PresidioGate()
    stack.callback(gate.close)
    verdicts = await stack.enter_async_context(Verdicts(ground.data_dir / "feedback.sqlite3"))
    threads = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="understand"))
    supervisor = await stack.enter_async_context(Supervisor())
    flights = Flights(
        supervisor.spawn, window_bytes=settings.flight.window_bytes, keep_bytes=settings.store.max_entry_bytes
    )
    lookups = LookupLog(kept.book, ground.telemetry, clock, kept.embedder.epoch)
    fingerprint = kept.verifier.fingerprint if kept.verifier else ""
    budget = await stack.enter_async_context(Budget(ground.data_dir / "budget.sqlite3", fingerprint, clock))
    feedback = Feedback(verdicts, clock, lookups, budget)
    crowded = asyncio.Event()
    sharing = Sharing(
        SharingMeans(
            store=kept.store,
            catalogue=kept.store,
            index=kept.index,
            pii=gate,
            feedback=feedback,
            clock=clock,
            telemetry=ground.telemetry,
            common=common_of(ground.secret),
            spawn=supervisor.spawn,
        )
    )
    parts = Parts(
        store=kept.store,
        index=kept.index,
        embedder=kept.embedder,
        verifier=kept.verifier,
        upstream=backends.upstream,
        clock=clock,
        telemetry=ground.telemetry,
        make_room=crowded.set,
        feedback=feedback,
        lookups=lookups,
        resolve=pool.resolve,
        pii=gate,
        budget=budget,
        sharing=sharing,
        may_keep=InsertRate(settings.store.max_inserts_per_minute, clock),
        load=lambda model: watch.least(pool.backends(model)),
    )
    parts = replace(parts, learning=_learning(ground, kept, parts, budget, feedback, lookups, supervisor))
    return Line(
        budget=budget,
        gate=gate,
        threads=threads,
        supervisor=supervisor,
        flights=flights,
        lookups=lookups,
        feedback=feedback,
        sharing=sharing,
        crowded=crowded,
        pipeline=Pipeline(
            parts,
            kept.book,
            flights,
            lookup_timeout_s=settings.server.lookup_timeout_ms / 1000,
            coalesce_timeout_s=settings.flight.coalesce_timeout_s,
        ),
    )


def _learning(
    ground: Ground,
    kept: Kept,
    parts: Parts,
    budget: Budget,
    feedback: Feedback,
    lookups: LookupLog,
    supervisor: Supervisor,
) -> Shadow:
    means = learning.Means(
        store=kept.store,
        embedder=kept.embedder,
        upstream=parts.upstream,
        budget=budget,
        meter=LearningMeter(ground.clock),
        lookups=lookups,
        telemetry=ground.telemetry,
        clock=ground.clock,
        random=Random(),
        policy=kept.book,
        load=parts.load,
        spawn=supervisor.spawn,
        quarantine=feedback.found_wrong,
        promote=lambda looked, source_id: promote_judged(parts, kept.book(), looked, source_id),
    )
    return Shadow(means, ground.settings.learn)


def _front(ground: Ground, kept: Kept, backends: Backends, line: Line) -> Front:
    """Return the front; nothing of it has to be closed."""
    settings, secret, pipeline, feedback = ground.settings, ground.secret, line.pipeline, line.feedback
    server, pool = settings.server, backends.pool
    to_backends = settings.upstream.max_connections * (1 + len(settings.upstreams))
    aliases = Aliases(pipeline, feedback, secret, timeout_s=server.lookup_timeout_ms / 1000)
    cached: dict[str, CachedRoute | EmbeddingsRoute] = {
        path: CachedRoute(pipeline, settings, secret, dialect, read, line.threads, aliases)
        for path, (dialect, read) in _dialects(settings).items()
    }
    cached["/v1/embeddings"] = EmbeddingsRoute(pipeline, settings, secret, line.threads)
    parts = {"store": kept.store, "encoder": kept.embedder, "index": kept.index, "policies": kept.book}
    optional = {name: part for name, part in (("local_model", backends.model), ("verifier", kept.verifier)) if part}
    ready = Readiness({**parts, **optional})
    edge = Edge(
        backends.upstream,
        ground.telemetry,
        cached,
        own={FEEDBACK_PATH: FeedbackRoute(pipeline, feedback, secret), OPENAPI_PATH: DocumentRoute()},
        aliases=aliases,
        max_upload_bytes=server.max_upload_bytes,
        tenant_of=partial(tenant_of, secret=secret),
        readiness=ready,
        upstreams=lambda: {backend.name: backend.state for backend in pool.states()},
        door=Door(server, room_for(server.max_connections, to_backends)),
        gate=ground.keeper.gate if ground.keeper else None,
    )
    return Front(edge=edge, ready=ready)


def _stats(kept: Kept, backends: Backends, line: Line) -> Stats:
    return Stats(
        Sources(
            lookups=line.lookups,
            policy=kept.book,
            epoch=kept.embedder.epoch,
            backends=backends.pool.states,
            load=backends.load.lam,
            holdings=kept.store.holdings,
            evictions=lambda: kept.store.evictions,
            standing=line.budget.standing,
        )
    )


def _tend(ground: Ground, kept: Kept, backends: Backends, line: Line, stack: AsyncExitStack) -> Erasure:
    """Start the upkeep; return what erases. The last snapshot is the first thing done at the end."""
    snapshots = Snapshots(kept.index, ground.data_dir / _SNAPSHOTS)
    # In this order: what remembers texts first, snapshots last, when the index no longer holds anything.
    remembering = [
        Part(name="feedback", forget=line.feedback.forget),
        Part(name="budget", forget=line.budget.forget),
        Part(name="lookups", forget=line.lookups.forget),
        Part(name="questions", forget=lambda *_: line.pipeline.forget_questions()),
        Part(name="embeddings", forget=lambda *_: kept.embedder.forget()),
        Part(name="snapshots", forget=lambda *_: snapshots.scrub()),
    ]
    erasure = Erasure(kept.store, kept.index.erase, remembering, ground.clock, ground.data_dir / "erasures.json")
    upkeep = Upkeep(
        store=kept.store,
        index=kept.index,
        crowded=line.crowded,
        snapshots=snapshots,
        snapshot_interval_s=ground.settings.index.snapshot_interval_s,
        book=kept.book,
        erasure=erasure,
        backends=backends.pool.states,
        load=backends.load,
        gate=line.gate,
        keeper=ground.keeper,
        telemetry=ground.telemetry,
        clock=ground.clock,
    )
    kept.book.on_change(line.lookups.follow)
    kept.book.on_change(upkeep.policy_changed)
    kept.book.on_change(Reconciler(kept.store, kept.embedder, upkeep.erase))
    upkeep.start(line.supervisor)
    line.supervisor.every(_BUDGET_INTERVAL_S, line.budget.tend, "budget")
    stack.push_async_callback(snapshots.save_last)
    return erasure


def _warming(ground: Ground, line: Line) -> Warming:
    most = ground.settings.store.max_entry_bytes
    return Warming(line.pipeline, ground.identify, ground.names, ground.secret, max_answer_bytes=most)


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
