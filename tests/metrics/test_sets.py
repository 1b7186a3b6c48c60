"""Metrics of sets of images against reference implementations, closed forms, and simulated repeats."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import interval
from diffusion.metrics.comparison import FEATURE_METRICS, compared
from diffusion.metrics.diversity import inception_score, within_classes
from diffusion.metrics.frechet import frechet_estimate
from diffusion.metrics.kernel import kernel_estimate
from diffusion.metrics.manifold import manifold_estimates
from diffusion.metrics.neighbours import nearest
from diffusion.metrics.sliced import sliced_wasserstein


def normal(n: int, size: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Draws of N(shift / sqrt(size), scale^2), each axis alike, float32 (n, size)."""
    draws = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    return draws * scale + shift / size**0.5


A, B = normal(300, 24, 0), normal(260, 24, 1, shift=0.8, scale=1.2)


def test_fid_as_in_torch_fidelity_and_torchmetrics():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    from torchmetrics.image.fid import FrechetInceptionDistance

    found = frechet_estimate(A, B).value
    statistics = [fidelity.fid_features_to_statistics(x) for x in (A, B)]
    reference = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(reference, rel=1e-6)
    network = torch.nn.Identity()
    network.num_features = 24
    metric = FrechetInceptionDistance(feature=network)
    metric.update(A.double(), real=True)
    metric.update(B.double(), real=False)
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


def test_fid_of_gaussians_is_the_formula():
    """|m|^2 + E (s_a - s_b)^2, less the bias of the estimate, which goes with E^2 / N."""
    shift, scale, size, n = 2.0, 1.5, 8, 20000
    a, b = normal(n, size, 0), normal(n, size, 1, shift, scale)
    assert frechet_estimate(a, b).value == pytest.approx(shift**2 + size * (scale - 1) ** 2, rel=0.02)


def test_kid_as_in_torch_fidelity_and_torchmetrics():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    from torchmetrics.image.kid import poly_mmd

    a, b = A[:250], B[:250]
    found = kernel_estimate(a, b).value
    assert found == pytest.approx(float(poly_mmd(a.double(), b.double(), 3, None, 1.0)), rel=1e-6)
    options = {"kid_subsets": 1, "kid_subset_size": 250, "verbose": False}
    reference = fidelity.kid_features_to_metric(a.double(), b.double(), **options)
    assert found == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-6)


