"""R-hat and effective sample size against closed forms and a plain-loop reference."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from torch import Tensor

from pyro_vae.inference.sampling.diagnostics import bulk_ess, ess, median, split_rhat


def autoregressive(phi: float, chains: int, draws: int, rows: int, seed: int = 0) -> Tensor:
    """Return stationary AR(1) chains of unit variance, (C, S, rows)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, rows, generator=generator, dtype=torch.float64)
    steps = [noise[:, 0]]
    for t in range(1, draws):
        steps.append(phi * steps[-1] + math.sqrt(1 - phi**2) * noise[:, t])
    return torch.stack(steps, 1)


def halves(draws: np.ndarray) -> np.ndarray:
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def scores(chains: np.ndarray) -> np.ndarray:
    ranks = rankdata(chains, method="average").reshape(chains.shape)
    return norm.ppf((ranks - 0.375) / (chains.size + 0.25))


def plain_ess(chains: np.ndarray) -> float:
    """Geyer's initial monotone sequence, as Vehtari et al. (2021) and Stan's manual write it."""
    draws = chains.shape[1]
    centred = chains - chains.mean(1, keepdims=True)
    cov = [np.mean([(c[: draws - t] * c[t:]).sum() / draws for c in centred]) for t in range(draws)]
    within = cov[0] * draws / (draws - 1)
    total = within * (draws - 1) / draws + chains.mean(1).var(ddof=1)
    rho = [1.0] + [1 - (within - cov[t]) / total for t in range(1, draws)]
    tau, smallest, k = -1.0, math.inf, 0
    while 2 * k + 1 < draws and rho[2 * k] + rho[2 * k + 1] > 0:
        smallest = min(smallest, rho[2 * k] + rho[2 * k + 1])
        tau += 2 * smallest
        k += 1
    if 2 * k + 1 < draws:
        tau += max(rho[2 * k], 0.0)
    return chains.size / max(tau, 1 / math.log10(chains.size))


def plain_rhat(chains: np.ndarray) -> float:
    draws = chains.shape[1]
    within = chains.var(1, ddof=1).mean()
    between = draws * chains.mean(1).var(ddof=1)
    return math.sqrt(((draws - 1) / draws * within + between / draws) / within)


@pytest.mark.parametrize("phi", [-0.6, 0.0, 0.5, 0.95])
@pytest.mark.parametrize(("chains", "draws"), [(4, 100), (2, 37)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_vectorised_numbers_are_those_of_plain_loops(phi, chains, draws, ties):
    x = autoregressive(phi, chains, draws, 6)
    if ties:
        x = (4 * x).round()
    found = {"rhat": split_rhat(x), "bulk": bulk_ess(x), "ess": ess(x)}
    for row in range(6):
        cut = halves(x[..., row].numpy())
        folded = np.abs(cut - np.median(cut))
        rhat = max(plain_rhat(scores(cut)), plain_rhat(scores(folded)))
        assert found["rhat"][row].item() == pytest.approx(rhat, rel=1e-9)
        assert found["bulk"][row].item() == pytest.approx(plain_ess(scores(cut)), rel=1e-8)
        assert found["ess"][row].item() == pytest.approx(plain_ess(cut), rel=1e-8)


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.6, 0.9])
def test_autoregressive_chains_have_their_known_sample_size(phi):
    """ESS = C S (1 - phi) / (1 + phi); mean of 64 quantities within 4 % (spread of one: 10 %).

    The initial sequence stops early by chance, which biases one estimate by 1 to 2 %.
    """
    x = autoregressive(phi, 4, 4000, 64, seed=1)
    exact = 4 * 4000 * (1 - phi) / (1 + phi)
    assert ess(x).mean().item() == pytest.approx(exact, rel=0.04)
    assert bulk_ess(x).mean().item() == pytest.approx(exact, rel=0.06)


def test_mixed_chains_have_an_rhat_of_one():
    x = autoregressive(0.3, 4, 1000, 200, seed=2)
    assert (split_rhat(x) < 1.02).all()


def test_faults_are_seen():
    """A shifted chain, a wider chain, a drift: each raises R-hat far above its noise (0.01)."""
    x = autoregressive(0.0, 4, 400, 3, seed=3)
    shifted, wider, drifting = x.clone(), x.clone(), x.clone()
    shifted[0] += 2.0
    wider[0] *= 5.0
    drifting += torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]
    for broken in (shifted, wider, drifting):
        assert (split_rhat(broken) > 1.1).all()
    assert (bulk_ess(shifted) < 50).all() and (bulk_ess(drifting) < 50).all()


def test_the_numbers_depend_on_ranks_alone():
    x = autoregressive(0.5, 4, 200, 3)
    torch.testing.assert_close(bulk_ess(x), bulk_ess(x.exp()))
    assert not torch.allclose(ess(x), ess((3 * x).exp()))


def test_stuck_chains_are_not_called_mixed():
    x = torch.zeros(4, 100, 2, dtype=torch.float64)
    x[..., 1] = torch.arange(4, dtype=torch.float64)[:, None]
    rhat = split_rhat(x)
    assert not (rhat < 1e6).any() and rhat[0].isnan()
    assert bulk_ess(x)[1] < 10


@pytest.mark.parametrize("draws", [1, 3])
def test_too_few_draws_tell_nothing(draws):
    x = autoregressive(0.0, 4, draws, 2)
    assert split_rhat(x).isnan().all() and bulk_ess(x).isnan().all()


def test_trailing_shapes_and_devices():
    x = autoregressive(0.0, 4, 50, 6)
    torch.testing.assert_close(split_rhat(x.view(4, 50, 2, 3)), split_rhat(x).view(2, 3))
    torch.testing.assert_close(bulk_ess(x.view(4, 50, 2, 3)), bulk_ess(x).view(2, 3))
    assert bulk_ess(x.float()).dtype == torch.float32
    assert split_rhat(x.to("meta")).shape == (6,)
    assert bulk_ess(x.to("meta")).shape == (6,)


@pytest.mark.parametrize("values", [[1.0, 4.0, 2.0, 8.0], [3.0, 1.0, 2.0], [2.0, math.inf]])
def test_the_median_of_an_even_number_lies_between_the_middle_two(values):
    assert median(torch.tensor(values)).item() == np.median(values)
    assert median(torch.tensor([math.inf, math.inf])).item() == math.inf
    assert median(torch.tensor([1.0, math.nan])).isnan()
