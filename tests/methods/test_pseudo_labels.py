"""Pseudo-labels: each step against scikit-learn, scipy or the definition, and the whole of it."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import coverage, normalized_mutual_information, purity
from speechft.methods import clustering
from speechft.methods import pseudo_labels as module
from speechft.methods.clustering import agglomerate, k_means, means, numbered, posterior, principal
from speechft.methods.pseudo_labels import pseudo_labels

pytest.importorskip("sklearn")


def speakers(number: int = 12, each: int = 20, noise: float = 0.7, seed: int = 0):
    """Vectors (N, 32) around one a speaker, in mixed order, and who speaks."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(number).repeat_interleave(each)
    truth = truth[torch.randperm(len(truth), generator=draw)]
    centres = torch.randn(number, 32, generator=draw)
    return centres[truth] + noise * torch.randn(len(truth), 32, generator=draw), truth


def same_partition(a: NDArray, b: NDArray) -> bool:
    return np.array_equal(numbered(np.asarray(a)), numbered(np.asarray(b)))


class TestSteps:
    @pytest.mark.parametrize("variance", [0.3, 0.9, 0.99, 1.0])
    def test_pca_is_that_of_scikit_learn(self, variance):
        from sklearn.decomposition import PCA

        x = np.random.default_rng(0).normal(size=(50, 9)) * np.arange(1, 10) + 3
        got = principal(x, variance)
        want = PCA(variance if variance < 1 else None).fit_transform(x)
        assert got.shape == want.shape
        np.testing.assert_allclose(np.abs(got), np.abs(want), atol=1e-9)

    @pytest.mark.parametrize("clusters", [None, 1, 4, 20])
    def test_agglomeration_is_that_of_scikit_learn(self, clusters):
        from sklearn.cluster import AgglomerativeClustering

        x = np.random.default_rng(1).normal(size=(60, 5))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        for least in (0.2, 0.5, 0.9) if clusters is None else (0.0,):
            got = agglomerate(60, lambda part: x[part] @ x.T, least, clusters)
            want = AgglomerativeClustering(
                clusters,
                metric="cosine",
                linkage="average",
                distance_threshold=None if clusters else 1 - least,
            ).fit_predict(x)
            assert same_partition(got, want)
            if clusters:
                assert got.max() + 1 == clusters

    def test_agglomeration_stops_where_it_should(self):
        """Mean similarities by hand: 0.8 within, then (0.5 + 0.3) / 2 to the third."""
        s = np.array([[1, 0.8, 0.5], [0.8, 1, 0.3], [0.5, 0.3, 1]])
        groups = lambda least: agglomerate(3, lambda part: s[part], least, None).tolist()  # noqa: E731
        assert groups(0.81) == [0, 1, 2]
        assert groups(0.79) == groups(0.41) == [0, 0, 1]
        assert groups(0.39) == [0, 0, 0]

    def test_blocks_change_nothing(self, monkeypatch):
        x = np.random.default_rng(2).normal(size=(40, 4))
        labels = k_means(x, 7, 0)
        both = []
        for block in (1 << 20, 90):
            monkeypatch.setattr(clustering, "_BLOCK", block)
            joined = agglomerate(40, lambda part: x[part] @ x.T, 0.0, None)
            both.append((joined, posterior(x, labels)))
        np.testing.assert_array_equal(both[0][0], both[1][0])
        np.testing.assert_allclose(both[0][1], both[1][1], atol=1e-12)

    def test_k_means_in_batches(self, monkeypatch):
        x, truth = speakers(5, 30, noise=0.1)
        monkeypatch.setattr(clustering, "_MANY", 100)
        found = k_means(x.double().numpy(), 10, 0)
        assert purity(found, truth) == 1.0
        assert set(found) == set(range(found.max() + 1))

    def test_means_are_means(self):
        x, labels = np.random.default_rng(3).normal(size=(30, 4)), np.arange(30) % 7
        want = np.stack([x[labels == k].mean(0) for k in range(7)])
        np.testing.assert_allclose(means(x, labels, 7), want, atol=1e-14)

    def test_the_posterior_is_that_of_gaussians(self):
        from scipy.stats import multivariate_normal

        draw = np.random.default_rng(4)
        labels = np.repeat(np.arange(3), (40, 20, 10))
        x = draw.normal(size=(3, 4))[labels] + draw.normal(size=(70, 4)) * [1, 2, 0.5, 1]
        centres = [x[labels == k].mean(0) for k in range(3)]
        squares = sum(((x[labels == k] - centres[k]) ** 2).sum(0) for k in range(3))
        density = np.stack(
            [
                (labels == k).mean() * multivariate_normal(centres[k], squares / 67).pdf(x)
                for k in range(3)
            ],
            1,
        )
        want = density[np.arange(70), labels] / density.sum(1)
        np.testing.assert_allclose(posterior(x, labels), want, rtol=1e-9)
        assert want.min() < 0.3
        assert want.max() > 0.95


