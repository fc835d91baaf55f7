"""Annealed importance sampling against closed forms and quadrature, with mutants that must fail.

Every statistical check has a fixed seed and states how often correct code would fail it.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.errors import ConfigError
from pyro_vae.inference.sampling import ais
from pyro_vae.inference.sampling.hmc import HMCInfo, HMCState, LogDensity
from pyro_vae.inference.sampling.importance_weights import effective_sample_size, log_mean_exp

X, NOISE_VARIANCE = 1.7, 0.2  # one datum x = 1.7 of N(z, 0.2) under z ~ N(0, 1)
# Mean error in nats of the forward and the reverse run with T linear steps and exact transitions.
CLOSED_FORM = {10: (-0.5226, 0.3882), 100: (-0.04624, 0.04484), 1000: (-0.004561, 0.004547)}


def log_normal(value: Tensor, variance: float | Tensor = 1.0) -> Tensor:
    variance = torch.as_tensor(variance, dtype=value.dtype)
    return -0.5 * (value.square() / variance + (2.0 * math.pi * variance).log())


def log_prior(z: Tensor) -> Tensor:
    return log_normal(z).sum(-1)


class Targets(NamedTuple):
    """A family of posteriors, one per datum, with its exact log evidence `(B,)`."""

    log_joint: LogDensity
    exact: Tensor
    latent_dim: int = 1
    posterior: Callable[[int], Tensor] | None = None  # draws (C, B, Z), where known

    def prior_draws(self, chains: int) -> Tensor:
        return torch.randn(chains, len(self.exact), self.latent_dim, dtype=torch.float64)


def one_gaussian() -> Targets:
    exact = log_normal(torch.tensor([X], dtype=torch.float64), 1.0 + NOISE_VARIANCE)
    return Targets(lambda z: log_prior(z) + log_normal(X - z[..., 0], NOISE_VARIANCE), exact)


def gaussians() -> Targets:
    """Five data of a linear model in four latents, closed form."""
    noise = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": noise, "dtype": torch.float64}
    loading = torch.randn(3, 4, **options)
    variance = torch.tensor([0.7, 1.0, 1.5, 3.0, 2.0], dtype=torch.float64)
    x = torch.randn(5, 4, **options) @ loading.T
    x = x + variance.sqrt().unsqueeze(-1) * torch.randn(5, 3, **options)
    covariance = loading @ loading.T + variance[:, None, None] * torch.eye(3, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(x.new_zeros(3), covariance)
    precision = torch.eye(4, dtype=torch.float64) + loading.T @ loading / variance[:, None, None]
    mean = torch.linalg.solve(precision, (x / variance[:, None]) @ loading)
    posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)

    def log_joint(z: Tensor) -> Tensor:
        return log_prior(z) + log_normal(x - z @ loading.T, variance.unsqueeze(-1)).sum(-1)

    return Targets(log_joint, marginal.log_prob(x), 4, lambda c: posterior.sample((c,)))


GRID = torch.linspace(-12.0, 12.0, 40_001, dtype=torch.float64)


def by_quadrature(log_likelihood: Callable[[Tensor], Tensor]) -> Targets:
    """Targets in one dim; the trapezoidal rule on a grid is exact to rounding here."""

    def log_joint(z: Tensor) -> Tensor:
        return log_prior(z) + log_likelihood(z)

    on_grid = log_joint(GRID[:, None, None])
    exact = on_grid.logsumexp(0) + (GRID[1] - GRID[0]).log()

    def posterior(chains: int) -> Tensor:
        cell = torch.distributions.Categorical(logits=on_grid.T).sample((chains,))
        width = GRID[1] - GRID[0]
        return (GRID[cell] + width * (torch.rand(cell.shape).double() - 0.5)).unsqueeze(-1)

    return Targets(log_joint, exact, 1, posterior)


def mixtures() -> Targets:
    """Four data of x ~ N(+-z, s^2): posteriors with two modes, by quadrature."""
    x = torch.tensor([0.3, 0.8, 1.5, 2.0], dtype=torch.float64)
    variance = torch.tensor([0.5, 0.2, 0.3, 0.5], dtype=torch.float64)

    def log_likelihood(z: Tensor) -> Tensor:
        signs = torch.stack(
            [log_normal(x - z[..., 0], variance), log_normal(x + z[..., 0], variance)]
        )
        return signs.logsumexp(0) - math.log(2.0)

    return by_quadrature(log_likelihood)


def bernoullis() -> Targets:
    """Four data of six pixels from a small non-linear decoder with one latent, by quadrature."""
    noise = torch.Generator().manual_seed(1)
    options: dict[str, Any] = {"generator": noise, "dtype": torch.float64}
    first, second, z_true = (torch.randn(shape, **options) for shape in ((5,), (5, 6), (4, 1)))
    x = torch.bernoulli(((z_true * first).tanh() @ second * 2.0).sigmoid(), generator=noise)

    def log_likelihood(z: Tensor) -> Tensor:
        logits = (z * first).tanh() @ second * 2.0
        return (x * logits - nn.functional.softplus(logits)).sum(-1)

    return by_quadrature(log_likelihood)


FAMILIES = {"gaussians": gaussians, "mixtures": mixtures, "bernoullis": bernoullis}


def exact_kernel(temperatures: Tensor, shift: int = 0) -> ais.Kernel:
    """Draws straight from p_{t + shift} of `one_gaussian`, whatever the state."""

    def kernel(state: HMCState, log_density: LogDensity, t: int) -> tuple[HMCState, HMCInfo]:
        b = temperatures[t + shift] / NOISE_VARIANCE
        z = (b * X + (1.0 + b).sqrt() * torch.randn_like(state.position)) / (1.0 + b)
        one = torch.ones_like(state.log_prob)
        return HMCState(z, one, z), HMCInfo(one, one.bool(), one, ~one.bool())

    return kernel


def closed_form(num: int, new_state: bool) -> float:
    """Sum_t (b_t - b_{t-1}) E_t' [log p(x | z)] - log p(x), t' = t - 1 forward and t in reverse."""
    total = 0.0
    for t in range(1, num + 1):
        b = (t if new_state else t - 1) / num / NOISE_VARIANCE
        mean, variance = b * X / (1.0 + b), 1.0 / (1.0 + b)
        error = ((X - mean) ** 2 + variance) / NOISE_VARIANCE
        total += -0.5 * (error + math.log(2.0 * math.pi * NOISE_VARIANCE)) / num
    evidence = 1.0 + NOISE_VARIANCE
    return total + 0.5 * (X * X / evidence + math.log(2.0 * math.pi * evidence))


def z_score(sample: Tensor, expected: float) -> Tensor:
    """Of the mean over chains, per datum."""
    return (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(len(sample)))


# --- temperatures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [ais.linear_temperatures, ais.sigmoid_temperatures])
@pytest.mark.parametrize("num", [1, 2, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperatures_rise_from_zero_to_one(
    schedule: Callable[..., Tensor], num: int, dtype: torch.dtype
) -> None:
    b = schedule(num, dtype=dtype)
    assert b.shape == (num + 1,) and b.dtype == dtype
    assert b[0] == 0.0 and b[-1] == 1.0 and (b.diff() > 0.0).all()
    torch.testing.assert_close(b + b.flip(0), torch.ones_like(b))


def test_temperatures_follow_their_formulas() -> None:
    sigmoid = [1.0 / (1.0 + math.exp(-4.0 * (t / 2.0 - 1.0))) for t in range(5)]
    expected = [(s - sigmoid[0]) / (sigmoid[-1] - sigmoid[0]) for s in sigmoid]
    assert ais.sigmoid_temperatures(4, dtype=torch.float64).tolist() == pytest.approx(expected)
    assert ais.linear_temperatures(4).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ConfigError, match="num: got 0, expected an integer of at least 1"):
        ais.linear_temperatures(0)


# --- exact transitions ----------------------------------------------------------------------------


@pytest.mark.parametrize("num", CLOSED_FORM)
def test_exact_transitions_give_the_closed_form_errors(num: int) -> None:
    """|z| < 5 of the forward and reverse means over 4,000 chains. False alarms: 1.2e-6."""
    forward, reverse = CLOSED_FORM[num]
    assert closed_form(num, new_state=False) == pytest.approx(forward, rel=2e-4)
    assert closed_form(num, new_state=True) == pytest.approx(reverse, rel=2e-4)
    torch.manual_seed(num)
    target, b = one_gaussian(), ais.linear_temperatures(num, dtype=torch.float64)
    for sample, expected in (
        (ais.annealed_importance, closed_form(num, new_state=False)),
        (ais.reverse_annealed_importance, closed_form(num, new_state=True)),
    ):
        start = target.prior_draws(4_000)
        result = sample(log_prior, start, target.log_joint, b, kernel=exact_kernel(b))
        assert z_score(result.log_weight - target.exact, expected).abs().max() < 5.0
        assert (result.accept_rate == 1.0).all()


def test_exact_transitions_are_unbiased() -> None:
    """|z| < 5 of E[w / Z] = 1 forward, E[Z / w] = 1 in reverse. False alarms: 1.2e-6."""
    torch.manual_seed(0)
    target, b = one_gaussian(), ais.sigmoid_temperatures(20, dtype=torch.float64)
    start = target.prior_draws(20_000)
    kernel = exact_kernel(b)
    up = ais.annealed_importance(log_prior, start, target.log_joint, b, kernel=kernel)
    down = ais.reverse_annealed_importance(log_prior, start, target.log_joint, b, kernel=kernel)
    assert z_score((up.log_weight - target.exact).exp(), 1.0).abs() < 5.0
    assert z_score((target.exact - down.log_weight).exp(), 1.0).abs() < 5.0


# --- HMC transitions ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_unbiased_and_sandwich_the_evidence(family: str) -> None:
    """On 13 targets: E[w / Z] = 1 within 5 SE, and forward <= exact <= reverse within 3 SE.

    4,000 chains forward and 2,000 in reverse. E[Z / w] = 1 is asked of the Bernoulli decoders
    only: their likelihood is bounded below, elsewhere 1 / w may lack a variance. False alarms: at
    most 4.6e-6 per family from the means; the ordering holds by more than 3 SE at this T.
    """
    target = FAMILIES[family]()
    assert target.posterior is not None
    torch.manual_seed(3)
    b = ais.sigmoid_temperatures(25, dtype=torch.float64)
    steps = ais.tune_steps(log_prior, target.prior_draws(100), target.log_joint, b, num_leapfrog=3)
    options: dict[str, Any] = {"step_size": steps, "num_leapfrog": 3}
    start = target.prior_draws(4_000)
    up = ais.annealed_importance(log_prior, start, target.log_joint, b, **options)
    down = ais.reverse_annealed_importance(
        log_prior, target.posterior(2_000), target.log_joint, b, **options
    )
    assert z_score((up.log_weight - target.exact).exp(), 1.0).abs().max() < 5.0
    if family == "bernoullis":
        assert z_score((target.exact - down.log_weight).exp(), 1.0).abs().max() < 5.0
    assert (z_score(up.log_weight - target.exact, 0.0) < 3.0).all()
    assert (z_score(down.log_weight - target.exact, 0.0) > -3.0).all()
    assert up.accept_rate.shape == target.exact.shape
    assert effective_sample_size(up.log_weight).min() > 400.0


def test_gap_shrinks_with_temperatures() -> None:
    """The gap between reverse and forward means falls as 1 / T, to below 0.2 nat.

    The standard error of the ratio of gaps is at most 8 %, its window 35 % wide: false alarms 1e-5.
    """
    most, chains = 100, 2000
    target = FAMILIES["mixtures"]()
    assert target.posterior is not None
    torch.manual_seed(4)
    gaps = []
    few = most // 4
    coarse = ais.sigmoid_temperatures(few, dtype=torch.float64)
    options: dict[str, Any] = {"num_leapfrog": 3}
    pilot = {"num_transitions": 2 * few, **options}
    steps = ais.tune_steps(log_prior, target.prior_draws(64), target.log_joint, coarse, **pilot)
    for num in (few, most):
        b = ais.sigmoid_temperatures(num, dtype=torch.float64)
        options["step_size"] = steps.repeat_interleave(num // few, 0)
        start = target.prior_draws(chains)
        up = ais.annealed_importance(log_prior, start, target.log_joint, b, **options)
        down = ais.reverse_annealed_importance(
            log_prior, target.posterior(chains), target.log_joint, b, **options
        )
        gaps.append((down.log_weight.mean(0) - up.log_weight.mean(0)).mean().item())
    assert 0.0 < gaps[1] < 0.2
    assert 2.6 < gaps[0] / gaps[1] < 5.4


def test_a_guide_near_the_posterior_starts_closer() -> None:
    """Annealing from a widened posterior: |z| < 5 of E[w / Z] = 1. False alarms: 2.9e-6."""
    target = gaussians()
    assert target.posterior is not None
    torch.manual_seed(5)
    draws = target.posterior(20_000)
    mean, scale = draws.mean(0), 1.3 * draws.std(0)

    def log_guide(z: Tensor) -> Tensor:
        return log_normal(z - mean, scale.square()).sum(-1)

    start = mean + scale * torch.randn(4_000, 5, 4, dtype=torch.float64)
    b = ais.linear_temperatures(8, dtype=torch.float64)
    options: dict[str, Any] = {"step_size": 0.3, "num_leapfrog": 3}
    near = ais.annealed_importance(log_guide, start, target.log_joint, b, **options)
    far = ais.annealed_importance(
        log_prior, target.prior_draws(4_000), target.log_joint, b, **options
    )
    assert z_score((near.log_weight - target.exact).exp(), 1.0).abs().max() < 5.0
    assert near.log_weight.std(0).mean() < far.log_weight.std(0).mean()


# --- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "num_leapfrog"), [(1, 5), (1, 0), (7, 0)])
def test_without_transitions_it_is_importance_sampling(num: int, num_leapfrog: int) -> None:
    target = mixtures()
    start = target.prior_draws(100)
    expected = target.log_joint(start) - log_prior(start)
    b = ais.linear_temperatures(num, dtype=torch.float64)
    result = ais.annealed_importance(
        log_prior, start, target.log_joint, b, num_leapfrog=num_leapfrog
    )
    torch.testing.assert_close(result.log_weight, expected, rtol=1e-12, atol=1e-12)
    if num_leapfrog == 0:
        back = ais.reverse_annealed_importance(
            log_prior, start, target.log_joint, b, num_leapfrog=0
        )
        torch.testing.assert_close(back.log_weight, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(result.position, start)


def test_equal_densities_give_zero_weights() -> None:
    """With the posterior as p_0 and an unnormalised copy as f, every weight is the constant."""
    start = torch.randn(20, 3, 2, dtype=torch.float64)
    b = ais.sigmoid_temperatures(15, dtype=torch.float64)
    for sample in (ais.annealed_importance, ais.reverse_annealed_importance):
        result = sample(log_prior, start, lambda z: log_prior(z) - 81.5, b, num_leapfrog=2)
        torch.testing.assert_close(result.log_weight, torch.full_like(result.log_weight, -81.5))


def test_last_positions_follow_the_target() -> None:
    """|z| < 5 of the weighted posterior mean over 5,000 chains, 5 data x 4 dims: 1.1e-5."""
    target = gaussians()
    assert target.posterior is not None
    torch.manual_seed(6)
    b = ais.linear_temperatures(50, dtype=torch.float64)
    result = ais.annealed_importance(
        log_prior, target.prior_draws(5_000), target.log_joint, b, step_size=0.3, num_leapfrog=3
    )
    weight = result.log_weight.softmax(0).unsqueeze(-1)
    exact = target.posterior(200_000)
    error = (weight * result.position).sum(0) - exact.mean(0)
    effective = effective_sample_size(result.log_weight).unsqueeze(-1)
    assert (error / (exact.std(0) * (1.0 / effective + 1.0 / 200_000).sqrt())).abs().max() < 5.0


# --- tuning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [10, 100])
@pytest.mark.parametrize("guess", [0.01, 1.0])
def test_frozen_steps_meet_the_target_acceptance(num: int, guess: float) -> None:
    """Data of posterior scale 0.2 to 0.7: measured acceptance within 0.05 of 0.65 for each."""
    torch.manual_seed(7)
    variance = torch.tensor([0.05, 0.1, 0.3, 1.0], dtype=torch.float64).unsqueeze(-1)
    x = torch.randn(4, 6, dtype=torch.float64)
    loading = torch.linspace(0.6, 1.4, 6, dtype=torch.float64)

    def log_joint(z: Tensor) -> Tensor:
        return log_prior(z) + log_normal(x - loading * z, variance).sum(-1)

    b = ais.sigmoid_temperatures(num, dtype=torch.float64)
    pilot, start = torch.randn(2, 100, 4, 6, dtype=torch.float64)
    steps = ais.tune_steps(log_prior, pilot, log_joint, b, num_leapfrog=1, step_size=guess)
    assert steps.shape == (num, 4) and (steps[-1, 0] < 0.6 * steps[0, 0])
    result = ais.annealed_importance(
        log_prior, start, log_joint, b, step_size=steps, num_leapfrog=1
    )
    assert (result.accept_rate - 0.65).abs().max() < 0.05


def test_settings_that_disagree_are_named() -> None:
    start, b = torch.zeros(2, 3, 1), ais.linear_temperatures(5)
    with pytest.raises(ConfigError, match=r"shape \(4, 3\) for 5 temperatures"):
        ais.annealed_importance(log_prior, start, log_prior, b, step_size=torch.ones(4, 3))
    with pytest.raises(ConfigError, match="num_leapfrog=-1"):
        ais.reverse_annealed_importance(log_prior, start, log_prior, b, num_leapfrog=-1)
    with pytest.raises(ConfigError, match="num_leapfrog: got 0"):
        ais.tune_steps(log_prior, start, log_prior, b, num_leapfrog=0)
    with pytest.raises(ConfigError, match="got 0, expected an integer of at least 1"):
        ais.annealed_importance(log_prior, start, log_prior, torch.zeros(1))


# --- mutants --------------------------------------------------------------------------------------


def mutant(old: str, new: str) -> Callable[..., ais.AISResult]:
    """`annealed_importance` with one line of its source changed."""
    source = inspect.getsource(ais.annealed_importance)
    assert source.count(old) == 1, f"{old!r} is no longer in the source: rewrite this mutant"
    namespace = dict(vars(ais))
    exec(source.replace(old, new), namespace)
    return namespace["annealed_importance"]


LATE_WEIGHT = (
    "position, accept = state.position, accept + info.accept_prob",
    "position, accept = state.position, accept + info.accept_prob\n"
    "        log_weight = log_weight - path.width(t) * log_ratio\n"
    "        log_weight = log_weight + path.width(t) * path.enter(position, t)[1]",
)
MUTANTS = {
    "weight at the new state": LATE_WEIGHT,
    "transition one temperature late": ("path.log_density(t), t)", "path.log_density(t - 1), t)"),
    "transition one temperature early": (
        "path.log_density(t), t)",
        "path.log_density(min(t + 1, num)), t)",
    ),
    "width one temperature off": (
        "path.width(t) * log_ratio",
        "path.width(max(t - 1, 1)) * log_ratio",
    ),
    "last temperature missing": ("range(1, num + 1)", "range(1, num)"),
}


def _bias(sample: Callable[..., ais.AISResult]) -> float:
    """|z| of E[w / Z] = 1 over 100,000 chains, six temperatures, unequally spaced."""
    torch.manual_seed(8)
    target, b = one_gaussian(), ais.linear_temperatures(6, dtype=torch.float64).square()
    result = sample(
        log_prior, target.prior_draws(100_000), target.log_joint, b, step_size=0.4, num_leapfrog=3
    )
    return z_score((result.log_weight - target.exact).exp(), 1.0).abs().item()


def test_bias_check_passes_the_real_one() -> None:
    """False alarms: 5.7e-7."""
    assert _bias(ais.annealed_importance) < 5.0


@pytest.mark.parametrize("name", MUTANTS)
def test_bias_check_catches(name: str) -> None:
    assert _bias(mutant(*MUTANTS[name])) > 5.0


@pytest.mark.parametrize("shift", [-1, 1])
def test_closed_form_catches_temperatures_off_by_one(shift: int) -> None:
    """With exact transitions at the neighbouring temperature the mean is off by more than 5 SE."""
    torch.manual_seed(9)
    target, b = one_gaussian(), ais.linear_temperatures(10, dtype=torch.float64)
    padded = torch.cat([b, b[-1:]])
    result = ais.annealed_importance(
        log_prior,
        target.prior_draws(10_000),
        target.log_joint,
        b,
        kernel=exact_kernel(padded, shift),
    )
    expected = closed_form(10, new_state=False)
    assert z_score(result.log_weight - target.exact, expected).abs() > 5.0


# --- noise, faults, devices -----------------------------------------------------------------------


def test_a_bad_row_stays_alone() -> None:
    """A datum whose density is NaN leaves the others bit-identical."""
    target, b = mixtures(), ais.linear_temperatures(10, dtype=torch.float64)
    start = target.prior_draws(20)
    factor = torch.tensor([1.0, math.nan, 1.0, 1.0], dtype=torch.float64)
    runs = []
    for log_joint in (target.log_joint, lambda z: factor * target.log_joint(z)):
        torch.manual_seed(10)
        runs.append(ais.annealed_importance(log_prior, start, log_joint, b, num_leapfrog=2))
    good = torch.tensor([0, 2, 3])
    assert torch.equal(runs[0].log_weight[:, good], runs[1].log_weight[:, good])
    assert runs[1].log_weight[:, 1].isnan().all() and runs[1].accept_rate[1] == 0.0
    assert torch.equal(runs[1].position[:, 1], start[:, 1])


def test_a_generator_replaces_the_global_noise() -> None:
    target, b = mixtures(), ais.linear_temperatures(5, dtype=torch.float64)
    start = target.prior_draws(10)
    before = torch.random.get_rng_state()
    runs = [
        ais.annealed_importance(
            log_prior, start, target.log_joint, b, generator=torch.Generator().manual_seed(seed)
        ).log_weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_parameters_receive_no_gradient() -> None:
    net = nn.Linear(2, 1)
    b = ais.linear_temperatures(3)
    result = ais.annealed_importance(
        log_prior, torch.randn(4, 5, 2), lambda z: log_prior(z) + net(z).squeeze(-1), b
    )
    assert net.weight.grad is None and not any(tensor.requires_grad for tensor in result)


def test_annealing_runs_on_meta() -> None:
    start = torch.empty(4, 5, 2, device="meta")
    b = ais.sigmoid_temperatures(3, device="meta")

    def log_target(z: Tensor) -> Tensor:
        return -0.5 * (z - 1.0).square().sum(-1)

    def log_initial(z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1)

    steps = ais.tune_steps(log_initial, start, log_target, b, num_leapfrog=2, num_transitions=3)
    assert steps.shape == (3, 5)
    for sample in (ais.annealed_importance, ais.reverse_annealed_importance):
        result = sample(log_initial, start, log_target, b, step_size=steps, num_leapfrog=2)
        assert result.log_weight.shape == (4, 5) and result.accept_rate.shape == (5,)
        assert log_mean_exp(result.log_weight).shape == (5,)
