"""What the parts count themselves, gathered for the metrics."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.stats.told import longest_ttl_s, lowest_threshold
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.telemetry import Figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.embed.batcher import MicroBatcher
    from cacheproxy.flight import Flights
    from cacheproxy.http.door import Door
    from cacheproxy.index.spaces import Spaces
    from cacheproxy.policy.adapt import LoadWatch
    from cacheproxy.ports import Replicas
    from cacheproxy.pressure import Pressure
    from cacheproxy.stats.reader import Stats
    from cacheproxy.store.memory import MemoryStore
    from cacheproxy.store.sqlite import SqliteStore
    from cacheproxy.supervise import Supervisor
    from cacheproxy.upstream.backend import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The parts that count."""

    store: SqliteStore | MemoryStore | RedisStore
    replicas: Replicas
    embedder: MicroBatcher
    index: Spaces
    flights: Flights
    supervisor: Supervisor
    pressure: Pressure
    door: Door
    backends: Callable[[], Sequence[State]]
    load: LoadWatch
    stats: Stats

    def __call__(self) -> Figures:
        """Return their figures of this moment."""
        store, embedder, door = self.store, self.embedder, self.door
        shared = store if isinstance(store, RedisStore) else None
        encoded, indexed = embedder.stats, self.index.stats()
        backends, categories = self.backends(), self.stats.categories()
        return Figures(
            upstream_out={backend.name: int(backend.state != "ok") for backend in backends},
            upstream_running={backend.name: backend.running for backend in backends},
            upstream_waiting={backend.name: backend.waiting for backend in backends},
            load={name: reading.lam for name, reading in self.load.readings.items()},
            category_threshold={
                one.category: told for one in categories if (told := lowest_threshold(one)) is not None
            },
            category_ttl={one.category: longest_ttl_s(one) for one in categories},
            category_entries={one.category: one.entries for one in categories},
            category_bytes={one.category: one.size_bytes for one in categories},
            category_net_ms={one.category: one.total.net_ms for one in categories if one.total.net_ms is not None},
            category_false_hits={
                one.category: one.false_hits.rate for one in categories if one.false_hits.rate is not None
            },
            category_false_hits_upper={
                one.category: one.false_hits.high for one in categories if one.false_hits.labelled
            },
            category_served_from={one.category: one.budget.served_from for one in categories if one.budget},
            category_wrong_hits={
                one.category: one.budget.wrong.rate
                for one in categories
                if one.budget and one.budget.wrong.rate is not None
            },
            category_wrong_hits_upper={
                one.category: one.budget.wrong.high for one in categories if one.budget and one.budget.wrong.labelled
            },
            category_delta={one.category: one.budget.delta for one in categories if one.budget},
            arm_quality=self.stats.arm_qualities(),
            examples=self.stats.examples(),
            upstream_shed={backend.name: backend.shed for backend in backends},
            upstream_ejections={backend.name: backend.ejections for backend in backends},
            upstream_retries={backend.name: backend.retries for backend in backends},
            flights=self.flights.aloft,
            tasks=len(asyncio.all_tasks()),
            connections=len(door.connections),
            connections_cut=dict(door.cut),
            requests_in_flight=door.requests,
            shed=dict(self.pressure.shed),
            let_in=min(1.0, self.pressure.share / 2),
            held_body_bytes=door.held_bytes,
            background_failures=self.supervisor.failures,
            store_entries=len(store),
            store_bytes=store.size_bytes,
            evictions={(category, cause.value): count for (category, cause), count in store.evictions.items()},
            store_corrupt_records=store.corrupt_records,
            store_quarantined=store.quarantined,
            store_foreign=shared.foreign if shared else 0,
            store_mode={
                "embedded": int(shared is None),
                "shared": int(shared is not None and not shared.degraded()),
                "degraded": int(shared is not None and bool(shared.degraded())),
            },
            replica_divergence=shared.divergent if shared else 0,
            replica_resyncs=dict(shared.resyncs) if shared else {},
            replica_lag_seconds=self.replicas.lag_s(),
            replica_lease_seconds=self.replicas.lease_s(),
            replica_engine_pauses=self.replicas.openings(),
            replica_unfindable=shared.unfindable if shared else 0,
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
