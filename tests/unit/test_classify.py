from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.policy.classify import NONE, ExampleClassifier
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.pack import Classifier
from cacheproxy.policy.prepare import prepared
from tests.support.clusters import DIM, Clusters
from tests.support.encoders import real_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from cacheproxy.policy.active import Classify

Kind = Literal["prototype", "logistic"]

pytestmark = pytest.mark.parametrize("kind", ["prototype", "logistic"])


def fit(
    examples: Mapping[str, NDArray[np.float32]],
    kind: Kind,
    *,
    doubt: float = 0.2,
    cautious: frozenset[str] = frozenset(),
) -> ExampleClassifier:
    chosen = Classifier(kind=kind, doubt=doubt)
    return ExampleClassifier.fit(examples, default="default", settings=chosen, cautious=cautious)


def told(classify: Classify, vectors: NDArray[np.float32]) -> list[str]:
    return [classify(vector).category for vector in vectors]


def share(found: list[str], name: str) -> float:
    return found.count(name) / len(found)


@pytest.mark.parametrize("lift", [0.0, 1.0], ids=["isotropic", "all cosines high"])
def test_queries_near_examples_are_claimed_and_strangers_are_not(kind: Kind, lift: float) -> None:
    names = ["code", "law", "math", "news"]
    world = Clusters(*names, lift=lift)
    classify = fit({name: world.near(name, 20) for name in names}, kind)
    for name in names:
        assert share(told(classify, world.near(name, 100)), name) >= 0.9
    assert share(told(classify, world.strangers(200)), "default") >= 0.8


def test_ten_examples_add_a_category(kind: Kind) -> None:
    names = ["code", "law", "math", "news"]
    world = Clusters(*names, "garden")
    before = {name: world.near(name, 25) for name in names}
    garden = world.near("garden", 10)
    asked = world.near("garden", 100)
    assert share(told(fit(before, kind), asked), "default") >= 0.8
    after = fit({**before, "garden": garden}, kind)
    assert share(told(after, asked), "garden") >= 0.85
    for name in names:
        assert share(told(after, world.near(name, 100)), name) >= 0.85


def test_examples_of_the_default_category_draw_queries_to_it(kind: Kind) -> None:
    world = Clusters("code", "law", "weather")
    examples = {name: world.near(name, 20) for name in ("code", "law")}
    classify = fit({**examples, "default": world.near("weather", 20)}, kind)
    found = [classify(vector) for vector in world.near("weather", 50)]
    assert share([one.category for one in found], "default") >= 0.9
    assert all(name != "default" for one in found for name, _ in one.scores)


def test_a_query_between_two_categories_is_in_doubt(kind: Kind) -> None:
    world = Clusters("code", "law", "math")
    classify = fit({name: world.near(name, 20, spread=0.7) for name in ("code", "law", "math")}, kind, doubt=0.9)
    found = classify(world.between("code", "law"))
    assert found.margin is not None
    assert found.margin < 0.9
    assert found.second != ""
    assert {"code", "law"} <= {name for name, _ in found.scores[:3]}
    assert {found.category, found.second} <= {"code", "law", "default"}


def test_in_doubt_a_category_that_is_never_cached_is_named_second(kind: Kind) -> None:
    world = Clusters("code", "law", "personal")
    examples = {name: world.near(name, 20, spread=1.2) for name in ("code", "law", "personal")}
    anything = world.strangers(300)
    plain = fit(examples, kind, doubt=1.0)
    careful = fit(examples, kind, doubt=1.0, cautious=frozenset({"personal"}))
    assert {careful(vector).category for vector in anything} == {plain(vector).category for vector in anything}
    for vector in anything:
        found = careful(vector)
        assert "personal" in {found.category, found.second}
    assert any(plain(vector).second not in {"personal", ""} for vector in anything)


def test_without_doubt_no_second_category_is_named(kind: Kind) -> None:
    world = Clusters("code", "law")
    classify = fit({name: world.near(name, 20) for name in ("code", "law")}, kind, doubt=0.0)
    assert all(classify(vector).second == "" for vector in world.strangers(50))


def test_one_category_alone_claims_what_is_as_near_as_its_examples(kind: Kind) -> None:
    world = Clusters("code")
    classify = fit({"code": world.near("code", 20)}, kind)
    assert share(told(classify, world.near("code", 100)), "code") >= 0.8
    assert share(told(classify, world.strangers(100)), "default") >= 0.9


def test_a_single_example_claims_its_own_text_and_hardly_more(kind: Kind) -> None:
    world = Clusters("code", "law", "math")
    example = world.near("code", 1)
    alone = fit({"code": example}, kind)
    assert alone(example[0]).category == "code"
    assert share(told(alone, world.strangers(100)), "default") >= 0.95
    beside = fit({**{name: world.near(name, 20) for name in ("law", "math")}, "code": example}, kind)
    assert share(told(beside, world.near("law", 100)), "law") >= 0.85
    if kind == "prototype":  # a logistic head smooths one example away
        assert beside(example[0]).category == "code"
        assert share(told(beside, world.strangers(100)), "default") >= 0.8


def test_copies_of_one_question_break_nothing(kind: Kind) -> None:
    world = Clusters("code", "law")
    copies = np.repeat(world.near("code", 1), 15, axis=0)
    for examples in ({"code": copies}, {"code": copies, "law": world.near("law", 15)}, {"code": copies, "law": copies}):
        classify = fit(examples, kind)
        assert classify(copies[0]).category in {"code", "law", "default"}
        assert np.isfinite(classify.probabilities(world.strangers(10))).all()
    assert fit({"code": copies, "law": copies}, kind)(copies[0]).second != ""


