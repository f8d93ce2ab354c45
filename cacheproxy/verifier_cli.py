"""`cacheproxy verifier`: make a verifier of hits from labelled pairs, and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cacheproxy import configure, logs

if TYPE_CHECKING:
    from cacheproxy.settings import Settings
    from cacheproxy.verify.artefact import Manifest
    from cacheproxy.verify.cross import Base

_VISITS = 200_000
_SHIPPED, _BASE = "shipped", "base"


@click.group(name="verifier")
def verifier() -> None:
    """Make the verifier of hits from labelled pairs of your own, and look at one.

    \b
    Example:
      cacheproxy verifier train --pairs pairs.jsonl --out my-verifier
      cacheproxy eval pairs held-back.jsonl --verifier my-verifier --baseline cosine
      cacheproxy serve --verifier my-verifier
    """


@verifier.command()
@click.option(
    "--pairs",
    "files",
    multiple=True,
    metavar="FILE...",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Labelled pairs, sets or questions (JSON lines, may be gzipped); several files, or the option several times.",
)
@click.argument("more", nargs=-1, metavar="[FILE...]", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where it is written.")
@click.option("--minutes", type=click.FloatRange(0.1), default=38.0, show_default=True, help="Longest time.")
@click.option(
    "--visits",
    type=click.IntRange(0),
    default=_VISITS,
    show_default=True,
    help="Most pairs seen; 0 keeps the cross-encoder of --from, grows the trees anew and calibrates.",
)
@click.option(
    "--from",
    "parent",
    default=_SHIPPED,
    show_default=True,
    help="shipped, base, or a verifier's directory; the shipped one where it is of this encoder.",
)
@click.option("--alone", is_flag=True, help="Without the sets that come with cacheproxy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws halves, pairs and first weights.")
@click.option(
    "--caution",
    type=click.FloatRange(0.0, 10.0),
    default=0.0,
    show_default=True,
    help="Log-odds by which probabilities are lowered, where questions will be unlike these pairs.",
)
@click.option("--name", default="own", show_default=True, help="Begins its fingerprint.")
@click.option("--description", default="", help="Kept in its manifest.")
@click.option("--licence", "licences", multiple=True, metavar="FILE=LICENCE", help="Kept in its manifest.")
@click.option("--encoder", metavar="NAME-or-DIR", help="Embedding model.  [default: all-MiniLM-L6-v2]")
@click.option(
    "--data-dir", metavar="DIR", help="Where embeddings are remembered.  [default: ~/.local/share/cacheproxy]"
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
def train(
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    out: Path,
    parent: str,
    alone: bool,
    licences: tuple[str, ...],
    encoder: str | None,
    data_dir: str | None,
    config: Path | None,
    **course: object,
) -> None:
    """Train one from labelled pairs: two cores, about forty minutes, and again faster with fewer --visits.

    Each line of a file is a labelled pair, a set (askings of one thing, and traps that look alike), or a plain question
    of which pairs are made; lines of another form are left out with a warning. The sets that come with cacheproxy are
    always used too. What is interrupted goes on where it was when the same command is given again.

    \b
    {"a": "How do I pay?", "b": "What are the ways to pay?", "label": 1}
    {"same": ["How do I pay?", "Ways to pay?"], "other": [["aspect", "When do I pay?"]]}
    {"text": "How do I pay?"}
    """
    loaded = _loaded(config, encoder, data_dir)
    from cacheproxy.embed.open import open_encoder
    from cacheproxy.install import open_data_dir
    from cacheproxy.training.course import Order
    from cacheproxy.training.course import train as run
    from cacheproxy.training.material import SETS
    from cacheproxy.verifying import base_of

    base = base_of(loaded.encoder.name)
    order = Order(
        files=list(dict.fromkeys([*([] if alone else [SETS]), *files, *more])),
        out=out,
        base=base,
        encoder_name=loaded.encoder.name,
        parent=_parent(parent, base),
        licences=_licences(licences),
        **course,  # type: ignore[arg-type]  # click has checked them
    )
    manifest = run(order, open_encoder(loaded.encoder, open_data_dir(loaded)), loaded.data.path() / "vectors")
    click.echo(render(manifest))


@verifier.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print its manifest.")
def show(folder: Path | None, as_json: bool) -> None:
    """Show what a verifier was made from and what it was measured at; the shipped one without FOLDER.

    All its files are checked against their digests.
    """
    from cacheproxy.verify import artefact
    from cacheproxy.verify.open import SHIPPED

    manifest, _, _ = artefact.load(folder or SHIPPED)
    click.echo(msgspec.json.encode(manifest).decode() if as_json else render(manifest))


def render(manifest: Manifest) -> str:
    """Return a manifest for a terminal."""
    lines = (
        [f"{manifest.fingerprint}, for {manifest.encoder}", manifest.description]
        if manifest.description
        else [f"{manifest.fingerprint}, for {manifest.encoder}"]
    )
    lines.append(f"seed {manifest.seed}, {manifest.visits:,} pairs seen, from {manifest.parent or 'the base encoder'}")
    if manifest.caution:
        lines.append(f"its probabilities are lowered by {manifest.caution:g} log-odds")
    lines += [
        f"trained on {one.name}: {one.pairs:,} lines{f' ({one.licence})' if one.licence else ''}"
        for one in manifest.sources
    ]
    lines += [
        f"held back of {name}: {one.pairs:,} pairs, precision {_share(one.precision)}, recall {_share(one.recall)}, "
        f"average precision {_share(one.average_precision)}"
        for name, one in manifest.held_back.items()
    ]
    return "\n".join(lines)


def _parent(chosen: str, base: Base) -> Path | None:
    """Return the verifier to go on from, None for the encoder itself. The shipped one is of one encoder only."""
    from cacheproxy.verify.artefact import read_manifest
    from cacheproxy.verify.open import SHIPPED

    if chosen == _BASE:
        return None
    if chosen != _SHIPPED:
        return Path(chosen)
    if read_manifest(SHIPPED).weights_sha256 == base.sha256:
        return SHIPPED
    click.echo("The shipped verifier is of another encoder: beginning with the encoder itself.", err=True)
    return None


def _licences(told: tuple[str, ...]) -> dict[str, str]:
    if unclear := next((one for one in told if "=" not in one), None):
        raise click.BadParameter(f"{unclear!r} is not FILE=LICENCE", param_hint="--licence")
    return dict(one.split("=", 1) for one in told)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _loaded(config: Path | None, encoder: str | None, data_dir: str | None) -> Settings:
    flags: dict[str, dict[str, object]] = {}
    if encoder:
        flags["encoder"] = {"name": encoder}
    if data_dir:
        flags["data"] = {"dir": data_dir}
    loaded = configure.load(config, None, flags=flags)
    logs.configure(loaded.log)
    return loaded
