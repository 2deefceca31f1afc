"""The autoencoder whose codes decode to nothing: where its codes lie, and what lies between them, nobody has told it.

Both are the pair ``latent`` on the digits, with the same starting weights. The autoencoder climbs E_q log p(x|z) alone, which is
``beta_vae`` at beta = 0; the VAE climbs the bound. Codes of test digits are perturbed by s standard deviations of their own spread
and decoded; new codes are drawn, z ~ N(0, I), and, more kindly, from the normal fitted to the codes. MMD^2 to held-out digits
(Gaussian kernels, with its standard error) says how far the decoded means are from digits, the importance-weighted bound on
log p(x) what each is worth as a model.

What fails is the missing prior: as a model the autoencoder is worthless, and N(0, I) decodes to no digit; but around its codes the
decoder is sharp, and a normal fitted to them samples well in so few dimensions, even better than the blurred means of the VAE.
(Kingma and Welling 2014; Ghosh et al. 2020, From variational to deterministic autoencoders.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from failures.drawing import BLUE, ORANGE, RED, panels, seeds
from unigen import Pair, Phase, Wake, fit, routines
from unigen.data import Loader, load
from unigen.engines.eager import draw as draw_from
from unigen.engines.programs import Programs
from unigen.evaluate import SampleFigure, log_likelihood, maximum_mean_discrepancy
from unigen.networks import networks
from unigen.objectives import BetaElbo
from unigen.optimizers import optimizers_for
from unigen.pairs import latent
from unigen.phases import PHI, THETA
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``steps`` of each run, size of the code ``latents``, ``seeds``; ``spreads``: by how much codes are
    perturbed. ``particles`` of the bound on log p(x)."""

    steps: int = 3000
    latents: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    particles: int = 200
    spreads: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)


ROUTINES = {"autoencoder": (Phase(BetaElbo(0.0), Wake(), THETA + PHI),), "VAE": routines.vae.phases}
SHOWN = 8


@torch.no_grad()
def encode(pair: Pair, x: Tensor) -> Tensor:
    """Return codes z ~ q(z|x) of rows x, (n, latents)."""
    with isolated(1):
        return draw_from(Wake(), Programs(pair), pair.bind(x))["z"]


@torch.no_grad()
def decode(pair: Any, z: Tensor) -> Tensor:
    """Return E[x|z], (n, D)."""
    return pair.model.likelihood.mean(pair.model.generator(z))


def distance(made: Tensor, held_out: Tensor) -> SampleFigure:
    """Return MMD^2 of what was made to held-out digits."""
    return maximum_mean_discrepancy(held_out, made, permutations=None)


def one_run(job: tuple[str, int, Settings]) -> dict[str, Any]:
    """Train once; return distances at each perturbation and of new codes, and rows of decoded digits."""
    name, seed, settings = job
    data = load("digits", binarization="none")
    with isolated(seed):
        pair = latent(
            networks("mlp", data.shape, settings.latents, hidden=(128,), mean=data.mean, seed=seed), "bernoulli"
        )
        loader, routine = Loader(data, 100, seed=seed), ROUTINES[name]
        fit(loader, routine, pair, optimizers_for(routine, pair), steps=settings.steps, progress=False)
        codes, held_out = encode(pair, data.test), data.validation
        spread, noise = codes.std(0), torch.randn(codes.shape)
        perturbed = [decode(pair, codes + s * spread * noise) for s in settings.spreads]
        fresh = torch.randn(codes.shape)
        return {
            "perturbed": [distance(made, held_out) for made in perturbed],
            "prior": distance(decode(pair, fresh), held_out),
            "fitted": distance(decode(pair, codes.mean(0) + spread * fresh), held_out),
            "pictures": torch.stack([made[:SHOWN] for made in perturbed]),
            "log p": log_likelihood(pair, data.test, settings.particles),
            "new": decode(pair, fresh)[:SHOWN],
        }


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the runs of both by name, a seed each, and the null: test digits against held-out digits."""
    jobs = [(name, seed, settings) for name in ROUTINES for seed in settings.seeds]
    runs = list(run_all(one_run, jobs))
    data, count = load("digits", binarization="none"), len(settings.seeds)
    found: dict[str, Any] = {name: runs[i * count : (i + 1) * count] for i, name in enumerate(ROUTINES)}
    return {**found, "null": distance(data.test, data.validation), "spreads": settings.spreads}


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the distances of decoded new codes, and the likelihoods."""

    def each(name: str, what: str) -> str:
        return ", ".join(f"{run[what].value:.3f}" for run in found[name])

    worst = max(run[what].standard_error for name in ROUTINES for run in found[name] for what in ("prior", "fitted"))
    prior, fitted, likelihood = (
        ", ".join(f"{name} {each(name, what)}" for name in ROUTINES) for what in ("prior", "fitted", "log p")
    )
    return (
        f"MMD^2 to held-out digits of decoded z ~ N(0, I): {prior}; of the normal fitted to the codes: {fitted} (standard errors "
        f"up to {worst:.3f}; test digits {found['null'].value:.3f}); bound on log p(x) in nats: {likelihood}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw decoded digits of both, and the distances of what new codes decode to."""
    figure, (first, second, last) = panels(3, width=3.5, height=3.0)
    for axis, name in ((first, "autoencoder"), (second, "VAE")):
        run = found[name][0]
        rows = torch.cat([run["pictures"], run["new"][None]])
        count = len(rows)
        tiles = torch.nn.functional.pad(rows.reshape(count, SHOWN, 8, 8), (1, 1, 1, 1))
        wall = tiles.permute(0, 2, 1, 3).reshape(count * 10, SHOWN * 10)
        axis.imshow(wall.numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.grid(False)
        axis.set(xticks=[], yticks=[10 * row + 4.5 for row in range(count)])
        axis.set_yticklabels([f"code + {s:g} σ" for s in found["spreads"]] + ["z ~ N(0, I)"])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_title(f"{name}, decoded")
    kinds = {"code + 0 σ": lambda run: run["perturbed"][0], "z ~ N(0, I)": lambda run: run["prior"]}
    kinds["z ~ normal fitted\nto the codes"] = lambda run: run["fitted"]
    for offset, (name, color) in zip((-0.18, 0.18), (("autoencoder", ORANGE), ("VAE", BLUE)), strict=True):
        for position, kind in enumerate(kinds.values()):
            values = torch.tensor([kind(run).value for run in found[name]])
            label = name if position == 0 else None
            last.bar(position + offset, values.mean().item(), width=0.34, color=color, alpha=0.75, label=label)
            last.plot([position + offset] * len(values), values, ".", color="black", markersize=4)
    last.axhline(found["null"].value, color=RED, linestyle=":", linewidth=1.2, label="test digits")
    last.set(xticks=range(len(kinds)), ylabel="MMD² to held-out digits")
    last.set_xticklabels(kinds)
    last.set_title(seeds(len(found["VAE"])))
    last.legend(fontsize=8, frameon=False)
    return figure
