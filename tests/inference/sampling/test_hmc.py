"""HMC against exact Gaussian posteriors, with mutants that the same checks must catch.

Every statistical check has a fixed seed and states how often a correct sampler would fail it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from kernel_faults import all_accepted, momentum_drawn_once
from scipy.stats import kstest
from torch import Tensor, nn

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.sampling import hmc

ALPHA = 1e-6  # smallest p-value of a pass in a Kolmogorov-Smirnov test


class Posterior(NamedTuple):
    """p(z | x_n) of a linear Gaussian model: N(mean_n, L L^T), correlated, another mean per row."""

    mean: Tensor  # (N, Z)
    loading: Tensor  # (X, Z)
    cholesky: Tensor  # (Z, Z)

    def log_density(self, z: Tensor) -> Tensor:
        centred = z - self.mean
        fit = centred @ self.loading.T
        return -0.5 * (centred.square().sum(-1) + fit.square().sum(-1))

    def sample(self) -> Tensor:
        return self.mean + torch.randn_like(self.mean) @ self.cholesky.T

    def whiten(self, z: Tensor) -> Tensor:
        centred = (z - self.mean).T
        return torch.linalg.solve_triangular(self.cholesky, centred, upper=False).T


def gaussian(rows: int, latent_dim: int, seed: int = 0) -> Posterior:
    noise = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": noise, "dtype": torch.float64}
    loading = torch.randn(2, latent_dim, **options) * (2.0 / math.sqrt(latent_dim))
    precision = torch.eye(latent_dim, dtype=torch.float64) + loading.T @ loading
    mean = 3.0 * torch.randn(rows, latent_dim, **options)
    torch.manual_seed(seed)
    return Posterior(mean, loading, torch.linalg.cholesky(torch.linalg.inv(precision)))


def quartic(z: Tensor) -> Tensor:
    """A density with no conserved quadratic form, so that the energy error is generic."""
    chained = (z[..., 1:] - z[..., :-1].square()).square().sum(-1)
    return -0.25 * z.pow(4).sum(-1) - 0.5 * chained


def smallest_p(z: Tensor, posterior: Posterior) -> float:
    """Smallest KS p-value over the whitened marginals and all of them pooled."""
    white = posterior.whiten(z)
    columns = [white[:, i] for i in range(white.shape[1])]
    return min(kstest(c.numpy(), "norm").pvalue for c in [*columns, white.flatten()])


def run(
    position: Tensor, log_density: hmc.LogDensity, steps: int, step_size: float, num: int
) -> hmc.HMCState:
    state = hmc.hmc_init(log_density, position)
    for _ in range(steps):
        # Without jitter some mode turns by nearly pi in each trajectory, and never mixes.
        state, _ = hmc.hmc_step(state, log_density, step_size, num, jitter=0.3)
    return state


# --- the integrator -------------------------------------------------------------------------------


def test_momenta_are_normal_with_the_given_mass(device):
    """On a flat density one step moves by eps M^-1 r: |z| < 5 of variances and fourth powers."""
    torch.manual_seed(0)
    inverse_mass = torch.tensor([4.0, 0.25], dtype=torch.float64, device=device)

    def flat(z: Tensor) -> Tensor:
        return 0.0 * z.sum(-1)

    start = torch.zeros(50_000, 2, dtype=torch.float64, device=device)
    state = hmc.hmc_init(flat, start)
    moved, info = hmc.hmc_step(state, flat, 0.1, 1, inverse_mass)
    noise = moved.position / (0.1 * inverse_mass.sqrt())
    assert info.accepted.all()
    again, _ = hmc.hmc_step(state, flat, 0.1, 1, inverse_mass)
    assert not torch.equal(again.position, moved.position)
    for power, variance in ((2, 2.0), (4, 96.0)):
        mean = {2: 1.0, 4: 3.0}[power]
        assert ((noise**power).mean(0) - mean).abs().max() < 5 * math.sqrt(variance / 50_000)


@pytest.mark.parametrize("num_steps", [1, 7, 40])
@pytest.mark.parametrize("mass", ["unit", "diagonal"])
def test_leapfrog_is_reversible(num_steps: int, mass: str) -> None:
    torch.manual_seed(0)
    z, r = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    inverse_mass = 1.0 if mass == "unit" else torch.rand(4, dtype=torch.float64) + 0.5
    step = 0.02 + 0.05 * torch.rand(6, dtype=torch.float64)
    grad = hmc.hmc_init(quartic, z).grad
    there, momentum = hmc.leapfrog(z, r, grad, step, num_steps, quartic, inverse_mass)
    assert (there.position - z).abs().max() > 1e-3
    back, momentum = hmc.leapfrog(
        there.position, -momentum, there.grad, step, num_steps, quartic, inverse_mass
    )
    torch.testing.assert_close(back.position, z, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(momentum, -r, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("latent_dim", [2, 3, 5])
def test_leapfrog_preserves_volume(latent_dim: int) -> None:
    torch.manual_seed(1)
    inverse_mass = torch.rand(latent_dim, dtype=torch.float64) + 0.5

    def flow(phase: Tensor) -> Tensor:
        z, r = phase.split(latent_dim)
        _, grad = hmc.log_prob_and_grad(quartic, z, create_graph=True)
        end, momentum = hmc.leapfrog(z, r, grad, 0.1, 10, quartic, inverse_mass, create_graph=True)
        return torch.cat([end.position, momentum])

    start = torch.randn(2 * latent_dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow, start)
    assert (jacobian - torch.eye(2 * latent_dim)).abs().max() > 0.1
    assert abs(torch.linalg.det(jacobian).abs().item() - 1.0) < 1e-8


def test_energy_error_is_second_order() -> None:
    torch.manual_seed(2)
    z, r = torch.randn(2, 2000, 3, dtype=torch.float64)
    start = hmc.hmc_init(quartic, z)
    before = 0.5 * r.square().sum(-1) - start.log_prob
    log_step, log_error = [], []
    for num_steps in (50, 100, 200, 400):
        end, momentum = hmc.leapfrog(z, r, start.grad, 1.0 / num_steps, num_steps, quartic)
        error = 0.5 * momentum.square().sum(-1) - end.log_prob - before
        log_step.append(-math.log(num_steps))
        log_error.append(error.abs().median().log().item())
    x, y = torch.tensor(log_step), torch.tensor(log_error)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert abs(slope.item() - 2.0) < 0.1


def test_acceptance_tends_to_one_and_mala_is_one_step() -> None:
    posterior = gaussian(500, 5)
    state = hmc.hmc_init(posterior.log_density, posterior.sample())
    rates = [
        hmc.hmc_step(state, posterior.log_density, step, 1)[1].accept_prob.mean().item()
        for step in (0.5, 0.1, 0.01)
    ]
    assert rates == sorted(rates) and rates[-1] > 0.9999
    torch.manual_seed(3)
    _, info = hmc.hmc_step(state, posterior.log_density, 0.5, 1)
    torch.manual_seed(3)
    r = torch.randn_like(state.position)
    # MALA: z' = z + eps^2/2 grad + eps r, with the Gaussian proposal's own ratio.
    z_new = state.position + 0.125 * state.grad + 0.5 * r
    new = hmc.hmc_init(posterior.log_density, z_new)
    there = (z_new - state.position - 0.125 * state.grad).square().sum(-1) / 0.5
    back = (state.position - z_new - 0.125 * new.grad).square().sum(-1) / 0.5
    expected = new.log_prob - state.log_prob + there - back
    torch.testing.assert_close(-info.energy_error, expected, rtol=1e-9, atol=1e-10)


# --- stationarity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("latent_dim", "rows"), [(1, 40_000), (2, 40_000), (10, 40_000)])
def test_posterior_is_left_invariant(latent_dim: int, rows: int) -> None:
    """From exact draws, after 1, 10 and 30 steps: KS p > 1e-6 on Z + 1 tests each.

    A chain has forgotten its start after some ten steps; what it drifts to it shows by then.
    False alarms: 3 (Z + 1) 1e-6, at most 3.3e-5.
    """
    _stationary(latent_dim, rows)


def test_posterior_is_left_invariant_in_fifty_dims() -> None:
    """The same in 50 dims, 8,000 rows (400,000 draws pooled). False alarms: 1.6e-4."""
    _stationary(50, 8_000)


def _stationary(latent_dim: int, rows: int) -> None:
    posterior = gaussian(rows, latent_dim, seed=latent_dim)
    z = posterior.sample()
    assert smallest_p(z, posterior) > ALPHA
    state, done = hmc.hmc_init(posterior.log_density, z), 0
    for checkpoint in (1, 10, 30):
        while done < checkpoint:
            state, info = hmc.hmc_step(state, posterior.log_density, 0.6, 2, jitter=0.2)
            done += 1
        assert smallest_p(state.position, posterior) > ALPHA, f"after {checkpoint} steps"
    assert 0.2 < info.accept_prob.mean() < 0.995  # the accept step had work to do
    assert (state.position != z).all()


def _joint(energy_error: Tensor) -> Tensor:
    total = energy_error.sum().expand_as(energy_error)
    return (-total).clamp(max=0.0).exp()


def _shared_coin(accept_prob: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand((), dtype=accept_prob.dtype) < accept_prob.mean().expand_as(accept_prob)


def _half_momentum(*arguments: object) -> Tensor:
    return 0.7 * torch.randn_like(arguments[0])  # type: ignore[call-overload]


MUTANTS: dict[str, tuple[str, Callable[[], Callable[..., Tensor]]]] = {
    "no Metropolis step": ("_decide", lambda: all_accepted),
    "momentum not resampled": ("_draw_momentum", momentum_drawn_once),
    "momentum of the wrong scale": ("_draw_momentum", lambda: _half_momentum),
}


def test_invariance_check_passes_without_a_mutant() -> None:
    posterior = gaussian(40_000, 2, seed=2)
    end = run(posterior.sample(), posterior.log_density, 20, 0.6, 2)
    assert smallest_p(end.position, posterior) > ALPHA


@pytest.mark.parametrize("mutant", MUTANTS)
def test_invariance_check_catches(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = gaussian(40_000, 2, seed=2)
    z = posterior.sample()
    name, make = MUTANTS[mutant]
    monkeypatch.setattr(hmc, name, make())
    assert smallest_p(run(z, posterior.log_density, 20, 0.6, 2).position, posterior) < ALPHA


def _accept_count_z() -> float:
    """z-score of the number of accepted rows, were each decided by its own energy error."""
    posterior = gaussian(10_000, 2)
    state = hmc.hmc_init(posterior.log_density, posterior.sample())
    _, info = hmc.hmc_step(state, posterior.log_density, 0.9, 2)
    p = (-info.energy_error).clamp(max=0.0).exp()
    excess = info.accepted.sum() - p.sum()
    return (excess / (p * (1.0 - p)).sum().sqrt()).item()


def test_each_row_accepts_on_its_own() -> None:
    """|z| < 5 of the number accepted out of 10,000. False alarms: 5.7e-7."""
    assert abs(_accept_count_z()) < 5.0


@pytest.mark.parametrize(("name", "mutant"), [("_acceptance", _joint), ("_decide", _shared_coin)])
def test_row_accept_check_catches_a_joint_accept(
    name: str, mutant: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hmc, name, mutant)
    assert abs(_accept_count_z()) > 5.0


def _reached(rows: int) -> float:
    posterior = gaussian(rows, 2)
    return smallest_p(
        run(0.0 * posterior.mean, posterior.log_density, 60, 0.6, 3).position, posterior
    )


def test_a_large_batch_converges_as_fast_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the prior mean to the posterior in 60 steps, 8,000 rows at once; joint accept sticks.

    False alarms: 3e-6 (3 KS tests at 1e-6).
    """
    assert _reached(8_000) > ALPHA
    monkeypatch.setattr(hmc, "_acceptance", _joint)
    assert _reached(8_000) < ALPHA


