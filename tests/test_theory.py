"""Every identity of theory/identities holds on random draws, and its planted mistake is rejected."""

from __future__ import annotations

import math
import secrets
import statistics
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from identities import CHAPTERS, NO_IDENTITY, Identity, chapter_of, identities, residual, residuals
from identities.__main__ import main
from identities.exact import expected, on_samples
from identities.identity import distance, stack
from identities.tables import gan_pair, latent_pair

from unigen import objectives, routines
from unigen.engines import eager
from unigen.kernels import Gibbs

IDENTITIES = identities()
EXACT, QUADRATURE = 1e-10, 1e-8

REQUIRED = [f"A{i}" for i in range(1, 14)] + ["C8", "D1", "D2"] + [f"D{i}" for i in range(5, 10)]
REQUIRED += ["E4", "E5", "E6", "F2", "F3", "F5", "F6", "F7", "F13", "F16"]
REQUIRED += [f"G{i}" for i in range(1, 9)] + ["H1", "H4", "I1", "I2", "I3", "I4", "I6", "I7", "I8"]

HU = {  # the numbered statements of Hu, Yang, Salakhutdinov & Xing (2018), and the identity that is each
    "Lemma 1": "lemma-1",
    "Lemma 2": "lemma-2",
    "Eq. 4": "eq-4-joint",
    "Eq. 5": "eq-5-reversed-label",
    "Eq. 6": "lemma-1",
    "Eq. 8": "eq-8-optimal-discriminator",
    "Eq. 10": "eq-10-infogan",
    "Eq. 12": "lemma-2",
    "Eq. 14, wake": "wake-gradient",
    "Eq. 14, sleep": "sleep-gradient",
    "Eq. 15": "eq-16-importance-weighted-gan",
    "Eq. 16": "eq-16-importance-weighted-gan",
    "Eq. 17": "eq-17-activated-vae",
}

each = pytest.mark.parametrize("identity", IDENTITIES.values(), ids=list(IDENTITIES))


@each
def test_identity_holds(identity: Identity) -> None:
    seed = secrets.randbits(31)
    before = torch.get_rng_state()
    found = residuals(identity, 20, seed)
    assert torch.equal(torch.get_rng_state(), before), "the global random stream was touched"
    assert max(found) <= identity.tolerance, f"seed {seed}: off by {max(found):.3g}"
    assert identity.tolerance in (EXACT, QUADRATURE)


@each
def test_planted_mistake_is_rejected(identity: Identity) -> None:
    seed = secrets.randbits(31)
    found = residuals(identity, 5, seed, wrong=True)
    assert statistics.median(found) > 1e-6, f"seed {seed}: '{identity.mistake}' passes with {found}"


@each
def test_identity_says_what_it_is_about(identity: Identity) -> None:
    assert identity.statement and identity.source and identity.mistake and identity.rows and identity.objects
    for path in identity.objects:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name), f"{path} does not exist"
    assert chapter_of(identity) in CHAPTERS


def test_at_least_45_and_every_requirement() -> None:
    assert len(IDENTITIES) >= 45
    covered = {row for identity in IDENTITIES.values() for row in identity.rows}
    assert set(REQUIRED) == (covered | set(NO_IDENTITY)) & set(REQUIRED)
    assert not covered & set(NO_IDENTITY), "a covered requirement is still listed as missing"
    assert all(NO_IDENTITY.values())


def test_every_numbered_statement_of_the_unified_view() -> None:
    for statement, name in HU.items():
        source = IDENTITIES[name].source
        assert source.startswith("Hu, Yang") or "Hu, Yang" in source, statement
        number = statement.split(",")[0].removeprefix("Eq. ")
        assert number in source, f"{name} does not cite {statement}"


NAMED = {  # what an identity must run, not merely name: without it there is nothing to check
    "score-has-mean-zero": (objectives.log_p, objectives.log_q),
    "gibbs-leaves-the-model": (Gibbs.__call__,),
    "positive-and-negative-phase": (routines.contrastive_divergence.declaration, Gibbs.__call__),
    "mmd-is-unbiased": (objectives.Mmd.__call__,),
    "f-divergence-is-bounded": (objectives.FGan.__call__,),
}


