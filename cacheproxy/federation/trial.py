"""A federation on one machine: labelled pairs dealt out to clients, trained by Flower's simulation engine."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from cacheproxy.embed import headfile
from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.pairfile import read_pairs
from cacheproxy.evaluate.split import components
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.federation.app import environment, need_folder
from cacheproxy.federation.children import Child
from cacheproxy.federation.server import HOME, NotTrained
from cacheproxy.federation.tale import Tale
from cacheproxy.learn.pairfile import PairRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.evaluate.vectors import TextEncoder

_HELD_SHARE = 0.2
_POLL_S = 0.3
_LEAST = 25
"""Fewest pairs a client: fewer leave none to hold back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How pairs are dealt out, and where the run is kept."""

    files: tuple[Path, ...]
    clients: int
    skew: bool
    """Whether each client has topics of its own, as proxies of different teams do."""
    in_process: bool
    seed: int
    out: Path
    vectors: Path
    """Where embeddings are remembered."""
    key: Path | None = None
    resume: bool = False
    encoder: str = ""
    """Folder of the encoder's weights, where its layers are trained."""


def simulate(trial: Trial, encoder: TextEncoder, course: Mapping[str, Any]) -> Artefact:
    """Train over simulated clients, saying how it goes. Raises ConfigError and NotTrained."""
    need_folder(trial.out)
    if trial.key is not None and not trial.key.is_file():
        raise ConfigError(f"{trial.key}: is not there; `cacheproxy federated keys` makes a signing key")
    rows = embedded(trial.files, encoder, trial.vectors)
    dealt = deal(rows, trial.clients, trial.seed, skew=trial.skew)
    sizes = [len(one.right) for one in dealt]
    click.echo(f"{len(rows.right):,} pairs, {min(sizes):,} to {max(sizes):,} for each of {trial.clients} clients")
    home = trial.out / HOME
    home.mkdir(parents=True, exist_ok=True)
    tale = Tale(trial.out)
    with tempfile.TemporaryDirectory(prefix="cacheproxy-") as folder:
        for at, one in enumerate(dealt):
            _write(Path(folder) / f"client-{at:04}.npz", one, texts=bool(trial.encoder))
        order = Path(folder) / "order.json"
        order.write_bytes(msgspec.json.encode(_order(trial, course, folder)))
        command = [sys.executable, "-m", "cacheproxy_federated.simulation", str(order)]
        with Child(command, environment(home), home / "simulation.log") as run:
            while run.ended is None and not tale.why_ended:
                _say(tale)
                time.sleep(_POLL_S)
            _say(tale)
    if tale.why_ended or not tale.finished:
        raise NotTrained(tale.why_ended or f"the simulation ended early; {run.log} ends with:\n{run.tail()}")
    return headfile.read(trial.out / "final")


def embedded(files: Sequence[Path], encoder: TextEncoder, cache: Path) -> PairRows:
    """Return the pairs of files as `eval pairs` reads, each with its group; none held back yet."""
    pairs = [pair for file in files for pair in read_pairs(file)]
    seen = embed_texts((text for pair in pairs for text in (pair.a, pair.b)), encoder, cache)
    return PairRows(
        a=np.stack([seen[pair.a].vector for pair in pairs]),
        b=np.stack([seen[pair.b].vector for pair in pairs]),
        right=np.array([pair.label for pair in pairs], dtype=np.bool_),
        category=tuple(pair.category or "default" for pair in pairs),
        group=components(pairs),
        held=np.zeros(len(pairs), dtype=np.bool_),
        texts=tuple((pair.a, pair.b) for pair in pairs),
    )


def deal(rows: PairRows, clients: int, seed: int, *, skew: bool) -> list[PairRows]:
    """Return what each client has: whole groups of questions, evenly many pairs, a fifth of its groups held back.

    With `skew` a client's groups are of like topics. Raises ConfigError for too few pairs.
    """
    if len(rows.right) < clients * _LEAST:
        raise ConfigError(
            f"{len(rows.right)} pairs are too few for {clients} clients, {_LEAST} are needed for each; give more, or "
            "lower --clients"
        )
    random = np.random.default_rng(seed)
    groups, sizes = np.unique(rows.group, return_counts=True)
    order = _by_topic(rows, groups, random) if skew else random.permutation(len(groups))
    # Whole groups, dealt in order: the client is who holds the middle of the group's pairs when all lie in a row.
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    owner = np.empty(len(groups), dtype=np.int64)
    owner[order] = np.minimum((middle * clients / sizes.sum()).astype(np.int64), clients - 1)
    at = np.searchsorted(groups, rows.group)
    held = random.random(len(groups)) < _HELD_SHARE
    dealt = [_taken(rows, owner[at] == client, held[at]) for client in range(clients)]
    if few := [one for one in dealt if not one.held.any() or one.held.all()]:
        raise ConfigError(
            f"{len(few)} of {clients} clients would have no pair to train on or none to hold back: too many "
            "pairs share questions; give more pairs, or lower --clients"
        )
    return dealt


def _by_topic(rows: PairRows, groups: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the groups ordered along the direction in which their mean vectors differ most."""
    at = np.searchsorted(groups, rows.group)
    sums = np.zeros((len(groups), rows.a.shape[1]))
    np.add.at(sums, at, rows.a + rows.b)
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-9)
    _, _, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    found: NDArray[np.int64] = np.argsort(means @ axes[0] * random.choice((-1.0, 1.0)), kind="stable")
    return found


def _taken(rows: PairRows, mine: NDArray[np.bool_], held: NDArray[np.bool_]) -> PairRows:
    return PairRows(
        a=rows.a[mine],
        b=rows.b[mine],
        right=rows.right[mine],
        category=tuple(name for name, taken in zip(rows.category, mine, strict=True) if taken),
        group=rows.group[mine],
        held=held[mine],
        texts=tuple(pair for pair, taken in zip(rows.texts, mine, strict=True) if taken) if rows.texts else None,
    )


def _write(file: Path, rows: PairRows, *, texts: bool) -> None:
    """Write what a client learns from, as `cacheproxy_federated.simulation` reads it; with `texts` for its layers."""
    kept = {name: getattr(rows, name) for name in ("a", "b", "right", "group", "held")}
    if texts and rows.texts:
        kept["texts"] = np.array(rows.texts, dtype=np.str_)
    np.savez(file, category=np.array(rows.category, dtype=np.str_), **kept)


def _order(trial: Trial, course: Mapping[str, Any], parts: str) -> dict[str, Any]:
    return {
        "course": dict(course),
        "parts": parts,
        "clients": trial.clients,
        "out": str(trial.out.resolve()),
        "key": str(trial.key.resolve()) if trial.key else None,
        "resume": trial.resume,
        "ray": not trial.in_process,
        "encoder": trial.encoder,
        "cores": max(1, min(os.cpu_count() or 1, trial.clients)),
    }


def _say(tale: Tale) -> None:
    for line in tale.lines():
        click.echo(line)
