from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacheproxy_federated.losses import contrastive, kindred, ranking
from cacheproxy_federated.task import Pairs, Training, chosen, counted, scored, trained

import cacheproxy
from cacheproxy.embed.head import Head
from tests.federated.topics import DIM, pairs

HOW = Training(epochs=4, batch=16, lr=0.02)
START = np.eye(DIM, dtype=np.float32)


def _best_f1(head: Head, held: Pairs) -> float:
    counts = counted(head, held)
    return scored(counts, chosen(counts, beta=1.0)["*"])["f1"]


def test_a_round_makes_a_head_that_tells_unseen_questions_better_apart() -> None:
    held = pairs(400, seed=1)
    made = trained(START, pairs(400, seed=0), HOW, seed=7)
    assert _best_f1(Head(matrix=made), held) > _best_f1(Head.identity(DIM), held) + 0.05


def test_a_smaller_head_can_be_trained_too() -> None:
    held, start = pairs(400, seed=1), np.ascontiguousarray(START[: DIM // 2])
    made = trained(start, pairs(400, seed=0), HOW, seed=7)
    assert made.shape == start.shape
    assert _best_f1(Head(matrix=made), held) > _best_f1(Head(matrix=start), held)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_does_not() -> None:
    given = pairs(100, seed=0)
    made = trained(START, given, HOW, seed=7)
    torch.manual_seed(99)
    torch.rand(3)
    assert trained(START, given, HOW, seed=7).tobytes() == made.tobytes()
    assert trained(START, given, HOW, seed=8).tobytes() != made.tobytes()


def test_the_order_in_which_pairs_come_changes_nothing() -> None:
    given = pairs(100, seed=0)
    order = np.random.default_rng(3).permutation(100)
    assert trained(START, given.at(order), HOW, seed=7).tobytes() == trained(START, given, HOW, seed=7).tobytes()


def test_the_number_of_threads_changes_nothing_and_is_given_back() -> None:
    given, before = pairs(100, seed=0), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        made = trained(START, given, HOW, seed=7)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert trained(START, given, HOW, seed=7).tobytes() == made.tobytes()
    finally:
        torch.set_num_threads(before)


def test_the_matrix_given_stays_as_it_is() -> None:
    start = START.copy()
    made = trained(start, pairs(50, seed=0), HOW, seed=7)
    assert np.array_equal(start, START)
    assert made.dtype == np.float32
    assert not np.shares_memory(made, start)


def test_a_proximal_term_holds_the_round_to_where_it_started() -> None:
    given = pairs(100, seed=0)
    far = np.linalg.norm(trained(START, given, HOW, seed=7) - START)
    near = np.linalg.norm(trained(START, given, replace(HOW, proximal=1.0), seed=7) - START)
    nearer = np.linalg.norm(trained(START, given, replace(HOW, proximal=100.0), seed=7) - START)
    assert nearer < near < 0.9 * far


@pytest.mark.parametrize("label", [True, False])
def test_pairs_of_one_label_are_refused(label: bool) -> None:
    given = pairs(10, seed=0)
    with pytest.raises(ValueError, match=r"right and wrong pairs, got (5|0) right and (5|0) wrong"):
        trained(START, given.at(given.right == label), HOW, seed=7)


def test_no_pairs_are_refused() -> None:
    given = pairs(10, seed=0)
    with pytest.raises(ValueError, match="got 0 right and 0 wrong"):
        trained(START, given.at(np.zeros(10, dtype=np.bool_)), HOW, seed=7)


@pytest.mark.parametrize("matrix", [START.astype(np.float64), START[:, :-1], START[0]])
def test_a_matrix_that_does_not_fit_the_pairs_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="float32 matrix of shape"):
        trained(matrix, pairs(10, seed=0), HOW, seed=7)


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite matrix"):
        trained(START * np.float32(np.nan), pairs(10, seed=0), HOW, seed=7)


def test_pairs_that_do_not_fit_together_are_refused() -> None:
    one = pairs(10, seed=0)
    with pytest.raises(ValueError, match="one shape"):
        Pairs(a=one.a, b=one.b[:, :-1], right=one.right, category=one.category, group=one.group)
    with pytest.raises(ValueError, match="a label, a category and a group for each of 10"):
        Pairs(a=one.a, b=one.b, right=one.right, category=one.category[1:], group=one.group)
    with pytest.raises(ValueError, match="finite"):
        Pairs(a=one.a * np.float32(np.nan), b=one.b, right=one.right, category=one.category, group=one.group)
    with pytest.raises(ValueError, match="float32"):
        replace(one, a=one.a.astype(np.float64))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("margin", -1.0),
        ("scale", 0.0),
        ("proximal", -0.1),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match="training needs"):
        replace(HOW, **{setting: value})


