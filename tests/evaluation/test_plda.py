"""PLDA: its scores are likelihood ratios, and EM climbs to the maximum of the likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.plda import PLDA

B = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 0.3]])
W = np.array([[1.0, -0.4, 0.2], [-0.4, 1.5, 0.0], [0.2, 0.0, 0.7]])
MEAN = np.array([3.0, -1.0, 10.0])


def simulated(classes: int, seed: int = 0, most: int = 8):
    """Vectors and labels, classes of 1 to ``most`` vectors."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(1, most + 1, classes))
    centres = rng.multivariate_normal(MEAN, B, classes)
    return centres[labels] + rng.multivariate_normal(np.zeros(3), W, len(labels)), labels


def plain(vectors, labels, **settings):
    return PLDA.fit(vectors, labels, length_normalize=False, **settings)


def covariances(plda: PLDA):
    """Mean, B and W where vectors are, undone from the basis and the whitening."""
    back = np.linalg.inv(plda.whitening.projection)
    inverse = np.linalg.inv(plda.basis)
    mean = plda.mean @ back + plda.whitening.mean
    between = back.T @ inverse.T @ np.diag(plda.between) @ inverse @ back
    return mean, between, back.T @ inverse.T @ inverse @ back


def log_density(x, mean, covariance) -> float:
    """Of a Gaussian, written out."""
    rest = x - mean
    sign, log_volume = np.linalg.slogdet(2 * np.pi * covariance)
    assert sign > 0
    return float(-(log_volume + rest @ np.linalg.solve(covariance, rest)) / 2)


def log_joint(vectors, mean, between, within) -> float:
    """Of the vectors of one class: one Gaussian of all of them, end to end."""
    n = len(vectors)
    covariance = np.kron(np.ones((n, n)), between) + np.kron(np.eye(n), within)
    return log_density(np.ravel(vectors), np.tile(mean, n), covariance)


def log_of_all(vectors, labels, mean, between, within) -> float:
    classes = [vectors[labels == label] for label in np.unique(labels)]
    return sum(log_joint(mine, mean, between, within) for mine in classes)


def test_a_score_is_the_difference_of_log_densities():
    vectors, labels = simulated(60)
    plda = plain(vectors, labels)
    mean, between, within = covariances(plda)
    a, b = simulated(7, seed=1)[0][:5], simulated(9, seed=2)[0][:6]
    found = plda.score_matrix(a, b)
    assert found.shape == (5, 6)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            one = log_joint([left, right], mean, between, within)
            two = log_joint([left], mean, between, within)
            two += log_joint([right], mean, between, within)
            assert found[i, j] == pytest.approx(one - two, abs=1e-9)
    np.testing.assert_allclose(plda.score(a, b[:5]), found.diagonal(), atol=1e-12)
    np.testing.assert_allclose(plda.score_matrix(b, a), found.T, atol=1e-12)


def test_many_pairs_are_scored_in_blocks(monkeypatch):
    import speechft.evaluation.plda as module

    vectors, labels = simulated(20)
    plda = plain(vectors, labels)
    whole = plda.score(vectors, vectors[::-1])
    monkeypatch.setattr(module, "_BLOCK", 7)
    np.testing.assert_allclose(plda.score(vectors, vectors[::-1]), whole, atol=1e-12)


def test_the_likelihood_is_that_of_the_joint_densities_and_never_falls():
    vectors, labels = simulated(40)
    plda = plain(vectors, labels, iterations=30)
    assert len(plda.log_likelihoods) == 31
    assert (np.diff(plda.log_likelihoods) > -1e-12).all()
    volume = np.linalg.slogdet(plda.whitening.projection)[1]  # densities are of whitened vectors
    wanted = log_of_all(vectors, labels, *covariances(plda)) / len(vectors) - volume
    assert plda.log_likelihoods[-1] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("alike", [False, True])
