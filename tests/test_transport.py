"""Transport against permutations, linear programs, dual certificates and normals."""

import builtins
import itertools
import math

import pytest
import torch

from unigen.divergences import (
    optimal_transport,
    wasserstein,
    wasserstein_1,
    wasserstein_1_critic,
    wasserstein_2_normals,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_permutations(x: torch.Tensor, y: torch.Tensor, order: float) -> float:
    costs = [((x - y[list(p)]).norm(dim=1) ** order).mean().item() for p in itertools.permutations(range(len(x)))]
    return min(costs) ** (1 / order)


def check_exact(distance):
    for seed, (dimension, order) in enumerate(itertools.product((1, 3), (1, 2, 3.5))):
        x, y = normal(seed, 6, dimension), normal(seed + 50, 6, dimension) + 0.3
        assert distance(x, y, order).item() == pytest.approx(by_permutations(x, y, order), abs=1e-12)


def test_wasserstein_is_the_least_over_all_pairings():
    pytest.importorskip("ot")
    check_exact(wasserstein)
    with pytest.raises(AssertionError):  # rows paired as they come
        check_exact(lambda x, y, order: ((x - y).norm(dim=1) ** order).mean() ** (1 / order))
    with pytest.raises(AssertionError):  # the root forgotten
        check_exact(lambda x, y, order: wasserstein(x, y, order) ** order)


def test_the_line_needs_no_solver_and_agrees_with_it():
    pytest.importorskip("ot")
    x, y = normal(1, 7), normal(2, 11)
    flat = torch.stack([x, torch.zeros(7)], -1), torch.stack([y, torch.zeros(11)], -1)
    assert wasserstein(x[:, None], y[:, None]).item() == wasserstein_1(x, y).item()
    assert wasserstein(*flat).item() == pytest.approx(wasserstein_1(x, y).item(), abs=1e-12)
    assert wasserstein(x[:, None], y[:, None], 2).item() == pytest.approx(wasserstein(*flat, 2).item(), abs=1e-12)


def test_optimal_transport_is_proved_by_its_potentials():
    pytest.importorskip("ot")
    cost = normal(3, 5, 8).abs()
    p, q = normal(4, 5).abs(), normal(5, 8).abs()
    p, q = p / p.sum(), q / q.sum()
    found = optimal_transport(cost, p, q)
    u, v = found.potentials
    assert (u[:, None] + v <= cost + 1e-12).all()
    assert (p @ u + q @ v).item() == pytest.approx(found.value.item(), abs=1e-12)
    torch.testing.assert_close(found.plan.sum(1), p, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.plan.sum(0), q, rtol=0, atol=1e-14)
    assert (found.plan >= 0).all()


def check_critic(critic):
    for seed, (n, m) in enumerate(((6, 6), (5, 9), (1, 4))):
        x, y = normal(seed, n), normal(seed + 20, m) - 0.4
        on_x, on_y = critic(x, y)
        assert (on_x.mean() - on_y.mean()).item() == pytest.approx(wasserstein_1(x, y).item(), abs=1e-12)
        points, values = torch.cat([x, y]), torch.cat([on_x, on_y])
        slopes = (values[:, None] - values).abs() - (points[:, None] - points).abs()
        assert slopes.max() <= 1e-12


def test_the_critic_on_the_line_attains_the_distance_and_is_1_lipschitz():
    check_critic(wasserstein_1_critic)
    with pytest.raises(AssertionError):
        check_critic(lambda x, y: wasserstein_1_critic(y, x)[::-1])
    with pytest.raises(AssertionError):
        check_critic(lambda x, y: tuple(2 * part for part in wasserstein_1_critic(x, y)))
    with pytest.raises(ValueError, match="wasserstein_1_critic compares two nonempty"):
        wasserstein_1_critic(torch.zeros(0), torch.zeros(2))


def test_the_gradient_holds_the_coupling_fixed():
    pytest.importorskip("ot")
    x, y = normal(6, 5, 2).requires_grad_(), normal(7, 4, 2).requires_grad_()
    for order in (1.0, 2.0):
        assert torch.autograd.gradcheck(lambda a, b, r=order: wasserstein(a, b, r), (x, y))


def test_normals_in_closed_form():
    # On the line, for commuting covariances, and for a rotated pair against the definition by a dense matrix root.
    one = torch.ones(1, 1, dtype=torch.float64)
    m = torch.tensor([3.0]).double()
    assert wasserstein_2_normals(m, 4 * one, 0 * m, one).item() == pytest.approx(math.sqrt(9 + 1), abs=1e-12)
    a, b = normal(8, 4), normal(9, 4)
    spread_a, spread_b = normal(10, 4).abs(), normal(11, 4).abs()
    got = wasserstein_2_normals(a, torch.diag(spread_a**2), b, torch.diag(spread_b**2))
    assert got.item() == pytest.approx(((a - b).square().sum() + (spread_a - spread_b).square().sum()).sqrt().item())
    left, right = (part @ part.mT for part in (normal(12, 4, 4), normal(13, 4, 4)))
    crossed = torch.linalg.eigvals(left @ right).real.clamp_min(0).sqrt().sum()  # tr (S S')^1/2
    expected = ((a - b).square().sum() + left.trace() + right.trace() - 2 * crossed).sqrt()
    assert wasserstein_2_normals(a, left, b, right).item() == pytest.approx(expected.item(), abs=1e-9)
    assert wasserstein_2_normals(a, left, a, left).item() == pytest.approx(0, abs=1e-6)


def test_the_closed_form_is_near_the_transport_between_large_samples():
    pytest.importorskip("ot")
    # Of 20 repetitions, 400 points a side on the line: W2 of samples around its limit sqrt(2^2 + 0.5^2) = 2.0616.
    values = [wasserstein(normal(s, 400, 1), 1.5 * normal(s + 100, 400, 1) + 2, 2).item() for s in range(20)]
    mean, spread = torch.tensor(values).mean().item(), torch.tensor(values).std().item()
    exact = wasserstein_2_normals(*(torch.tensor(v) for v in ([0.0], [[1.0]], [2.0], [[2.25]]))).item()
    assert abs(mean - exact) < 5 * spread / math.sqrt(20) + 0.02  # the bias of W2 at 400 points is below 0.02


def test_refusals():
    with pytest.raises(ValueError, match="from 1"):
        wasserstein(torch.zeros(2, 2), torch.zeros(2, 2), order=0.5)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        wasserstein(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="symmetric and positive"):
        wasserstein_2_normals(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"other_mean has shape \(3,\)"):
        wasserstein_2_normals(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(2))


def test_transport_refuses_wrong_margins_and_costs():
    pytest.importorskip("ot")
    with pytest.raises(ValueError, match="margin p has shape"):
        optimal_transport(torch.ones(2, 3), torch.tensor([0.5, 0.25, 0.25]))
    with pytest.raises(ValueError, match="sums from 0.9"):
        optimal_transport(torch.ones(2, 3), torch.tensor([0.5, 0.4]))
    with pytest.raises(ValueError, match="finite table"):
        optimal_transport(torch.tensor([[1.0, math.inf]]))


def test_a_missing_solver_is_named(monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **named):
        if name == "ot":
            raise ImportError(name)
        return imported(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install POT"):
        wasserstein(torch.zeros(2, 2), torch.ones(2, 2))
    assert wasserstein(torch.zeros(2, 1), torch.ones(2, 1)).item() == 1.0