@pytest.mark.parametrize("inverse_mass", [0.3, "per dim", "per row"])
def test_mass_leaves_the_posterior_invariant(inverse_mass: float | str) -> None:
    """20,000 rows, 20 steps, KS p > 1e-6 on 4 tests. False alarms: 4e-6 each."""
    posterior = gaussian(20_000, 3)
    shape = {"per dim": (3,), "per row": (20_000, 3)}
    mass: float | Tensor
    if isinstance(inverse_mass, str):
        mass = torch.rand(shape[inverse_mass], dtype=torch.float64) + 0.3
    else:
        mass = inverse_mass
    state = hmc.hmc_init(posterior.log_density, posterior.sample())
    for _ in range(20):
        state, _ = hmc.hmc_step(state, posterior.log_density, 0.5, 3, inverse_mass=mass)
    assert smallest_p(state.position, posterior) > ALPHA


# --- faults ---------------------------------------------------------------------------------------


def _poisoned(z: Tensor, bad: float) -> Tensor:
    hit = (torch.arange(z.shape[-2]) == 3) & (z[..., 0] > 0.0)
    return quartic(z) * torch.ones_like(z[..., 0]).masked_fill(hit, bad).detach()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_is_rejected_alone(bad: float) -> None:
    """The other rows are bit-identical to a run where no row is bad."""
    torch.manual_seed(5)
    position = torch.randn(4, 8, 3, dtype=torch.float64)
    position[:, 3] = -position[:, 3].abs()  # row 3 starts where its density is sound
    results = []
    for log_density in (quartic, lambda z: _poisoned(z, bad)):
        torch.manual_seed(6)
        state, diverged = hmc.hmc_init(log_density, position), torch.zeros(4, 8, dtype=torch.bool)
        for _ in range(30):
            state, info = hmc.hmc_step(state, log_density, 0.15, 4)
            diverged |= info.diverged
            assert not (info.diverged & info.accepted).any()
        results.append((state, diverged))
    (sound, never), (state, diverged) = results
    others = torch.arange(8) != 3
    for a, b in zip(sound, state, strict=True):
        assert torch.equal(a[:, others], b[:, others])
        assert b.isfinite().all()
    assert not never.any() and diverged[:, 3].all() and not diverged[:, others].any()
    assert (state.position[:, 3, 0] <= 0.0).all()


