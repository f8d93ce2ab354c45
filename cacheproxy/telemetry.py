"""Every metric's name, once. Labels are bounded (outcomes, reasons, categories, parts): never tenants, models, text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cacheproxy.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

_FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WAIT_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975, 1.0)
_SLOW_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class _Gauge(NamedTuple):
    name: str
    text: str
    labels: str | tuple[str, ...] = ()


class _Total(NamedTuple):
    name: str
    text: str
    labels: str | tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the parts count themselves, read when the metrics are asked for; each field with its metric."""

    flights: Annotated[int, _Gauge("cacheproxy_flights", "Exchanges with the backend in the air.")]
    tasks: Annotated[int, _Gauge("cacheproxy_tasks", "Tasks of the event loop: flat when nothing leaks.")]
    connections: Annotated[int, _Gauge("cacheproxy_connections", "Callers' connections on the data port.")]
    connections_cut: Annotated[
        dict[str, int],
        _Total("cacheproxy_connections_cut_total", "Connections refused or ended by us, by reason.", "reason"),
    ]
    requests_in_flight: Annotated[
        int, _Gauge("cacheproxy_requests_in_flight", "Requests being answered, as server.max_requests counts them.")
    ]
    shed: Annotated[
        dict[str, int],
        _Total("cacheproxy_shed_total", "Requests turned away because the event loop was late, by where.", "where"),
    ]
    let_in: Annotated[
        float, _Gauge("cacheproxy_let_in", "What is let in: 1 all, to 0.5 fewer misses, below it less of everything.")
    ]
    held_body_bytes: Annotated[int, _Gauge("cacheproxy_held_body_bytes", "Bytes of request bodies held in memory.")]
    upstream_out: Annotated[
        dict[str, int],
        _Gauge(
            "cacheproxy_upstream_out", "Whether a backend is passed over: ejected, cooling or unreachable.", "upstream"
        ),
    ]
    upstream_running: Annotated[
        dict[str, int], _Gauge("cacheproxy_upstream_running", "Requests a backend is answering.", "upstream")
    ]
    upstream_waiting: Annotated[
        dict[str, int], _Gauge("cacheproxy_upstream_waiting", "Requests in the queue of a backend.", "upstream")
    ]
    load: Annotated[
        dict[str, float],
        _Gauge("cacheproxy_load", "How far policy gives way to the load of a backend, 0 to 1.", "upstream"),
    ]
    category_threshold: Annotated[
        dict[str, float],
        _Gauge("cacheproxy_category_threshold", "Threshold in force, at the load of now.", "category"),
    ]
    category_ttl: Annotated[
        dict[str, float],
        _Gauge("cacheproxy_category_ttl_seconds", "Lifetime in force, at the load of now.", "category"),
    ]
    category_entries: Annotated[
        dict[str, int], _Gauge("cacheproxy_category_entries", "Entries kept of a category.", "category")
    ]
    category_bytes: Annotated[
        dict[str, int], _Gauge("cacheproxy_category_bytes", "Bytes of entries kept of a category.", "category")
    ]
    category_net_ms: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_net_ms",
            "Waiting that a lookup spares on average, since rules last changed; below 0 the category loses.",
            "category",
        ),
    ]
    category_false_hits: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_false_hits",
            "Share of false ones among labelled similarity hits; missing without labels.",
            "category",
        ),
    ]
    category_false_hits_upper: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_false_hits_upper",
            "Upper end of its exact 95 % interval; missing without labels.",
            "category",
        ),
    ]
    category_served_from: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_served_from",
            "Lowest probability served of an entry without labels, as the error budget leaves it; verified ones only.",
            "category",
        ),
    ]
    category_wrong_hits: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_wrong_hits",
            "Share of wrong ones among hits compared with fresh answers; missing without any.",
            "category",
        ),
    ]
    category_wrong_hits_upper: Annotated[
        dict[str, float],
        _Gauge(
            "cacheproxy_category_wrong_hits_upper",
            "Upper end of its exact 95 % interval; missing without any.",
            "category",
        ),
    ]
    category_delta: Annotated[
        dict[str, float],
        _Gauge("cacheproxy_category_delta", "Share of wrong hits that is tolerated; verified ones only.", "category"),
    ]
    arm_quality: Annotated[
        dict[tuple[str, str], float],
        _Gauge(
            "cacheproxy_arm_quality",
            "Quality expected of an arm at the category's typical question, 0 to 1; missing before anything was said.",
            ("category", "arm"),
        ),
    ]
    examples: Annotated[
        dict[str, int],
        _Gauge("cacheproxy_examples", "Past answers that something is known of as examples.", "category"),
    ]
    upstream_shed: Annotated[
        dict[str, int],
        _Total("cacheproxy_upstream_shed_total", "Requests its queue refused, or let go after the wait.", "upstream"),
    ]
    upstream_ejections: Annotated[
        dict[str, int], _Total("cacheproxy_upstream_ejections_total", "Times a backend was taken out.", "upstream")
    ]
    upstream_retries: Annotated[
        dict[str, int], _Total("cacheproxy_upstream_retries_total", "Second attempts, by where they went.", "upstream")
    ]
    background_failures: Annotated[
        int, _Total("cacheproxy_background_failures_total", "Background tasks that failed; the log says which.")
    ]
    store_entries: Annotated[
        int, _Gauge("cacheproxy_store_entries", "Entries kept, expired ones not swept yet included.")
    ]
    store_bytes: Annotated[int, _Gauge("cacheproxy_store_bytes", "Bytes of entries, as store.max_bytes counts them.")]
    evictions: Annotated[
        dict[tuple[str, str], int],
        _Total(
            "cacheproxy_evictions_total", "Entries that sweeps removed, by category and cause.", ("category", "cause")
        ),
    ]
    store_corrupt_records: Annotated[
        int, _Total("cacheproxy_store_corrupt_records_total", "Records dropped because their checks failed.")
    ]
    store_quarantined: Annotated[
        int, _Total("cacheproxy_store_quarantined_total", "Damaged store files moved aside at the start.")
    ]
    store_foreign: Annotated[
        int,
        _Total("cacheproxy_store_foreign_total", "Values and messages of a shared store that were not understood."),
    ]
    store_mode: Annotated[
        dict[str, int],
        _Gauge("cacheproxy_store_mode", "1 for how entries are kept now: embedded, shared or degraded.", "mode"),
    ]
    replica_divergence: Annotated[
        int,
        _Gauge("cacheproxy_replica_divergence_entries", "Entries that differed from the engine at the last look."),
    ]
    replica_resyncs: Annotated[
        dict[str, int],
        _Total("cacheproxy_replica_resyncs_total", "Times that a log's entries were read again, by reason.", "reason"),
    ]
    replica_lag_seconds: Annotated[
        float, _Gauge("cacheproxy_replica_lag_seconds", "How far this replica is behind the logs that it follows.")
    ]
    replica_lease_seconds: Annotated[
        float,
        _Gauge(
            "cacheproxy_replica_lease_seconds",
            "For how long this replica may serve without hearing from the engine again; 0 while it may not.",
        ),
    ]
    replica_engine_pauses: Annotated[
        int,
        _Total("cacheproxy_replica_engine_pauses_total", "Times that the engine failed and was left alone a moment."),
    ]
    replica_unfindable: Annotated[
        int, _Gauge("cacheproxy_replica_unfindable", "Entries of other replicas that are not in the index yet.")
    ]
    encoder_queue: Annotated[int, _Gauge("cacheproxy_encoder_queue", "Texts waiting for an encoder worker.")]
    encoder_running: Annotated[int, _Gauge("cacheproxy_encoder_running", "Batches being encoded.")]
    encoder_batches: Annotated[int, _Total("cacheproxy_encoder_batches_total", "Batches encoded.")]
    encoder_texts: Annotated[int, _Total("cacheproxy_encoder_texts_total", "Texts encoded.")]
    encoder_memo_hits: Annotated[
        int, _Total("cacheproxy_encoder_memo_hits_total", "Texts whose embedding was remembered.")
    ]
    encoder_shared: Annotated[
        int, _Total("cacheproxy_encoder_shared_total", "Texts that were being encoded for another request.")
    ]
    encoder_left: Annotated[
        int, _Total("cacheproxy_encoder_left_total", "Texts dropped from the queue: nobody waited any more.")
    ]
    encoder_failures: Annotated[
        dict[str, int],
        _Total("cacheproxy_encoder_failures_total", "Requests that got no embedding, by flaw.", "flaw"),
    ]
    entries_indexed: Annotated[int, _Gauge("cacheproxy_entries_indexed", "Entries that similarity can find.")]
    index_partitions: Annotated[int, _Gauge("cacheproxy_index_partitions", "Partitions with entries.")]
    index_graphs: Annotated[int, _Gauge("cacheproxy_index_graphs", "Partitions with a graph.")]
    index_dead: Annotated[int, _Gauge("cacheproxy_index_dead", "Dropped vectors that graphs still hold.")]
    index_tail: Annotated[int, _Gauge("cacheproxy_index_tail", "Vectors searched flat.")]
    index_due: Annotated[int, _Gauge("cacheproxy_index_due", "Partitions that wait for upkeep.")]
    index_bytes: Annotated[int, _Gauge("cacheproxy_index_bytes", "Memory of vectors and graphs, estimated.")]
    index_merged_rows: Annotated[int, _Total("cacheproxy_index_merged_rows_total", "Vectors moved into graphs.")]
    index_rebuilds: Annotated[int, _Total("cacheproxy_index_rebuilds_total", "Graphs rebuilt.")]
    index_upkeep_failures: Annotated[
        int, _Total("cacheproxy_index_upkeep_failures_total", "Partitions whose upkeep failed: flat until a restart.")
    ]
    index_snapshots: Annotated[int, _Total("cacheproxy_index_snapshots_total", "Snapshots written.")]
    index_snapshots_refused: Annotated[
        int, _Total("cacheproxy_index_snapshots_refused_total", "Snapshot files refused at the start.")
    ]


