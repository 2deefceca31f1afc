"""The pairs: one file a model family, each a Pyro model and guide over shared or own networks."""

from unigen.pairs.adversarial import adversarial
from unigen.pairs.deep_latent import deep_latent
from unigen.pairs.flow import flow
from unigen.pairs.latent import latent
from unigen.pairs.likelihoods import Likelihood
from unigen.pairs.mixture import mixture
from unigen.pairs.rbm import rbm
from unigen.pairs.sigmoid_belief import sigmoid_belief

__all__ = ["Likelihood", "adversarial", "deep_latent", "flow", "latent", "mixture", "rbm", "sigmoid_belief"]