def test_two_right_pairs_and_one_wrong_one_are_enough() -> None:
    given = pairs(3, seed=0)
    assert np.isfinite(trained(START, given, HOW, seed=7)).all()


def _rows(*angles: float) -> torch.Tensor:
    return torch.tensor([[np.cos(angle), np.sin(angle)] for angle in np.radians(angles)], dtype=torch.float32)


def test_contrastive_counts_hard_pairs_alone() -> None:
    a, b = _rows(0, 0, 0, 0), _rows(10, 60, 50, 90)
    right = torch.tensor([True, True, False, False])
    # Right: 10 is nearer than the nearest wrong pair (50), 60 is not. Wrong: 50 is nearer than 60, 90 is not.
    hard = (1 - np.cos(np.radians(60))) ** 2 + max(0.0, 0.5 - (1 - np.cos(np.radians(50)))) ** 2
    assert float(contrastive(a, b, right, 0.5)) == pytest.approx(hard / 4, rel=1e-5)


def test_contrastive_of_pairs_already_apart_is_nothing() -> None:
    assert float(contrastive(_rows(0, 0), _rows(10, 80), torch.tensor([True, False]), 0.5)) == 0.0


def test_ranking_by_hand() -> None:
    a, b = _rows(0, 90), _rows(0, 90)
    # Partner at cosine 1, the other at 0: log(1 + e^-20) in both directions.
    free = torch.zeros(2, 2, dtype=torch.bool)
    assert float(ranking(a, b, free, 2.0)) == pytest.approx(float(np.log1p(np.exp(-2.0))), rel=1e-5)


def test_ranking_leaves_masked_rows_out_and_never_a_partner() -> None:
    a, b = _rows(0, 5, 90), _rows(0, 5, 90)
    masked = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert float(ranking(a, b, masked, 20.0)) < 1e-6 < float(ranking(a, b, torch.zeros_like(masked), 20.0))
    assert float(ranking(a, b, torch.ones_like(masked), 20.0)) == 0.0


def test_rows_of_a_group_or_of_one_question_are_no_negatives() -> None:
    a, b = _rows(0, 90, 180, 0.1, 90), _rows(0, 90, 180, 0.1, 0)
    group = torch.tensor([1, 1, 2, 3, 4])
    same = kindred(a, b, group)
    assert torch.equal(same, same.T)
    # 0 and 1: a group. 0 and 3: one question. 4 shares its kept question with 1, the asked one with 0 and 3.
    told = {(i, j) for i, j in torch.nonzero(same).tolist() if i < j}
    assert {(0, 1), (0, 3), (0, 4), (1, 4), (3, 4)} <= told
    assert (1, 2) not in told


def test_rows_that_the_encoder_finds_nearer_than_a_right_pair_are_no_negatives() -> None:
    a, b = _rows(0, 15, 120), _rows(40, 20, 125)
    apart = torch.tensor([1, 2, 3])
    same = kindred(a, b, apart)
    # The first right pair is 40 degrees wide, and the second row's questions are 20 and 15 degrees from the kept one.
    assert bool(same[0, 1])
    assert not same[:2, 2].any()
    assert not same[2, :2].any()


def test_training_without_the_mask_would_push_paraphrases_apart() -> None:
    """Every pair twice, as two of one group: a twin is no negative, so the loss of a perfect head is 0."""
    a, b = _rows(0, 0, 90, 90), _rows(0, 0, 90, 90)
    group = torch.tensor([0, 0, 1, 1])
    assert float(ranking(a, b, kindred(a, b, group), 20.0)) < 1e-6
    assert float(ranking(a, b, torch.zeros(4, 4, dtype=torch.bool), 20.0)) == pytest.approx(np.log(2), rel=1e-3)


def test_the_proxy_never_imports_the_federated_app() -> None:
    root = Path(cacheproxy.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(name.split(".")[0] == "cacheproxy_federated" for name in names), file
