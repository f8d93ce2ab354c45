"""The goals of performance beside what was measured: a table made of the reports of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Reports = dict[str, Any]
"""Reports by the name of their part; those of parts that never ran are not in it."""
NOT_MEASURED = "not measured"
_EMPTIED = "an encoder's weights empty the caches, so all Python after it is slower, the backend's client, too"
_EMBEDDED = "each miss is embedded on the same two cores, which bounds both"
_CROWD = "of the first second, until it is known that it is too much: a burst is let in (decision 0052)"
_WHY = {
    "answered while the peak is found": "some were turned away while the peak was sought, so it is none",
    "shed answers, p99": _CROWD,
    "accepted answers, p99 against normal": _CROWD,
    "normal again after": "one window with a late p95 is enough, on cores shared with generator and backend",
}
_CACHELLM = {
    "semantic hit": "semantic hits",
    "miss": "misses",
    "exact hit, stream": "streamed hits",
    "miss, stream": "streamed misses",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One goal. `met` is None where nothing was measured."""

    goal: str
    measured: str
    met: bool | None
    by: str
    """The part whose report it is of."""
    why: str = ""
    """What stands in the way, where it is known."""


def rows(reports: Reports) -> list[Row]:
    """Return every goal of performance and of overload, with what the reports say."""
    return [*_exact(reports), *_encoder(reports), *_against(reports), *_held(reports), *_overload(reports)]


def render(reports: Reports) -> str:
    """Return the table."""
    lines = ["| goal | measured | met | by | why |", "|---|---|---|---|---|"]
    for row in rows(reports):
        met = "" if row.met is None else "yes" if row.met else "no"
        lines.append(f"| {row.goal} | {row.measured} | {met} | {row.by} | {'' if row.met else row.why} |")
    return "\n".join(lines) + "\n"


def _exact(reports: Reports) -> Iterator[Row]:
    found = _runs(reports.get("hot"))
    busy, alone = found.get(("exact hit", 16)), found.get(("exact hit", 1))
    told = [
        f"{one['cpu_ms']['median']:.2f} ms at {at}" for one, at in ((busy, "16 connections"), (alone, "one")) if one
    ]
    yield Row(
        goal="exact hit <= 0.2 ms CPU",
        measured=", ".join(told) or NOT_MEASURED,
        met=busy["cpu_ms"]["median"] <= 0.2 if busy else None,
        by="hot",
        why="judged at 16 connections; with one, each request wakes an idle process, which counts",
    )


def _encoder(reports: Reports) -> Iterator[Row]:
    added = {one["kind"]: one for one in reports.get("overhead", {}).get("runs", ()) if _alone(one)}
    goals = (
        (
            "semantic hit",
            "semantic hit <= encoder + 0.6 ms",
            0.6,
            "the verifier's cross-encoder reads the pair as well; the rest runs on caches that the encoder emptied",
        ),
        ("miss", "a miss adds <= encoder + 1 ms", 1.0, _EMPTIED + ", and the commit"),
        ("miss, stream", "first streamed byte of a miss no later than that", 1.0, _EMPTIED),
    )
    for kind, goal, most_ms, why in goals:
        one = added.get(kind)
        yield Row(
            goal=goal,
            measured=_added(one) if one else NOT_MEASURED,
            met=one["added_ms"]["p50"] <= most_ms if one else None,
            by="overhead",
            why=why,
        )
    hot = reports.get("hot")
    crowd = _runs(hot).get(("semantic hit", 64))
    ceiling = hot["encoder"]["short texts (semantic hit)"]["batched_per_s"] if hot else 0.0
    share = 100 * crowd["per_s"]["median"] / ceiling if crowd else 0.0
    yield Row(
        goal="64 clients >= 80 % of the encoder's batched ceiling",
        measured=f"{crowd['per_s']['median']:.0f}/s of {ceiling:.0f}/s: {share:.0f} %" if crowd else NOT_MEASURED,
        met=share >= 80 if crowd else None,
        by="hot",
        why="verifying, the generator and the backend share the encoder's cores",
    )


def _alone(run: Mapping[str, Any]) -> bool:
    return bool(run["checkout"] == "now") and run["pause_ms"] == 0


def _added(run: Mapping[str, Any]) -> str:
    apart = run["added_without_verifier_ms"]["p50"]
    own = f" ({apart:+.2f} ms without the verifier)" if run["verifier_ms"]["p50"] else ""
    return f"encoder {run['encoder_ms']['p50']:.2f} ms, {run['added_ms']['p50']:+.2f} ms{own}"


