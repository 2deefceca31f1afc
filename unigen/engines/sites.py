"""What the sample statements of a program did: sites, recorded by a handler that also decides where values come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, Independent, MaskedDistribution, SineBivariateVonMises, SineSkewed, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import LKJCholesky, MixtureSameFamily, TransformedDistribution, VonMises, constraints

from unigen.engines.inverses import forget, inverting
from unigen.engines.reparameterized import reparameterized
from unigen.pair import PairError

__all__ = [
    "Record",
    "Site",
    "base_of",
    "check_angles",
    "check_auxiliary",
    "check_sampler",
    "element_support",
    "family_of",
    "is_bounded",
    "is_deterministic",
    "log_prob_at",
    "support_of",
]


class Site(NamedTuple):
    """What one sample statement did."""

    name: str
    fn: Any
    value: Tensor
    observed: bool
    frames: tuple[Any, ...]
    scale: Any
    mask: Any
    auxiliary: bool  # of the guide alone: what an autoguide draws a latent's value from

    @property
    def latent(self) -> bool:
        """Whether it is a latent of the model, not data, a deterministic value or an auxiliary site."""
        return not (self.observed or self.auxiliary)

    @property
    def weightless(self) -> bool:
        """Whether its density is left out by ``mask(False)``, as that of ``pyro.deterministic``."""
        return getattr(self.fn, "_mask", None) is False


class Record(Messenger):
    """Record every sample statement; take values from ``values``, dream the observed ones, detach where told.

    ``along``: the estimator by which values that are taken move along the path of their noise, None where they stay.

    Entered first, hence outermost: plates have expanded a site's distribution before a value is drawn here.
    """

    def __init__(self, values: Mapping[str, Tensor], dream: bool, detach: bool, along: Any = None) -> None:
        super().__init__()
        self.values, self.dream, self.detach, self.along = values, dream, detach, along
        self.sites: dict[str, Site] = {}
        self.was_observed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        forget(msg["fn"])  # weights have moved since its transforms were called
        if msg["is_observed"]:
            if not self.dream or is_deterministic(msg["fn"]):
                return
            if isinstance(msg["fn"], Unit):
                raise PairError(
                    f"site '{msg['name']}' is a factor, so that what the model's sample statements draw is not of its joint "
                    "density; use routines without a sleep phase (vae, iwae, reweighted_wake_sleep(sleep=False))"
                )
            self.was_observed.add(msg["name"])
            msg["is_observed"] = False
        if msg["name"] in self.values:
            msg["value"] = self._taken(msg["name"], msg["fn"])
        elif self.values and _is_auxiliary(msg) and msg["name"] not in self.was_observed:
            raise PairError(
                f"site '{msg['name']}' is auxiliary, so that its program has no density at given values of the latents; use a "
                "routine that takes them from this program, the guide in its wake phase (vae, iwae)"
            )
        elif self.detach or not msg["fn"].has_rsample:
            with torch.no_grad():
                msg["value"] = msg["fn"].sample()
            if torch.is_grad_enabled():  # the sample has no gradient, its density has
                forget(msg["fn"])
                _check_place(msg)
        else:
            msg["value"] = msg["fn"].rsample()
        msg["done"] = True

    def _taken(self, name: str, fn: Any) -> Tensor:
        value = self.values[name]
        if self.along is None:
            return value
        with inverting(name, fn):
            moved = reparameterized(fn, value)
        if moved is None:
            raise PairError(
                f"site '{name}' ({family_of(fn)}) has no reparameterization that {type(self.along).__name__} knows, which takes "
                "normal, Laplace, Cauchy and uniform variables and transforms of them; leave the estimator out"
            )
        return moved

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        name = msg["name"]
        if name in self.sites:
            raise PairError(f"site '{name}' is sampled twice by one program; give each sample statement its own name")
        for frame in msg["cond_indep_stack"]:
            if not frame.vectorized and frame.full_size != frame.size:
                raise PairError(
                    f"site '{name}' is in a loop over the subsampled plate '{frame.name}', whose scale would bias per-datum "
                    "weights; loop over all of it"
                )
        frames = tuple(frame for frame in msg["cond_indep_stack"] if frame.vectorized)
        observed = msg["is_observed"] or name in self.was_observed
        auxiliary = _is_auxiliary(msg)
        self.sites[name] = Site(name, msg["fn"], msg["value"], observed, frames, msg["scale"], msg["mask"], auxiliary)


def _is_auxiliary(msg: Any) -> bool:
    return bool(msg["infer"].get("is_auxiliary"))


def check_auxiliary(guide: Iterable[Site]) -> None:
    """Refuse a guide whose latents have a density given an auxiliary site: log q(u) + log q(z|u) is not that of z.

    An autoguide's auxiliary site is another form of its latents, which are point masses (``Delta``) given it.
    """
    sites = list(guide)
    auxiliary = next((site.name for site in sites if site.auxiliary), None)
    if auxiliary is not None and not any(isinstance(base_of(site.fn), Delta) for site in sites if site.latent):
        raise PairError(
            f"site '{auxiliary}' of the guide is auxiliary, and no latent is a Delta given it, so that log p(x, z) has nothing "
            "to set against its density; give the model a sample statement of that name, which is its reverse density r(u|x, z) "
            "(Ranganath et al. 2016), and drop is_auxiliary"
        )


def check_sampler(drawn: Iterable[Site]) -> None:
    """Refuse sites that are drawn by a sampler, of torch or Pyro, which misses their density, as exact moments show.

    ``LKJCholesky`` beyond 2 x 2 (torch 2.14): the squared length of the i entries of a row below the diagonal is Beta(i / 2, ...)
    (Lewandowski, Kurowicka & Joe 2009), where torch takes Beta(i - 1 / 2, ...). ``SineBivariateVonMises`` (Pyro 1.9): the
    first angle is drawn too wide.
    """
    for site in drawn:
        fn = site.fn
        while isinstance(fn, Independent | MaskedDistribution | TransformedDistribution):
            fn = fn.base_dist
        remedy = ""
        if isinstance(fn, LKJCholesky) and fn.dim > 2:
            half_entries = fn._beta.concentration1[..., 2]
            if not torch.allclose(half_entries, torch.ones_like(half_entries)):
                remedy = "normals through CorrCholeskyTransform"
        elif isinstance(fn, SineBivariateVonMises):
            remedy = "a VonMises for each angle"
        if remedy:
            raise PairError(
                f"site '{site.name}' ({family_of(fn)}) is to be drawn by a sampler that is not of its density, in this version of "
                f"torch and Pyro; take {remedy}, or NUTS (unigen.reference), which reads the density alone"
            )


def _check_place(msg: Any) -> None:
    """Refuse a point mass that parameters move: where its sample is held fixed, its density says nothing of them."""
    fn = base_of(msg["fn"])
    if isinstance(fn, Delta) and fn.v.requires_grad:
        raise PairError(
            f"site '{msg['name']}' is a Delta that parameters move, which no density of a fixed sample tells; use a pathwise "
            "gradient (vae, iwae), or give the site a distribution with a density"
        )


def base_of(fn: Any) -> Any:
    """Return a distribution without its ``to_event`` wrappers."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _is_angle(fn: Any) -> bool:
    """Say whether a distribution is one of angles, whose density repeats itself outside of (-pi, pi)."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, VonMises | SineSkewed | SineBivariateVonMises)


def check_angles(guide: Mapping[str, Site], model: Mapping[str, Site]) -> None:
    """Refuse a guide that goes round more than one turn of an angle: each turn has the mass of the whole model."""
    automatic = any(site.auxiliary for site in guide.values())
    for name in guide.keys() & model.keys():
        ours, theirs = guide[name].fn, model[name].fn
        if not model[name].latent or not _is_angle(theirs):
            continue
        support = support_of(ours)
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is constraints.real if not isinstance(base_of(ours), Delta) else automatic:
            raise PairError(
                f"site '{name}' is an angle in the model ({family_of(theirs)}), whose density repeats itself outside of (-pi, pi), "
                f"where the guide goes ({family_of(ours)}); give the guide a VonMises, or a distribution over (-pi, pi)"
            )


def support_of(fn: Any) -> Any:
    """Return where a distribution has its mass: one turn for angles, and for a mixture what its components share."""
    if isinstance(fn, Independent):
        return constraints.independent(support_of(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return support_of(fn.base_dist)
    if _is_angle(fn):
        turn = constraints.interval(-math.pi, math.pi)
        return constraints.independent(turn, fn.event_dim) if fn.event_dim else turn
    if isinstance(fn, MixtureSameFamily):
        shared = support_of(fn.component_distribution)
        if not any(isinstance(bound, Tensor) for bound in vars(shared).values()):
            return shared
    return fn.support


def log_prob_at(fn: Any, value: Tensor) -> Tensor:
    """Return the log density of a distribution at a value; outside of its bounds -inf where it does not validate its arguments.

    ``Pareto`` and ``Exponential``, shifted ones too, have finite densities there, and a bound may move with a latent.
    """
    density: Tensor = fn.log_prob(value)
    inside = _inside(fn, value)
    return density if inside is None else torch.where(inside, density, -math.inf)


_BOUNDED = (
    type(constraints.greater_than(0.0)),
    type(constraints.greater_than_eq(0.0)),
    type(constraints.less_than(0.0)),
    type(constraints.interval(0.0, 1.0)),
    type(constraints.half_open_interval(0.0, 1.0)),
)


def _bounds(fn: Any) -> Any:
    """Return a distribution's support where that is an interval; None for another one, and where it does not say."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return None
    return support if isinstance(support, _BOUNDED) else None


