"""The draw: values by site and densities per datum.

It is lazy: a program runs, and a density is computed, when an objective reads it. So an implicit site is refused exactly
when its density is asked for, and a phase pays for what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from unigen.engines.inverses import inverting
from unigen.engines.programs import Programs, unreached
from unigen.engines.sites import Site, family_of, log_prob_at
from unigen.pair import PairError
from unigen.phases import DoublyReparameterized, Pathwise, ScoreFunction, StickingTheLanding

__all__ = ["Draw", "check_local"]


class Draw:
    """Values by site and densities per datum: (N,), or (K, N) with particles; () or (K,) for a pair of one datum.

    ``draw["z"]``: the value of a site or of the data; ``draw.x``: of the model's first argument that is no covariate.
    ``log_p``, ``log_q``: the densities of the two programs. ``log_q_at(site, value)``: one guide site's density elsewhere.
    ``log_likelihood``, ``log_prior``: the two parts of ``log_p``. ``network(name)``: a psi network. ``weights``: the
    self-normalized weights of a tilted draw.

    ``values``: given, in the place of samples; ``along``: the estimator by which these move along the path of their noise, and
    ``share``: how much that counts for each.
    """

    def __init__(
        self,
        programs: Programs,
        data: Mapping[str, Any],
        particles: int | None,
        first: str,
        values: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        along: Any = None,
        share: Tensor | None = None,
    ) -> None:
        self.programs, self.pair, self.data = programs, programs.pair, data
        self.particles, self.first = particles, first
        self.given = values or {}
        self.labels = labels or {}
        self.along, self.share = along, share
        self.enumerated = False
        self.log_base: Tensor | None = None
        self.weights: Tensor | None = None
        self.weights_dim = 0
        drawer = "phi" if first == "guide" else "theta"
        self.carry = programs.carry and drawer in programs.move
        self.by_score = isinstance(programs.estimator, ScoreFunction)
        self._sites: dict[str, dict[str, Site]] = {}
        self._densities: dict[tuple[str, str], Tensor] = {}

    # -- running the programs --

    def sites(self, which: str) -> dict[str, Site]:
        """Return the sites of ``"model"`` or ``"guide"``, running it at the first call."""
        if which not in self._sites:
            self._sites[which] = self._run_first(which) if which == self.first else self._run_second(which)
        return self._sites[which]

    def _run_first(self, which: str) -> dict[str, Site]:
        return self.programs.run(
            which,
            self.data,
            values=self.given,
            particles=self.particles,
            dream=which == "model",
            detach=not self.carry or self.by_score,
            grad=("theta" if which == "model" else "phi") in self.programs.move,
            along=self.along if self.carry else None,
        )

    def _run_second(self, which: str) -> dict[str, Site]:
        values = {site.name: self._shared(site) for site in self.sites(self.first).values() if site.latent}
        if self.first == "guide":
            data = self.data
        else:
            values = {site.name: site.value for site in self.sites("model").values()}
            data = {name: values.get(name, value) for name, value in self.data.items()}  # what is not given is inferred
        sites = self.programs.run(
            which,
            data,
            values=values,
            particles=self.particles,
            grad=self._grad(which),
            frozen=which == "model" and self.programs.freeze_model,
        )
        for name, site in sites.items():
            if not site.observed and name not in values:
                raise PairError(
                    f"site '{name}' of the {which} has no value from the {self.first}; "
                    f"give the {self.first} a sample statement of that name"
                    + ", or use a routine for implicit models (gan, wgan_gp, mmd)"
                    * (self.pair.likelihood == "none")
                )
        if which == "model":
            for name in values:
                if name not in sites:
                    raise PairError(
                        f"site '{name}' of the guide is not in the model; remove it or name it as the model does"
                    )
        return sites

    def detached(self) -> dict[str, Tensor]:
        """Return the first program's values without gradient."""
        return {site.name: site.value.detach() for site in self.sites(self.first).values()}

    # -- values --

    def __getitem__(self, name: str) -> Tensor:
        if name in self.labels:
            return self.labels[name]
        if self.first == "guide" and name in self.data:
            return self.data[name]
        for which in (self.first, "guide" if self.first == "model" else "model"):
            if name in self.sites(which):
                return self.sites(which)[name].value
        known = sorted({*self.labels, *self.data, *self.sites("model"), *self.sites("guide")})
        remedy = "; use an adversarial pair" if name == "y" else ""
        raise PairError(
            f"the routine reads site '{name}', which neither program has (sites: {', '.join(known)}){remedy}"
        )

    @property
    def x(self) -> Tensor:
        """The data: the first of the model's arguments that it has a site for; those before it are covariates."""
        return self[self.programs.layout(self.data).x]

    @property
    def dry(self) -> bool:
        """Whether this is a trial of the phase, which looks at values as a step does not."""
        return self.programs.dry

    @property
    def latents(self) -> list[str]:
        """The names of the model's unobserved sites."""
        return [site.name for site in self.sites("model").values() if not site.observed]

    def network(self, name: str) -> torch.nn.Module:
        """Return the psi network of this name."""
        return self.pair.network(name)

    # -- densities --

    def density(self, which: str, site: Site) -> Tensor:
        """Return the site's log density per datum."""
        key = (which, site.name)
        if key not in self._densities:
            grad = self._grad(which)
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()), self._held(which):
                self._densities[key] = self.per_datum(site, site.value)
        return self._densities[key]

    def _held(self, which: str) -> AbstractContextManager[None]:
        if which == "frozen guide" or (which == "model" and self.programs.freeze_model):
            return self.programs.held("guide" if which == "frozen guide" else which)
        return nullcontext()

    def _grad(self, which: str) -> bool:
        return ("theta" if which == "model" else "phi") in self.programs.move or self.carry

    def per_datum(self, site: Site, value: Tensor) -> Tensor:
        """Return the site's log density at a value, summed to one number a datum (and particle)."""
        layout = self.programs.layout(self.data)
        try:
            with inverting(site.name, site.fn):
                log_density = log_prob_at(site.fn, value)
        except NotImplementedError as error:
            raise PairError(f"site '{site.name}': {error}") from None
        if not getattr(site.fn, "normalized", True) and not self.programs.allow_unnormalized:
            raise PairError(
                f"site '{site.name}' has an unnormalized density, so log p means nothing by itself; use a routine that takes "
                "a difference of two expectations, such as contrastive_divergence"
            )
        if log_density.dim() < len(site.fn.batch_shape):  # of a distribution that looks at the value's rows alone
            log_density = log_density.expand(site.fn.batch_shape)
        log_density = scale_and_mask(log_density, site.scale, site.mask)
        kept = []
        for frame in site.frames:
            if frame.name in (self.pair.batch_plate, "_particles"):
                kept.append(frame.dim)
            if frame.full_size != frame.size:
                raise PairError(
                    f"site '{site.name}' is in the subsampled plate '{frame.name}', whose scale would bias per-datum weights; "
                    f"write pyro.plate('{frame.name}', len(x))"
                )
        if layout.batched:
            check_local(site, self.pair.batch_plate)
        depth = log_density.dim()
        if depth == len(kept) == self.depth:
            return log_density
        plates = {frame.dim for frame in site.frames}
        outside = [d for d in range(-depth, 0) if d not in plates and log_density.shape[d] > 1]
        if outside:
            raise PairError(
                f"site '{site.name}' has batch shape {tuple(site.fn.batch_shape)}: neither per datum nor global; declare its "
                f"own dimensions with .to_event({len(outside)})"
                + f", or put the program's rows in pyro.plate('{self.pair.batch_plate}', len(x))"
                * (not layout.batched and self.pair.batch_plate is not None)
            )
        summed = [d for d in range(-depth, 0) if d not in kept]
        return log_density.sum(summed) if summed else log_density

    def _total(self, which: str, sites: Iterable[Site]) -> Tensor:
        densities = [self.density(which, site) for site in sites if not site.weightless]
        if not densities:
            return torch.zeros(())
        total = densities[0]
        for density in densities[1:]:
            total = total + density
        return total

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), every site of the model."""
        return self._total("model", self.sites("model").values())

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x|z), the observed sites of the model."""
        return self._total("model", [site for site in self.sites("model").values() if site.observed])

    @property
    def log_prior(self) -> Tensor:
        """log p(z), the latent sites of the model."""
        return self._total("model", [site for site in self.sites("model").values() if not site.observed])

    @property
    def log_q(self) -> Tensor:
        """log q(z|x), every site of the guide; of those that it observes only what the model has drawn, not given data."""
        if isinstance(self.programs.estimator, StickingTheLanding | DoublyReparameterized):
            if "frozen guide" not in self._sites:
                values = {site.name: self._shared(site) for site in self.sites("guide").values()}
                self._sites["frozen guide"] = self.programs.run(
                    "guide", self.data, values=values, particles=self.particles, grad=self.carry, frozen=True
                )
            held = self._total("frozen guide", self._inferred("frozen guide"))
            self.check_repeats(held, lambda: self._total("guide", self._inferred("guide")), "guide")
            return held
        return self._total("guide", self._inferred("guide"))

    def _inferred(self, which: str) -> list[Site]:
        sites = self.sites("guide") if which == "guide" else self._sites[which]
        return [site for site in sites.values() if not (site.observed and self.first == "guide")]

    def held_densities(self) -> list[Tensor]:
        """Return the densities of the guide's sites that the objective has read with the guide held fixed."""
        return [density for (which, _), density in self._densities.items() if which == "frozen guide"]

    def check_repeats(self, again: Tensor, first: Callable[[], Tensor], which: str) -> None:
        """Refuse, in a trial, a program that has another density where it is run again at the same values."""
        if self.dry and not torch.allclose(again.detach(), first().detach(), rtol=1e-2, atol=1e-2):
            raise PairError(
                f"{type(self.programs.estimator).__name__} runs the {which} twice, and at the same values its density changes: it "
                "is random beyond its sample statements, as by dropout; put those layers into evaluation mode, or leave the "
                "estimator out"
            )

    def chosen(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the guide's latent values of some particles of each datum: ``rows``, (m, N) or (m,), are their numbers."""
        values = {}
        for site in self.sites("guide").values():
            if not site.observed:
                index, dim = self._beside(site, rows)
                values[site.name] = torch.take_along_dim(site.value, index, dim)
        return values

    def _shared(self, site: Site) -> Tensor:
        """Return a site's value, through which the gradient counts by ``share``, (m, N) or (m,), where there is one."""
        if self.share is None:
            return site.value
        held = site.value.detach()
        return held + self._beside(site, self.share)[0] * (site.value - held)

    def _beside(self, site: Site, rows: Tensor) -> tuple[Tensor, int]:
        """Return what is one number a particle and datum with the dimensions of a site's value, and that of the particles."""
        shape, particles = [1] * site.value.dim(), 0
        for frame in site.frames:
            if frame.name == "_particles":
                particles = frame.dim - site.fn.event_dim
                shape[particles] = rows.shape[0]
            elif frame.name == self.pair.batch_plate:
                shape[frame.dim - site.fn.event_dim] = rows.shape[-1]
        return rows.reshape(shape), particles

    def log_q_at(self, site: str, value: Any) -> Tensor:
        """Return the log density of one guide site at ``value``, a tensor of its shape or a number."""
        return self._log_q_values(site, [value])[0]

    def log_odds(self, site: str, **given: Tensor) -> Tensor:
        """Return log q(site = 1) - log q(site = 0) of a binary guide site, with some data replaced by ``given``."""
        one, zero = self._log_q_values(site, [1, 0], given)
        return one - zero

    def _log_q_values(self, site: str, values: list[Any], given: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        if given:
            sites = self.programs.run("guide", {**self.data, **given}, particles=self.particles, grad=True)
        else:
            sites = self.sites("guide")
        if site not in sites:
            raise PairError(f"the routine reads log q of site '{site}', which the guide lacks; use an adversarial pair")
        fn, like = sites[site].fn, sites[site].value
        with torch.set_grad_enabled((bool(given) or self._grad("guide")) and torch.is_grad_enabled()):
            shape = fn.batch_shape + fn.event_shape
            full = [
                v.to(like.dtype).expand(shape) if isinstance(v, Tensor) else like.new_full(shape, v) for v in values
            ]
            return [self.per_datum(sites[site], value) for value in full]

    # -- the score function --

    def local_signals(self, signal: Tensor, predicted: Tensor) -> dict[str, Tensor] | None:
        """Return for each latent site of the guide elbo's value without the terms that the site's value cannot change.

        ``signal``: elbo, without gradient. ``predicted``: the baseline's prediction; None where it is one number a datum
        (Mnih & Gregor 2014, local learning signals).
        """
        if predicted.dim() <= self.programs.layout(self.data).batched:
            return None
        apart = unreached(self.programs, self.data)
        if predicted.shape[-1] != len(apart):
            raise PairError(
                f"the baseline has {predicted.shape[-1]} outputs and the guide {len(apart)} latent sites "
                f"({', '.join(apart)}); give it one output, or one for each site"
            )
        return {name: signal - self._signed_total(terms) for name, terms in apart.items()}

    def _signed_total(self, terms: Iterable[tuple[str, str]]) -> Tensor | float:
        inferred = {site.name for site in self._inferred("guide")}
        counted = [(which, name) for which, name in terms if which == "model" or name in inferred]
        densities = [(which, self.density(which, self.sites(which)[name]).detach()) for which, name in counted]
        return sum((density if which == "model" else -density for which, density in densities), 0.0)

    @property
    def score_sites(self) -> list[str]:
        """The sites whose samples carry their gradient by the score function."""
        if not self.carry:
            return []
        names = []
        for site in self.sites(self.first).values():
            if site.observed and self.first == "guide":
                continue
            if (self.by_score or not site.fn.has_rsample) and site.name not in self.given:
                names.append(site.name)
        return names

    @property
    def scores(self) -> dict[str, Tensor]:
        """The log density of each of those sites per datum; refused under a pathwise-only estimator."""
        if not self.carry:
            return {}  # without running a program that the objective may not have asked for
        drawn = self.sites(self.first)
        found = {name: self.density(self.first, drawn[name]) for name in self.score_sites}
        found = {name: each for name, each in found.items() if each.requires_grad}  # else nothing that moves decides it
        if found and isinstance(self.programs.estimator, Pathwise | StickingTheLanding | DoublyReparameterized):
            name = next(iter(found))
            raise PairError(
                f"site '{name}' ({family_of(drawn[name].fn)}) has no reparameterization, which "
                f"{type(self.programs.estimator).__name__} needs; use ScoreFunction with a control variate (nvil, vimco), or "
                "a routine that never differentiates through samples (reweighted_wake_sleep)"
            )
        return found

    @property
    def depth(self) -> int:
        """How many dimensions a value per datum and particle has."""
        return self.programs.layout(self.data).batched + (self.particles is not None)

    def check_value(self, value: Tensor, name: str, couples: bool) -> None:
        """Refuse a value that is not one a datum (and particle)."""
        most = 0 if couples else self.depth
        if not isinstance(value, Tensor) or value.dim() > most:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PairError(f"objective {name} returned {shape}, expected one value a datum: at most {most} dimensions")


def check_local(site: Site, batch_plate: str | None) -> None:
    """Refuse a site that is not in the batch plate of a pair that has one."""
    if not any(frame.name == batch_plate for frame in site.frames):
        raise PairError(
            f"site '{site.name}' is global, beside the batch plate '{batch_plate}': its density is not per datum; make it a "
            "parameter, or drop the batch plate so that the whole data set is one datum"
        )
