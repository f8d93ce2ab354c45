"""What the benchmark of federated training computes by itself: scores, clients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cacheproxy.evaluate.plot import line
from cacheproxy.policy.calibrate import counts_at
from tests.benchmarks.federated_data import CLIENTS, Client, Questions, Source, deal, joined, stars
from tests.benchmarks.federated_report import BEGIN, END, written
from tests.benchmarks.federated_scores import Ranked, difference, resamples, scores
from tests.benchmarks.federated_stream import Stream, at_least, replay
from tests.benchmarks.verification_data import Question

RANDOM = np.random.default_rng(0)
RIGHT = RANDOM.random(300) < 0.4
NEAR = np.clip(RANDOM.normal(0.5, 0.1, 300) + 0.1 * RIGHT, 0.01, None)
ONCE = np.ones((1, 300))


def test_scores_are_those_of_their_definitions() -> None:
    found = scores(Ranked(near=NEAR, threshold=0.6), RIGHT, ONCE)
    counts = counts_at(NEAR, RIGHT, 0.6)
    assert found["precision"][0] == pytest.approx(counts.precision)
    assert found["recall"][0] == pytest.approx(counts.recall)
    assert found["f1"][0] == pytest.approx(counts.f(1.0))
    assert found["f05"][0] == pytest.approx(counts.f(0.5))
    assert found["auc"][0] == pytest.approx(roc_auc_score(RIGHT, NEAR))
    assert found["pchr"][0] == pytest.approx(line("", NEAR, RIGHT).area)


def test_a_sample_that_draws_a_group_twice_counts_its_pairs_twice() -> None:
    weights = np.ones((1, 300))
    weights[0, :100] = 2
    twice = np.concatenate([np.arange(300), np.arange(100)])
    given = Ranked(near=NEAR, threshold=0.6)
    whole = Ranked(near=NEAR[twice], threshold=0.6)
    assert scores(given, RIGHT, weights)["f05"][0] == pytest.approx(
        scores(whole, RIGHT[twice], np.ones((1, 400)))["f05"][0]
    )


def test_samples_draw_whole_groups_and_begin_with_the_data_as_they_are() -> None:
    weights = resamples(np.array([5, 5, 7, 9]), many=50)
    assert weights[0].tolist() == [1, 1, 1, 1]
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[1:, 1:].sum(axis=1) == 3).all()


def test_a_ranking_differs_from_itself_by_nothing() -> None:
    found = scores(Ranked(near=NEAR, threshold=0.6), RIGHT, resamples(np.arange(300), many=20))
    assert all(one == {"by": 0.0, "interval": (0.0, 0.0)} for one in difference(found, found).values())


def _questions(n: int) -> Questions:
    intent = np.arange(n) % 12
    vectors = RANDOM.normal(size=(n, 8)).astype(np.float32)
    vectors[:, 0] += intent
    return Questions(vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True), intent=intent)


def test_stars_join_each_asked_question_once_with_a_kept_one_of_its_intent_or_of_another() -> None:
    questions = _questions(240)
    made = stars(questions, np.random.default_rng(1))
    places = {row.tobytes(): at for at, row in enumerate(questions.vectors)}
    a, b = ([places[row.tobytes()] for row in side] for side in (made.a, made.b))
    assert len(set(b)) == len(b) == 240 - 12 * 2
    assert not set(a) & set(b)
    assert ((questions.intent[a] == questions.intent[b]) == made.right).all()
    assert 0.35 < made.right.mean() < 0.65
    assert made.group.tolist() == a


@pytest.mark.parametrize("how", ["even", "skewed"])
def test_a_deal_splits_what_is_trained_on_from_what_is_held_and_shares_no_question(how: str) -> None:
    questions = _questions(2400)
    test = stars(_questions(60), np.random.default_rng(2))
    clients = deal(Source(name="x", pool=questions, topic=questions.intent, test=test), 3, how)
    assert len(clients) == CLIENTS
    asked = [row.tobytes() for one in clients for part in (one.train, one.held) for row in part.b]
    assert len(asked) == len(set(asked))
    for one in clients:
        assert not set(one.train.group.tolist()) & set(one.held.group.tolist())
        assert len(one.topic) == len(one.train)
    apart, told = joined(clients, told=False), joined(clients, told=True)
    assert len(apart) == len(told) == sum(len(one.train) for one in clients)
    assert len(set(apart.group.tolist())) == sum(len(set(one.train.group.tolist())) for one in clients)
    assert set(told.group.tolist()) == set(range(12))


def test_skewed_clients_have_fewer_topics() -> None:
    questions = _questions(2400)
    data = Source(name="x", pool=questions, topic=questions.intent, test=stars(questions, np.random.default_rng(2)))

    def topics(clients: list[Client]) -> float:
        return float(np.mean([len(set(one.topic.tolist())) for one in clients]))

    assert topics(deal(data, 0, "skewed")) < topics(deal(data, 0, "even")) - 2


def test_a_replay_serves_what_is_near_and_keeps_what_is_not() -> None:
    questions = [Question(text=text, answer_id=text[0]) for text in ("a1", "a2", "b1", "b2", "c1")]
    angles = np.radians([0, 10, 90, 60, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    stream = Stream(questions=questions, vectors=vectors)
    told = replay(stream, vectors, at_least(0.98), "replaying")
    # a2 hits a1; b1 misses; b2 is 30 degrees from b1: missed though it is kept; c1 is served b1's answer.
    assert (told["hits"], told["precision"], told["recall"]) == (2, 0.5, 0.5)


def test_a_page_without_the_markers_is_refused() -> None:
    assert written(f"x\n{BEGIN}\nold\n{END}\ny", "new") == f"x\n{BEGIN}\n\nnew\n{END}\ny"
    with pytest.raises(ValueError, match="the page has no"):
        written("x", "new")