@pytest.mark.parametrize("step", [math.nan, math.inf, 1e6, 1e200])
def test_a_bad_step_size_rejects_its_row_alone(step: float) -> None:
    torch.manual_seed(7)
    state = hmc.hmc_init(quartic, torch.randn(4, 5, 3, dtype=torch.float64))
    steps = torch.full((5,), 0.1, dtype=torch.float64)
    torch.manual_seed(8)
    expected, _ = hmc.hmc_step(state, quartic, steps, 5)
    torch.manual_seed(8)
    actual, info = hmc.hmc_step(state, quartic, steps.index_fill(0, torch.tensor(2), step), 5)
    assert info.diverged[:, 2].all() and info.diverged.sum() == 4
    assert (info.accept_prob[:, 2] == 0.0).all()
    others = torch.arange(5) != 2
    assert torch.equal(actual.position[:, others], expected.position[:, others])
    assert torch.equal(actual.position[:, 2], state.position[:, 2])


def test_a_start_outside_the_support_is_flagged() -> None:
    position = torch.zeros(2, 3, 1, dtype=torch.float64)
    position[:, 1] = math.nan
    state = hmc.hmc_init(quartic, position)
    _, info = hmc.hmc_step(state, quartic, 0.1, 3)
    assert info.diverged.tolist() == [[False, True, False]] * 2


