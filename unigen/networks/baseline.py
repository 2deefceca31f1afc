"""The baselines of NVIL: b(x) = C_psi(x) + c, a network of the data and running means of the learning signals."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unigen.networks.mlp import MLP, positive

__all__ = ["Baseline"]


class Baseline(nn.Module):
    """Predict the learning signals of a datum, b(x) = C_psi(x) + c (Mnih and Gregor 2014).

    C_psi is a tanh network that an optimizer fits; c is the buffer `mean`, which starts at zero and which nothing but
    `track` (and the loading of a state) changes. With as many outputs as the guide has latent sites, each is of the local
    signal of one of them, in the order of the guide.

    Arguments:
        inputs: size of the last dimension of x.
        hidden: widths of the hidden layers of C_psi.
        decay: share of the old running mean that each `track` keeps, in [0, 1).
        outputs: how many signals; of one, the dimension is dropped.

    Errors:
        ValueError: a decay outside [0, 1), a size that is not a positive integer, or rows x of another size.

    Example:
        >>> baseline = Baseline(784, decay=0.75)
        >>> baseline(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3])
        >>> baseline.track(torch.tensor([-100.0, -140.0]))
        >>> baseline.mean
        tensor(-30.)
    """

    mean: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int] = (100,), decay: float = 0.9, outputs: int = 1):
        super().__init__()
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number in [0, 1), got {decay!r}")
        self.decay = float(decay)
        self.outputs = positive("outputs", outputs)
        self.network = MLP(inputs, hidden, outputs)
        self.register_buffer("mean", torch.zeros(() if outputs == 1 else outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs) to the predicted signal (...,), or signals (..., outputs)."""
        predicted: Tensor = self.network(x)
        return (predicted.squeeze(-1) if self.outputs == 1 else predicted) + self.mean

    @torch.no_grad()
    def track(self, signal: Tensor) -> None:
        """Update c <- decay c + (1 - decay) mean(signal), without gradient, for a signal of any shape or (..., outputs)."""
        mean = signal.mean() if self.outputs == 1 else signal.reshape(-1, self.outputs).mean(0)
        # In place, the one such write here: a new tensor would leave captured graphs with the address of the old one.
        self.mean.copy_(self.decay * self.mean + (1 - self.decay) * mean)
