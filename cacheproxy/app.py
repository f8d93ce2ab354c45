"""The composition root: what `opening.py` opens becomes one house, with its door, its upkeep and its end."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from cacheproxy.adopting import Adopting
from cacheproxy.adopting import Means as AdoptingMeans
from cacheproxy.assembly import Backends, Front, Ground, Kept, Line
from cacheproxy.clock import SystemClock
from cacheproxy.configure import load
from cacheproxy.converging import by_one, converge, forgetting_of, told_elsewhere
from cacheproxy.dialect.chat import ChatDialect
from cacheproxy.dialect.completions import CompletionsDialect
from cacheproxy.dialect.responses import ResponsesDialect
from cacheproxy.erasure import Erasure, Part
from cacheproxy.errors import ConfigError
from cacheproxy.examining import Examining
from cacheproxy.figures import Counted
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
from cacheproxy.learn.pairfile import FILE as PAIRS
from cacheproxy.opening import open_backends, open_ground, open_kept, open_line
from cacheproxy.policy.gate import Terms as GateTerms
from cacheproxy.proving import Proving
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion
from cacheproxy.query.responses import read_responses
from cacheproxy.reconcile import Reconciler
from cacheproxy.replicated import Alone, SharedReplicas
from cacheproxy.stats.reader import Sources, Stats
from cacheproxy.stats.routing import Routing
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.upkeep import Snapshots, Upkeep, catch_up
from cacheproxy.warming import Warming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from litestar import Litestar

    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.learn.pairlog import PairLog
    from cacheproxy.model import Controls, Query, Scope, Selector
    from cacheproxy.ports import Clock, Dialect, Replicas
    from cacheproxy.settings import Settings

    Read = Callable[[Mapping[str, Any], Scope, Controls, bytes], Query]

_BUDGET_INTERVAL_S = 2.0
_CAPACITY_INTERVAL_S = 120.0
_REPLAY_INTERVAL_S = 2.0
_WATCH_INTERVAL_S = 10.0
_ENCODE_INTERVAL_S = 0.2
SEE_REPLICA = "the shared store is not used as it should be; `replica` says why"
_GRACE_S = 1.0
"""Beside a lookup's own limit: how long the index of a head that serves no more still answers."""


@asynccontextmanager
async def assemble(settings: Settings, clock: Clock | None = None) -> AsyncIterator[House]:
    """Open every part in order and close them in reverse; `clock` is the machine's unless given.

    Raises ConfigError naming what the operator must change.
    """
    _refuse_open_relay(settings)
    async with AsyncExitStack() as stack:
        ground = await open_ground(settings, clock or SystemClock(), stack)
        kept = await open_kept(ground, stack)
        backends = await open_backends(ground, stack)
        line = await open_line(ground, kept, backends, stack)
        replicas = _replicas(ground, kept)
        front = _front(ground, kept, backends, line, replicas)
        stats = _stats(ground, kept, backends, line)
        ground.telemetry.export(
            Counted(
                replicas=replicas,
                store=kept.store,
                embedder=kept.embedder,
                index=kept.index,
                flights=line.flights,
                supervisor=line.supervisor,
                pressure=ground.pressure,
                door=front.edge.door,
                backends=backends.states,
                load=backends.load,
                stats=stats,
            )
        )
        line.supervisor.spawn(ground.pressure.watch(lambda: front.edge.door.requests))
        erasure = _tend(ground, kept, backends, line, stack)
        adopting = _adopting(ground, kept, line, stats)
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
            small=line.small,
            heads=adopting,
            replicas=replicas,
            rejoin=ground.replica.joined.rejoin if ground.replica else None,
        )


def _replicas(ground: Ground, kept: Kept) -> Replicas:
    replica = ground.replica
    if replica is None or not isinstance(kept.store, RedisStore):
        return Alone()
    timeout_s = ground.settings.replicas.ack_timeout_ms / 1000
    return SharedReplicas(kept.store, replica, timeout_s=timeout_s)


