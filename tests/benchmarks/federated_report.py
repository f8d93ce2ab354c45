"""The figures of federated training as the section of docs/benchmarks.md that stands between its markers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BEGIN = "<!-- federated similarity: written by tests/benchmarks/federated.py -->"
END = "<!-- end of federated similarity -->"
_SYSTEMS = ("base", "local", "federated", "centralised", "centralised, untold")
_DEALS = ("even", "skewed")
_TOLD = {"f1": "F1", "f05": "F0.5", "precision": "precision", "recall": "recall", "auc": "AUC", "pchr": "P-CHR area"}
_METHOD = """\
### Method

- **Simulated**: {clients} clients in one process, by the app's own `task` and FedAvg in numpy; no message is
  sent. Encoder {encoder}, heads of 384 x 384 from the identity, {rounds} rounds in which every client takes part,
  with {clients_epochs} epochs a round (batch {clients_batch}, learning rate {clients_lr}). *Local*: five clients of
  each deal, as many epochs on a client's own pairs and the threshold of its own held-back ones, a mean over
  clients. *Centralised*: all clients' pairs in one place, as many epochs (batch {central_batch}, learning rate
  {central_lr}), and it is told which pairs are of one intent, which no client is; the *untold* one knows no more
  than clients (of qqp both are the same). All is the mean of {seeds} seeds, each of which deals questions to
  clients, and trains, anew.
- **Chosen on hwu64**, of which no figure is reported: loss, mask, epochs, batch and learning rate, of federated and
  of centralised training each for itself.
- **Data**: banking77 and clinc150 (without out-of-scope), 30 % of whose questions, by a digest, are for measuring;
  qqp, of whose clusters 15 % are kept back (`verification_data.py`) and 6,000 pairs of the others trained on. Pairs
  of intents: one in eight of a client's questions of an intent is kept; each other one is asked once and meets, by
  a coin, a kept one of its intent (right) or of one of the 5 nearest intents by their mean vectors (wrong): so
  wrong pairs are of near intents. Measured pairs are made alike of the measured questions; none of these is in a
  client. qqp's pairs and labels are as they are.
- **Deals**: *even*, or each topic (an intent; of qqp, one of 40 clusters by k-means) falls to clients by a
  Dirichlet distribution of parameter 0.3 (*skewed*). A fifth of a client's groups of pairs is held back from
  training.
- **Threshold**: best F0.5 of the summed counts of held-back pairs, never of measured ones; so for the base, too.
  F1, F0.5, precision and recall are at it; AUC, and the area under precision over hit rate from 0 to 1 (P-CHR),
  need none.
- **Intervals**: 95 %, by 1,000 bootstrap samples of whole groups of measured pairs, the same for both sides of a
  difference. They say how sure the measured pairs make it; how seeds differ is in the JSON (`f05_by_seed`).
