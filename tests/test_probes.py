"""Programs whose particles or data meet: told by running them once more, on one particle and on half a batch."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from unigen import Pair, PairError, routines
from unigen.engines.checks import check
from unigen.evaluate import (
    Annealing,
    annealed_log_likelihood,
    evaluate,
    importance_weighted_sandwich,
    log_likelihood,
    simulation_based_calibration,
)
from unigen.evaluate.figure import Refused
from unigen.evaluate.likelihood import enumerated_log_likelihood
from unigen.networks import fingerprint
from unigen.phases import THETA, Enumerate, Phase

ROWS, WIDTH = 12, 4

ALONE = {
    "softmax": lambda h: h.softmax(-1),
    "normalize": lambda h: nn.functional.normalize(h, dim=-1),
    "layer norm": nn.LayerNorm(WIDTH, elementwise_affine=False),
    "dropout": lambda h: nn.functional.dropout(h, 0.5),  # in evaluation mode too, so that nothing can be told of it
    "recurrent": nn.LSTM(1, 1, batch_first=True).requires_grad_(False),
    "batch norm": nn.BatchNorm1d(WIDTH, affine=False),
    "one size of batch": lambda h: h + torch.zeros(ROWS, WIDTH),
}
PARTICLES_MEET = {
    "softmax": lambda h: h.softmax(1),
    "normalize": lambda h: nn.functional.normalize(h),
    "cumsum": lambda h: h.cumsum(1),
    "flipped": lambda h: h.flip(1),
}
DATA_MEET = {
    "softmax": lambda h: h.softmax(-2),
    "recurrent": nn.LSTM(WIDTH, WIDTH).requires_grad_(False),
    "mean": lambda h: h - h.mean(-2, keepdim=True),
    "batch norm": nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False),
}


class Model(PyroModule):
    def __init__(self, through=lambda h: h):
        super().__init__()
        self.linear, self.through = nn.Linear(2, WIDTH), through

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.through(self.linear(z)), 0.5).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, through=lambda h: h):
        super().__init__()
        self.linear, self.through = nn.Linear(WIDTH, 2), through

    def forward(self, x):
        h = x
        if isinstance(self.through, nn.LSTM):
            through = self.through
            h = through(x[..., None])[0][..., 0] if through.batch_first else through(x[:, None])[0][:, 0]
        else:
            h = self.through(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.linear(h), 1.0).to_event(1))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def rows():
    return torch.randn(ROWS, WIDTH)


@pytest.mark.parametrize("name", ALONE)
def test_programs_whose_rows_are_each_their_own_are_taken(name):
    pair, x = Pair(Model(), Guide(ALONE[name])), rows()
    before, stream = fingerprint(pair), torch.get_rng_state()
    check(routines.iwae(3), pair, x)
    assert fingerprint(pair) == before and torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for module in pair.modules())
    assert log_likelihood(pair, x, particles=3).kind == "lower bound"


@pytest.mark.parametrize("name", PARTICLES_MEET)
def test_particles_that_meet_are_refused_by_all_that_draws_them(name):
    pair, x = Pair(Model(PARTICLES_MEET[name]), Guide()), rows()
    for routine in (routines.iwae(3), routines.vimco(3), routines.reweighted_wake_sleep(3)):
        with pytest.raises(PairError, match=r"site 'x' of the model .* mixes particles.*dim=-1"):
            check(routine, pair, x)
    check(routines.vae, pair, x)  # without particles dim 1 is the last
    for figure in (
        lambda: log_likelihood(pair, x, particles=3),
        lambda: importance_weighted_sandwich(pair, x, 4, 3),
        lambda: annealed_log_likelihood(pair, x, Annealing(4, 2)),
        lambda: simulation_based_calibration(pair, x, n=16, draws=15),
    ):
        with pytest.raises(PairError, match=r"site 'x' of the model .* mixes particles"):
            figure()
    assert any("mixes particles" in refusal.why for refusal in evaluate(pair, x, quick=True).refusals)


def test_values_that_are_enumerated_do_not_meet():
    class Mixture(PyroModule):
        def __init__(self, dim):
            super().__init__()
            self.centres, self.dim = nn.Parameter(torch.randn(3, WIDTH)), dim

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
                pyro.sample("x", dist.Normal(self.centres[z].softmax(self.dim), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3) / 3))

    phase = Phase(lambda draw: draw.log_p, Enumerate(), THETA)
    check((phase,), Pair(Mixture(-1), guide), rows())
    with pytest.raises(PairError, match="mixes particles"):
        check((phase,), Pair(Mixture(1), guide), rows())


@pytest.mark.parametrize("name", DATA_MEET)
def test_data_that_meet_are_warned_of_and_have_no_likelihood_each(name):
    pair, x = Pair(Model(), Guide(DATA_MEET[name])), rows()
    with pytest.warns(UserWarning, match=r"site 'z' of the guide .* mixes data"):
        check(routines.vae, pair, x)
    with pytest.raises(Refused, match=r"site 'z' of the guide .* mixes data"):
        log_likelihood(pair, x, particles=3)


def test_data_that_meet_in_the_model_are_seen_too():
    pair = Pair(Model(DATA_MEET["mean"]), Guide())
    with pytest.warns(UserWarning, match=r"site 'x' of the model .* mixes data"):
        check(routines.vae, pair, rows())


def test_a_pair_of_one_datum_has_no_rows_that_could_meet():
    class Global(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(mean * self.scale, 1.0), obs=x)

    class Posterior(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            pyro.sample("mean", dist.Normal(self.loc + x.mean(), 1.0))

    pair = Pair(Global(), Posterior(), batch_plate=None)
    check(routines.iwae(3), pair, torch.randn(ROWS))


def test_rows_that_are_times_are_no_data():
    """A batch of sequences with time first: half of its rows is half of each sequence."""

    def model(x):
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, len(x)]).to_event(1), obs=x.T)

    class OverTime(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            with pyro.plate("data", x.shape[1]):
                pyro.sample("z", dist.Normal(self.scale * x.sum(0), 1.0))

    check(routines.iwae(3), Pair(model, OverTime()), torch.randn(8, ROWS))


def test_a_number_beside_the_data_goes_whole():
    def model(x, precision):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, precision**-0.5).to_event(1), obs=x)

    class Conditional(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, precision):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.linear(x), precision**-0.5).to_event(1))

    pair, data = Pair(model, Conditional()), (torch.randn(1200, 2), torch.tensor(4.0))
    check(routines.iwae(3), pair, data)
    assert log_likelihood(pair, data, particles=3).n == 1200


class Sequences(PyroModule):
    """z_t ~ N(0, 1), x_t ~ N(z_t, 1) for t < length, and padding; with ``reads_padding``, x_t ~ N(z_t + sum of all z, 1)."""

    def __init__(self, reads_padding=False, masks="both"):
        super().__init__()
        self.reads_padding, self.masks = reads_padding, masks

    def kept(self, x, length, which):
        shape = torch.arange(x.shape[1]) < length[:, None]
        return shape if self.masks in ("both", which) else torch.ones_like(shape)

    def forward(self, x, length):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=self.kept(x, length, "model").T), pyro.plate("times", x.shape[1], dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z + z.sum(-2, keepdim=True) if self.reads_padding else z
            kept = (torch.arange(x.shape[1]) < length[:, None]).T
            with pyro.poutine.mask(mask=kept), pyro.plate("times_", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x.T)

    def guide(self, x, length):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=self.kept(x, length, "guide").T):
            with pyro.plate("times", x.shape[1], dim=-2):
                pyro.sample("z", dist.Normal(x.T / 2, 0.5**0.5))


def padded():
    return torch.randn(6, 5), torch.tensor([5, 3, 1, 2, 5, 4])


def test_padding_that_nothing_reads_is_left_out():
    sequences = Sequences()
    x, length = padded()
    found = log_likelihood(Pair(sequences, sequences.guide), (x, length), particles=2).per_datum
    kept = torch.arange(5) < length[:, None]
    exact = (dist.Normal(0.0, 2**0.5).log_prob(x) * kept).sum(-1)  # the guide is the posterior: every weight is p(x)
    assert (found - exact).abs().max() < 1e-4


def test_masked_latents_that_are_read_have_no_likelihood():
    sequences = Sequences(reads_padding=True)
    pair = Pair(sequences, sequences.guide)
    for figure in (log_likelihood, lambda pair, x: annealed_log_likelihood(pair, x, Annealing(4, 2))):
        with pytest.raises(PairError, match=r"site 'x' of the model reads elements of 'z' that a mask takes out"):
            figure(pair, padded())


@pytest.mark.parametrize("which", ["model", "guide"])
def test_a_mask_on_one_program_alone_is_refused(which):
    sequences = Sequences(masks=which)
    with pytest.raises(PairError, match="site 'z' is masked otherwise in the guide than in the model"):
        log_likelihood(Pair(sequences, sequences.guide), padded(), particles=2)


def test_masked_values_are_not_enumerated():
    class Bits(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(2.0))

        def forward(self, x, kept):
            with pyro.plate("data", len(x)), pyro.poutine.mask(mask=kept.T), pyro.plate("times", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
                pyro.sample("x", dist.Normal(self.loc * z, 1.0), obs=x.T)

    def guide(x, kept):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=kept.T), pyro.plate("times", 3, dim=-2):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))

    pair, x = Pair(Bits(), guide), torch.randn(4, 3)
    phase = Phase(lambda draw: draw.log_p, Enumerate(), THETA)
    kept = torch.ones(4, 3, dtype=torch.bool)
    check((phase,), pair, (x, kept))
    bits = torch.tensor([0.7, 0.3]).log(), torch.stack([x, x - 2])
    exact = torch.logsumexp(bits[0][:, None, None] + dist.Normal(0.0, 1.0).log_prob(bits[1]), 0).sum(-1)
    assert (enumerated_log_likelihood(pair, (x, kept)).per_datum - exact).abs().max() < 1e-5
    kept = torch.arange(3) < torch.tensor([3, 1, 2, 3])[:, None]
    with pytest.raises(PairError, match="site 'z' of the guide is masked in part"):
        check((phase,), pair, (x, kept))
    with pytest.raises(Refused, match="site 'z' of the guide is masked in part"):
        enumerated_log_likelihood(pair, (x, kept))


def test_statistics_of_batch_norm_stay_where_the_data_come_in_pieces(monkeypatch):
    monkeypatch.setattr("unigen.evaluate.annealing.MOST_CHAINS_AT_ONCE", 100)
    pair, x = Pair(Model(), Guide(ALONE["batch norm"])), torch.randn(150, WIDTH)
    check(routines.iwae(3), pair, x)
    before = fingerprint(pair)
    log_likelihood(pair, x, particles=3)
    annealed_log_likelihood(pair, x, Annealing(4, 2))
    importance_weighted_sandwich(pair, x, 4, 3)
    assert fingerprint(pair) == before and all(module.training for module in pair.modules())
