"""`cacheproxy eval` and `calibrate`: decisions measured on labelled data, and thresholds chosen by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from cacheproxy.flags import COMMON_FLAGS, encoder_of, load, run, with_flags

_PLOT = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Draw precision against hit rate into this file (PNG, SVG or PDF).",
)


@click.group(name="eval")
def evaluate() -> None:
    """Measure decisions on labelled data.

    \b
    Example:
      cacheproxy eval pairs pairs.jsonl --baseline cosine
    """


@evaluate.command()
@with_flags(*COMMON_FLAGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-c", "--category", help="Rule on every pair under this category.")
@click.option("--baseline", type=click.Choice(["cosine"]), help="Compare with plain cosine, default and tuned.")
@click.option("--ablate", is_flag=True, help="Tell what each step of the verifier adds.")
@_PLOT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pairs(
    config: Path | None,
    file: Path,
    category: str | None,
    baseline: Any,
    ablate: bool,
    plot: Path | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """With a's answer cached, would b be served from it? FILE holds one pair a line (JSON, may be gzipped).

    \b
    {"a": "How do I pay?", "b": "What are the ways to pay?", "label": 1}
    """
    loaded = load(config, flags)
    from cacheproxy.evaluate.pairs import Extras, evaluate_pairs
    from cacheproxy.evaluate.tables import render_pairs
    from cacheproxy.policy.loader import find_pack, load_pack
    from cacheproxy.verifying import open_verifier

    verifier = open_verifier(loaded)
    without_rules = verifier.without_rules() if verifier is not None and ablate else None
    report = evaluate_pairs(
        file,
        load_pack(find_pack(loaded.policies.pack)),
        encoder_of(loaded),
        loaded.data.path() / "vectors",
        verifier=verifier,
        baseline=baseline,
        category=category,
        extras=Extras(ablate=ablate, without_rules=without_rules, plot=plot),
    )
    click.echo(msgspec.json.encode(report).decode() if as_json else render_pairs(report))


@evaluate.command()
@with_flags(*COMMON_FLAGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-c", "--category", help="Rule on every pair under this category.")
@click.option("--baseline", type=click.Choice(["cosine"]), help="Compare with plain cosine: last question, whole text.")
@_PLOT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def conversations(
    config: Path | None,
    file: Path,
    category: str | None,
    baseline: Any,
    plot: Path | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """With a's answer cached, would b's last question be served from it? FILE holds one pair a line.

    The contexts alternate user and assistant; of odd length they hold the user's turns alone.

    \b
    {"ctx_a": ["What is Go?", "A language."], "q_a": "Who made it?",
     "ctx_b": ["What's Go?", "A language."], "q_b": "By whom was it made?", "label": 1}
    """
    loaded = load(config, flags)
    from cacheproxy.evaluate.conversations import evaluate_conversations
    from cacheproxy.evaluate.tables import render_conversations
    from cacheproxy.policy.loader import find_pack, load_pack
    from cacheproxy.verifying import open_verifier

    report = evaluate_conversations(
        file,
        load_pack(find_pack(loaded.policies.pack)),
        encoder_of(loaded),
        loaded.data.path() / "vectors",
        scorer=open_verifier(loaded),
        baseline=baseline is not None,
        category=category,
        plot=plot,
    )
    click.echo(msgspec.json.encode(report).decode() if as_json else render_conversations(report))


@evaluate.command()
@with_flags(*COMMON_FLAGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-c", "--category", help="Ask every question under this category.")
@click.option("--baseline", type=click.Choice(["cosine"]), help="Compare with plain cosine, default and tuned.")
@click.option("--delta", type=click.FloatRange(0, 1, min_open=True), help="Error budget of every category.")
@click.option("--labels", type=click.FloatRange(0, 1), help="Share of hits and doubtful misses that are labelled.")
@_PLOT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stream(
    config: Path | None,
    file: Path,
    category: str | None,
    baseline: str | None,
    delta: float | None,
    labels: float | None,
    plot: Path | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Replay questions in order: what would hit, and falsely? FILE holds one a line (JSON, may be gzipped).

    An oracle stands in for the backend: it gives each question the answer that its line names. A hit is false when
    its entry holds another one. The store's caps and the pack's lifetimes count; `t` is the time in seconds, a second
    after the last line's where it is not given. With a verifier the error budget learns from labelled answers, as many
    as the pack's `shadow_rate` and `explore_rate` say.

    \b
    {"text": "How do I pay?", "answer_id": "pay-1", "category": "support", "t": 12.5}
    """
    loaded = load(config, flags)
    from cacheproxy.evaluate.stream import Ask, evaluate_stream
    from cacheproxy.evaluate.tables import render_stream
    from cacheproxy.policy.loader import find_pack, load_pack
    from cacheproxy.verifying import open_verifier

    pack, vectors = load_pack(find_pack(loaded.policies.pack)), loaded.data.path() / "vectors"
    ask = Ask(category=category, delta=delta, labels=labels, baseline=baseline is not None, plot=plot)
    verifier = open_verifier(loaded)
    report = run(evaluate_stream(file, pack, encoder_of(loaded), vectors, loaded, scorer=verifier, ask=ask))
    click.echo(msgspec.json.encode(report).decode() if as_json else render_stream(report))


@click.command()
@with_flags(*COMMON_FLAGS)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--target-precision", type=click.FloatRange(0.5, 1.0), help="Aim at a precision instead.")
@click.option(
    "--wrong-cost", type=click.FloatRange(0), default=2.0, show_default=True, help="Right hits a wrong one costs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Splits the pairs, draws the resamples.")
def calibrate(
    config: Path | None,
    files: tuple[Path, ...],
    target_precision: float | None,
    wrong_cost: float,
    seed: int,
    **flags: str | None,
) -> None:
    """Choose thresholds for the current encoder on labelled pairs, and print the table to paste into a pack.

    FILES are as for `eval pairs`. One half of the pairs chooses the threshold of best net benefit, the other half
    measures it.
    """
    loaded = load(config, flags)
    from cacheproxy.evaluate.calibration import Aim, calibrate, render_calibration
    from cacheproxy.policy.loader import find_pack, load_pack

    pack = load_pack(find_pack(loaded.policies.pack))
    aim = Aim(target_precision=target_precision, wrong_cost=wrong_cost, seed=seed)
    click.echo(render_calibration(calibrate(files, pack, encoder_of(loaded), loaded.data.path() / "vectors", aim)))


COMMANDS = (evaluate, calibrate)
