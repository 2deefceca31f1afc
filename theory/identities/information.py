"""Information theory: entropies, codes, divergences between tables, and the metrics that see distance (rows A1 to A10).

H(p) = -sum p log p; KL(p || q) = sum p log(p/q); JS is the mean KL to the mixture; W1 the earth mover's distance.
"""

from __future__ import annotations

import math
from itertools import combinations, permutations, product
from types import SimpleNamespace

import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from identities.adversarial import generated, set_odds
from identities.exact import expected, hermite
from identities.identity import Sides, identity, stack
from identities.tables import gan_pair, normals, rows_of, simplex
from unigen import divergences
from unigen.divergences import (
    cross_entropy,
    entropy,
    f_divergences,
    gaussian_kernel,
    information_content,
    jensen_shannon_divergence,
    kullback_leibler_between,
    kullback_leibler_divergence,
    mmd_squared,
    wasserstein_1,
)
from unigen.objectives import FGan, Mmd
from unigen.phases import PHI, Phase, Sleep

__all__ = [
    "conditional_entropy",
    "cross_entropy_excess",
    "entropies_in_closed_form",
    "f_divergence_is_bounded",
    "f_divergence_is_tight",
    "information_adds_up",
    "information_gain",
    "jensen_shannon",
    "jensen_shannon_of_label",
    "kl_of_normals",
    "kl_support_mismatch",
    "mmd_is_unbiased",
    "mutual_information",
    "wasserstein_on_the_line",
]

COVER = "Cover & Thomas 2006, Elements of Information Theory"


def _joint(generator: Generator, rows: int = 3, columns: int = 4) -> Tensor:
    return simplex(generator, rows * columns).reshape(rows, columns)


@identity(
    "I(x, y) = I(x) + I(y) for independent x and y, I = -log p",
    "Shannon 1948",
    ("unigen.divergences.information_content", "unigen.divergences.entropy"),
    ("A1",),
    "the information of the joint outcome is the product of the two",
)
def information_adds_up(generator: Generator, wrong: bool) -> Sides:
    p, q = simplex(generator, 6), simplex(generator, 5)
    joint = torch.outer(p, q)
    one, other = information_content(p)[:, None], information_content(q)
    both = one * other if wrong else one + other
    mean_of_both = (joint * both).sum()
    die = torch.full((6,), 1 / 6, dtype=torch.float64)  # in bits: one face of a fair die carries its entropy
    left = stack(-joint.log(), entropy(joint.reshape(-1)), entropy(die, base=2))
    return left, stack(both, mean_of_both, 1 + math.log2(3))