def _front(ground: Ground, kept: Kept, backends: Backends, line: Line, replicas: Replicas) -> Front:
    """Return the front; nothing of it has to be closed."""
    settings, secret, pipeline, feedback = ground.settings, ground.secret, line.pipeline, line.feedback
    server = settings.server
    to_backends = settings.upstream.max_connections * (1 + len(settings.upstreams)) + settings.small.max_concurrency
    aliases = Aliases(pipeline, feedback, secret, timeout_s=server.lookup_timeout_ms / 1000)
    cached: dict[str, CachedRoute | EmbeddingsRoute] = {
        path: CachedRoute(pipeline, settings, secret, dialect, read, line.threads, aliases)
        for path, (dialect, read) in _dialects(settings).items()
    }
    cached["/v1/embeddings"] = EmbeddingsRoute(pipeline, settings, secret, line.threads)
    parts = {"store": kept.store, "encoder": kept.embedder, "index": kept.index, "policies": kept.book}
    optional = {name: part for name, part in (("local_model", backends.model), ("verifier", kept.verifier)) if part}
    shared = {"store": lambda: replicas.ails() and SEE_REPLICA, "replica": replicas.ails}
    ready = Readiness({**parts, **optional}, shared if ground.replica else {})
    edge = Edge(
        backends.upstream,
        ground.telemetry,
        cached,
        own={FEEDBACK_PATH: FeedbackRoute(pipeline, feedback, secret), OPENAPI_PATH: DocumentRoute()},
        aliases=aliases,
        max_upload_bytes=server.max_upload_bytes,
        tenant_of=partial(tenant_of, secret=secret),
        readiness=ready,
        upstreams=lambda: {backend.name: backend.state for backend in backends.states()},
        door=Door(server, room_for(server.max_connections, to_backends), ground.pressure),
        gate=ground.keeper.gate if ground.keeper else None,
    )
    return Front(edge=edge, ready=ready)


def _stats(ground: Ground, kept: Kept, backends: Backends, line: Line) -> Stats:
    return Stats(
        Sources(
            lookups=line.lookups,
            policy=kept.book,
            epoch=lambda: kept.index.epoch,
            backends=backends.pool.states,
            beside=backends.states_beside,
            load=backends.load.lam,
            holdings=kept.store.holdings,
            evictions=lambda: kept.store.evictions,
            standing=line.budget.standing,
            routing=_routing(backends, line, ground.clock),
        )
    )


def _adopting(ground: Ground, kept: Kept, line: Line, stats: Stats) -> Adopting:
    """Return what changes similarity heads, and let it look after the one that serves."""
    adopting = Adopting(
        AdoptingMeans(
            spaces=kept.index,
            shelf=kept.heads.shelf,
            learnt=kept.heads.learnt,
            proving=Proving(
                shelf=kept.heads.shelf,
                layered=kept.layered,
                examining=Examining(
                    pairs=ground.data_dir / PAIRS, base=kept.index.base, book=kept.book, terms=GateTerms()
                ),
                policy=kept.book,
            ),
            store=kept.store,
            lookups=line.lookups,
            heard=stats.wrong_hits,
            spawn=line.supervisor.spawn,
            audit=ground.audit,
            layered=kept.layered,
            grace_s=_GRACE_S + ground.settings.server.lookup_timeout_ms / 1000,
        ),
        kept.heads.state,
        kept.heads.serving,
    )
    adopting.resume()
    line.supervisor.every(_WATCH_INTERVAL_S, adopting.tend, "heads")
    return adopting


def _routing(backends: Backends, line: Line, clock: Clock) -> Routing | None:
    if line.small is None or backends.small is None:
        return None
    return Routing(state=line.small.state, ledger=line.small.rewarding.ledger, model=backends.small.model, clock=clock)


