"""What opens the parts, in steps: the ground, what is kept, the backends, the line. `app.py` takes the steps."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import structlog

from cacheproxy.access.inserts import InsertRate
from cacheproxy.access.keeper import open_keeper
from cacheproxy.access.meter import MeteredUpstream
from cacheproxy.access.names import Names
from cacheproxy.assembly import Backends, Ground, Kept, Line
from cacheproxy.augment.tokens import Estimated, Tokenised
from cacheproxy.background import Cores, usable_cores
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.device import choose_device
from cacheproxy.embed.examples import Examples
from cacheproxy.embed.open import open_encoder
from cacheproxy.errors import ConfigError, Overloaded
from cacheproxy.flight import Flights
from cacheproxy.govern.audit import AuditLog
from cacheproxy.govern.book import PolicyBook, Records
from cacheproxy.govern.fleet import Fleet
from cacheproxy.govern.fleetbook import FleetBook
from cacheproxy.govern.maker import Means, PolicyMaker
from cacheproxy.govern.versions import VersionFile
from cacheproxy.heads import Heads, open_heads
from cacheproxy.index.spaces import Spaces
from cacheproxy.install import install_secret, own_folder
from cacheproxy.learn import shadow as learning
from cacheproxy.learn.budget import Budget
from cacheproxy.learn.feedback import Feedback
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.learn.meter import LearningMeter
from cacheproxy.learn.pairfile import FILE as PAIRS
from cacheproxy.learn.pairlog import Means as PairMeans
from cacheproxy.learn.pairlog import PairLog
from cacheproxy.learn.pairwriter import PairWriter
from cacheproxy.learn.shadow import Shadow
from cacheproxy.learn.verdicts import Verdicts
from cacheproxy.learn.words import Words
from cacheproxy.parts import Parts
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.adapt import LoadWatch
from cacheproxy.policy.evict import quotas
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.plan import needs_verifier
from cacheproxy.policy.prepare import fitted
from cacheproxy.ports import SmallModel
from cacheproxy.pressure import Pressure
from cacheproxy.privacy.gate import PresidioGate
from cacheproxy.promote import promote_judged
from cacheproxy.query.scope import common_of, read_scope
from cacheproxy.query.scope import tenant_of as tenant_of_label
from cacheproxy.recoding import Around as Recodes
from cacheproxy.recoding import Layered
from cacheproxy.replica import open_replica
from cacheproxy.replicated import Findable, open_shared_store
from cacheproxy.sharing import Sharing, SharingMeans
from cacheproxy.small import Around, made_of, open_state
from cacheproxy.store.open import open_store
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from cacheproxy.turns import TimedTurns
from cacheproxy.upstream.keys import operators_own
from cacheproxy.upstream.local.convert import copy_in
from cacheproxy.upstream.local.process import LocalModel
from cacheproxy.upstream.open import open_pool
from cacheproxy.upstream.small import NAME, QUEUE_S, form_of, model_of, open_small
from cacheproxy.verify.open import OFF
from cacheproxy.verify.verifier import ThreadedVerifier
from cacheproxy.verifying import open_verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AsyncExitStack

    from cacheproxy.model import Quota
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Clock, TokenCounter, Upstream
    from cacheproxy.settings import Settings
    from cacheproxy.store.memory import MemoryStore
    from cacheproxy.store.sqlite import SqliteStore

log = structlog.get_logger()


_SOON_S = 0.01
"""Wait for an encoder, beyond which a request that the backend has no place for is told so at once."""


async def open_ground(settings: Settings, clock: Clock, stack: AsyncExitStack) -> Ground:
    """Take the data directory, the keys and the log of changes. Raises ConfigError, also where it is in use."""
    load_pack(find_pack(settings.policies.pack))  # what is wrong with it is told before anything is made
    telemetry = Telemetry()
    data_dir, owned = stack.enter_context(own_folder(settings))
    common = settings.data.path()  # keys and their secret are those of all who share it
    replica = await open_replica(settings, common, data_dir, clock, stack)
    secret = replica.joined.secret if replica else install_secret(common)
    keeper = open_keeper(settings, common, secret, clock)
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
        pressure=Pressure(
            settings.server.max_lag_ms / 1000,
            telemetry.loop_lag_seconds.observe,
            telemetry.refused.labels(Overloaded.code).inc,
        ),
        replica=replica,
    )


async def open_kept(ground: Ground, stack: AsyncExitStack) -> Kept:
    """Open what is kept, what finds it, and the policy in force. Raises ConfigError and StoreUnavailable."""
    settings, data_dir = ground.settings, ground.data_dir
    room = settings.store.max_entries, settings.store.max_bytes
    store = await _store(ground, lambda: quotas(book().pack, *room), stack)
    encoder = await asyncio.to_thread(open_encoder, settings.encoder, settings.data.path())
    cores = cores_of(await asyncio.to_thread(choose_device, settings.encoder.device))
    embedder = await stack.enter_async_context(MicroBatcher(encoder, settings.encoder, cores=cores))
    around = Recodes(
        store=store, config=settings.encoder, data_dir=data_dir, busy=lambda: bool(embedder.queued or embedder.running)
    )
    layered = await stack.enter_async_context(Layered(around))
    heads = await open_heads(settings.encoder, data_dir, embedder.epoch, embedder.dim, layered)
    serving = (heads.serving.epoch, heads.serving.head) if heads.serving and not heads.own else None
    spaces = Spaces(settings.index, dim=embedder.dim, base=embedder.epoch, head=serving, own=heads.own)
    index = await stack.enter_async_context(spaces)
    findable = await _restore(ground, store, index)
    verifier = await _verifier(settings, embedder.epoch, cores, stack)
    records = Records(VersionFile(data_dir / "policies.sqlite3"), ground.audit)
    book = _book(ground, records, PolicyMaker(_means(ground, embedder, verifier, heads)))
    await book.open()
    if settings.verifier.path == OFF:
        _warn_unverified(book().pack, embedder.epoch)
    return Kept(
        store=store,
        embedder=embedder,
        heads=heads,
        layered=layered,
        index=index,
        verifier=verifier,
        book=book,
        findable=findable,
    )


async def _store(
    ground: Ground, quotas: Callable[[], Mapping[str, Quota]], stack: AsyncExitStack
) -> SqliteStore | MemoryStore | RedisStore:
    settings, data_dir = ground.settings, ground.data_dir
    if ground.replica is not None:
        shared = open_shared_store(ground.replica, settings, ground.clock, data_dir, quotas)
        return await stack.enter_async_context(shared)
    return await stack.enter_async_context(open_store(settings.store, data_dir, ground.clock, quotas))


async def _restore(ground: Ground, store: SqliteStore | MemoryStore | RedisStore, index: Spaces) -> Findable | None:
    """Fill the index; of a shared store it hears of what comes and goes from then on."""
    if not isinstance(store, RedisStore):
        await index.restore(ground.snapshots_dir, store.scan(index.base))
        return None
    # Without its engine a replica starts with nothing, and hears of it later.
    await index.restore(
        ground.snapshots_dir, store.rows(index.base), whole=lambda: store.loaded and not store.unfindable
    )
    findable = Findable(index)
    store.listen(findable)
    return findable


def _book(ground: Ground, records: Records, maker: PolicyMaker) -> PolicyBook:
    """Return the book of policies: of a replica, the one that all share."""
    source, replica, clock = ground.settings.policies.pack, ground.replica, ground.clock
    if replica is None:
        return PolicyBook(source, records, maker, clock)
    shared = Fleet(replica.link, replica.layout, log_messages=ground.settings.replicas.log_messages)
    return FleetBook(source, records, maker, clock, fleet=shared, seen=ground.data_dir / "pack.seen")


def _budget(ground: Ground, fingerprint: str) -> Budget:
    labels = ground.replica.labels if ground.replica else None
    return Budget(ground.data_dir / "budget.sqlite3", fingerprint, ground.clock, labels=labels)


def _words(ground: Ground) -> Words | None:
    """Return the words on answers that replicas share."""
    replica = ground.replica
    if replica is None:
        return None
    return Words(replica.link, replica.layout, log_messages=ground.settings.replicas.log_messages)


def _warn_unverified(pack: Pack, epoch: str) -> None:
    names = [name for name, rules in pack.categories.items() if rules.allow_caching and rules.semantic]
    names = [name for name in names if needs_verifier(pack, name, epoch)]
    if names:
        log.warning("verifier_off", exact_only=names, hint="these categories have no threshold: set verifier.path")


def cores_of(device: str) -> Cores | None:
    """Return the cores that encoder and verifier share; None where the encoder has a device of its own."""
    return Cores(usable_cores()) if device == "cpu" else None


async def _verifier(
    settings: Settings, epoch: str, cores: Cores | None, stack: AsyncExitStack
) -> ThreadedVerifier | None:
    chosen = settings.verifier
    scorer = await asyncio.to_thread(open_verifier, settings)
    if scorer is None:
        return None
    live = ThreadedVerifier(
        scorer,
        [epoch],
        threads=chosen.threads,
        timeout_s=chosen.timeout_ms / 1000,
        queue=chosen.queue,
        cores=cores,
    )
    return await stack.enter_async_context(live)


def _means(ground: Ground, embedder: MicroBatcher, verifier: ThreadedVerifier | None, heads: Heads) -> Means:
    chosen = ground.settings.encoder.cache_dir
    folder = Path(chosen).expanduser() if chosen else ground.settings.data.path() / "encoders"
    return Means(
        epoch=embedder.epoch,
        tenant_of=partial(tenant_of_label, secret=ground.secret),
        embed_all=Examples(embedder, folder / "examples.sqlite3"),
        fit=fitted,
        verifier=verifier.scorer if verifier else None,
        learnt=heads.learnt,
    )


async def open_backends(ground: Ground, stack: AsyncExitStack) -> Backends:
    """Open the way to the backends, and start the embedded model where it is one. Raises ConfigError."""
    settings, told = ground.settings, ground.telemetry.upstream_first_byte_seconds
    model: LocalModel | None = None
    name = model_of(settings)
    if "local" in (settings.upstream.url, settings.small.url):  # one child, whoever asks it
        model = await stack.enter_async_context(LocalModel(_model_dir(ground)))
    pool = await stack.enter_async_context(
        open_pool(
            settings,
            ground.clock,
            socket_path=model.socket_path if model and settings.upstream.url == "local" else None,
            observe=lambda name, seconds: told.labels(name).observe(seconds),
        )
    )
    upstream: Upstream = MeteredUpstream(pool) if ground.keeper else pool
    backends = Backends(
        model=model if settings.upstream.url == "local" else None,
        pool=pool,
        load=LoadWatch(settings.load),
        upstream=upstream,
    )
    return await _with_small(ground, backends, name, model, stack) if name else backends


async def _with_small(
    ground: Ground, backends: Backends, name: str, model: LocalModel | None, stack: AsyncExitStack
) -> Backends:
    settings, chosen = ground.settings, ground.settings.small
    embedded = model if chosen.url == "local" else None
    beside = await stack.enter_async_context(
        open_small(
            settings,
            ground.clock,
            embedded=embedded,
            observe=ground.telemetry.upstream_first_byte_seconds.labels(NAME).observe,
        )
    )
    small = SmallModel(
        upstream=MeteredUpstream(beside) if ground.keeper else beside,
        model=name,
        context_tokens=chosen.context_tokens,
        form=form_of(chosen),
        counter=await asyncio.to_thread(_counter, ground),
        first_words_s=QUEUE_S + chosen.first_byte_timeout_s,
        whole_answer_s=chosen.answer_timeout_s,
    )
    return replace(backends, small=small, beside=beside)


def _counter(ground: Ground) -> TokenCounter:
    """Return what counts the small model's tokens. Raises ConfigError for a tokenizer that cannot be read.

    The embedded model's own is there once its child has converted the weights: after the very first start, from the
    next one on. Until then, and where the copy is damaged (the child makes it anew), tokens are estimated.
    """
    chosen = ground.settings.small
    if chosen.tokenizer:
        return Tokenised.from_file(Path(chosen.tokenizer).expanduser())
    if chosen.url == "local":
        with contextlib.suppress(ConfigError):
            return Tokenised.from_file(copy_in(_model_dir(ground)) / "tokenizer.json")
    return Estimated()


def _model_dir(ground: Ground) -> Path:
    chosen = ground.settings.upstream.local_cache_dir
    return Path(chosen).expanduser() if chosen else ground.settings.data.path()


async def open_line(ground: Ground, kept: Kept, backends: Backends, stack: AsyncExitStack) -> Line:
    """Open what a request walks, and the tasks beside it. Raises ConfigError."""
    settings, clock, pool, watch = ground.settings, ground.clock, backends.pool, backends.load
    # What flights use while they end is opened before the supervisor that ends them, so that it closes after it.
    gate = PresidioGate()
    stack.callback(gate.close)
    verdicts = await stack.enter_async_context(Verdicts(ground.data_dir / "feedback.sqlite3", words=_words(ground)))
    learnt = await open_state(backends.small, kept.embedder.epoch, ground.data_dir, stack) if backends.small else None
    writer = await _pair_writer(ground, stack)
    threads = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="understand"))
    supervisor = await stack.enter_async_context(Supervisor())
    flights = Flights(
        supervisor.spawn, window_bytes=settings.flight.window_bytes, keep_bytes=settings.store.max_entry_bytes
    )
    pairs = PairLog(writer, _pair_means(ground, kept, gate), settings.federated, supervisor.spawn) if writer else None
    teach = pairs.hear if pairs is not None and settings.federated.collect != "none" else None
    lookups = LookupLog(kept.book, ground.telemetry, clock, kept.embedder.epoch, teach=teach)
    fingerprint = kept.verifier.fingerprint if kept.verifier else ""
    budget = await stack.enter_async_context(_budget(ground, fingerprint))
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
        swamped=lambda query: (
            (kept.embedder.ahead_s > _SOON_S or ground.pressure.pressed) and pool.full(query.model, query.scope.tenant)
        ),
        expect=lambda query: pool.expect(query.model, query.scope.tenant),
        behind=lambda: (
            max(kept.embedder.waited_s, kept.embedder.ahead_s)
            > ground.pressure.patience_s(settings.encoder.max_wait_ms / 1000)
        ),
        admit_miss=ground.pressure.admit_miss,
        pii=gate,
        budget=budget,
        sharing=sharing,
        small=backends.small,
        may_keep=InsertRate(settings.store.max_inserts_per_minute, clock),
        load=lambda model: watch.least(pool.backends(model)),
        elsewhere=TimedTurns(ground.replica.flights, ground.telemetry, clock) if ground.replica else None,
        flight_wait_s=settings.replicas.flight_wait_ms / 1000,
        stream_wait_s=settings.replicas.stream_wait_ms / 1000,
    )
    parts = replace(parts, learning=_learning(ground, kept, parts, budget, feedback, lookups, supervisor))
    small = None
    if learnt is not None and backends.small is not None:
        # With a key of the operator's own, or the embedded model, the large model takes everybody.
        checked = ground.keeper is not None or bool(settings.upstream.api_key.reveal()) or backends.model is not None
        around = Around(
            learn=settings.learn,
            capacity_tokens=settings.small.example_capacity_tokens,
            policy=kept.book,
            traffic=backends.traffic,
            own_key=lambda model: operators_own(settings, pool.routes(model)),
            spawn=supervisor.spawn,
            checked=checked,
        )
        if not any(rules.augment == "auto" for rules in kept.book().pack.categories.values()):
            log.warning(
                "small_model_idle",
                what="no category of the pack lets it answer: cacheproxy policies patch CATEGORY augment=auto",
            )
        small = made_of(learnt, backends.small, parts, around)
    return Line(
        budget=budget,
        gate=gate,
        threads=threads,
        supervisor=supervisor,
        flights=flights,
        lookups=lookups,
        pairs=pairs,
        feedback=feedback,
        verdicts=verdicts,
        sharing=sharing,
        crowded=crowded,
        small=small,
        pipeline=Pipeline(
            parts,
            kept.book,
            flights,
            lookup_timeout_s=settings.server.lookup_timeout_ms / 1000,
            coalesce_timeout_s=settings.flight.coalesce_timeout_s,
            offloading=small.offloading if small else None,
        ),
    )


async def _pair_writer(ground: Ground, stack: AsyncExitStack) -> PairWriter | None:
    """Open the file of training pairs where some are collected, or were: they can be erased. Raises ConfigError."""
    settings, path = ground.settings, ground.data_dir / PAIRS
    collect = settings.federated.collect
    if collect == "consenting" and settings.access.mode == "pass":
        log.warning("training_pairs_none", what="without virtual keys nobody consents: set access.mode to `keys`")
    if collect == "none" and not path.exists():
        return None
    return await stack.enter_async_context(PairWriter(path, settings.federated.max_pairs))


def _pair_means(ground: Ground, kept: Kept, gate: PresidioGate) -> PairMeans:
    return PairMeans(
        store=kept.store,
        embedder=kept.embedder,
        pii=gate,
        policy=kept.book,
        clock=ground.clock,
        telemetry=ground.telemetry,
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
