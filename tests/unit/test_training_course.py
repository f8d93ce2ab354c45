"""A training from files to an artefact: the same again from the same order, however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from itertools import count, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.training import course
from cacheproxy.training.cheap import sure_from, weigh
from cacheproxy.training.course import Order, _labelled, train
from cacheproxy.training.material import SETS, Example, Part, read_material
from cacheproxy.verify.artefact import CHEAP, CROSS, MANIFEST, load
from cacheproxy.verify.cross import Words
from cacheproxy.verify.scorer import PairScorer
from tests.support.artefacts import tiny_base, write_verifier
from tests.support.encoders import HashEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cacheproxy.verify.cross import Base

THINGS = ("account", "card", "password", "order", "bill", "phone", "book", "ticket", "room", "car")
ENDS = ("today", "tomorrow", "now", "in Paris", "for my son", "for free", "by mail", "at home", "at work", "abroad")

AMPLE = 1e6
"""Minutes beside which no machine is slow: where time is further on than the pairs, the rate of learning follows it."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "own.jsonl"
    rows = []
    for thing in THINGS:
        for end in ENDS:
            rows.append({"a": f"How do I open my {thing} {end}?", "b": f"how to open my {thing} {end}", "label": 1})
            rows.append({"a": f"Can I close my {thing} {end}?", "b": f"Can I open the {thing} {end}?", "label": 0})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few pairs for the trees, and one thread: on a busy machine two wait for each other."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it comes without types

    monkeypatch.setattr(course, "_CHEAP_PAIRS", 400)
    monkeypatch.setattr(course, "_CALIBRATION_PAIRS", 120)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def order(base: Base, pairs: Path, tmp_path: Path) -> Order:
    return Order(
        files=[pairs], out=tmp_path / "out", base=base, encoder_name="tiny", parent=None, name="own", description="",
        licences={"own.jsonl": "CC0"}, minutes=AMPLE, visits=96, seed=1,
    )  # fmt: skip


