"""unigen: learning algorithms for deep generative models, declared once over one Pyro model/guide pair."""

import torch

from unigen import routines
from unigen.pair import Pair, PairError
from unigen.phases import (
    PHI,
    PSI,
    THETA,
    Baseline,
    Chain,
    DoublyReparameterized,
    Enumerate,
    LeaveOneOut,
    Pathwise,
    Phase,
    Resampled,
    Routine,
    ScoreFunction,
    Sleep,
    StickingTheLanding,
    Tilted,
    Wake,
)
from unigen.training import fit

__all__ = [
    "PHI",
    "PSI",
    "THETA",
    "Baseline",
    "Chain",
    "DoublyReparameterized",
    "Enumerate",
    "LeaveOneOut",
    "Pair",
    "PairError",
    "Pathwise",
    "Phase",
    "Resampled",
    "Routine",
    "ScoreFunction",
    "Sleep",
    "StickingTheLanding",
    "Tilted",
    "Wake",
    "fit",
    "routines",
]

__version__ = "0.1.0"

# On processors with AVX-512, float32 log1p of torch 2.14, and so binary_cross_entropy_with_logits, takes 9.5 ns a number until
# something in the process has called lgamma (or atanh, or pow), and 0.5 ns from then on, to the same bits; why, we do not know.
torch.lgamma(torch.ones((), device="cpu"))