def _tend(ground: Ground, kept: Kept, backends: Backends, line: Line, stack: AsyncExitStack) -> Erasure:
    """Start the upkeep; return what erases. The last snapshot is the first thing done at the end."""
    snapshots = Snapshots(kept.index, ground.snapshots_dir)
    # In this order: what remembers texts first, snapshots last, when the index no longer holds anything.
    remembering = [
        Part(name="feedback", forget=line.feedback.forget),
        *_of_pairs(line.pairs),
        Part(name="budget", forget=line.budget.forget),
        Part(name="lookups", forget=line.lookups.forget),
        *([Part(name="examples", forget=line.small.forget)] if line.small else []),
        Part(name="questions", forget=lambda *_: line.pipeline.forget_questions()),
        Part(name="embeddings", forget=lambda *_: kept.embedder.forget() + kept.index.forget_embeddings()),
        Part(name="verifier", forget=lambda *_: kept.verifier.forget() if kept.verifier else 0),
        Part(name="side_vectors", forget=partial(_aside, kept)),
        Part(name="snapshots", forget=lambda *_: snapshots.scrub()),
    ]
    forgetting = forgetting_of(ground, line)
    erasure = Erasure(
        kept.store,
        kept.index.erase,
        told_elsewhere(forgetting, remembering),
        ground.clock,
        ground.data_dir / "erasures.json",
        forgetting.answers if forgetting else None,
    )

    def gone(removed: Collection[str]) -> None:
        line.pipeline.known.clear()
        if line.small is not None:
            line.small.gone(removed)

    upkeep = Upkeep(
        store=kept.store,
        index=kept.index,
        crowded=line.crowded,
        snapshots=snapshots,
        snapshot_interval_s=ground.settings.index.snapshot_interval_s,
        book=kept.book,
        erasure=erasure,
        backends=backends.states,
        load=backends.load,
        gate=line.gate,
        keeper=ground.keeper,
        telemetry=ground.telemetry,
        clock=ground.clock,
        gone=gone,
    )
    if kept.findable is not None and line.small is not None:
        kept.findable.gone = line.small.gone
    kept.book.on_change(line.lookups.follow)
    if line.pairs is not None:
        kept.book.on_change(line.pairs.follow)
    kept.book.on_change(upkeep.policy_changed)
    kept.book.on_change(Reconciler(kept.store, kept.embedder, upkeep.erase))
    upkeep.start(line.supervisor)
    line.supervisor.every(_ENCODE_INTERVAL_S, partial(catch_up, kept.index), "encoders")
    line.supervisor.every(_BUDGET_INTERVAL_S, line.budget.tend, "budget")
    if line.small is not None:
        line.supervisor.every(_BUDGET_INTERVAL_S, line.small.tend, "augment")
        line.supervisor.every(_CAPACITY_INTERVAL_S, line.small.capacity.tend, "capacity")
        if line.small.replaying is not None:
            line.supervisor.every(_REPLAY_INTERVAL_S, by_one(ground, line.small.replaying.tend), "replay")
    converge(ground, kept, line, forgetting, erasure)
    stack.push_async_callback(snapshots.save_last)
    return erasure


async def _aside(kept: Kept, _: Selector, ids: Collection[str]) -> int:
    """Forget entries' vectors beside the store: what open spaces still have to write first, then by id in the file."""
    await kept.index.scrub_aside()
    await kept.layered.erase(ids)
    return 0


def _of_pairs(pairs: PairLog | None) -> list[Part]:
    if pairs is None:
        return []
    return [
        Part(name="training", forget=pairs.forget),
        Part(name="training_pairs", forget=pairs.forget_entries, purged=True),
    ]


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
    where += ["small.api_key"] * bool(settings.small.api_key.reveal())
    if where and settings.access.mode == "pass" and not is_loopback(settings.server.host):
        raise ConfigError(
            f"{where[0]}: anybody who reaches {settings.server.host} could spend this key; set access.mode to `keys` "
            "and hand out keys made by `cacheproxy keys new`, or listen on 127.0.0.1"
        )