- Machine: {cpu}, Python {python}.
"""


def render(report: dict[str, Any]) -> str:
    """Return the section's text, without its markers."""
    method = _METHOD.format(
        **{name: report[name] for name in ("clients", "encoder", "rounds", "seeds")},
        **{f"clients_{name}": report["clients_train"][name] for name in ("epochs", "batch", "lr")},
        **{f"central_{name}": report["centralised_trains"][name] for name in ("batch", "lr")},
        **report["machine"],
    )
    lines = [
        "`python -m tests.benchmarks.federated --data DIR --out docs/benchmarks-federated.json`; raw figures in",
        "[benchmarks-federated.json](benchmarks-federated.json).",
        "",
        method,
        *_scores(report["data"]),
        *_differences(report["data"]),
        *_stream(report["full_cache"]),
        *_storage(report),
        *_poisoning(report["poisoning"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def written(page: str, section: str) -> str:
    """Return a page with what stands between the markers replaced. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def _scores(data: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Scores", "", f"| data | deal | head | {' | '.join(_TOLD.values())} | threshold |")
    yield f"|---|---|---|{'---|' * len(_TOLD)}---|"
    for name, found in data.items():
        for deal in _DEALS:
            for system in _SYSTEMS:
                if system not in found[deal]["systems"]:
                    continue
                one = found[deal]["systems"][system]
                cells = " | ".join(f"{one['scores'][score]:.3f}" for score in _TOLD)
                low, high = one["thresholds"]
                yield f"| {name} | {deal} | {system} | {cells} | {one['threshold']:.2f} [{low:.2f}, {high:.2f}] |"
    yield ""
    sizes = "; ".join(
        f"{name} {found['trained_pairs']:,} and {found['held_pairs']:,} at all clients, "
        f"{found['test_pairs']:,} measured "
        f"({found['test_right']:.0%} right)"
        for name, found in data.items()
    )
    yield from (
        f"Pairs trained on and held back (even, seed 0): {sizes}. Thresholds: mean and [least, most] over seeds",
        "(of local, over clients, too).",
        "",
    )


def _differences(data: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### What federated training gains", "")
    yield """\
Federated less base, less centralised, and the share of the gain of centralised over base that it reaches (goal:
90 %), of centralised as it is and of the one that is told no more than clients; no share where that is not above
base with confidence."""
    yield ""
    yield "| data | deal | score | less base | less centralised | share of the gain | of untold's gain |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in data.items():
        for deal in _DEALS:
            one = found[deal]
            for score in ("f1", "f05", "precision", "auc", "pchr"):
                gains = " | ".join(
                    _difference(one[f"federated_minus_{other}"][score]) for other in ("base", "centralised")
                )
                shares = " | ".join(_share(one[of][score]) for of in ("share_of_gain", "share_of_gain_untold"))
                yield f"| {name} | {deal} | {_TOLD[score]} | {gains} | {shares} |"
    yield ""


def _share(one: Mapping[str, Any]) -> str:
    bounds = one["interval"]
    return "-" if bounds is None else f"{one['share']:.0%} [{bounds[0]:.0%}, {bounds[1]:.0%}]"


def _stream(found: Mapping[str, Any]) -> Iterable[str]:
    rows = found["rows"]
    yield from ("### The full cache", "")
    yield f"""\
The stream of [Verified hits](#verified-hits), {found["questions"]:,} questions, replayed in a plain loop
(`federated_stream.py`): the nearest 4 of what is kept are looked at, what is not served is kept. Heads are
those of qqp, even, a mean over seeds; the shipped verifier, least probability 0.68. *Tuned* is tuned on this
very stream, which flatters it."""
    yield from ("", "| decided by | F0.5 | precision | recall | hit rate | F0.5 / GPTCache's default | / tuned |")
    yield "|---|---|---|---|---|---|---|"
    default, tuned = rows["cosine, GPTCache's default"], rows["cosine, tuned on the stream"]
    for name, one in rows.items():
        level = f" ({one['threshold']:.2f})" if "threshold" in one else ""
        ratios = " | ".join(f"{one['f05'] / other['f05'] - 1:+.0%}" for other in (default, tuned))
        yield (
            f"| {name}{level} | {one['f05']:.3f} | {one['precision']:.3f} | {one['recall']:.3f} "
            f"| {one['hit_rate']:.3f} | {ratios} |"
        )
    yield ""


def _storage(report: Mapping[str, Any]) -> Iterable[str]:
    yield from ("### Smaller vectors", "")
    yield """\
The federated head followed by the 64 principal components of what the clients train on, with and without int8;
thresholds anew from the clients' counts. Deal: even."""
    yield from ("", "| data | vector | bytes | F0.5 | less base at 384 x float32 | less the head at 384 x float32 |")
    yield "|---|---|---|---|---|---|"
    names = {"384 x float32": "federated", "64 x float32": "64 x float32", "64 x int8": "64 x int8"}
    for data, found in report["data"].items():
        one = found["even"]
        base = one["systems"]["base"]["scores"]["f05"]
        yield f"| {data} | base, 384 x float32 | {report['vector_bytes']['384 x float32']:,} | {base:.3f} | | |"
        for told, system in names.items():
            less_base = one["federated_minus_base"] if system == "federated" else one["smaller_minus_base"][system]
            less_head = "" if system == "federated" else _difference(one["smaller_minus_federated"][system]["f05"])
            f05 = one["systems"][system]["scores"]["f05"]
            yield (
                f"| {data} | head, {told} | {report['vector_bytes'][told]:,} | {f05:.3f} "
                f"| {_difference(less_base['f05'])} | {less_head} |"
            )
    yield from ("", "| flat search of 10,000, one thread | p50 ms | p90 ms | p99 ms |", "|---|---|---|---|")
    for name, times in report["search_ms"].items():
        yield f"| {name} | {times['p50']:.3f} | {times['p90']:.3f} | {times['p99']:.3f} |"
    yield from (
        "",
        "The question's own projection is part of a search. The proxy's index holds float32; the store keeps the",
        "encoder's vectors.",
        "",
    )


def _poisoning(found: Mapping[str, Any]) -> Iterable[str]:
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    yield from ("### Poisoning", "")
    pairs = ", ".join(map(str, found["proxies_pairs"]))
    yield f"""\
2 of 20 clients lie in every round, {found["data"]}, even (`federated_attacks.py`). Every figure is of whole runs of
the app as it is shipped: its messages, its guard, Flower's strategies, its thresholds from guarded counts; only the
network between nodes and server is a function call. Lost: points, of {found["test_pairs"]} measured pairs, against
the same course and seeds without an attack (goal: at most 1), with 95 % intervals of the measured pairs; negative is
a gain. In all attacks but those on counts liars also send counts of opposite labels. *x10 replacement*: ten times
the reverse of what was learnt. *Backdoor*: the share served of 200 wrong pairs of two intents, of other questions
than the 200 that liars train on as right; *boosted* is ten times that update, *hidden* the same at the length of the
honest one. *Promoted*: how often the gate lets the head serve, asked at three proxies whose own pairs ({pairs}) are
in no client and not measured here, against the encoder alone; and how often of these it is worse than the encoder by
more than a point of F0.5 on the measured pairs."""
    columns = ("course", "attack", "seeds", "F0.5", "F0.5 lost", "worst seed", "F1 lost", "AUC lost", "backdoor")
    yield from ("", f"| {' | '.join(columns)} | promoted | and worse |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if "f1" not in row:
            yield f"| {row['course']} | {row['attack']} | {row['seeds']} | no head | | | | | | 0 | 0 |"
            continue
        low, high = row["intervals"]["f05"]
        lost, worst = row["lost_points"], max(one["f05"] for one in row["lost_by_seed"])
        yield (
            f"| {row['course']} | {row['attack']} | {row['seeds']} | {row['f05']:.3f} "
            f"| {lost['f05']:+.1f} [{low:+.1f}, {high:+.1f}] | {worst:+.1f} | {lost['f1']:+.1f} | {lost['auc']:+.1f} "
            f"| {row['opened']:.0%} | {row['promoted']} of {row['asked']} | {row['promoted_and_worse']} |"
        )
    yield ""


def _difference(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['by']:+.3f} [{low:+.3f}, {high:+.3f}]"
