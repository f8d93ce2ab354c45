from __future__ import annotations

import math

import numpy as np
import pytest
from cacheproxy_federated.privacy import clipped, delta_at, epsilon, noised, private
from scipy import integrate, stats

UPDATE = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1.0, 5.0])
def test_a_long_update_is_clipped_to_the_norm_in_its_direction(norm: float) -> None:
    found = clipped(UPDATE, norm)
    length = np.linalg.norm(found.astype(np.float64))
    assert norm * 0.9999 < length <= norm
    assert np.allclose(found / length, UPDATE / np.linalg.norm(UPDATE), atol=1e-6)


def test_a_short_update_stays_as_it_is() -> None:
    found = clipped(UPDATE, 100.0)
    assert np.array_equal(found, UPDATE)
    assert not np.shares_memory(found, UPDATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        clipped(np.array([[1.0, bad]], dtype=np.float32), 1.0)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_that_clips_nothing_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="clipping norm"):
        clipped(UPDATE, norm)


def test_an_update_as_large_as_float32_holds_is_clipped() -> None:
    assert np.linalg.norm(clipped(UPDATE * np.float32(1e37), 1.0).astype(np.float64)) == pytest.approx(1.0, rel=1e-5)


def test_noise_has_the_deviation_asked_for() -> None:
    found = noised(np.zeros((400, 400), dtype=np.float32), 0.3, np.random.default_rng(1))
    assert found.dtype == np.float32
    assert found.std() == pytest.approx(0.3, rel=0.01)
    assert abs(found.mean()) < 0.005


@pytest.mark.parametrize("deviation", [-1.0, math.nan, math.inf])
def test_noise_without_a_deviation_is_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        noised(UPDATE, deviation, np.random.default_rng(1))


def test_what_leaves_a_node_is_clipped_before_it_is_noised() -> None:
    start = np.eye(8, 16, dtype=np.float32)
    quiet = private(start, start + 1000 * UPDATE, 1.0, 0.0, np.random.default_rng(1))
    assert np.linalg.norm(quiet - start) == pytest.approx(1.0, rel=1e-4)
    loud = private(start, start + 1000 * UPDATE, 1.0, 2.0, np.random.default_rng(1))
    # 128 components of deviation 2: about 22.6, and nothing near the update's own thousands.
    assert 15 < np.linalg.norm(loud - start) < 30


@pytest.mark.parametrize(
    ("told", "mu", "delta"),
    # Phi(-e/mu + mu/2) - exp(e) * Phi(-e/mu - mu/2), of tables of the normal distribution.
    [(0.0, 1.0, 0.3829249), (1.0, 1.0, 0.1269367), (1.0, 0.5, 0.0068297), (3.0, 1.0, 0.0015372)],
)
def test_delta_is_that_of_the_closed_form(told: float, mu: float, delta: float) -> None:
    assert delta_at(told, mu) == pytest.approx(delta, abs=2e-7)


@pytest.mark.parametrize(("told", "mu"), [(0.5, 0.3), (1.0, 1.0), (4.0, 2.0), (20.0, 5.0), (100.0, 12.0)])
def test_delta_is_the_area_by_which_one_density_passes_the_other(told: float, mu: float) -> None:
    """The definition of (epsilon, delta): integrate max(0, p - e^epsilon q) over all outputs."""

    def beyond(at: float) -> float:
        return max(0.0, float(stats.norm.pdf(at, mu) - np.exp(told + stats.norm.logpdf(at))))

    edge = told / mu + mu / 2
    area, _ = integrate.quad(beyond, edge, edge + 15, limit=200)
    assert delta_at(told, mu) == pytest.approx(area, rel=1e-6)


@pytest.mark.parametrize(("multiplier", "releases"), [(1.0, 1), (2.0, 10), (8.0, 10), (50.0, 100), (0.2, 3)])
def test_epsilon_is_where_delta_is_met_and_never_above_the_renyi_bound(multiplier: float, releases: int) -> None:
    delta = 1e-5
    told = epsilon(multiplier, releases, delta)
    mu = 2 / multiplier * math.sqrt(releases)
    assert delta_at(told, mu) == pytest.approx(delta, rel=1e-6)
    # Mironov 2017: the Gaussian mechanism has Renyi epsilon a * mu^2 / 2; proposition 3 turns it into this.
    orders = 1 + np.logspace(-3, 4, 2000)
    bound = np.min(orders * mu**2 / 2 + np.log(1 / delta) / (orders - 1))
    assert 0.5 * bound < told <= bound


def test_a_known_epsilon() -> None:
    """Noise of one sensitivity, one release, delta 1e-5: 4.377 (analytic Gaussian mechanism)."""
    assert epsilon(1.0, 1, 1e-5, sensitivity=1.0) == pytest.approx(4.377, abs=1e-3)


def test_more_noise_and_fewer_releases_tell_less() -> None:
    assert epsilon(4.0, 10, 1e-5) < epsilon(2.0, 10, 1e-5) < epsilon(2.0, 20, 1e-5)


def test_releases_add_up_like_one_of_less_noise() -> None:
    assert epsilon(6.0, 9, 1e-5) == pytest.approx(epsilon(2.0, 1, 1e-5))


def test_without_noise_nothing_is_promised_and_without_releases_all() -> None:
    assert epsilon(0.0, 1, 1e-5) == math.inf
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(1e9, 1, 1e-5) == 0.0
    assert epsilon(1e-6, 1, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("multiplier", "releases", "delta"), [(1.0, 1, 0.0), (1.0, 1, 1.0), (-1.0, 1, 0.1), (1.0, -1, 0.1)]
)
def test_numbers_without_meaning_are_refused(multiplier: float, releases: int, delta: float) -> None:
    with pytest.raises(ValueError, match="no epsilon"):
        epsilon(multiplier, releases, delta)