def test_no_step_and_no_length_leave_the_state() -> None:
    state = hmc.hmc_init(quartic, torch.randn(4, 3, dtype=torch.float64))
    for step, num_steps in [(0.1, 0), (0.0, 5)]:
        after, info = hmc.hmc_step(state, quartic, step, num_steps)
        assert torch.equal(after.position, state.position)
        assert torch.equal(after.log_prob, state.log_prob)
        assert (info.accept_prob == 1.0).all() and not info.diverged.any()


def test_a_density_summed_over_data_is_named() -> None:
    with pytest.raises(ProgramError, match=r"shape \(\).*expected \(2, 3\)"):
        hmc.hmc_init(lambda z: z.square().sum(), torch.zeros(2, 3, 4))


# --- adaptation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.65, 0.8])
@pytest.mark.parametrize("shared", [True, False])
def test_acceptance_reaches_its_target(target: float, shared: bool) -> None:
    """Rows of scale 0.1 to 10, first guess off by up to 100: frozen acceptance within 0.05.

    Measured on 256 chains x 50 steps; the seed-to-seed spread is 0.005. One leapfrog step,
    since with more of them a Gaussian's acceptance is not monotone in the step size (resonance).
    """
    torch.manual_seed(9)
    row = torch.ones(5) if shared else torch.logspace(-1.0, 1.0, 5)
    scale = (row.unsqueeze(-1) * torch.linspace(0.4, 1.0, 8)).double()  # (B, Z)

    def log_density(z: Tensor) -> Tensor:
        return -0.5 * (z / scale).square().sum(-1)

    state = hmc.hmc_init(log_density, scale * torch.randn(256, 5, 8).double())
    guess = torch.full(() if shared else (5,), 0.1, dtype=torch.float64)
    state, step = hmc.adapt_step_size(state, log_density, guess, 1, 400, target=target)
    assert step.shape == guess.shape
    rates = []
    for _ in range(50):
        state, info = hmc.hmc_step(state, log_density, step, 1)
        rates.append(info.accept_prob.mean(0))
    assert (torch.stack(rates).mean(0) - target).abs().max() < 0.05


