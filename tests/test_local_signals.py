"""NVIL's local signals: which terms of the elbo a latent site decides, and what is refused. ``test_exactness`` has the rest."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from unigen import routines
from unigen.engines import eager
from unigen.engines.checks import check
from unigen.engines.programs import Programs, unreached
from unigen.networks import Baseline
from unigen.objectives import iwae
from unigen.pair import Pair, PairError
from unigen.pairs import sigmoid_belief
from unigen.phases import Phase, ScoreFunction, Wake


def data() -> Tensor:
    return torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])


def test_a_layer_decides_what_is_next_to_it_and_what_follows_in_the_guide() -> None:
    pair = sigmoid_belief(3, (2, 2, 1))
    before = torch.get_rng_state()
    found = unreached(Programs(pair), pair.bind(data()))
    assert found == {
        "h1": (),
        "h2": (("model", "x"), ("guide", "h1")),
        "h3": (("model", "h1"), ("model", "x"), ("guide", "h1"), ("guide", "h2")),
    }
    assert torch.equal(before, torch.get_rng_state())


class Two(nn.Module):
    """Two independent bits as guide, or as the parents of x as model; ``how`` x depends on the second."""

    def __init__(self, observed: bool, how: Any) -> None:
        super().__init__()
        self.weight, self.observed, self.how = nn.Parameter(torch.tensor([0.3, -0.2])), observed, how

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.weight[0].expand(len(x))))
            b = pyro.sample("b", dist.Bernoulli(logits=self.weight[1].expand(len(x))))
            if self.observed:
                logits = (a + self.how(b))[:, None].expand(x.shape)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def branching(b: Tensor) -> float:
    return 1.0 if b.sum() > 1 else 0.0


@pytest.mark.parametrize(
    ("how", "of_b"),
    [
        (lambda b: 0 * b.detach(), (("model", "a"), ("guide", "a"))),
        (lambda b: (b > 0.5).double(), (("model", "a"), ("guide", "a"))),
        (lambda b: 0.0, (("model", "a"), ("model", "x"), ("guide", "a"))),
        (branching, ()),
        (lambda b: torch.tensor(b.tolist()), ()),
    ],
    ids=["detached", "compared", "unused", "branched on", "read"],
)
def test_a_use_that_no_gradient_shows_is_seen(how: Any, of_b: Any) -> None:
    pair = Pair(Two(True, how), Two(False, how))
    assert unreached(Programs(pair), pair.bind(data()))["b"] == of_b


def belief(outputs: int) -> Pair:
    return sigmoid_belief(3, (2, 2, 1), psi={"baseline": Baseline(3, (4,), outputs=outputs)})


def test_a_baseline_has_one_output_or_one_for_each_site() -> None:
    for outputs in (1, 3):
        check(routines.nvil, belief(outputs), data())
    with pytest.raises(PairError, match=r"2 outputs and the guide 3 latent sites \(h1, h2, h3\)"):
        check(routines.nvil, belief(2), data())


def test_local_signals_are_of_the_elbo() -> None:
    phase = Phase(
        iwae, Wake(2), ("theta", "phi"), estimator=ScoreFunction(), control_variate=routines.nvil[0].control_variate
    )
    with pytest.raises(PairError, match="3 outputs is for elbo under Wake"):
        eager.objective(phase, belief(3), data())


def test_means_are_tracked_by_signal() -> None:
    baseline = Baseline(3, (4,), decay=0.5, outputs=2)
    baseline.track(torch.tensor([[2.0, -4.0], [4.0, -8.0]]))
    assert baseline.mean.tolist() == [1.5, -3.0] and baseline(torch.zeros(5, 7, 3)).shape == (5, 7, 2)