def test_kid_takes_sets_of_two_sizes_and_has_no_bias():
    """One dimension: E k = 1 + 3 v for N(0, v) against itself and another, by the moments of a Gaussian."""
    values = [kernel_estimate(normal(40, 1, i), normal(25, 1, 1000 + i)).value for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_the_blocks_that_memory_allows_change_nothing(monkeypatch):
    before = kernel_estimate(A, B), manifold_estimates(A.numpy(), B.numpy())
    monkeypatch.setattr("diffusion.metrics.kernel.MOST_VALUES", 1000)
    monkeypatch.setattr("diffusion.metrics.manifold.MEMORY", 0.01)
    after = kernel_estimate(A, B), manifold_estimates(A.numpy(), B.numpy())
    assert after[0].value == pytest.approx(before[0].value, rel=1e-12)
    assert {name: found.value for name, found in before[1].items()} == {n: found.value for n, found in after[1].items()}


def test_precision_recall_density_and_coverage_as_in_prdc():
    prdc = pytest.importorskip("prdc")
    found = manifold_estimates(A.numpy(), B.numpy())
    references = {k: prdc.compute_prdc(B.numpy(), A.numpy(), nearest_k=k) for k in (3, 5)}
    for name, k in {"precision": 3, "recall": 3, "density": 5, "coverage": 5}.items():
        assert found[name].value == pytest.approx(references[k][name], abs=1e-9), name


def test_precision_and_recall_of_a_generator_that_knows_half():
    real = torch.cat([normal(200, 4, 0), normal(200, 4, 1) + 50])
    found = {name: each.value for name, each in manifold_estimates(normal(300, 4, 2).numpy(), real.numpy()).items()}
    assert found["precision"] > 0.85 and 0.4 < found["recall"] <= 0.5 and 0.4 < found["coverage"] <= 0.5


def test_nearest_neighbours_are_exact_and_never_themselves():
    distances, places = nearest(A.numpy(), B.numpy(), 3)
    reference = torch.cdist(A.double(), B.double())
    expected = reference.topk(3, largest=False)
    assert np.array_equal(places, expected.indices.numpy())
    np.testing.assert_allclose(distances, expected.values.numpy(), rtol=1e-5)
    twice = np.concatenate([A.numpy(), A.numpy()[:5]])
    distances, places = nearest(twice, twice, 2, themselves=True)
    assert places.shape == (305, 2) and (places != np.arange(305)[:, None]).all()
    assert (distances[:5, 0] < 1e-3).all() and (distances[5:300, 0] > 0.1).all()


def test_inception_score_as_in_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(logits.double())
    assert inception_score(logits.softmax(1)).value == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_inception_score_runs_from_1_to_the_number_of_classes():
    assert inception_score(torch.eye(5).repeat(4, 1)).value == pytest.approx(5)
    assert inception_score(torch.eye(5)[[2] * 8]).value == pytest.approx(1)


def images(n: int, seed: int, low: int = 0, high: int = 256, shape=(1, 16, 16)) -> torch.Tensor:
    return torch.randint(low, high, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_sliced_wasserstein_as_in_scipy_for_one_pixel():
    """With a single pixel all directions are 1 or -1."""
    a, b = images(50, 0, shape=(1, 1, 1)), images(37, 1, 40, 200, shape=(1, 1, 1))
    reference = wasserstein_distance(a.flatten().numpy() / 255, b.flatten().numpy() / 255)
    assert sliced_wasserstein(a, b).value == pytest.approx(reference, rel=1e-6)


def test_sliced_wasserstein_of_a_constant_step():
    """E |u' 1| = sqrt(2 / pi) for a direction u on a sphere of many dimensions."""
    a = images(30, 0, 0, 100)
    found = sliced_wasserstein(a, a + 51)
    assert found.value == pytest.approx(0.2 * (2 / np.pi) ** 0.5, rel=0.15)
    assert sliced_wasserstein(a, a).value == pytest.approx(0, abs=1e-9)


def test_pairs_within_classes():
    """Two classes of one image each, repeated: all pairs are equal, however unlike the classes are."""
    pair = images(2, 0)
    found = within_classes(pair.repeat(6, 1, 1, 1), torch.arange(12) % 2)
    assert found.value == pytest.approx(1.0) and len(found.influences[0]) == 6
    assert within_classes(pair.repeat(6, 1, 1, 1), None).value < 0.9
    assert within_classes(images(20, 0, shape=(1, 10, 30)), None) is None
    assert within_classes(pair, torch.arange(2)) is None


def numeric_influences(statistic, a: torch.Tensor, places: list[int]) -> list[float]:
    """The derivative of a statistic when a set, repeated many times, takes one more of one of its members."""
    repeats = 40
    whole = a.repeat(repeats, *[1] * (a.ndim - 1))
    base = statistic(whole)
    return [(statistic(torch.cat([whole, a[i : i + 1]])) - base) * (len(whole) + 1) for i in places]


def test_influences_are_derivatives():
    """Of the Fréchet distance with the bias of its covariance gone, of the score, and of the sliced distance."""
    a, b = A[:100, :6], B[:, :6]
    statistics = {
        "fid": (lambda x: frechet_estimate(x, b), a, 2e-2),
        "score": (inception_score, a.softmax(1), 1e-2),
        "sliced": (lambda x: sliced_wasserstein(x, images(30, 1, 0, 128)), images(61, 0), 1e-2),
    }
    places = [0, 7, 31]
    for name, (statistic, x, tolerance) in statistics.items():
        found = statistic(x).influences[0]
        expected = numeric_influences(lambda y, statistic=statistic: statistic(y).value, x, places)
        np.testing.assert_allclose(found[places], expected, atol=tolerance * np.abs(found).max(), err_msg=name)
        assert abs(found.mean()) < 1e-9


def estimates_of(seed: int) -> dict:
    """Every kind of estimate, of sets drawn anew."""
    a, b = normal(200, 8, 2 * seed), normal(150, 8, 2 * seed + 1, shift=0.7, scale=1.2)
    found, left_out = compared(a, b)
    assert not left_out
    rng = torch.Generator().manual_seed(seed)
    found["inception_score"] = inception_score((2 * a[:, :4]).softmax(1))
    dark = (torch.rand(60, 1, 4, 4, generator=rng) * 200).byte()
    light = (torch.rand(50, 1, 4, 4, generator=rng) * 220 + 35).byte()
    found["sliced_wasserstein"] = sliced_wasserstein(dark, light)
    return found


@pytest.mark.slow
def test_95_percent_intervals_cover_the_expected_value():
    """Of 300 repeats. Precision and its kin are as sure as the set of which they are the mean; see below."""
    repeats = [estimates_of(seed) for seed in range(300)]
    for name in ("fid", "kid", "inception_score", "sliced_wasserstein"):
        truth = np.mean([each[name].value for each in repeats])
        ends = [each[name].interval(seed=i) for i, each in enumerate(repeats)]
        covered = np.mean([end.low <= truth <= end.high for end in ends])
        assert 0.90 <= covered <= 0.99, f"{name}: {covered}"


@pytest.mark.slow
def test_intervals_of_precision_and_its_kin_cover_given_the_other_set():
    """The truth is the share among very many images of the set that is resampled, the other set being as it is."""
    real = normal(150, 8, 1, shift=0.7, scale=1.2).numpy()
    many = {name: found.value for name, found in manifold_estimates(normal(20000, 8, 2).numpy(), real).items()}
    covered = {"precision": 0, "density": 0}
    for seed in range(300):
        found = manifold_estimates(normal(200, 8, 10 + seed).numpy(), real)
        for name in covered:
            low, high = found[name].interval(seed=seed)[1:]
            covered[name] += low <= many[name] <= high
    assert all(0.90 * 300 <= count <= 0.99 * 300 for count in covered.values()), covered


def test_the_interval_of_a_mean_covers():
    rng = np.random.default_rng(0)
    ends = [interval(rng.exponential(size=80), seed=i) for i in range(400)]
    assert 0.90 <= np.mean([end.low <= 1 <= end.high for end in ends]) <= 0.99


def test_too_few_images_leave_out_what_is_not_defined():
    found, left_out = compared(A[:20], B)
    assert set(found) == set(FEATURE_METRICS) - {"fid"} and "takes more images than 20" in left_out["fid"]
    found, left_out = compared(A[:4], B)
    assert set(found) == {"kid"} and "at least 6" in left_out["recall"]
    found, left_out = compared(A[:1], B)
    assert not found and "at least 2" in left_out["kid"]
    with pytest.raises(UserError, match="at least 2"):
        kernel_estimate(A[:1], B)