@identity(
    "H = -E log p: Bernoulli h(p), Categorical log C at its greatest, Normal (1/2) log(2 pi e s^2)",
    COVER,
    ("unigen.divergences.entropy",),
    ("A2",),
    "the differential entropy of the normal without its e",
)
def entropies_in_closed_form(generator: Generator, wrong: bool) -> Sides:
    p = torch.sigmoid(normals(generator))
    loc, scale = normals(generator), normals(generator).exp()
    nodes, weights = hermite(4)
    x = loc + scale * nodes
    log_density = -(((x - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2
    uniform = torch.full((7,), 1 / 7, dtype=torch.float64)
    left = stack(entropy(torch.stack([p, 1 - p])), entropy(uniform), -(weights * log_density).sum())
    odds = torch.logit(p)
    bernoulli = torch.nn.functional.softplus(odds) - p * odds
    e = 1.0 if wrong else math.e
    return left, stack(bernoulli, math.log(7), (2 * math.pi * e * scale**2).log() / 2)


@identity(
    "H(p, q) - H(p) = KL(p || q) >= 0: what coding with the wrong distribution costs",
    COVER,
    (
        "unigen.divergences.cross_entropy",
        "unigen.divergences.kullback_leibler_divergence",
        "unigen.divergences.entropy",
    ),
    ("A3", "A6"),
    "the cost of coding q with the code of p",
)
def cross_entropy_excess(generator: Generator, wrong: bool) -> Sides:
    p, q = simplex(generator, 8, 6), simplex(generator, 8, 6)  # eight pairs of tables
    excess = cross_entropy(p, q) - entropy(p)
    divergence = kullback_leibler_divergence(q, p) if wrong else kullback_leibler_divergence(p, q)
    negative = torch.relu(-excess)
    nothing = kullback_leibler_divergence(p, p)
    return stack(excess, negative, nothing), stack(divergence, torch.zeros(16))


@identity(
    "H(x, y) = H(y) + H(x|y), H(x|y) = sum_y p(y) H(p(x|y)) <= H(x), equal where x and y are independent",
    COVER,
    ("unigen.divergences.conditional_entropy", "unigen.divergences.entropy"),
    ("A4",),
    "the conditional entropy as an unweighted mean over y",
)
def conditional_entropy(generator: Generator, wrong: bool) -> Sides:
    joint = _joint(generator)
    p_x, p_y = joint.sum(1), joint.sum(0)
    given = (joint / p_y).T  # (y, x)
    weights = torch.full_like(p_y, 1 / len(p_y)) if wrong else p_y
    conditional = (weights * entropy(given)).sum()
    independent = torch.outer(p_x, p_y)
    left = stack(
        entropy(joint.reshape(-1)),
        divergences.conditional_entropy(joint),
        torch.relu(conditional - entropy(p_x)),
        entropy(independent.reshape(-1)),
    )
    return left, stack(entropy(p_y) + conditional, conditional, 0.0, entropy(p_y) + entropy(p_x))


@identity(
    "I(x; y) = H(x) - H(x|y) = H(y) - H(y|x) = H(x) + H(y) - H(x, y) = H(x, y) - H(x|y) - H(y|x) = KL(p(x, y) || p(x) p(y))",
    COVER,
    (
        "unigen.divergences.mutual_information",
        "unigen.divergences.kullback_leibler_divergence",
        "unigen.divergences.entropy",
    ),
    ("A5",),
    "the divergence taken from the product to the joint",
)
def mutual_information(generator: Generator, wrong: bool) -> Sides:
    joint = _joint(generator)
    p_x, p_y = joint.sum(1), joint.sum(0)
    both = entropy(joint.reshape(-1))
    x_given_y = (p_y * entropy((joint / p_y).T)).sum()
    y_given_x = (p_x * entropy(joint / p_x[:, None])).sum()
    tables = joint.reshape(-1), torch.outer(p_x, p_y).reshape(-1)
    divergence = kullback_leibler_divergence(*(tables[::-1] if wrong else tables))
    five = stack(
        divergences.mutual_information(joint),
        entropy(p_x) - x_given_y,
        entropy(p_y) - y_given_x,
        entropy(p_x) + entropy(p_y) - both,
        both - x_given_y - y_given_x,
    )
    return five, divergence.expand(5)


@identity(
    "E_y KL(p(x|y) || p(x)) = I(x; y): what the data are expected to teach, from prior to posterior",
    "Lindley 1956; " + COVER,
    ("unigen.divergences.kullback_leibler_divergence",),
    ("A5", "A6"),
    "the logarithms dropped, as the lecture prints it",
)
def information_gain(generator: Generator, wrong: bool) -> Sides:
    joint = _joint(generator)
    p_x, p_y = joint.sum(1), joint.sum(0)
    posterior = (joint / p_y).T
    gain = (p_y * kullback_leibler_divergence(posterior, p_x.expand_as(posterior))).sum()
    if wrong:
        gain = (p_y[:, None] * posterior * (posterior - p_x)).sum()
    return gain, entropy(p_x) + entropy(p_y) - entropy(joint.reshape(-1))


@identity(
    "KL(p || q) = inf where q misses a value of p, and KL(q || p) = sum q log(q/p) stays finite",
    COVER,
    ("unigen.divergences.kullback_leibler_divergence", "unigen.divergences.f_divergences"),
    ("A6",),
    "the divergence taken symmetric",
)
def kl_support_mismatch(generator: Generator, wrong: bool) -> Sides:
    p, narrow = simplex(generator, 5), simplex(generator, 4)
    q = torch.cat([narrow, narrow.new_zeros(1)])
    finite = (narrow * (narrow / p[:4]).log()).sum()
    forward, backward = kullback_leibler_divergence(p, q), kullback_leibler_divergence(q, p)
    by_generator = f_divergences["kullback_leibler"].value(p, q), f_divergences["reverse_kullback_leibler"].value(p, q)
    left = stack(forward, backward, *by_generator)
    return left, stack(math.inf, math.inf if wrong else finite, math.inf, finite)


@identity(
    "KL(N(a, s^2) || N(b, t^2)) = log(t/s) + (s^2 + (a - b)^2) / (2 t^2) - 1/2",
    "Kullback & Leibler 1951; Kingma & Welling 2014",
    ("unigen.divergences.kullback_leibler_between",),
    ("A6", "E4"),
    "s read as the variance, the lecture's exp(sigma) without its 1/2",
)
def kl_of_normals(generator: Generator, wrong: bool) -> Sides:
    a, b = normals(generator, 2)
    s, t = normals(generator, 2).exp()
    nodes, weights = hermite(4)
    x = a + s * nodes
    log_ratio = -(((x - a) / s) ** 2) / 2 - s.log() + ((x - b) / t) ** 2 / 2 + t.log()
    spread = s if wrong else s**2
    closed = kullback_leibler_between(Normal(a, s), Normal(b, t)).value
    exact = (t / s).log() + (spread + (a - b) ** 2) / (2 * t**2) - 0.5
    return stack((weights * log_ratio).sum(), closed), stack(exact, exact)


@identity(
    "JS(p, q) = H(m) - (H(p) + H(q)) / 2 = D_f(p || q) / 2, m = (p + q) / 2; symmetric, log 2 where the supports part",
    "Lin 1991",
    ("unigen.divergences.jensen_shannon_divergence", "unigen.divergences.jensen_shannon"),
    ("A7",),
    "the generator of Nowozin et al., twice the divergence, taken for it",
)
def jensen_shannon(generator: Generator, wrong: bool) -> Sides:
    p, q = simplex(generator, 5), simplex(generator, 5)
    zeros = torch.zeros(5, dtype=torch.float64)
    apart = jensen_shannon_divergence(torch.cat([p, zeros]), torch.cat([zeros, q]))
    by_generator = f_divergences["jensen_shannon"].value(p, q) * (1.0 if wrong else 0.5)
    left = stack(jensen_shannon_divergence(p, q), jensen_shannon_divergence(q, p), by_generator, apart)
    js = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return left, stack(js, js, js, math.log(2))


@identity(
    "JS(p, q) = I(x; y) for a fair label y and x ~ p where y = 1, x ~ q where y = 0",
    "Lin 1991; Goodfellow et al. 2014",
    ("unigen.divergences.jensen_shannon_divergence",),
    ("A7", "F2"),
    "the label drawn from p(y=1) = 1/3",
)
def jensen_shannon_of_label(generator: Generator, wrong: bool) -> Sides:
    p, q = simplex(generator, 5), simplex(generator, 5)
    share = 1 / 3 if wrong else 1 / 2
    label = torch.tensor([share, 1 - share], dtype=torch.float64)
    joint = label[:, None] * torch.stack([p, q])
    about = entropy(joint.sum(0)) + entropy(label) - entropy(joint.reshape(-1))
    return jensen_shannon_divergence(p, q), about


@identity(
    "W1 = min over couplings E|x - y| = max over 1-Lipschitz f of E_p f - E_q f; |theta| for a shift by theta",
    "Villani 2009; Vallender 1974",
    ("unigen.divergences.wasserstein_1",),
    ("A8",),
    "the mean cost of a pairing, not the least",
)
def wasserstein_on_the_line(generator: Generator, wrong: bool) -> Sides:
    x, y, shift = normals(generator, 5), normals(generator, 5) + 1, normals(generator)
    pairings = torch.stack([(x - y[list(order)]).abs().mean() for order in permutations(range(5))])
    primal = pairings.mean() if wrong else pairings.min()
    knots = torch.cat([x, y]).sort().values
    below_x = (x <= knots[:-1, None]).double().mean(1)
    below_y = (y <= knots[:-1, None]).double().mean(1)
    slopes = torch.sign(below_y - below_x)  # the potential climbs where p has more mass above than q
    potential = torch.cat([knots.new_zeros(1), (slopes * knots.diff()).cumsum(0)])
    f_x, f_y = potential[torch.searchsorted(knots, x)], potential[torch.searchsorted(knots, y)]
    left = wasserstein_1(x, y)
    return stack(left, left, wasserstein_1(x, x + shift)), stack(primal, f_x.mean() - f_y.mean(), shift.abs())


@identity(
    "E_p T - E_q f*(T) = D_f(p || q) at T = f'(p/q), for every f of the table; D_f(p || p) = f(1)",
    "Nguyen, Wainwright & Jordan 2010; Nowozin, Cseke & Tomioka 2016",
    ("unigen.divergences.f_divergences", "unigen.divergences.FDivergence"),
    ("A9", "F16"),
    "the critic of the ratio q/p",
)
def f_divergence_is_tight(generator: Generator, wrong: bool) -> Sides:
    p, q = simplex(generator, 5), simplex(generator, 5)
    ratio = q / p if wrong else p / q
    left: list[Tensor] = []
    right: list[Tensor | float] = []
    for name, divergence in f_divergences.items():
        critic = divergence.optimal_critic(ratio)
        left += [(p * critic).sum() - (q * divergence.conjugate(critic)).sum(), divergence.value(p, p)]
        right += [(q * divergence.f(p / q)).sum(), -math.log(4) if name == "gan" else 0.0]
    return stack(*left), stack(*right)


@identity(
    "E_p T - E_q f*(T) <= D_f(p || q) for T = g_f(v) and every v",
    "Nowozin, Cseke & Tomioka 2016",
    ("unigen.divergences.f_divergences", "unigen.objectives.FGan"),
    ("A9", "F16"),
    "the critic itself in the place of its conjugate",
)
def f_divergence_is_bounded(generator: Generator, wrong: bool) -> Sides:
    pair, p, v = gan_pair(generator, symbols=2), simplex(generator, 2), normals(generator, 40, 2)
    q = generated(pair).detach()
    set_odds(pair, v[0])
    climbed, bounds, above = [], [], []
    for name, divergence in f_divergences.items():
        climbed.append(expected(Phase(FGan(name), Sleep(), PHI), pair, rows_of(p)).value)
        critic = divergence.activation(v)
        second = divergence.conjugate_of_activation(v)
        if wrong:  # near the best critic, where the bound has no room
            critic = second = divergence.optimal_critic(p / q)
        bound = (p * critic - q * second).sum(-1)
        bounds.append(bound[0] if bound.dim() else bound)
        above.append(torch.relu(bound - (q * divergence.f(p / q)).sum()).max())
    return stack(*climbed, *above), stack(*bounds, *map(torch.zeros_like, above))


@identity(
    "E MMD^2_u = sum_ij (p_i - q_i) k(i, j) (p_j - q_j): the U-statistic has no bias, nor given the data has the objective",
    "Gretton et al. 2012",
    ("unigen.divergences.mmd_squared", "unigen.objectives.Mmd"),
    ("A10",),
    "the diagonal kept (the V-statistic)",
)
def mmd_is_unbiased(generator: Generator, wrong: bool) -> Sides:
    points, p = normals(generator, 3, 1), simplex(generator, 3)
    kernel = gaussian_kernel((0.7, 1.5))
    gram = torch.stack([(-((points - points.T) ** 2) / (2 * w**2)).exp() for w in (0.7, 1.5)]).mean(0)
    left, right = [], []
    for q in (simplex(generator, 3), p):
        mean = torch.zeros((), dtype=torch.float64)
        for a, b, c, d in product(range(3), repeat=4):
            statistic = mmd_squared(points[[a, b]], points[[c, d]], kernel)
            if wrong:
                statistic = (gram[[a, b]][:, [a, b]] + gram[[c, d]][:, [c, d]] - 2 * gram[[a, b]][:, [c, d]]).mean()
            mean = mean + p[a] * p[b] * q[c] * q[d] * statistic
        left.append(mean)
        right.append((p - q) @ gram @ (p - q))
    for real in combinations(range(3), 2):  # as an objective, in units of the distance of the data
        mean = torch.zeros((), dtype=torch.float64)
        for made in product(range(3), repeat=2):
            mean = mean - p[list(made)].prod() * Mmd((0.7, 1.5))(
                SimpleNamespace(x=points[[*real, *made]], depth=1, dry=True)
            )
        square = (points - points.T) ** 2 / (points[real[0]] - points[real[1]]) ** 2
        gram = torch.stack([(-square / (2 * w**2)).exp() for w in (0.7, 1.5)]).mean(0)
        left.append(mean)
        right.append(gram[real] + p @ gram @ p - (gram[list(real)] @ p).sum())
    return stack(*left), stack(*right)
