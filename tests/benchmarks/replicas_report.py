"""The figures of replicas as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def render(report: dict[str, Any]) -> str:
    """Return the tables that docs/benchmarks.md shows; of parts that were not run, nothing."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, Redis {report['versions']['redis']}; "
        f"load of the machine before: {report['load_before'][0]}."
    )
    yield from ("", "| three replicas, one machine | p50 | p99 | max | of |", "|---|---|---|---|---|")
    if seen := report.get("visible"):
        yield _row("insert visible on both others, ms", seen["insert_visible_ms"])
        yield _row("purge acknowledged by all, under load, ms", seen["purge_acknowledged_ms"])
    if races := report.get("races"):
        yield _row("purge of up to 32 keys acknowledged amid races, ms", races["acknowledged_ms"])
        yield from ("", "| promise | broken | of |", "|---|---|---|")
        yield (
            f"| nothing purged is served after it was acknowledged, no version goes back | {races['broken_promises']} "
            f"| {races['races']} races, {races['hits']} hits, {races['hits_within_50_ms_of_a_purge']} of them within "
            f"50 ms after a purge of their key |"
        )
        yield f"| replicas agree when all is quiet | {races['divergent_keys']} keys | every key after each round |"
    if seen and races:
        yield f"| the same over HTTP | {seen['broken_promises']} | {seen['purge_acknowledged_ms']['count']} purges |"
    if (cut := report.get("divergence")) and races:
        yield (
            f"| a replica cut off while {cut['changed_meanwhile']} of {cut['entries']} entries changed agrees after "
            f"one reconcile | {cut['divergent']} entries | {cut['entries']} |"
        )
    if away := report.get("away"):
        yield from (
            "",
            "| engine | answered | p99 ms before | in the first second | added | later | added | serves again after |",
            "|---|---|---|---|---|---|---|---|",
        )
        for way, found in away.items():
            yield (
                f"| {way} | {found['answered']} of {found['asked']} | {found['fair']['p99']} "
                f"| {found['first_second']['p99']} | {found['added_p99_ms_at_first']} | {found['later']['p99']} "
                f"| {found['added_p99_ms_later']} | {found['serves_again_after_s']} s |"
            )
    if cold := report.get("cold"):
        yield ""
        yield (
            f"A cold replica over {cold['entries']} entries: ready after {cold['ready_s']} s, finds by similarity "
            f"after {cold['finds_by_similarity_s']} s, {cold['rss_mb']} MB."
        )
    if throughput := report.get("throughput"):
        yield from ("", "| replicas | requests/s | CPU ms a request | p50 ms | p99 ms |", "|---|---|---|---|---|")
        for count, found in throughput.items():
            yield (
                f"| {count} | {found['requests_per_s']} | {found['cpu_ms_a_request']} | {found['ms']['p50']} "
                f"| {found['ms']['p99']} |"
            )


def _row(name: str, found: dict[str, float]) -> str:
    return f"| {name} | {found['p50']} | {found['p99']} | {found['max']} | {found['count']} |"
