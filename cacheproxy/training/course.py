"""One training from files to an artefact: cheap part, cross-encoder, calibration, figures. Seeded and resumable."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.policy.calibrate import average_precision, counts, curve
from cacheproxy.training.cheap import grow_trees, lowered, rows_of, weigh
from cacheproxy.training.material import Example, pairs_of_sets, read_material
from cacheproxy.training.mix import generated
from cacheproxy.verify import artefact
from cacheproxy.verify.cross import CrossEncoder, Words
from cacheproxy.verify.features import NAMES, VERSION
from cacheproxy.verify.graph import Shape, build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.training.material import Material, Part
    from cacheproxy.verify.cross import Base

_CHEAP_PAIRS = 36_000
"""Pairs the trees learn from: more of them gain little, and each text must be embedded."""
_CALIBRATION_PAIRS = 6_000
LEAST_VISITS = 32
_GENERATED = "generated"
_SETS = "sets"
_TOOLS = ("numpy", "onnxruntime", "safetensors", "scikit-learn", "tokenizers", "torch", "transformers")
_USUAL_PROBABILITY = 0.68
"""Where the figures of the manifest are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to train on, from where, and how long.

    `visits` are pairs the cross-encoder sees, repeats counted; with 0 the parent's stays as it is, and only the cheap
    part and the calibration are made anew.
    """

    files: Sequence[Path]
    out: Path
    base: Base
    encoder_name: str
    parent: Path | None
    """An artefact to go on from; None begins with the base encoder's layers."""
    name: str
    description: str
    licences: Mapping[str, str]
    minutes: float
    visits: int
    seed: int
    caution: float = 0.0
    """Log-odds by which probabilities are lowered: where questions will be unlike those that it is calibrated on."""


def train(order: Order, encoder: TextEncoder, cache_dir: Path | None) -> artefact.Manifest:
    """Make an artefact in `order.out` and return its manifest; an interrupted one goes on where it was.

    The same again from the same order, unless time presses: where it is further on than the pairs, the rate of learning
    falls with it. Raises ConfigError for files or an artefact that cannot be used.
    """
    began_s = time.monotonic()
    if 0 < order.visits < LEAST_VISITS:
        raise ConfigError(f"{order.visits} visits are less than one batch; give 0 or at least {LEAST_VISITS}")
    if not order.visits and order.parent is None:
        raise ConfigError(
            "0 visits only calibrate anew, and the base encoder is none; give --from shipped or a verifier's directory"
        )
    parent = _grown_from(order)
    material = read_material(order.files, dict(order.licences))
    work = order.out / f".work-{_digest(order, material, parent)}"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{order.out}: cannot be written ({exc.strerror}); give another --out") from exc
    words = Words(order.base)
    random = Random(order.seed)
    learning = _labelled(material.learn, random, _CHEAP_PAIRS)
    held_back = _labelled(material.calibrate, random, _CALIBRATION_PAIRS)
    rows = {
        name: rows_of(pairs, words, lambda texts: embed_texts(texts, encoder, cache_dir))
        for name, pairs in (("learn", _joined(learning)), ("calibrate", _joined(held_back)))
    }
    trees = grow_trees(rows["learn"], _labels(_joined(learning)), order.seed)
    left_s = order.minutes * 60 - (time.monotonic() - began_s)
    cross, shape, visits = _cross(order, parent, material, words, work, left_s)
    calibrating = _joined(held_back)
    cheap = trees.logits(rows["calibrate"])
    read = _read(CrossEncoder(build(cross, shape), words), calibrating)
    weights = lowered(weigh(cheap, read, _labels(calibrating), _evened(held_back)), order.caution)
    manifest = artefact.Manifest(
        schema=artefact.SCHEMA,
        name=order.name,
        description=order.description,
        encoder=order.encoder_name,
        weights_sha256=order.base.sha256,
        layers=shape.layers,
        heads=shape.heads,
        dim=shape.dim,
        features=VERSION,
        feature_names=NAMES,
        files={},
        weights=weights,
        caution=order.caution,
        sources=_sources(order, parent, material),
        held_back=_figures(held_back, cheap, read, weights),
        seed=order.seed,
        visits=visits,
        parent=parent.fingerprint if parent else "",
        tools={name: version(name) for name in _TOOLS},
    )
    manifest = artefact.save(order.out, manifest, trees, cross)
    for left in work.iterdir():
        left.unlink()
    work.rmdir()
    return manifest


def _grown_from(order: Order) -> artefact.Manifest | None:
    """Return the manifest of the verifier to go on from. Raises ConfigError unless it is whole and of this encoder."""
    if order.parent is None:
        return None
    manifest, _, _ = artefact.load(order.parent)
    if manifest.weights_sha256 != order.base.sha256:
        artefact.refuse_base(order.parent, manifest)
    return manifest


