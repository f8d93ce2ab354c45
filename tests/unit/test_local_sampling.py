from __future__ import annotations

import torch

from cacheproxy.upstream.local.request import Sampling
from cacheproxy.upstream.local.sampling import Sampler

SCORES = torch.tensor([1.0, 3.0, 2.9, -5.0])


def draw(rules: Sampling, times: int, scores: torch.Tensor = SCORES) -> list[int]:
    sampler = Sampler(rules, len(scores))
    return [sampler.pick(scores) for _ in range(times)]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draw(Sampling(), 1) == [1]


def test_a_token_once_chosen_is_less_likely() -> None:
    assert draw(Sampling(), 2) == [1, 2]


def test_a_negative_score_is_lowered_too() -> None:
    assert draw(Sampling(), 2, torch.tensor([-1.0, -1.05])) == [0, 1]


def test_the_same_seed_draws_the_same_tokens() -> None:
    rules = Sampling(temperature=1.5, seed=7)
    assert draw(rules, 50) == draw(rules, 50)


def test_different_seeds_draw_different_tokens() -> None:
    scores = torch.zeros(1000)
    assert draw(Sampling(temperature=1, seed=1), 5, scores) != draw(Sampling(temperature=1, seed=2), 5, scores)


def test_any_whole_number_is_a_seed() -> None:
    for seed in (-1, 0, 2**63, -(10**30), 10**30):
        assert draw(Sampling(temperature=1, seed=seed), 1)[0] in range(4)


def test_sampling_without_a_seed_differs_between_answers() -> None:
    scores = torch.zeros(100_000)
    assert draw(Sampling(temperature=1), 5, scores) != draw(Sampling(temperature=1), 5, scores)


def test_nucleus_sampling_leaves_out_the_tail() -> None:
    scores = torch.tensor([10.0, 10.0, 0.0, 0.0])
    assert set(draw(Sampling(temperature=1, top_p=0.9, seed=1), 100, scores)) == {0, 1}


def test_an_empty_nucleus_still_holds_the_likeliest_token() -> None:
    assert draw(Sampling(temperature=2, top_p=0, seed=1), 1) == [1]


def test_a_frequency_penalty_grows_with_every_use() -> None:
    scores = torch.tensor([10.0, 4.0])
    assert draw(Sampling(frequency_penalty=2), 4, scores) == [0, 0, 0, 1]


def test_a_presence_penalty_counts_once() -> None:
    scores = torch.tensor([10.0, 4.0])
    assert draw(Sampling(presence_penalty=2), 4, scores) == [0, 0, 0, 0]


def test_scores_are_left_as_they_were() -> None:
    before = SCORES.clone()
    draw(Sampling(temperature=1, frequency_penalty=1), 3)
    assert torch.equal(SCORES, before)