class _Kept(Collector):
    """Figures as metrics."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read
        hints = get_type_hints(Figures, include_extras=True)
        self._metrics: dict[str, _Gauge | _Total] = {field: hint.__metadata__[0] for field, hint in hints.items()}

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        for field, metric in self._metrics.items():
            value = getattr(figures, field)
            kind = GaugeMetricFamily if isinstance(metric, _Gauge) else CounterMetricFamily
            if not metric.labels:
                yield kind(metric.name, metric.text, value=value)
                continue
            labels = (metric.labels,) if isinstance(metric.labels, str) else metric.labels
            family = kind(metric.name, metric.text, labels=labels)
            for told, count in value.items():
                family.add_metric((told,) if isinstance(told, str) else told, count)
            yield family


class Telemetry:
    """The metrics of one proxy, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "cacheproxy_requests_total",
            "Requests of cached routes by outcome, tier (hits), category and reason.",
            ("outcome", "tier", "category", "reason"),
            registry=r,
        )
        self.lookup_seconds = Histogram(
            "cacheproxy_lookup_seconds", "Time to decide, by outcome.", ("outcome",), buckets=_FAST_S, registry=r
        )
        self.upstream_seconds = Histogram(
            "cacheproxy_upstream_seconds", "Backend time of complete answers.", buckets=_SLOW_S, registry=r
        )
        self.upstream_first_byte_seconds = Histogram(
            "cacheproxy_upstream_first_byte_seconds",
            "Time a backend took to begin its answer.",
            ("upstream",),
            buckets=_SLOW_S,
            registry=r,
        )
        self.admissions = Counter(
            "cacheproxy_admissions_total", "Complete answers by what became of them.", ("stored", "reason"), registry=r
        )
        self.coalesced = Counter("cacheproxy_coalesced_total", "Requests answered by another's exchange.", registry=r)
        self.part_failures = Counter(
            "cacheproxy_part_failures_total",
            "Failures of a part of the cache, each treated as a miss.",
            ("part",),
            registry=r,
        )
        self.scope_violations = Counter(
            "cacheproxy_scope_violations_total", "Documents refused by the second scope check. Must stay 0.", registry=r
        )
        self.repairs = Counter(
            "cacheproxy_index_repairs_total", "Ids dropped from the index for want of a document.", registry=r
        )
        self.saved_usd = Counter(
            "cacheproxy_saved_usd_total", "Price of the answers served from the cache.", registry=r
        )
        self.removed = Counter("cacheproxy_entries_removed_total", "Entries removed by the sweeper.", registry=r)
        self.refused = Counter(
            "cacheproxy_refused_total", "Requests refused at the edge, by wire code.", ("code",), registry=r
        )
        self.upstream_errors = Counter(
            "cacheproxy_upstream_errors_total", "Exchanges that failed, by wire code.", ("code",), registry=r
        )
        self.feedback = Counter(
            "cacheproxy_feedback_total", "Words of callers on served answers.", ("verdict",), registry=r
        )
        self.learning = Counter(
            "cacheproxy_learning_total",
            "Comparisons made to learn, by why (shadow, explored, judge) and what came of them.",
            ("source", "came"),
            registry=r,
        )
        self.training_pairs = Counter(
            "cacheproxy_training_pairs_total",
            "Labelled pairs collected for training, by whose word it was and whether the answer was right.",
            ("source", "right"),
            registry=r,
        )
        self.training_pairs_refused = Counter(
            "cacheproxy_training_pairs_refused_total",
            "Labels that made no training pair, by why.",
            ("reason",),
            registry=r,
        )
        self.shared = Counter(
            "cacheproxy_shared_total",
            "Answers that several tenants may come to share, by result.",
            ("result",),
            registry=r,
        )
        self.near_misses = Counter(
            "cacheproxy_near_misses_total",
            "Misses whose best candidate was within the band below the threshold.",
            ("category",),
            registry=r,
        )
        self.similarity = Histogram(
            "cacheproxy_similarity",
            "Similarity of the best candidate, served or not.",
            ("category",),
            buckets=_SIMILARITIES,
            registry=r,
        )
        self.saved_seconds = Counter(
            "cacheproxy_saved_seconds_total", "Waiting that hits spared, by category.", ("category",), registry=r
        )
        self.category_saved_usd = Counter(
            "cacheproxy_category_saved_usd_total",
            "Price of the answers served from the cache, by category.",
            ("category",),
            registry=r,
        )
        self.arms = Counter(
            "cacheproxy_arms_total",
            "Misses that the small model might have, by who answered (augmented, small, large) and why.",
            ("category", "arm", "reason"),
            registry=r,
        )
        self.arm_seconds = Histogram(
            "cacheproxy_arm_choice_seconds", "Time to choose examples and who answers.", buckets=_FAST_S, registry=r
        )
        self.arm_regret = Counter(
            "cacheproxy_arm_regret_total",
            "Score given up for exploring, as expected beforehand; 1 is a whole answer's quality.",
            ("category",),
            registry=r,
        )
        self.arm_rewards = Counter(
            "cacheproxy_arm_rewards_total", "What was said of answers, by who gave them.", ("arm", "source"), registry=r
        )
        self.arm_assessed = Counter(
            "cacheproxy_arm_assessed_total",
            "Answers judged or compared beside the line, by result.",
            ("came",),
            registry=r,
        )
        self.replays = Counter(
            "cacheproxy_example_replays_total",
            "Questions of examples that the large model was asked again while it was quiet, by what came of it.",
            ("came",),
            registry=r,
        )
        self.not_augmented = Counter(
            "cacheproxy_not_augmented_total", "Misses that only the model asked for may have.", ("reason",), registry=r
        )
        self.offload_failures = Counter(
            "cacheproxy_offload_failures_total",
            "Answers that the small model did not give, or not to their end.",
            ("reason",),
            registry=r,
        )
        self.offload_saved_usd = Counter(
            "cacheproxy_offload_saved_usd_total",
            "What answers of the small model would have cost more of the large one, by category.",
            ("category",),
            registry=r,
        )
        self.offload_saved_seconds = Counter(
            "cacheproxy_offload_saved_seconds_total",
            "Waiting that the small model spared against the large one's usual time, by category; never below 0.",
            ("category",),
            registry=r,
        )
        self.replica_flight_seconds = Histogram(
            "cacheproxy_replica_flight_seconds",
            "Wait of a miss before it asks the backend, by its turn among replicas: led, joined, timed_out or alone.",
            ("turn",),
            buckets=_WAIT_S,
            registry=r,
        )
        self.stages = Stages()
        r.register(self.stages)
        self.loop_lag_seconds = Histogram(
            "cacheproxy_loop_lag_seconds", "How late the event loop ran a timer.", buckets=_FAST_S, registry=r
        )

    def export(self, read: Callable[[], Figures]) -> None:
        """Export what the parts count themselves; `read` is called whenever the metrics are asked for."""
        self.registry.register(_Kept(read))

    def render(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        return generate_latest(self.registry)
