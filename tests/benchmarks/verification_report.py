"""The figures of verified hits as the section of docs/benchmarks.md that stands between its markers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BEGIN = "<!-- verified hits: written by tests/benchmarks/verification.py -->"
END = "<!-- end of verified hits -->"
_PUBLISHED = {
    "adversarial": (("cachellm", ".48 / .25"), ("GPTCache, default", ".88 / .83"), ("GPTCache, tuned", ".62 / .47")),
    "question_pairs": (("cachellm", ".77 / .42"), ("GPTCache, tuned", ".69 / .71")),
    "stream": (
        ("cachellm", ".64"),
        ("GPTCache, default", ".47"),
        ("GPTCache, tuned", ".63"),
        ("MeanCache's own", ".73"),
    ),
    "conversations": (
        ("cachellm", "bypasses, or .08 / .46"),
        ("keys of the last message", ".90 / 1.00"),
        ("a guard of two models, +1.2 s", ".91 / .05"),
    ),
}
_KINDS = {
    "negation": "trap",
    "number": "trap",
    "entity": "trap",
    "scope": "trap",
    "near_repeat": "legitimate",
    "minimal": "legitimate",
    "reworded": "legitimate",
}

_METHOD = """\
### Method

- **Data**, none of it trained on, calibrated on or used to choose. *Adversarial*: the reported half (by parity of a
  digest) of 800 pairs written for this project ([README](../tests/benchmarks/data/README.md)). *Question pairs*: QQP
  development pairs, those of the 15 % of clusters that are kept back (`tests/benchmarks/verification_data.py`), labels
  as they are, noise included. *Stream*: 1,000 of their questions stored, then 300 duplicates among 700 questions
  that people found to be others than a stored one near to them (cosine 0.5 or more, so that plain cosine does about as
  well as in the study that the published figures are from; among the very nearest, most are labelled wrongly).
  *Conversations*: the reported half, by topic, of the
  development pairs.
- **One configuration**: the pack {policies} as shipped, encoder {encoder}. *Built*: made by `cacheproxy verifier train`
  from development data, QQP included; it is not part of the project. *Shipped*: the verifier in the wheel.
  *Thresholds*: no verifier, the pack's thresholds alone.
- **Figures**: legitimate served is recall, traps served the false-hit rate, with 95 % Wilson intervals. *After
  judging*: the near misses by probability, with no veto, that a judge without error would have promoted, as if asked
  once more: simulated, and the most that judging can give. An ablation's threshold is where it is as precise on one
  half as all steps together are there; the other half is told.
- **Published** figures of rivals come from the study behind this work, on other samples of the same sources; they were
  not run again here.