def test_an_iteration_is_that_of_the_book(alike):
    """One class at a time, in the vectors' own space; classes may be alike (B near 0)."""
    vectors, labels = simulated(12, seed=4)
    if alike:
        labels = np.random.default_rng(1).permutation(labels)
    start = plain(vectors, labels, iterations=0)
    assert (start.between[-1] < 1.5e-3) == alike
    mean, between, within = covariances(start)
    centres, more, rest = [], np.zeros((3, 3)), np.zeros((3, 3))
    for label in np.unique(labels):
        mine = vectors[labels == label]
        posterior = np.linalg.inv(np.linalg.inv(between) + len(mine) * np.linalg.inv(within))
        total = np.linalg.solve(within, mine.sum(0)) + np.linalg.solve(between, mean)
        centres.append(posterior @ total)
        more += posterior
        rest += (mine - centres[-1]).T @ (mine - centres[-1]) + len(mine) * posterior
    wanted = (
        np.mean(centres, 0),
        np.cov(np.array(centres).T, bias=True) + more / len(centres),
        rest / len(vectors),
    )
    for a, b in zip(covariances(plain(vectors, labels, iterations=1)), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_em_ends_where_no_direction_climbs():
    """At the end, no small change of mean, B or W makes the vectors more likely."""
    vectors, labels = simulated(25, seed=3)
    mean, between, within = covariances(plain(vectors, labels, iterations=3000))
    best = log_of_all(vectors, labels, mean, between, within)
    rng = np.random.default_rng(0)
    for _ in range(12):
        turn = rng.normal(size=(3, 3))
        turn = (turn + turn.T) / 2
        for size in (-1e-3, 1e-3):
            for other in (
                (mean + size * turn[0], between, within),
                (mean, between + size * turn, within),
                (mean, between, within + size * turn),
            ):
                if np.linalg.eigvalsh(other[1])[0] > 0:
                    assert log_of_all(vectors, labels, *other) < best + 1e-6


def test_em_finds_the_covariances_that_vectors_were_drawn_from():
    mean, between, within = covariances(plain(*simulated(4000, most=6), iterations=30))
    np.testing.assert_allclose(within, W, atol=0.05)
    np.testing.assert_allclose(between, B, atol=0.25)
    np.testing.assert_allclose(mean, MEAN, atol=0.12)


def test_it_tells_new_classes_apart_better_than_cosines():
    vectors, labels = simulated(500)
    plda = plain(vectors, labels)
    new, names = simulated(60, seed=9, most=4)
    same = (names[:, None] == names)[np.triu_indices(len(names), 1)]
    scores = plda.score_matrix(new, new)[np.triu_indices(len(names), 1)]
    from speechft.evaluation.metrics import cllr, eer

    unit = (new - MEAN) / np.linalg.norm(new - MEAN, axis=1, keepdims=True)
    assert eer(scores, same) < eer((unit @ unit.T)[np.triu_indices(len(names), 1)], same) - 0.05
    from speechft.evaluation.calibration import cross_calibrated

    assert cllr(scores, same) < cross_calibrated(scores, same, 0).cllr() + 0.03


def test_length_does_not_count_where_it_is_normalized():
    vectors, labels = simulated(60)
    plda = PLDA.fit(vectors, labels)
    centre = plda.whitening.mean
    farther = centre + 3 * (vectors - centre)
    np.testing.assert_allclose(
        plda.score(farther[:5], vectors[5:10]), plda.score(vectors[:5], vectors[5:10]), atol=1e-9
    )
    white = plda.whitening(vectors)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), np.sqrt(3))
    assert np.isfinite(plda.score(centre[None], vectors[:1])).all()


def test_scores_do_not_depend_on_the_axes_nor_on_order_nor_on_names():
    vectors, labels = simulated(60)
    wanted = PLDA.fit(vectors, labels).score(vectors[:9], vectors[9:18])
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(3, 3))
    turned = PLDA.fit(vectors @ turn, labels).score(vectors[:9] @ turn, vectors[9:18] @ turn)
    order = rng.permutation(len(vectors))
    shuffled = PLDA.fit(vectors[order], [f"s{labels[i]}" for i in order])
    np.testing.assert_allclose(turned, wanted, atol=1e-8)
    np.testing.assert_allclose(shuffled.score(vectors[:9], vectors[9:18]), wanted, atol=1e-8)
    tensors = PLDA.fit(torch.from_numpy(vectors), torch.from_numpy(labels))
    again = tensors.score(torch.from_numpy(vectors[:9]), torch.from_numpy(vectors[9:18]))
    np.testing.assert_array_equal(again, wanted)


def test_more_dimensions_than_vectors_are_reduced():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 4)
    vectors = rng.normal(size=(6, 50))[labels] * 2 + rng.normal(size=(24, 50))
    assert len(PLDA.fit(vectors, labels).mean) == 9  # a half of 24 - 6
    assert len(PLDA.fit(vectors, labels, dimensions=18, length_normalize=False).mean) == 18
    with pytest.raises(ArgumentError, match=r"^dimensions: wants 1 to 18, got 19"):
        PLDA.fit(vectors, labels, dimensions=19)


def test_dimensions_in_which_nothing_varies_are_left_out():
    vectors, labels = simulated(60)
    constant = np.full((len(vectors), 1), 1e6 / 3)
    more = np.hstack([vectors, constant, vectors[:, :1] + vectors[:, 1:2]])
    plda = PLDA.fit(more.astype(np.float32), labels)
    assert len(plda.mean) == 3


@pytest.mark.parametrize(
    ("vectors", "labels", "error", "words"),
    [
        (np.eye(4), [0, 0, 0, 0], ArgumentError, "^labels: are of 1 class"),
        (np.eye(4), [0, 1, 2, 3], ArgumentError, "^labels: no class has two"),
        (np.eye(4), [0, 1, 1], ArgumentError, r"^labels: wants \(N,\), one of 4"),
        (np.eye(4), [[0], [1], [1], [1]], ArgumentError, r"^labels: .*got \(4, 1\)"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], NonFiniteError, "^vectors: "),
        (np.ones((4, 2)), [0, 0, 1, 1], ArgumentError, "^vectors: are all the same"),
        (np.eye(2)[[0, 0, 1, 1]], [0, 0, 1, 1], ArgumentError, "^vectors: do not vary within"),
        (np.ones(4), [0, 0, 1, 1], ArgumentError, r"^vectors: wants shape \(N, D\)"),
        (np.eye(4) > 0, [0, 0, 1, 1], ArgumentTypeError, "^vectors: wants numbers"),
    ],
)
def test_what_cannot_be_fitted_is_named(vectors, labels, error, words):
    with pytest.raises(error, match=words):
        PLDA.fit(vectors, labels)


def test_what_cannot_be_scored_is_named():
    plda = PLDA.fit(*simulated(20))
    with pytest.raises(ArgumentError, match=r"^right: wants as many"):
        plda.score(np.eye(3), np.eye(3)[:2])
    with pytest.raises(ArgumentError, match=r"wants \(N, 3\)"):
        plda.score_matrix(np.eye(3), np.eye(4))
    with pytest.raises(NonFiniteError, match=r"^left: "):
        plda.score(np.full((3, 3), np.inf), np.eye(3))
    with pytest.raises(ArgumentError, match=r"^iterations: "):
        PLDA.fit(*simulated(20), iterations=-1)