def _sources(order: Order, parent: artefact.Manifest | None, material: Material) -> tuple[artefact.Source, ...]:
    """Return what all of it was learnt from: with no visits, the parent's files, too."""
    if order.visits or parent is None:
        return material.sources
    new = {source.sha256 for source in material.sources}
    return (*material.sources, *(source for source in parent.sources if source.sha256 not in new))


def _cross(
    order: Order, parent: artefact.Manifest | None, material: Material, words: Words, work: Path, left_s: float
) -> tuple[Mapping[str, NDArray[Any]], Shape, int]:
    """Train the cross-encoder; return its weights, its sizes and how many pairs it saw."""
    if not order.visits and order.parent is not None and parent is not None:
        shape = Shape(layers=parent.layers, heads=parent.heads, dim=parent.dim)
        return artefact.load(order.parent)[2], shape, parent.visits
    from cacheproxy.training import cross  # torch is needed from here on only

    model = cross.Cross(order.base.weights.parent, order.seed)
    if order.parent is not None and parent is not None:
        cross.grow(model, artefact.load(order.parent)[2])
    course = cross.Course(visits=order.visits, seconds=max(left_s, 1.0), seed=order.seed)
    with progress("training", order.visits) as advance:
        visits = cross.train(model, words, material.learn, course, work / "checkpoint.safetensors", advance)
    return cross.weights_of(model), model.shape, visits


def _labelled(part: Part, random: Random, most: int) -> dict[str, list[Example]]:
    """Return pairs by where they come from, at most so many in all: small sources whole, large ones the same share."""
    by_source = {name: list(pairs) for name, pairs in part.pairs.items()}
    by_source[_SETS] = pairs_of_sets(part.sets, random, most_same=6)
    by_source[_GENERATED] = generated(part, random, most // 8)
    takes: dict[str, int] = {}
    for name in sorted(by_source, key=lambda name: len(by_source[name])):
        takes[name] = min(len(by_source[name]), (most - sum(takes.values())) // (len(by_source) - len(takes)))
    found = {name: random.sample(pairs, takes[name]) for name, pairs in by_source.items() if takes[name]}
    if {pair.label for pairs in found.values() for pair in pairs} != {True, False}:
        raise ConfigError("too little to learn from: both right and wrong pairs are needed; give more of them")
    return found


def _joined(by_source: Mapping[str, Sequence[Example]]) -> list[Example]:
    return [pair for name in sorted(by_source) for pair in by_source[name]]


def _labels(pairs: Sequence[Example]) -> NDArray[np.bool_]:
    return np.array([pair.label for pair in pairs])


def _evened(by_source: Mapping[str, Sequence[Example]]) -> NDArray[np.float64]:
    """Return weights by which each source counts the same, whatever it holds."""
    return np.concatenate([np.full(len(by_source[name]), 1000.0 / len(by_source[name])) for name in sorted(by_source)])


def _read(cross: CrossEncoder, pairs: Sequence[Example]) -> NDArray[np.float64]:
    with progress("calibrating", len(pairs)) as advance, ThreadPoolExecutor(2) as pool:

        def read(pair: Example) -> float:
            logit = cross.both(pair.a, pair.b)
            advance(1)
            return logit

        return np.array(list(pool.map(read, pairs)))


def _figures(
    held_back: Mapping[str, Sequence[Example]],
    cheap: NDArray[np.float64],
    cross: NDArray[np.float64],
    weights: artefact.Weights,
) -> dict[str, artefact.Figures]:
    bias, trees, reading = weights.both
    finite = np.where(np.isfinite(cross), cross, -50.0)
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(bias + trees * cheap + reading * finite, -50, 50)))
    found, start = {}, 0
    for name in sorted(held_back):
        own = slice(start, start + len(held_back[name]))
        start = own.stop
        labels = _labels(held_back[name])
        tally = counts(probabilities[own] >= _USUAL_PROBABILITY, labels)
        found[name] = artefact.Figures(
            pairs=tally.n,
            precision=tally.precision,
            recall=tally.recall,
            average_precision=average_precision(curve(probabilities[own], labels)),
        )
    return found


def _digest(order: Order, material: Material, parent: artefact.Manifest | None) -> str:
    """Tell this training from any other one: what is half done may only be gone on with by the very same."""
    sources, grown = [source.sha256 for source in material.sources], parent.fingerprint if parent else ""
    parts = [sources, order.base.sha256, grown, order.seed, order.visits, order.caution, VERSION]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]
