"""HSIC_1 and CKA against the definition as a mean over four examples, and against values that theory gives."""

import math
from itertools import permutations

import pytest
import torch

from algornn.probes.hsic import centred, cka, compact, hsic


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n, k, seed=0):
    """Centred orthonormal columns: the sample is exactly white."""
    x = normal(n, k, seed=seed)
    return torch.linalg.qr(x - x.mean(0))[0]


def literal_hsic(K, L):
    """The mean over all (i, j, q, r) of different examples of K_ij (L_ij + L_qr - 2 L_iq)."""
    terms = [
        K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
        for i, j, q, r in permutations(range(len(K)), 4)
    ]  # fmt: skip
    return float(torch.stack(terms).mean())


def published_hsic(K, L):
    """The formula with zero diagonals, on Gram matrices of activations that are not centred."""
    n, one = len(K), torch.ones(len(K), dtype=K.dtype)
    K, L = K - K.diag().diag(), L - L.diag().diag()
    total = torch.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3)))


@pytest.mark.parametrize(("p", "q"), [(2, 3), (3, 9), (9, 9), (12, 2)])  # features, and Gram matrices
def test_hsic_is_its_definition(p, q):
    X, Y = normal(8, p) + 3, normal(8, q, seed=1) - 2
    K, L = X @ X.T, Y @ Y.T
    found = hsic(centred(X), centred(Y))
    assert found == pytest.approx(literal_hsic(K, L), rel=1e-9)
    assert found == pytest.approx(published_hsic(K, L), rel=1e-9)


def test_hsic_of_permuted_rows_is_0_in_the_mean_over_all_permutations():
    X, Y = centred(normal(6, 3)), centred(normal(6, 2, seed=1))
    values = [hsic(X, Y[list(order)]) for order in permutations(range(6))]
    assert abs(sum(values)) / len(values) < 1e-12
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("n", "p"), [(40, 6), (12, 30)])
def test_rotation_scale_and_shift_change_nothing(debiased, n, p):
    X, Y = normal(n, p), normal(n, p, seed=1)
    rotation = torch.linalg.qr(normal(p, p, seed=2))[0]
    moved = 7 * X @ rotation + normal(p, seed=3)
    assert cka([X], [moved], debiased) == pytest.approx(1, abs=1e-12)
    assert cka([moved], [Y], debiased) == pytest.approx(cka([X], [Y], debiased), abs=1e-12)
    assert cka([X], [Y], debiased) == pytest.approx(cka([Y], [X], debiased), abs=1e-12)
    assert cka([X], [X @ normal(p, p, seed=4)], debiased) < 0.95  # a linear map in general does


@pytest.mark.parametrize(("k", "p"), [(2, 4), (1, 4), (3, 5)])
def test_shared_dimensions_give_their_share(k, p):
    columns = orthonormal(4000, 2 * p - k)
    X, Y = columns[:, :p], torch.cat([columns[:, :k], columns[:, p:]], 1)
    assert cka([X], [Y], debiased=False) == pytest.approx(k / p, abs=1e-12)
    noisy = normal(8000, 2 * p - k, seed=1)
    X, Y = noisy[:, :p], torch.cat([noisy[:, :k], noisy[:, p:]], 1)
    assert cka([X], [Y]) == pytest.approx(k / p, abs=0.02)


@pytest.mark.parametrize(("p", "biased"), [(40, 0.17), (200, 0.50), (2000, 0.91)])
def test_independent_gaussians_look_alike_to_the_biased_form_alone(p, biased):
    n = 200
    X, Y = normal(n, p), normal(n, p, seed=1)
    assert biased == pytest.approx(p / (n + p), abs=0.005)
    assert cka([X], [Y], debiased=False) == pytest.approx(biased, abs=0.015)
    assert abs(cka([X], [Y])) < 0.03


@pytest.mark.parametrize(("scale", "expected"), [(2, 0.80), (5, 0.56)])
def test_one_long_axis_rules(scale, expected):
    p = 4
    s = torch.tensor([scale, 1, 1, 1], dtype=torch.float64)
    theory = float((s**2).sum() / (math.sqrt(p) * (s**4).sum().sqrt()))
    assert theory == pytest.approx(expected, abs=0.005)
    X = orthonormal(500, p)
    assert cka([X], [X * s], debiased=False) == pytest.approx(theory, abs=1e-12)
    X = normal(5000, p)
    assert cka([X], [X * s]) == pytest.approx(theory, abs=0.02)


def test_batches_are_averaged_term_by_term_and_divided_once():
    X, Y = [normal(5, 3), 10 * normal(9, 3, seed=1)], [normal(5, 4, seed=2), normal(9, 4, seed=3)]
    terms = [
        [hsic(centred(a), centred(b)) for a, b in zip(left, right, strict=True)]
        for left, right in ((X, Y), (X, X), (Y, Y))
    ]
    xy, xx, yy = ((5 * first + 9 * second) / 14 for first, second in terms)
    assert cka(X, Y) == pytest.approx(xy / math.sqrt(xx * yy), rel=1e-12)
    assert cka(X, Y) != pytest.approx((5 * cka(X[:1], Y[:1]) + 9 * cka(X[1:], Y[1:])) / 14, abs=1e-3)
    assert cka(X, X) == pytest.approx(1, abs=1e-12)
    with_crumbs = cka([*X, normal(3, 3, seed=4), X[0][:0]], [*Y, normal(3, 4, seed=5), Y[0][:0]])
    assert with_crumbs == cka(X, Y)


def test_batches_of_independent_gaussians_average_to_0():
    X, Y = normal(2000, 60), normal(2000, 60, seed=1)
    assert abs(cka(X.split(20), Y.split(20))) < 0.02
    assert cka(X.split(20), Y.split(20), debiased=False) > 0.7


def test_what_is_not_defined_is_no_number_and_no_noise():
    X = normal(10, 3)
    for n in range(5, 60):  # for some of them sums round, so that what should be 0 is not
        for Y in (torch.full((n, 3), 0.1, dtype=torch.float64), torch.eye(n)):  # eye: all rows equally far apart
            assert math.isnan(cka([normal(n, 3)], [Y]))
    for n in (0, 1, 2, 3):
        assert math.isnan(cka([X[:n]], [X[:n]]))
    assert cka([X], [torch.eye(10)], debiased=False) > 0


def test_a_negative_hsic_is_a_negative_cka():
    X = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    Y = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    assert hsic(centred(X), centred(Y)) == pytest.approx(literal_hsic(X @ X.T, Y @ Y.T).real)
    assert cka([X], [Y]) == pytest.approx(-0.5)


@pytest.mark.parametrize("p", [3, 40])
def test_compact_keeps_the_inner_products(p):
    X = normal(12, p)
    assert compact(X).shape == (12, min(12, p))
    assert torch.allclose(compact(X) @ compact(X).T, X @ X.T, atol=1e-12)