- Machine: {cpu}, Python {python}.
"""


def render(report: dict[str, Any]) -> str:
    """Return the section's text, without its markers."""
    method = _METHOD.format(policies=report["policies"], encoder=report["encoder"], **report["machine"])
    systems = {**report["verifiers"], "thresholds": report["thresholds"]}
    lines = [
        "`python -m tests.benchmarks.verification --data DIR --verifier DIR --out docs/benchmarks-verification.json`;",
        "raw figures in [benchmarks-verification.json](benchmarks-verification.json).",
        "",
        method,
        *_adversarial(systems, report["cosine"]["adversarial"]),
        *_question_pairs(systems, report["cosine"]["question_pairs"]),
        *_stream(systems),
        *_conversations(systems),
        *_latency(report["latency"]),
        *_ablations(report["verifiers"]),
        *_vetoes(report["verifiers"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def written(page: str, section: str) -> str:
    """Return a page with what stands between the markers replaced. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def _adversarial(systems: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Adversarial pairs", "")
    yield "| decided by | n | legitimate served | traps served | precision |"
    yield "|---|---|---|---|---|"
    for name, found in systems.items():
        score = found["adversarial"]
        yield _pair_row(name, score)
        if "judged" in score:
            yield _pair_row(f"{name}, after judging (simulated)", score["judged"])
    for name, score in plain.items():
        yield _pair_row(f"cosine {name} ({score['threshold']:.3f})", score)
    for name, told in _PUBLISHED["adversarial"]:
        yield f"| {name} (published) | | {told.replace(' / ', ' | ')} | |"
    kinds = list(_KINDS)
    yield from ("", f"| served, by kind | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}")
    for name, found in systems.items():
        by_kind = found["adversarial"]["by_kind"]
        yield f"| {name} | {' | '.join(_kind(by_kind.get(kind), kind) for kind in kinds)} |"
    yield ""


def _question_pairs(systems: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Question pairs", "", "| decided by | n | precision | recall | F0.5 | average precision |")
    yield "|---|---|---|---|---|---|"
    rows = [(name, found["question_pairs"]) for name, found in systems.items()]
    rows += [(f"{name}, after judging (simulated)", row["judged"]) for name, row in rows if "judged" in row]
    rows += [(f"cosine {name} ({score['threshold']:.3f})", score) for name, score in plain.items()]
    for name, score in rows:
        bounds = score["intervals"]
        yield (
            f"| {name} | {score['n']:,} | {_share(score['precision'], bounds['precision'])} "
            f"| {_share(score['recall'], bounds['recall'])} | {_number(score['f05'])} "
            f"| {_number(score['average_precision'])} |"
        )
    for name, told in _PUBLISHED["question_pairs"]:
        yield f"| {name} (published) | | {told.replace(' / ', ' | ')} | | |"
    yield ""


def _stream(systems: Mapping[str, Any]) -> Iterable[str]:
    yield from (
        "### Stream",
        "",
        "| decided by | F0.5 | precision | recall | hit rate | false hits a question | hits | seconds |",
    )
    yield "|---|---|---|---|---|---|---|---|"
    rows = [(name, found["stream"]) for name, found in systems.items()]
    plain = systems["thresholds"]["stream"]["baseline"]
    for which in ("default", "tuned_f05"):
        rows.append((f"cosine {which.replace('_f05', ' for F0.5')} ({plain[which]['threshold']:.2f})", plain[which]))
    for name, score in rows:
        bounds = score.get("intervals", {})
        seconds = f"{score['seconds']:.0f}" if "seconds" in score else ""
        yield (
            f"| {name} | {_number(score['f05'])} | {_share(score['precision'], bounds.get('precision'))} "
            f"| {_share(score['recall'], bounds.get('recall'))} | {_share(score['hit_rate'], bounds.get('hit_rate'))} "
            f"| {_share(score['error_rate'], bounds.get('error_rate'))} | {score['hits']:,} | {seconds} |"
        )
    for name, told in _PUBLISHED["stream"]:
        yield f"| {name} (published) | {told} | | | | | | |"
    yield ""


def _conversations(systems: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Conversations", "", "| decided by | n | right served | wrong served |", "|---|---|---|---|")
    for name, found in systems.items():
        score = found["conversations"]
        yield _short_row(name, score)
        for kind, one in score["by_kind"].items():
            yield _plain_row(f"{name}: {kind.replace('_', ' ')}", one)
    plain = systems["thresholds"]["conversations"]["baseline"]
    for which, of in (("last_message", "the last questions"), ("whole_history", "whole conversations")):
        one = plain[which]["default"]
        yield _plain_row(f"cosine of {of} ({one['threshold']:.2f})", one)
    for name, told in _PUBLISHED["conversations"]:
        right, _, wrong = told.partition(" / ")
        yield f"| {name} (published) | | {right} | {wrong} |"
    yield ""


def _latency(found: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Added latency", "")
    for name, one in found.items():
        yield f"{name.capitalize()}: {one['lookups']} lookups, on one thread, nothing remembered from one to the next."
        yield ""
        yield "| steps | p50 ms | p90 ms | p99 ms | on the processor: p50 | p99 |"
        yield "|---|---|---|---|---|---|"
        for steps, times in one["steps"].items():
            wall, cpu = times["wall_ms"], times["cpu_ms"]
            yield (
                f"| {steps} | {wall['p50']:.2f} | {wall['p90']:.2f} | {wall['p99']:.2f} "
                f"| {cpu['p50']:.2f} | {cpu['p99']:.2f} |"
            )
        yield ""


def _ablations(verifiers: Mapping[str, Any]) -> Iterable[str]:
    for name, found in verifiers.items():
        for which in ("adversarial", "question_pairs"):
            ablation = found[which]["ablation"]
            yield f"### What each step adds: {name}, {which.replace('_', ' ')}"
            yield from ("", f"Aimed at a precision of {_number(ablation['precision_aimed_at'])}.", "")
            yield "| steps | average precision | threshold | precision | recall | false-hit rate |"
            yield "|---|---|---|---|---|---|"
            for way in ablation["ways"]:
                shares = " | ".join(
                    _share(way[key], way[f"{key}_interval"]) for key in ("precision", "recall", "false_hit_rate")
                )
                yield (
                    f"| {way['steps']} | {_number(way['average_precision'])} | {_number(way['threshold'])} | {shares} |"
                )
            yield ""


def _vetoes(verifiers: Mapping[str, Any]) -> Iterable[str]:
    for name, found in verifiers.items():
        yield from (f"### Why pairs were refused: {name}", "")
        yield "| reason | adversarial | rightly | question pairs | rightly |"
        yield "|---|---|---|---|---|"
        one, other = found["adversarial"]["by_veto"], found["question_pairs"]["by_veto"]
        for reason in sorted({*one, *other}):
            yield f"| {reason} | {_refused(one.get(reason))} | {_refused(other.get(reason))} |"
        yield ""


def _refused(one: Mapping[str, Any] | None) -> str:
    return "0 | " if one is None else f"{one['n']} | {_share(one['rightly'] / one['n'], one['rightly_interval'])}"


def _pair_row(name: str, score: Mapping[str, Any]) -> str:
    bounds = score["intervals"]
    return (
        f"| {name} | {score['n']:,} | {_share(score['recall'], bounds['recall'])} "
        f"| {_share(score['false_hit_rate'], bounds['false_hit_rate'])} "
        f"| {_share(score['precision'], bounds['precision'])} |"
    )


def _short_row(name: str, score: Mapping[str, Any]) -> str:
    bounds = score["intervals"]
    return (
        f"| {name} | {score['n']:,} | {_share(score['recall'], bounds['recall'])} "
        f"| {_share(score['false_hit_rate'], bounds['false_hit_rate'])} |"
    )


def _plain_row(name: str, score: Mapping[str, Any]) -> str:
    return f"| {name} | {score['n']:,} | {_number(score['recall'])} | {_number(score['false_hit_rate'])} |"


def _kind(score: Mapping[str, Any] | None, kind: str) -> str:
    if score is None:
        return ""
    key = "false_hit_rate" if _KINDS[kind] == "trap" else "recall"
    return _share(score[key], score["intervals"][key])


def _share(value: float | None, bounds: Iterable[float] | None) -> str:
    if value is None:
        return "-"
    low_high = "" if bounds is None else " [{:.2f}, {:.2f}]".format(*bounds)
    return f"{value:.3f}{low_high}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
