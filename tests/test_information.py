"""Entropies, mutual information and the bounds on it, against enumeration, hand counts and closed forms."""

import itertools
import math

import pytest
import torch

from unigen.divergences import (
    conditional_entropy,
    cross_entropy,
    donsker_varadhan_bound,
    entropy,
    f_divergence,
    f_divergence_bound,
    f_divergences,
    info_nce_bound,
    information_content,
    jensen_shannon_divergence,
    kullback_leibler_divergence,
    mutual_information,
)

LOG_2, INF = math.log(2), math.inf


def tables(seed: int, *shape: int) -> torch.Tensor:
    draws = torch.empty(shape, dtype=torch.float64)
    draws.exponential_(generator=torch.Generator().manual_seed(seed))
    return draws


def simplex(seed: int, *shape: int) -> torch.Tensor:
    draws = tables(seed, *shape)
    return draws / draws.sum(-1, keepdim=True)


def joints(seed: int, *shape: int) -> torch.Tensor:
    draws = tables(seed, *shape)
    return draws / draws.sum((-2, -1), keepdim=True)


def close(left, right, atol=1e-12):
    left, right = (torch.as_tensor(value, dtype=torch.float64) for value in (left, right))
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


def test_a_die_carries_log_six_and_independent_dice_add_up():
    die = torch.full((6,), 1 / 6, dtype=torch.float64)
    close(information_content(die, base=2)[2], 2.584962500721156)
    pair = (die[:, None] * die).reshape(-1)
    close(information_content(pair)[2 * 6 + 1], information_content(die)[2] + information_content(die)[1])
    assert information_content(torch.tensor(0.0)).item() == INF
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        information_content(torch.tensor(1.5))


def test_units_are_those_of_the_base():
    p, q, joint = simplex(0, 5), simplex(1, 5), joints(2, 3, 4)
    for in_base in (
        lambda base: entropy(p, base),
        lambda base: cross_entropy(p, q, base),
        lambda base: kullback_leibler_divergence(p, q, base),
        lambda base: jensen_shannon_divergence(p, q, base),
        lambda base: conditional_entropy(joint, base),
        lambda base: mutual_information(joint, base),
        lambda base: information_content(p, base),
    ):
        close(in_base(2) * LOG_2, in_base(math.e))
        close(in_base(10) * math.log(10), in_base(math.e))
    close(entropy(torch.full((8,), 0.125, dtype=torch.float64), base=2), 3.0)
    critic = (P / Q).log()[torch.tensor([0, 1, 1, 2])]
    for bound in (
        lambda base: f_divergence_bound("kullback_leibler", critic, critic, base),
        lambda base: donsker_varadhan_bound(critic, 2 * critic, base),
        lambda base: info_nce_bound(critic + torch.diag(critic), base),
        *(lambda base, f=f: f.value(p, q, base) for f in f_divergences.values() if f.logarithmic),
    ):
        close(bound(2) * LOG_2, bound(math.e))
    for f in f_divergences.values():
        if not f.logarithmic:
            with pytest.raises(ValueError, match="no unit to change; got base=2"):
                f.value(p, q, 2)
            with pytest.raises(ValueError, match="no unit to change"):
                f_divergence_bound(f.name, critic, critic, 2)
    for base in (1, 0, -2, INF, math.nan, True, "2"):
        with pytest.raises(ValueError, match="above 1"):
            entropy(p, base)


def check_gibbs(cross, own):
    p, q = simplex(3, 1000, 6), simplex(4, 1000, 6)
    excess = cross(p, q) - own(p)
    assert (excess > 0).all()
    close(excess, (p * (p / q).log()).sum(-1))
    close(cross(p, p), own(p))


def test_coding_with_the_wrong_distribution_costs_the_divergence():
    check_gibbs(cross_entropy, entropy)
    with pytest.raises(AssertionError):  # the code of q, charged under q
        check_gibbs(lambda p, q: cross_entropy(q, p), entropy)


def check_mutual_information(about, given):
    joint = joints(5, 200, 3, 4)
    x, y = joint.sum(-1), joint.sum(-2)
    flat = joint.flatten(-2)
    product = (x[..., :, None] * y[..., None, :]).flatten(-2)
    close(about(joint), entropy(x) + entropy(y) - entropy(flat))
    close(about(joint), entropy(x) - given(joint))
    close(about(joint), entropy(y) - given(joint.mT))
    close(about(joint), kullback_leibler_divergence(flat, product))
    assert (given(joint) <= entropy(x)).all() and (about(joint) > 0).all()
    independent = x[..., :, None] * y[..., None, :]
    close(given(independent), entropy(x))
    close(about(independent), torch.zeros(200))


def test_mutual_information_has_its_four_identities():
    check_mutual_information(mutual_information, conditional_entropy)
    with pytest.raises(AssertionError):  # conditioned the other way round
        check_mutual_information(mutual_information, lambda joint: conditional_entropy(joint.mT))


