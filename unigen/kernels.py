"""Markov kernels for ``Chain``: a kernel takes the data of a pair one transition further, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from unigen.engines.draw import Draw
from unigen.pair import PairError

__all__ = ["Gibbs", "Langevin"]


@dataclass(frozen=True)
class Gibbs:
    """Block Gibbs: hidden given visible, then visible given hidden, by the ``gibbs`` method of the site's distribution.

    Leaves p_theta(x) invariant (Hinton 2002). Refused for a site whose distribution has no ``gibbs``.
    """

    site: str = "x"

    def __call__(self, programs: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        sites = programs.run("model", data)
        fn: Any = sites[self.site].fn if self.site in sites else None
        if not hasattr(fn, "gibbs"):
            raise PairError(f"site '{self.site}' has no block Gibbs sampler; use Langevin, or the pair rbm")
        with torch.no_grad():
            return {**data, self.site: fn.gibbs(data[self.site])}

    def __str__(self) -> str:
        return "Gibbs"


@dataclass(frozen=True)
class Langevin:
    """Metropolis-adjusted Langevin: x' = x + (s^2/2) grad log p(x) + s noise, accepted by its Metropolis ratio.

    Leaves p_theta(x) invariant for a continuous site of a pair without latents (Roberts & Tweedie 1996). ``size``: s.
    """

    size: float = 0.1
    site: str = "x"

    def __call__(self, programs: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(data.get(self.site), Tensor):
            raise PairError(
                f"Langevin moves site '{self.site}', which is no data of this pair; name one of {', '.join(data)}"
            )
        x = data[self.site]
        here, slope = self._density(programs, data, x)
        proposal = x + 0.5 * self.size**2 * slope + self.size * torch.randn_like(x)
        there, back = self._density(programs, data, proposal)
        rows = (*here.shape, -1)  # one proposal a datum, whatever the shape of an event
        forward = -(proposal - x - 0.5 * self.size**2 * slope).square().reshape(rows).sum(-1) / (2 * self.size**2)
        backward = -(x - proposal - 0.5 * self.size**2 * back).square().reshape(rows).sum(-1) / (2 * self.size**2)
        accept = torch.rand_like(here).log() < there - here + backward - forward
        accept = accept.reshape(*here.shape, *[1] * (x.dim() - here.dim()))
        return {**data, self.site: torch.where(accept, proposal, x)}

    def _density(self, programs: Any, data: Mapping[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            moved = {**data, self.site: leaf}
            sites, draw = programs.run("model", moved, grad=True), Draw(programs, moved, None, "guide")
            for name, site in sites.items():
                if not site.observed:
                    raise PairError(
                        f"site '{name}' is latent, and Langevin needs log p(x); use vae or iwae, or drop the site"
                    )
                if name == self.site and site.fn.support.is_discrete:
                    raise PairError(
                        f"site '{name}' is discrete, where Langevin has no gradient; use the kernel Gibbs()"
                    )
            density = reduce(
                torch.add, [draw.per_datum(site, site.value) for site in sites.values() if not site.weightless]
            )
            (slope,) = torch.autograd.grad(density.sum(), leaf)
        return density.detach(), slope

    def __str__(self) -> str:
        return f"Langevin({self.size:g})"