class TestWhole:
    def test_finds_the_speakers(self):
        x, truth = speakers()
        found = pseudo_labels(x, similarity=0.3)
        assert found.clusters == 12
        assert purity(found.labels, truth) == 1.0
        assert normalized_mutual_information(found.labels, truth) == pytest.approx(1.0)
        assert coverage(found.labels) > 0.95
        assert found.labels.dtype == torch.int64
        assert found.confidence.dtype == torch.float64

    def test_a_seed_is_a_result(self):
        x, _ = speakers(noise=1.2)
        one, again, other = (pseudo_labels(x, least=2, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(one.labels, again.labels)
        assert torch.equal(one.confidence, again.confidence)
        assert one[2:] == again[2:]
        assert not torch.equal(one.confidence, other.confidence)

    def test_neither_scale_nor_place_nor_basis_matters(self):
        x, _ = speakers(noise=0.5)
        turn = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0]
        one = pseudo_labels(x.double(), per_cluster=1.0, similarity=0.3)
        other = pseudo_labels(7 * x.double() @ turn + 100, per_cluster=1.0, similarity=0.3)
        assert torch.equal(one.labels, other.labels)
        assert torch.allclose(one.confidence, other.confidence, atol=1e-6)

    def test_arrays_and_tensors(self):
        x, _ = speakers()
        wanted = pseudo_labels(x, similarity=0.3).labels
        for given in (x.numpy(), x.double().requires_grad_(), x.tolist()):
            assert torch.equal(pseudo_labels(given, similarity=0.3).labels, wanted)

    def test_similarity_is_of_cosines(self):
        """Without k-means, and of unit vectors in a plane: pairs 20 degrees apart, then 90."""
        angles = np.deg2rad([0, 20, 90, 110, 180, 200, 270, 290])
        x = np.stack([np.cos(angles), np.sin(angles)], 1)
        settings = {"per_cluster": 1.0, "least": 2, "confidence": 0.0}
        limit = np.cos(np.deg2rad(20))
        found = pseudo_labels(x, similarity=limit - 1e-6, **settings)
        assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        with pytest.raises(ArgumentError, match="all 8 utterances were left out"):
            pseudo_labels(x, similarity=limit + 1e-6, **settings)

    @pytest.mark.parametrize("clusters", [3, 5])
    def test_a_number_of_clusters(self, clusters):
        x, _ = speakers()
        found = pseudo_labels(x, clusters=clusters, least=1, most=None, confidence=0.0)
        assert found.clusters == found.found == clusters
        assert coverage(found.labels) == 1.0

    def test_labels_are_numbered_as_they_occur(self):
        x, _ = speakers()
        labels = pseudo_labels(x, similarity=0.3).labels
        kept = labels[labels >= 0].numpy()
        assert np.array_equal(kept, numbered(kept))

    def test_vectors_that_are_the_same(self):
        x, truth = speakers(4, 20, noise=0.0)
        found = pseudo_labels(x, similarity=0.9)
        assert torch.equal(found.labels, torch.from_numpy(numbered(truth.numpy())))
        assert torch.all(found.confidence == 1)


class TestFilter:
    def test_a_label_has_least_to_most_utterances_and_all_are_sure(self):
        x, _ = speakers(10, 30, noise=1.3, seed=5)
        found = pseudo_labels(x, similarity=0.3, least=6, most=20, confidence=0.99)
        kept = found.labels >= 0
        sizes = found.labels[kept].bincount()
        assert int(sizes.min()) >= 6
        assert int(sizes.max()) == 20
        assert float(found.confidence[kept].min()) >= 0.99
        assert min(found.unsure, found.small, found.surplus) > 0
        assert found.unsure + found.small + found.surplus == int((~kept).sum())
        assert found.unsure == int((found.confidence < 0.99).sum())
        assert found.clusters == len(sizes) < found.found

    def test_the_least_is_of_those_that_are_sure(self):
        """Clusters of 30, of which some keep fewer than 20 when the unsure are gone."""
        x, _ = speakers(10, 30, noise=1.3, seed=5)
        found = pseudo_labels(x, clusters=10, least=20, confidence=0.9999)
        assert int(found.labels[found.labels >= 0].bincount().min()) >= 20
        assert found.small > 0

    def test_of_a_large_cluster_the_nearest_to_its_centre_stay(self):
        x, truth = speakers(2, 30, noise=0.4)
        settings = {"clusters": 2, "confidence": 0.0, "variance": 1.0}
        found = pseudo_labels(x, most=10, **settings)
        assert found.surplus == 40
        rows = x.double() - x.double().mean(0)
        rows = rows / rows.norm(dim=1, keepdim=True)
        for speaker in range(2):
            mine = torch.where(truth == speaker)[0]
            cosines = rows[mine] @ rows[mine].mean(0)
            nearest = mine[cosines.argsort(descending=True)[:10]]
            assert torch.equal(torch.where((found.labels >= 0) & (truth == speaker))[0],
                               nearest.sort().values)  # fmt: skip
        assert pseudo_labels(x, most=None, **settings).surplus == 0

    def test_a_small_cluster_goes(self):
        x, truth = speakers(4, 20, noise=0.3)
        few = (truth == 2).nonzero()[5:, 0]
        left = torch.ones(len(x), dtype=torch.bool)
        left[few] = False
        x, truth = x[left], truth[left]
        found = pseudo_labels(x, similarity=0.5, per_cluster=2.0)
        assert found.small == 5
        assert torch.equal(found.labels < 0, truth == 2)
        assert pseudo_labels(x, similarity=0.5, per_cluster=2.0, least=5).small == 0

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"similarity": 1.0}, "Lower similarity, .* or least"),
            (
                {"clusters": 2, "least": 100, "most": None, "confidence": 1.0},
                "Lower confidence or least",
            ),
        ],
    )
    def test_nothing_left(self, settings, said):
        x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
        with pytest.raises(ArgumentError, match="all 200 utterances were left out.*" + said):
            pseudo_labels(x, **settings)