def test_zeros_cost_nothing_where_p_has_none_and_infinity_elsewhere():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.5, 0.25, 0.0])
    assert cross_entropy(p, q).item() == pytest.approx(1.5 * LOG_2)
    assert cross_entropy(q, p).item() == INF and kullback_leibler_divergence(q, p).item() == INF
    joint = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert mutual_information(joint).item() == pytest.approx(LOG_2) and conditional_entropy(joint).item() == 0.0
    for logits_at in ([1.0, -0.5], [0.0, 2.0]):
        logits = torch.tensor(logits_at, requires_grad=True)
        padded = torch.cat([logits.softmax(-1), torch.zeros(1)])
        values = [
            entropy(padded),
            kullback_leibler_divergence(padded, torch.tensor([0.3, 0.7, 0.0])),
            kullback_leibler_divergence(torch.tensor([0.3, 0.7, 0.0]), padded),
            jensen_shannon_divergence(padded, torch.tensor([0.3, 0.0, 0.7])),
            cross_entropy(padded, torch.tensor([0.3, 0.7, 0.0])),
        ]
        for value in values:
            (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
            assert gradient.isfinite().all()


def test_gradients_are_those_of_the_formulas():
    logits, q = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(6)), simplex(7, 5)
    logits.requires_grad_()
    for function in (
        lambda v: entropy(v.softmax(-1)),
        lambda v: kullback_leibler_divergence(v.softmax(-1), q),
        lambda v: kullback_leibler_divergence(q, v.softmax(-1)),
        lambda v: jensen_shannon_divergence(v.softmax(-1), q),
        lambda v: mutual_information(torch.cat([v, v**2, v]).softmax(-1).reshape(3, 5)),
    ):
        assert torch.autograd.gradcheck(function, (logits,))


def test_joint_tables_are_checked():
    with pytest.raises(ValueError, match=r"\(\.\.\., A, B\)"):
        mutual_information(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="2 dimensions"):
        conditional_entropy(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="no outcome"):
        entropy(torch.zeros(3, 0))


# ---- bounds ----


def weights(p: torch.Tensor, total: int) -> torch.Tensor:
    """Indices that repeat outcome i exactly total * p_i times: a sample whose means are the expectations."""
    counts = (p * total).round().long()
    assert counts.sum() == total
    return torch.repeat_interleave(torch.arange(len(p)), counts)


P, Q = torch.tensor([0.5, 0.25, 0.125, 0.125]).double(), torch.tensor([0.125, 0.25, 0.5, 0.125]).double()


@pytest.mark.parametrize("name", f_divergences)
def test_the_f_divergence_bound_is_tight_at_its_critic_and_below_elsewhere(name):
    divergence, on_p, on_q = f_divergence(name), weights(P, 8), weights(Q, 8)
    best = divergence.optimal_critic(P / Q)
    close(f_divergence_bound(name, best[on_p], best[on_q]), divergence.value(P, Q))
    for seed in range(20):
        critic = divergence.activation(torch.randn(4, generator=torch.Generator().manual_seed(seed)).double())
        assert f_divergence_bound(name, critic[on_p], critic[on_q]) < divergence.value(P, Q)


def test_the_donsker_varadhan_bound_is_tight_at_the_log_ratio_and_above_the_f_bound():
    on_p, on_q = weights(P, 8), weights(Q, 8)
    truth = kullback_leibler_divergence(P, Q)
    close(donsker_varadhan_bound((P / Q).log()[on_p] + 3.0, (P / Q).log()[on_q] + 3.0), truth)
    for seed in range(20):
        critic = torch.randn(4, generator=torch.Generator().manual_seed(seed)).double()
        bound = donsker_varadhan_bound(critic[on_p], critic[on_q])
        assert f_divergence_bound("kullback_leibler", critic[on_p], critic[on_q]) <= bound < truth


def check_info_nce(bound):
    """Exactly, over every draw of K pairs: the mean bound is below I and log K at any score, and rises with K."""
    joint = torch.tensor([[0.4, 0.1], [0.05, 0.45]]).double()
    truth, means = mutual_information(joint).item(), []
    log_ratio = torch.log(joint / joint.sum(0))  # log p(x|y) = log p(y|x)/p(y) + log p(x), the best score
    for scores_of in (log_ratio, torch.tensor([[1.0, -2.0], [0.3, 0.0]]).double(), 5 * log_ratio):
        for size in (2, 3):
            mean = 0.0
            for pairs in itertools.product(itertools.product(range(2), repeat=2), repeat=size):
                probability = math.prod(joint[x, y].item() for x, y in pairs)
                scores = torch.stack([torch.stack([scores_of[x, y] for _, y in pairs]) for x, _ in pairs])
                value = bound(scores).item()
                assert value <= math.log(size) + 1e-12
                mean += probability * value
            assert mean < truth
            means.append(mean)
    assert means[0] < means[1]
    assert means[1] > 0


def test_info_nce_is_best_at_the_log_ratio():
    """Exactly, over every draw of two and three pairs: there the mean bound has no slope along the scores."""
    joint = torch.tensor([[0.4, 0.1, 0.05], [0.05, 0.1, 0.3]]).double()
    for best, flat in ((torch.log(joint / joint.sum(0)), True), (torch.log(joint / joint.sum(1, keepdim=True)), False)):
        table = (best + torch.tensor([[0.3], [-2.0]])).requires_grad_()  # up to a constant of each x
        for size in (2, 3):
            mean = torch.zeros(())
            for pairs in itertools.product(itertools.product(range(2), range(3)), repeat=size):
                x, y = (torch.tensor(side) for side in zip(*pairs, strict=True))
                mean = mean + joint[x, y].prod() * info_nce_bound(table[x][:, y])
            (slope,) = torch.autograd.grad(mean, table)
            assert bool(slope.abs().max() < 1e-9) == flat


def test_info_nce_is_below_the_mutual_information():
    check_info_nce(info_nce_bound)
    with pytest.raises(AssertionError):  # the pair itself left out of the comparison
        check_info_nce(
            lambda s: info_nce_bound(s) + torch.logsumexp(s, 1).mean()
            - torch.logsumexp(s.masked_fill(torch.eye(len(s), dtype=torch.bool), -INF), 1).mean()
        )  # fmt: skip


def test_bounds_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(n,\) and \(m,\)"):
        donsker_varadhan_bound(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(n,\) and \(m,\)"):
        f_divergence_bound("pearson", torch.zeros(0), torch.zeros(3))
    with pytest.raises(ValueError, match="square table"):
        info_nce_bound(torch.zeros(3, 2))