def test_only_the_default_category_has_examples(kind: Kind) -> None:
    world = Clusters("weather")
    found = fit({"default": world.near("weather", 5)}, kind)(world.strangers(1)[0])
    assert (found.category, found.second, found.margin, found.scores) == ("default", "", 1.0, ((NONE, 1.0),))


def test_categories_without_examples_are_left_out(kind: Kind) -> None:
    world = Clusters("code", "law")
    empty = np.empty((0, DIM), dtype=np.float32)
    classify = fit({"code": world.near("code", 5), "law": world.near("law", 5), "math": empty}, kind)
    assert classify.names == ("code", "law", NONE)


def test_no_example_at_all_is_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="no category has an example"):
        fit({"code": np.empty((0, DIM), dtype=np.float32)}, kind)


def test_examples_of_two_encoders_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="one dimension"):
        fit({"code": np.ones((2, 3), dtype=np.float32), "law": np.ones((2, 4), dtype=np.float32)}, kind)


def test_a_vector_that_is_not_finite_may_be_of_any_category(kind: Kind) -> None:
    world = Clusters("code", "law")
    classify = fit({name: world.near(name, 10) for name in ("code", "law")}, kind)
    found = classify(np.full(DIM, np.nan, dtype=np.float32))
    assert (found.category, found.source) == ("default", "unknown")


def test_probabilities_are_calibrated_on_queries_like_the_examples(kind: Kind) -> None:
    names = [f"c{number}" for number in range(8)]
    world = Clusters(*names)
    classify = fit({name: world.near(name, 25, spread=2.0) for name in names}, kind)
    confidence, right = [], []
    for name in names:
        for vector in world.near(name, 100, spread=2.0):
            found = classify(vector)
            confidence.append(found.scores[0][1])
            right.append(found.category == name)
    assert abs(float(np.mean(confidence)) - float(np.mean(right))) <= 0.12


def test_fitting_a_pack_of_three_hundred_examples_takes_seconds_at_most(kind: Kind) -> None:
    names = [f"c{number}" for number in range(11)]
    world = Clusters(*names)
    examples = {name: world.near(name, 28) for name in names}
    began = time.process_time()
    fit(examples, kind)
    assert time.process_time() - began < 30  # of the order of a second; far off, the line would feel it


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, NDArray[np.float32]]:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    names = [f"c{number}" for number in range(len(sizes))]
    if draw(st.booleans()):
        names[0] = "default"
    world = Clusters(*names, seed=draw(st.integers(0, 2**16)), lift=draw(st.sampled_from([0.0, 3.0])))
    spread = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    return {name: world.near(name, size, spread) for name, size in zip(names, sizes, strict=True)}


@given(examples=worlds(), doubt=st.floats(0, 1), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_every_decision_is_one_of_the_packs_and_tells_its_margin(
    kind: Kind, examples: dict[str, NDArray[np.float32]], doubt: float, seed: int
) -> None:
    classify = fit(examples, kind, doubt=doubt, cautious=frozenset({"c1"}))
    again = fit(examples, kind, doubt=doubt, cautious=frozenset({"c1"}))
    chances = classify.probabilities(Clusters(seed=seed).strangers(5))
    assert np.isfinite(chances).all()
    assert np.allclose(chances.sum(axis=1), 1.0)
    for vector in (*Clusters(seed=seed).strangers(5), *(rows[0] for rows in examples.values())):
        found = classify(vector)
        known = {*examples, "default"}
        assert found.category in known
        assert found.second in {"", *known} - {found.category}
        assert found.source == "examples"
        assert found.margin is not None
        [row] = classify.odds.probabilities(classify.head.likenesses(vector[None, :]))
        assert np.allclose(classify.odds.of(classify.head.of(vector)), row, atol=1e-3)
        if found.second != "c1":
            assert (found.second != "") == (found.margin < doubt and len(classify.names) > 1)
        odds = [chance for _, chance in found.scores]
        assert odds == sorted(odds, reverse=True)
        best = found.scores[0][0]
        assert (best or "default") == found.category
        assert again(vector) == found


@pytest.mark.slow
def test_shipped_examples_tell_questions_of_their_kind_apart(kind: Kind) -> None:
    encoder = real_encoder("fp32")
    classify = prepared(load_pack(find_pack("balanced")), encoder.encode).classify
    assert classify is not None
    asked = {
        "code": ["Why does my Go program deadlock when two goroutines wait on a channel?"],
        "support": ["How do I get my money back for a broken headset?"],
        "math": ["A bakery sells 24 rolls an hour for 7 hours. How many rolls does it sell?"],
        "law": ["Can a tenant end a lease early because of mould?"],
        "health": ["What are the symptoms of a vitamin D deficiency?"],
        "finance": ["What is Apple's stock trading at?"],
        "personal": ["What is the balance of my savings account?", "My blood pressure was 160 over 95 this morning."],
        "default": ["What is the capital of Australia?", "Who painted the Mona Lisa?", "Why is the sky blue?"],
    }
    for name, texts in asked.items():
        for vector, text in zip(encoder.encode(texts)[0], texts, strict=True):
            found = classify(vector)
            assert name in {found.category, found.second}, (text, found)