def _inside(fn: Any, value: Tensor) -> Tensor | None:
    """Say where a value lies within a distribution's bounds, of its batch shape; None where it has none, or looks itself."""
    if isinstance(fn, Independent):
        inner = _inside(fn.base_dist, value)
        wrapped = fn.reinterpreted_batch_ndims
        return inner if inner is None or not wrapped else inner.flatten(-wrapped).all(-1)
    if isinstance(fn, MaskedDistribution):
        return _inside(fn.base_dist, value)
    bounds = None if fn._validate_args else _bounds(fn)
    found = None if bounds is None else bounds.check(value)
    if isinstance(fn, TransformedDistribution) and not fn.event_shape and not fn.base_dist.event_shape:
        base = fn.base_dist
        if isinstance(base, TransformedDistribution) or _bounds(base) is not None:
            for transform in reversed(fn.transforms):
                value = transform.inv(value)
            within = _inside(base, value)
            found = within if found is None or within is None else found & within
    return found


def is_bounded(fn: Any) -> bool:
    """Say whether a distribution has bounds that may move with a latent: they are tensors, or those of what it transforms."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    bounds = _bounds(fn)
    if bounds is not None and any(isinstance(bound, Tensor) for bound in vars(bounds).values()):
        return True
    return isinstance(fn, TransformedDistribution) and (_bounds(fn.base_dist) is not None or is_bounded(fn.base_dist))


def element_support(fn: Any) -> Any:
    """Return the support of one element of a distribution."""
    support = support_of(fn)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def is_deterministic(fn: Any) -> bool:
    """Say whether a site is ``pyro.deterministic``, or what a reparameterizer leaves of the site that it has replaced."""
    return getattr(fn, "_mask", None) is False and isinstance(base_of(fn.base_dist), Delta)


def family_of(fn: Any) -> str:
    """Return the name of a distribution's family, as messages call it."""
    return type(base_of(fn)).__name__.removeprefix("Expanded")