def _against(reports: Reports) -> Iterator[Row]:
    peers = reports.get("peers") or {"runs": (), "absent": {}}
    per_s = {
        (run["peer"], run["scenario"], run["connections"]): run["per_s"]["median"]
        for run in peers["runs"]
        if run["per_s"]["median"] > 0
    }
    goal = "exact hit >= 50x LiteLLM's throughput"
    yield _times(per_s, "LiteLLM", "exact hit", 50, goal, _elsewhere(peers, "LiteLLM", "10 to 12 ms"))
    goal = "exact hit >= 2.5x cachellm-proxy's throughput"
    yield _times(per_s, "cachellm-proxy", "exact hit", 2.5, goal, _elsewhere(peers, "cachellm-proxy", "0.54 ms"))
    for scene, words in _CACHELLM.items():
        why = _EMBEDDED if scene.startswith("miss") else ""
        if scene == "semantic hit":
            why = "it compares a cosine with a threshold; here each hit is verified"
        yield _times(per_s, "cachellm-proxy", scene, 3, f"{words} >= 3x cachellm-proxy's throughput", why)
    for engine in ("default", "sbert", "same"):
        name = f"GPTCache, {engine} engine"
        why = "it compares a distance with a threshold, without HTTP; here each hit is verified"
        if name in peers["absent"]:
            why = f"absent: {peers['absent'][name].split('. ')[0][:80]}"
        yield _times(per_s, name, "semantic hit", 5, f"semantic hit >= 5x GPTCache's, {engine} engine", why)


def _elsewhere(peers: Mapping[str, Any], peer: str, took: str) -> str:
    """Return what a peer's exact hit costs here beside what it took where the goal was set."""
    of_it = [run for run in peers["runs"] if (run["peer"], run["scenario"]) == (peer, "exact hit")]
    here = " to ".join(f"{ms:.2f}" for ms in sorted({run["cpu_ms"]["median"] for run in of_it}))
    return f"it takes {here} ms CPU here; the goal was set where it took {took}" if here else ""


def _times(
    per_s: Mapping[tuple[str, str, int], float], peer: str, scene: str, least: float, goal: str, why: str = ""
) -> Row:
    """Return a ratio of throughput; the goal is met where it is at every number of connections that was measured."""
    found = {
        connections: per_s["cacheproxy", scene, connections] / rate
        for (name, what, connections), rate in per_s.items()
        if (name, what) == (peer, scene) and ("cacheproxy", scene, connections) in per_s
    }
    told = ", ".join(f"{ratio:.1f}x at {connections}" for connections, ratio in sorted(found.items()))
    met = min(found.values()) >= least if found else None
    return Row(goal=goal, measured=told or NOT_MEASURED, met=met, by="peers", why=why)


def _held(reports: Reports) -> Iterator[Row]:
    lag_ms = (reports.get("hot") or {}).get("loop_lag_p99_ms")
    yield Row(
        goal="event-loop lag p99 <= 20 ms under load",
        measured=NOT_MEASURED if lag_ms is None else f"{lag_ms:.1f} ms over all runs",
        met=None if lag_ms is None else lag_ms <= 20,
        by="hot",
        why="generator, backend and encoder threads share its cores",
    )
    scale = reports.get("scale")
    yield Row(
        goal="100,000 entries <= 300 MB over the empty process",
        measured=f"{scale['full_mb'] - scale['empty_mb']:+.0f} MB for {scale['entries']:,}" if scale else NOT_MEASURED,
        met=scale["full_mb"] - scale["empty_mb"] <= 300 if scale else None,
        by="scale",
    )
    yield Row(
        goal="start to ready with 100,000 entries <= 15 s",
        measured=f"{scale['full_s']:.1f} s" if scale else NOT_MEASURED,
        met=scale["full_s"] <= 15 if scale else None,
        by="scale",
    )


def _overload(reports: Reports) -> Iterator[Row]:
    for case, report in (reports.get("overload") or {}).items():
        for goal, found in report["goals"].items():
            yield Row(
                goal=f"10x overload, {case}: {goal} {found['goal']} {found['unit']}",
                measured=f"{found['measured']:g} {found['unit']}",
                met=found["met"],
                by="overload",
                why=_WHY.get(goal, ""),
            )


def _runs(hot: Mapping[str, Any] | None) -> dict[tuple[str, int], dict[str, Any]]:
    return {(run["scenario"], run["connections"]): run for run in hot["runs"]} if hot else {}
