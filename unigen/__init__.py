"""unigen: learning algorithms for deep generative models, declared once over one Pyro model/guide pair."""

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