def test_dual_averaging_follows_hoffman_and_gelman() -> None:
    """Their algorithm 5 in plain numbers, against three updates."""
    adaptation = hmc.StepSize(torch.tensor(0.3, dtype=torch.float64))
    mu, error, log_average = math.log(3.0), 0.0, 0.0
    for m, alpha in enumerate([0.2, 0.9, 1.0], start=1):
        adaptation.update(torch.full((2, 3), alpha, dtype=torch.float64))
        error = (1.0 - 1.0 / (m + 10.0)) * error + (0.8 - alpha) / (m + 10.0)
        log_step = mu - math.sqrt(m) / 0.05 * error
        log_average = m**-0.75 * log_step + (1.0 - m**-0.75) * log_average
        assert adaptation.next.item() == pytest.approx(math.exp(log_step), rel=1e-12)
        assert adaptation.average.item() == pytest.approx(math.exp(log_average), rel=1e-12)


def test_the_step_that_is_kept_is_the_average_of_those_tried() -> None:
    state = hmc.hmc_init(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2, 3, 4))
    settings = (lambda z: -0.5 * z.square().sum(-1), torch.full((3,), 0.3), 2, 6)
    torch.manual_seed(0)
    _, kept = hmc.adapt_step_size(state, *settings)
    torch.manual_seed(0)
    adaptation, tried = hmc.StepSize(settings[1]), state
    for _ in range(6):
        tried, info = hmc.hmc_step(tried, settings[0], adaptation.next, 2)
        adaptation.update(info.accept_prob)
    torch.testing.assert_close(kept, adaptation.average)
    assert (kept / adaptation.next - 1).abs().min() > 0.01


def test_step_sizes_adapt_apart() -> None:
    accept = torch.tensor([[0.1, 0.5, 1.0], [0.1, 0.7, 1.0]])
    together = hmc.StepSize(torch.full((3,), 0.1))
    together.update(accept)
    steps, single = together.next, []
    for i in range(3):
        alone = hmc.StepSize(torch.tensor([0.1]))
        alone.update(accept[:, i : i + 1])
        single.append(alone.next)
    torch.testing.assert_close(steps, torch.cat(single))
    assert steps[0] < steps[1] < steps[2]


def test_nothing_to_adapt_is_an_error() -> None:
    state = hmc.hmc_init(quartic, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="num_steps=0"):
        hmc.adapt_step_size(state, quartic, torch.tensor(0.1), 0, 10)


# --- noise, gradients, devices --------------------------------------------------------------------


def test_a_generator_replaces_the_global_noise() -> None:
    state = hmc.hmc_init(quartic, torch.ones(4, 3, dtype=torch.float64))
    before = torch.random.get_rng_state()
    runs = [
        hmc.hmc_step(state, quartic, 0.2, 3, generator=torch.Generator().manual_seed(s), jitter=0.1)
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(runs[0][0].position, runs[1][0].position)
    assert not torch.equal(runs[0][0].position, runs[2][0].position)


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_parameters_receive_no_gradient(grad_enabled: bool) -> None:
    net = nn.Linear(3, 1)
    position = torch.randn(4, 5, 3, requires_grad=True)
    with torch.set_grad_enabled(grad_enabled):
        state = hmc.hmc_init(lambda z: -net(z).square().squeeze(-1), position)
        state, _ = hmc.hmc_step(state, lambda z: -net(z).square().squeeze(-1), 0.1, 2)
    assert net.weight.grad is None and net.bias.grad is None and position.grad is None
    assert not any(tensor.requires_grad for tensor in state)


def test_steps_run_on_meta() -> None:
    state = hmc.hmc_init(quartic, torch.empty(4, 5, 3, device="meta"))
    step = torch.empty(5, device="meta")
    state, info = hmc.hmc_step(state, quartic, step, 2, jitter=0.1)
    state, step = hmc.adapt_step_size(state, quartic, step, 2, 3)
    assert state.position.shape == (4, 5, 3) and step.shape == (5,)
    assert all(tensor.shape == (4, 5) for tensor in info)