def made(order: Order) -> list[str]:
    train(order, HashEncoder(), None)
    return [hashlib.sha256((order.out / name).read_bytes()).hexdigest() for name in (CROSS, CHEAP, MANIFEST)]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_same_order_makes_the_same_artefact_and_another_seed_another_one(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cacheproxy.training import cross

    first = made(order)
    with monkeypatch.context() as slow:
        slow.setattr(cross, "time", SimpleNamespace(monotonic=partial(next, count(step=60.0))))
        assert made(replace(order, out=tmp_path / "again")) == first
    other = made(replace(order, out=tmp_path / "other", seed=2))
    assert all(one != another for one, another in zip(first, other, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_an_artefact_says_what_it_was_made_of_and_can_be_used_and_grown_from(
    order: Order, base: Base, tmp_path: Path
) -> None:
    manifest = train(order, HashEncoder(), None)
    assert load(order.out)[0] == manifest
    assert [(one.name, one.pairs, one.licence) for one in manifest.sources] == [("own.jsonl", 200, "CC0")]
    assert (manifest.visits, manifest.seed, manifest.parent) == (96, 1, "")
    assert set(manifest.held_back) == {"own.jsonl", "generated"}
    assert [file.name for file in order.out.iterdir() if file.name.startswith(".")] == []
    [found] = PairScorer(order.out, base).score([("how do i pay", "how can i pay", 0.9)])
    assert 0.0 <= found.probability <= 1.0
    grown = train(replace(order, parent=order.out, out=tmp_path / "grown"), HashEncoder(), None)
    assert grown.parent == manifest.fingerprint != grown.fingerprint


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_without_a_visit_the_cross_encoder_stays_as_it_is(order: Order, base: Base, tmp_path: Path) -> None:
    train(order, HashEncoder(), None)
    grown = train(replace(order, parent=order.out, out=tmp_path / "grown"), HashEncoder(), None)
    anew = train(
        replace(order, parent=tmp_path / "grown", out=tmp_path / "anew", visits=0, caution=1.0), HashEncoder(), None
    )
    assert (anew.visits, anew.parent, anew.caution) == (grown.visits, grown.fingerprint, 1.0)
    assert anew.sources == grown.sources
    assert anew.files["cross.safetensors"] == grown.files["cross.safetensors"]
    assert anew.weights.both[0] == pytest.approx(grown.weights.both[0] - 1.0)


def test_less_than_a_batch_is_no_training(order: Order) -> None:
    with pytest.raises(ConfigError, match="less than one batch"):
        train(replace(order, visits=31), HashEncoder(), None)


def test_without_a_visit_there_must_be_something_to_go_on_from(order: Order) -> None:
    with pytest.raises(ConfigError, match="give --from"):
        train(replace(order, visits=0, parent=None), HashEncoder(), None)
    assert not order.out.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("steps", [1, 7, 11])
def test_an_interrupted_training_comes_to_the_same_weights(
    base: Base, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    from cacheproxy.training import cross

    monkeypatch.setattr(cross, "_SAVE_EVERY_S", 0.0)
    part, words = read_material([pairs]).learn, Words(base)
    timed = cross.Course(visits=12 * 32, seconds=3_600.0, seed=3)

    def trained(checkpoint: Path, advance: Callable[[int], None]) -> dict[str, Any]:
        model = cross.Cross(base.weights.parent, seed=3)
        cross.train(model, words, part, timed, checkpoint, advance)
        return dict(model.state_dict())

    whole = trained(tmp_path / "one.safetensors", lambda _: None)
    counted = iter(range(steps + 1))

    def interrupting(_: int) -> None:
        if next(counted, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "two.safetensors", interrupting)
    assert (tmp_path / "two.safetensors").exists()
    resumed = trained(tmp_path / "two.safetensors", lambda _: None)
    assert all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_damaged_checkpoint_or_one_of_another_course_is_begun_anew(
    base: Base, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cacheproxy.training import cross

    monkeypatch.setattr(cross, "_SAVE_EVERY_S", 0.0)
    part, words, file = read_material([pairs]).learn, Words(base), tmp_path / "checkpoint.safetensors"

    def seen(seed: int) -> list[int]:
        steps: list[int] = []
        timed = cross.Course(visits=4 * 32, seconds=3_600.0, seed=seed)
        cross.train(cross.Cross(base.weights.parent), words, part, timed, file, steps.append)
        return steps

    assert seen(1) == [0, 32, 32, 32, 32]
    assert seen(1) == [128]
    assert seen(2) == [0, 32, 32, 32, 32]
    file.write_bytes(file.read_bytes()[:1000])
    assert seen(2) == [0, 32, 32, 32, 32]


def test_a_parent_of_another_encoder_is_refused_before_any_work(order: Order, tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other", seed=9)
    write_verifier(tmp_path / "parent", other)
    with pytest.raises(ConfigError, match="no other encoder"):
        train(replace(order, parent=tmp_path / "parent"), HashEncoder(), None)
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        train(replace(order, parent=tmp_path / "nowhere"), HashEncoder(), None)
    assert not order.out.exists()


def test_a_place_that_cannot_be_written_is_told_before_any_work(order: Order, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        train(replace(order, out=tmp_path / "file" / "out"), HashEncoder(), None)


@pytest.mark.parametrize("label", [0, 1])
def test_pairs_of_one_label_alone_are_too_little(order: Order, tmp_path: Path, label: int) -> None:
    rows = [json.dumps({"a": f"xx {number}", "b": f"yy {number}", "label": label}) for number in range(40)]
    (tmp_path / "few.jsonl").write_text("\n".join(rows[: 1 if label == 0 else 2]))
    with pytest.raises(ConfigError, match="too little to learn from"):
        train(replace(order, files=[tmp_path / "few.jsonl"]), HashEncoder(), None)


def test_small_sources_are_taken_whole_and_large_ones_share_what_is_left() -> None:
    from random import Random

    def some(count: int, name: str) -> list[Example]:
        return [Example(f"{name} {n}", f"{name} {n} again", label=n % 2 == 0) for n in range(count)]

    part = Part(pairs={"a": some(900, "a"), "b": some(30, "b"), "c": some(700, "c")}, sets=[], questions=[])
    found = _labelled(part, Random(1), 400)
    assert {name: len(taken) for name, taken in found.items()} == {"b": 30, "c": 185, "a": 185}
    assert {name: len(taken) for name, taken in _labelled(part, Random(1), 5_000).items()} == {
        "a": 900,
        "b": 30,
        "c": 700,
    }


def test_weights_are_fitted_without_the_pairs_that_are_too_long_to_read() -> None:
    random = np.random.default_rng(0)
    labels = random.random(400) < 0.5
    cheap = np.where(labels, 1.0, -1.0) + random.normal(0, 1, 400)
    cross = np.where(random.random(400) < 0.1, -np.inf, np.where(labels, 2.0, -2.0) + random.normal(0, 2, 400))
    found = weigh(cheap, cross, labels, np.ones(400))
    assert all(np.isfinite([*found.cheap, *found.both, found.hopeless]))
    assert found.both[1] > 0
    assert found.both[2] > 0
    assert np.mean(cheap[labels] < found.hopeless) <= 0.01
    with pytest.raises(ConfigError, match="too long"):
        weigh(cheap, np.where(labels, cross, -np.inf), labels, np.ones(400))


def test_the_trees_are_sure_from_where_hardly_any_pair_is_wrong_and_never_of_few_pairs() -> None:
    cheap = np.linspace(4.0, -4.0, 2_000)
    labels = cheap > 0.0
    found = sure_from(cheap, labels)
    assert found is not None
    assert -0.1 < found < 0.0
    labels[::20] = False
    assert sure_from(cheap, labels) is None
    assert sure_from(cheap[:50], np.ones(50, dtype=bool)) is None


def test_the_sets_that_come_along_are_enough_to_learn_from() -> None:
    from random import Random

    material = read_material([SETS])
    for part in (material.learn, material.calibrate):
        found = _labelled(part, Random(0), 2_000)
        assert sum(len(taken) for taken in found.values()) <= 2_000
        assert all({pair.label for pair in islice(taken, 300)} == {True, False} for taken in found.values())
