"""Failures of generative models, each shown by an experiment: python experiments/failures draws every figure.

A module has ``Settings`` (a frozen dataclass), ``measure(settings, run_all)`` (its figures, from the library's own routines),
``line_of_figures(found)`` (one line) and ``draw(found)``. ``run_all`` maps a function over independent runs, as ``map`` does.
"""

NAMES = (
    "parallel_lines",
    "vanishing_gradient",
    "xy_game",
    "mode_covering",
    "mode_collapse",
    "loss_and_quality",
    "sleep_raises_free_energy",
    "explaining_away",
    "linear_autoencoders",
    "autoencoder_codes",
)
