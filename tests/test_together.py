"""Seeds in one program: each run is the run that it would be, whatever becomes of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unigen import routines
from unigen.data import Loader, load
from unigen.networks import networks
from unigen.pair import Pair
from unigen.pairs import latent
from unigen.together import Lane, fit_together
from unigen.training import Interrupted, TrainingError, fit

DATA = load("digits")


def pair(seed: int) -> Pair:
    return latent(networks("mlp", (1, 8, 8), 2, hidden=(8,), seed=seed))


def lane(seed: int, **more: Any) -> Lane:
    return Lane(Loader(DATA, 20, seed=seed), pair(seed), seed, **more)


def weights(of: Pair) -> list[torch.Tensor]:
    return [p.detach().clone() for p in of.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_seeds_together_are_the_runs_alone_to_rounding() -> None:
    found = fit_together(routines.vae, [lane(seed) for seed in (0, 1, 2)], steps=40)
    for seed, result in enumerate(found):
        assert not isinstance(result, TrainingError)
        state, history = result
        alone = pair(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            _, expected = fit(Loader(DATA, 20, seed=seed), routines.vae, alone, steps=40, engine="xla", progress=False)
        for mine, theirs in zip(weights(state.pair), weights(alone), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
        assert history.steps == expected.steps
        assert torch.allclose(torch.tensor(history.values), torch.tensor(expected.values), rtol=1e-4)


def test_a_run_does_not_depend_on_the_others() -> None:
    three = fit_together(routines.vae, [lane(seed) for seed in (0, 1, 2)], steps=20)
    one = fit_together(routines.vae, [lane(1)], steps=20, width=3)
    assert same(weights(three[1][0].pair), weights(one[0][0].pair))  # type: ignore[index, union-attr]


def test_the_stream_outside_is_untouched() -> None:
    before = torch.get_rng_state()
    fit_together(routines.vae, [lane(0), lane(1)], steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_that_fails_leaves_the_others() -> None:
    def spoil(state: Any, _: Any) -> None:
        if state.step == 5:
            with torch.no_grad():
                next(state.pair.parameters()).view(-1)[0] = float("nan")

    found = fit_together(routines.vae, [lane(0), lane(1, callbacks=[spoil]), lane(2)], steps=20, record_every=5)
    whole = fit_together(routines.vae, [lane(seed) for seed in (0, 1, 2)], steps=20, record_every=5)
    assert isinstance(found[1], TrainingError) and "is not finite at step 6" in str(found[1])
    for index in (0, 2):
        assert same(weights(found[index][0].pair), weights(whole[index][0].pair))  # type: ignore[index, union-attr]


@pytest.mark.parametrize("error", [ValueError("no such figure"), OSError(28, "No space left on device")])
def test_one_whose_callback_fails_leaves_the_others(error: Exception) -> None:
    def fail(state: Any, _: Any) -> None:
        raise error

    found = fit_together(routines.vae, [lane(0), lane(1, callbacks=[fail])], steps=4, record_every=2)
    whole = fit_together(routines.vae, [lane(0), lane(1)], steps=4, record_every=2)
    assert found[1] is error
    assert same(weights(found[0][0].pair), weights(whole[0][0].pair))  # type: ignore[index, union-attr]


def test_a_budget_that_is_missing_is_refused_for_all() -> None:
    with pytest.raises(ValueError, match="fit needs a budget"):
        fit_together(routines.vae, [lane(0), lane(1)])


def stop_after(calls: int) -> Callable[[], bool]:
    count = [0]

    def asked() -> bool:
        count[0] += 1
        return count[0] >= calls

    return asked


def test_an_interrupted_group_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Also where a kill has left one run a checkpoint behind the others."""
    whole = fit_together(routines.vae, [lane(seed) for seed in (0, 1)], steps=30, record_every=5)
    with pytest.raises(Interrupted):
        lanes = [lane(seed, checkpoints=tmp_path / str(seed)) for seed in (0, 1)]
        fit_together(routines.vae, lanes, steps=30, record_every=5, checkpoint_every=5, interrupted=stop_after(4))
    newest = sorted((tmp_path / "1").glob("step-*"))[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    lanes = [lane(seed, checkpoints=tmp_path / str(seed)) for seed in (0, 1)]
    resumed = fit_together(routines.vae, lanes, steps=30, record_every=5, checkpoint_every=5)
    for mine, theirs in zip(resumed, whole, strict=True):
        assert same(weights(mine[0].pair), weights(theirs[0].pair))  # type: ignore[index, union-attr]
        assert mine[1].values == theirs[1].values  # type: ignore[index, union-attr]