@pytest.mark.parametrize(("name", "function"), [(name, each) for name, many in NAMED.items() for each in many])
def test_identity_runs_what_it_names(name: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **settings: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(function, "__code__", broken.__code__)
    with pytest.raises(ZeroDivisionError):
        residual(IDENTITIES[name], 1)


# -- the checker itself --------------------------------------------------------------------------------------------------


def test_draws_are_a_function_of_the_seed() -> None:
    identity = IDENTITIES["lemma-1"]
    first, again = (identity.check(torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = identity.check(torch.Generator().manual_seed(8))
    assert not torch.equal(first[0], other[0])
    assert residual(identity, 3, 7) == max(residuals(identity, 3, 7))
    with pytest.raises(ValueError, match="at least one draw"):
        residuals(identity, 0)


def test_distance_compares_infinities_and_refuses_to_broadcast() -> None:
    infinite = stack(math.inf, 1.0)
    assert distance(infinite, stack(math.inf, 1.5)) == 0.5
    assert distance(infinite, stack(-math.inf, 1.0)) == math.inf
    assert distance(infinite, stack(1.0, 1.0)) == math.inf
    assert distance(infinite, stack(math.nan, 1.0)) == math.inf
    with pytest.raises(ValueError, match="one shape"):
        distance(torch.zeros(3), torch.zeros(1))


def test_exact_mean_is_the_mean_of_many_estimates() -> None:
    """4000 estimates by chance against the walk over every outcome: |z| < 6 on 10 numbers, false alarm below 1e-7."""
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    pair, _ = latent_pair(generator, latents=2, symbols=2)
    x = torch.zeros(1, dtype=torch.long)
    phase = routines.vae[0]
    exact = expected(phase, pair, [(1.0, x)])
    rows = x.expand(4000)  # the estimate is a mean over rows, each with its own z
    _, surrogate = eager.objective(phase, pair, rows)
    slopes = torch.autograd.grad(surrogate, pair.group(*phase.move))
    mean = torch.cat([slope.reshape(-1) for slope in slopes])
    error = (exact.second - exact.gradient**2).clamp_min(0).sqrt() / math.sqrt(4000)
    assert bool(((mean - exact.gradient).abs() <= 6 * error + 1e-12).all())


def test_given_samples_are_used() -> None:
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    pair = gan_pair(generator)
    x = torch.tensor([0])
    values = [on_samples(routines.gan[1], pair, x, {"x": torch.tensor([0, made])}).value for made in range(3)]
    log_d = torch.nn.functional.logsigmoid(pair.guide.odds.detach())
    real = torch.nn.functional.logsigmoid(-pair.guide.odds.detach()[0])
    for value, expected_value in zip(values, (log_d + real) / 2, strict=True):
        assert float(value) == pytest.approx(float(expected_value), abs=1e-12)


# -- the command line ----------------------------------------------------------------------------------------------------


def test_list_names_every_identity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}: " in printed for name in IDENTITIES)
    assert f"{len(IDENTITIES)} identities" in printed


def test_check_prints_residuals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "lemma-1", "jensen-shannon"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["lemma-1", "jensen-shannon"]
    assert all(float(line.split()[1]) <= EXACT and line.endswith("holds") for line in lines[:2])


@pytest.mark.parametrize(
    ("names", "says"), [(["check", "lema-1"], "did you mean 'lemma-1'?"), (["chek"], "valid: check")]
)
def test_unknown_names_are_refused(names: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(names) == 2
    printed = capsys.readouterr()
    assert says in printed.err and not printed.out


def test_a_failing_identity_fails_the_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = IDENTITIES["lemma-1"]
    monkeypatch.setattr("identities.__main__.identities", lambda: {"lemma-1": replace(true, check=true.wrong)})
    assert main(["check"]) == 1
    assert "FAILS at 1e-10" in capsys.readouterr().out