class TestScore:
    def test_takes_the_place_of_the_cosine(self):
        """A score that knows which dimensions matter: the cosine is lost in the others."""
        x, truth = speakers(6, 20, noise=0.1)
        x = torch.cat([x, 6 * torch.randn(120, 32, generator=torch.Generator().manual_seed(1))], 1)
        seen = []

        def score(left: Tensor, right: Tensor) -> Tensor:
            seen.append((left.shape, right.shape, left.dtype))
            return -torch.cdist(left[:, :32], right[:, :32])

        settings = {"per_cluster": 1.0, "confidence": 0.0, "variance": 1.0}
        found = pseudo_labels(x, score=score, least_score=-3.0, **settings)
        assert seen == [((120, 64), (120, 64), torch.float64)]
        assert (found.clusters, purity(found.labels, truth)) == (6, 1.0)
        assert purity(pseudo_labels(x, clusters=6, least=1, **settings).labels, truth) < 0.9

    def test_sees_means_of_vectors_as_given(self):
        x, _ = speakers(noise=0.0)
        got = []
        pseudo_labels(x, score=lambda a, b: got.append(b) or -torch.cdist(a, b), least_score=-1.0)
        assert torch.allclose(got[0].unique(dim=0), x.double().unique(dim=0))

    @pytest.mark.parametrize(
        ("score", "error", "said"),
        [
            (lambda a, b: a, ArgumentError, r"score: wants to give a tensor \(60, 60\)"),
            (lambda a, b: 1.0, ArgumentError, "gave float"),
            (lambda a, b: a @ b.T * torch.nan, NonFiniteError, "score: gave NaN"),
        ],
    )
    def test_bad_ones(self, score, error, said):
        with pytest.raises(error, match=said):
            pseudo_labels(speakers()[0], score=score)


class TestMemory:
    def test_the_message_says_what_will_do(self, monkeypatch):
        x, _ = speakers()
        monkeypatch.setattr(module, "free_memory", lambda: 9 * 20**2)
        with pytest.raises(ArgumentError, match=r"per_cluster: 240 .* are 60 centres") as caught:
            pseudo_labels(x)
        enough = int(re.search(r"wants (\d+) or more", str(caught.value))[1])
        assert 12 <= enough <= 14
        assert pseudo_labels(x, per_cluster=enough, least=1, confidence=0.0).clusters

    def test_of_this_machine(self):
        assert 1 << 20 < clustering.free_memory() < 1 << 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variance": 0.0}, "variance: wants a share above 0"),
        ({"per_cluster": 0.5}, "per_cluster: wants a number from 1"),
        ({"similarity": 1.5}, "similarity: wants a cosine from -1 to 1"),
        ({"confidence": 1.1}, "confidence: wants a probability"),
        ({"least": 0}, "least: wants a whole number from 1"),
        ({"most": 7}, "most: wants at least the least of a cluster, 8"),
        ({"clusters": 0}, "clusters: wants a whole number from 1"),
        ({"clusters": 61}, "clusters: wants at most the 60 centres"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ArgumentError, match=said):
        pseudo_labels(speakers()[0], **settings)


@pytest.mark.parametrize(
    ("vectors", "error", "said"),
    [
        (torch.ones(40), ArgumentError, r"vectors: wants shape \(N, D\), got \(40,\)"),
        (torch.ones(40, 2).long(), ArgumentTypeError, "vectors: wants floating point"),
        (torch.ones(40, 2), ArgumentError, "vectors: are all the same"),
        (torch.full((40, 2), 0.1), ArgumentError, "vectors: are all the same"),
        (torch.randn(15, 4), ArgumentError, "two clusters of at least 8 need 16 .* got 15"),
        (torch.randn(40, 2) / 0, NonFiniteError, "vectors: row 0 holds NaN or infinity"),
    ],
)
def test_bad_vectors(vectors, error, said):
    with pytest.raises(error, match=said):
        pseudo_labels(vectors)


def test_scikit_learn_is_asked_for_when_called(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'speechft[evaluate]'")):
        pseudo_labels(speakers()[0])
