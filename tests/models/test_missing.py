"""Missing cells: the likelihood of the others, exactly, and what is filled in."""

import ast
import math
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import Categorical, FullGaussian, Gaussian, VampPrior
from pyro_vae.distributions import Incomplete
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.models import VAE

EXACT = {"rtol": 1e-9, "atol": 1e-9}


class Factors(nn.Module):
    """Factor analysis, x ~ N(W z, s²), of which cells may be NaN; the guide is the posterior."""

    def __init__(self, loading, variance):
        super().__init__()
        self.loading, self.variance = loading, variance

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.loading.shape[1]), 1.0).to_event(1))
            cells = dist.Normal(z @ self.loading.T, self.variance.sqrt()).to_event(1)
            pyro.sample("x", Incomplete(cells, ~x.isnan()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            weight = (~x.isnan()).double() / self.variance
            by_cell = torch.einsum("nd,dk,dl->nkl", weight, self.loading, self.loading)
            covariance = torch.linalg.inv(torch.eye(self.loading.shape[1]).double() + by_cell)
            loc = torch.einsum("nkl,dl,nd->nk", covariance, self.loading, weight * x.nan_to_num())
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))


def factors():
    torch.manual_seed(3)
    return Factors(torch.randn(4, 2).double(), torch.rand(4).double() + 0.3)


X = torch.tensor(
    [[0.7, math.nan, -1.1, 0.2], [math.nan, 0.4, math.nan, 1.0], [0.1, 0.2, 0.3, 0.4]],
    dtype=torch.float64,
)


def conditional(program, x):
    """log p of the observed cells, and mean and covariance of the others, of a Gaussian row."""
    whole = program.loading @ program.loading.T + program.variance.diag()
    seen = ~x.isnan()
    s_oo, s_mo = whole[seen][:, seen], whole[~seen][:, seen]
    log_p = dist.MultivariateNormal(torch.zeros(int(seen.sum())).double(), s_oo).log_prob(x[seen])
    gain = s_mo @ torch.linalg.inv(s_oo)
    return log_p, gain @ x[seen], whole[~seen][:, ~seen] - gain @ s_mo.T


def test_factor_analysis_with_holes_is_a_marginal_gaussian():
    """Likelihood and bound exactly; means, their errors and draws within five errors."""
    program = factors()
    exact = [conditional(program, row) for row in X]
    log_p = torch.stack([each[0] for each in exact])
    torch.testing.assert_close(pv.elbo(program, X), log_p, **EXACT)
    torch.testing.assert_close(
        pv.log_likelihood(program, X, num_particles=3).log_prob, log_p, **EXACT
    )
    torch.manual_seed(0)
    found = pv.impute(program, X, num_particles=3000)
    assert torch.equal(found.missing, X.isnan())
    torch.testing.assert_close(found.ess, torch.full((3,), 3000.0).double())
    for row, (_, mean, covariance) in enumerate(exact):
        seen = ~X[row].isnan()
        assert torch.equal(found.values[row][seen], X[row][seen])
        assert (found.stderr[row][seen] == 0).all()
        error = found.stderr[row][~seen]
        assert ((found.values[row][~seen] - mean).abs() < 5 * error).all()
        assert (error < covariance.diagonal().sqrt() / 3000**0.5).all()  # the code's share of it
    many = pv.impute(program, X[:1].expand(2000, 4), how="sample", num_particles=30).values[:, 1]
    _, mean, covariance = exact[0]
    z = (many.mean() - mean) / (covariance[0, 0] / 2000) ** 0.5
    spread = (many.var() / covariance[0, 0] - 1) / (2 / 2000) ** 0.5
    assert z.abs() < 5 and spread.abs() < 5


def test_the_demo_of_miwae_reaches_its_exact_values():
    """x ~ N(0, [[2, 1], [1, 2]]), the first cell missing with p = 1/2, by the exact guide.

    E log p(x_o) = -2.576348 and a mean squared error of 3/2; 20,000 rows, five standard errors.
    """
    loading = torch.ones(2, 1).double()
    program = Factors(loading, torch.ones(2).double())
    torch.manual_seed(1)
    x = torch.randn(20_000, 1).double() + torch.randn(20_000, 2).double()
    truth = x[:, 0].clone()
    holes = torch.rand(len(x)) < 0.5
    x[holes, 0] = math.nan
    bound = pv.elbo(program, x)
    assert (bound.mean() + 2.576348).abs() < 5 * bound.std() / len(x) ** 0.5
    found = pv.impute(program, x, num_particles=20).values[holes, 0]
    square = (found - truth[holes]).square()
    floor = 1.5 + 0.5 / 20 * 0.5  # of twenty draws, the variance of the code's mean besides
    assert (square.mean() - floor).abs() < 5 * square.std() / len(square) ** 0.5


def test_the_objective_is_that_of_the_observed_cells():
    """MIWAE at the same noise as a VAE of the observed cells alone: value and gradients."""
    torch.manual_seed(5)
    whole = VAE(4, 2, (6,), observation=Gaussian, missing="nan").double()
    x = X[1:2]
    losses = []
    for program, rows in ((whole, x), (Part(whole), x.nan_to_num())):
        wrapped = pv.Program.of(program)
        with wrapped.running():
            torch.manual_seed(6)
            losses.append(pv.MIWAE(5).per_datum(wrapped.joint(rows)))
    torch.testing.assert_close(*losses, **EXACT)
    parameters = list(whole.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in losses]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
        assert one.isfinite().all()


class Part(nn.Module):
    """The second and fourth cell of a VAE, as if there were no others."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.whole.prior())
            base = self.whole.decoder(z).base_dist
            cells = dist.Normal(base.loc[..., [1, 3]], base.scale[..., [1, 3]])
            pyro.sample("x", cells.to_event(1), obs=x[:, [1, 3]].clone())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.whole.encoder(x))


@pytest.mark.parametrize("imputation", ["zero", "constant", "set"])
def test_what_is_missing_changes_nothing(imputation):
    """A mask and NaN say the same; values behind a mask count nowhere; training runs as a graph."""
    torch.manual_seed(7)
    vae = VAE(4, 2, (6,), missing="nan", imputation=imputation).double()
    x = (torch.rand(12, 4) < 0.5).double()
    observed = torch.rand(12, 4) < 0.7
    holes = torch.where(observed, x, torch.nan)

    def score(data):
        torch.manual_seed(8)
        return pv.elbo(vae, data)

    torch.testing.assert_close(score((x, observed)), score(holes), **EXACT)
    other = torch.where(observed, x, 1 - x)
    torch.testing.assert_close(score((other, observed)), score(holes), **EXACT)
    assert not torch.equal(score(x), score(holes))
    mode = "trace" if imputation == "set" else False  # of the others the mask alone is new
    run = pv.fit(vae, holes, objective=pv.MIWAE(3), epochs=2, batch_size=6, compile=mode)
    assert run.compiled == ("graph" if mode else "eager")
    assert pv.generate(vae, 3).isfinite().all() and pv.reconstruct(vae, holes).isfinite().all()
    found = pv.impute(vae, holes, num_particles=20)
    assert found.values.isfinite().all() and torch.equal(found.values[observed], x[observed])
    grey = torch.where(observed, 0.3, torch.nan)
    with pytest.raises(DataError, match=r"value 0.3 in row [01] is outside the support"):
        pv.elbo(vae, grey.double())


def test_names_are_filled_in_by_the_most_probable():
    """The mode of the averaged probabilities; reconstructions of names are modes, never draws."""
    torch.manual_seed(9)
    observation = partial(Categorical, num_classes=3)
    vae = VAE(2, 1, (6,), observation=observation, missing="nan").double()
    x = torch.tensor([[0.0, math.nan], [2.0, 1.0], [math.nan, 1.0]]).double()
    found = pv.impute(vae, x, num_particles=500)
    by_hand = vae.decoder(torch.zeros(1, 1).double()).base_dist.probs
    assert set(found.values.flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert found.stderr[0, 1].isnan() and by_hand.shape == (1, 2, 3)
    plain = VAE(2, 1, (6,), observation=observation)
    names = torch.tensor([[0, 1], [2, 2]])
    first = pv.reconstruct(plain, names)
    torch.testing.assert_close(
        first, plain.decoder(pv.encode(plain, names)).base_dist.probs.argmax(-1)
    )


def test_what_cannot_be_filled_in_is_told():
    x = torch.zeros(3, 4)
    with pytest.raises(ProgramError, match="no missing cells: the model masks none"):
        pv.impute(VAE(4, 2, (6,)), x, num_particles=3)
    with pytest.raises(ConfigError, match="imputation='set' is for data with holes"):
        VAE(4, 2, (6,), imputation="set")
    with pytest.raises(ConfigError, match="VampPrior has data for its encoder"):
        VAE(4, 2, (6,), missing="nan", imputation="set", prior=VampPrior)
    with pytest.raises(ConfigError, match="cells depend on each other"):
        Incomplete(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.ones(2).bool())
    posterior = VAE(4, 2, (6,), missing="nan", posterior=FullGaussian)
    rows = torch.full((2, 4), torch.nan)  # all cells of a row may lack: log p of nothing is 0
    assert pv.log_likelihood(posterior, rows, num_particles=3).log_prob.isfinite().all()
    wild = x.index_fill(0, torch.tensor(1), math.inf)
    with pytest.raises(DataError, match=r"inf in row 1"):
        pv.elbo(VAE(4, 2, (6,), missing="nan", observation=Gaussian), wild)


def test_a_mask_of_another_shape_is_refused():
    """One mark for each of as many rows as cells would be taken for one for each cell."""
    x = torch.zeros(4, 4)
    for shape in ((4,), (4, 1)):
        with pytest.raises(DataError, match=r"observed: got shape .*expected \(4, 4\)"):
            pv.elbo(VAE(4, 1, (4,), missing="nan"), (x, torch.ones(shape).bool()))


class Clusters(nn.Module):
    """Two sites around the centre of a cluster, which is summed out, and a common shift z."""

    def __init__(self):
        super().__init__()
        self.loc = torch.tensor([[-2.0, 0.0], [1.0, 3.0], [0.0, -2.0]]).double()
        self.share = torch.tensor([0.2, 0.5, 0.3]).double()

    def model(self, x, u):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.share))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            centre = self.loc[y] + z[..., None]
            cells = dist.Normal(centre, 0.5).to_event(1)
            pyro.sample("x", Incomplete(cells, ~x.isnan()), obs=x)
            both = dist.Normal(centre.sum(-1, keepdim=True), 1.0).to_event(1)
            pyro.sample("u", Incomplete(both, ~u.isnan()), obs=u)

    def guide(self, x, u):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


def test_a_label_that_is_summed_out_fills_in_several_sites():
    """Means, and draws with their covariance across the sites, against a grid of z; |z| < 5."""
    program = Clusters()
    grid = torch.linspace(-8.0, 8.0, 4001).double()
    centre = program.loc[:, None, :] + grid[:, None]  # (label, z, cell)
    log_p = program.share.log()[:, None] + dist.Normal(0 * grid, 1.0).log_prob(grid)
    log_p = log_p + dist.Normal(centre[..., 0], 0.5).log_prob(torch.tensor(0.3).double())
    weight = log_p.flatten().softmax(0).reshape(log_p.shape)
    two = torch.stack([centre[..., 1], centre.sum(-1)], -1)  # what is missing, given both latents
    mean = (weight[..., None] * two).sum((0, 1))
    spread = (weight[..., None, None] * (two - mean)[..., None] * (two - mean)[..., None, :]).sum(
        (0, 1)
    ) + torch.diag(torch.tensor([0.25, 1.0]).double())
    x = torch.tensor([[0.3, math.nan]]).double()
    u = torch.full((1, 1), math.nan).double()
    torch.manual_seed(2)
    found = pv.impute(program, (x, u), num_particles=4000)
    filled = torch.stack([found.values["x"][0, 1], found.values["u"][0, 0]])
    error = torch.stack([found.stderr["x"][0, 1], found.stderr["u"][0, 0]])
    assert ((filled - mean).abs() < 5 * error).all() and found.missing["x"].tolist() == [[0, 1]]
    many = pv.impute(
        program, (x.expand(1500, 2), u.expand(1500, 1)), how="sample", num_particles=60
    )
    drawn = torch.cat([many.values["x"][:, 1:], many.values["u"]], -1)
    assert ((drawn.mean(0) - mean).abs() < 5 * (spread.diagonal() / 1500).sqrt()).all()
    products = (drawn - mean)[:, :1] * (drawn - mean)[:, 1:]
    assert abs(products.mean() - spread[0, 1]) < 5 * products.std() / 1500**0.5


class Crossed(Clusters):
    """The centre depends on two latents that are summed out."""

    def model(self, x, u):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.share))
            w = pyro.sample("w", dist.Bernoulli(torch.tensor(0.4).double()))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            cells = dist.Normal(self.loc[y] + (z + w)[..., None], 0.5).to_event(1)
            pyro.sample("x", Incomplete(cells, ~x.isnan()), obs=x)


def test_several_labels_around_a_hole_are_told():
    x = torch.tensor([[0.3, math.nan]]).double()
    with pytest.raises(ProgramError, match=r"impute: x depends on several latents.*w, y; let the"):
        pv.impute(Crossed(), (x, x), num_particles=3)


def test_the_count_model_of_the_tutorial_is_the_integral_over_its_code():
    """A ZINB with a size factor and a hole, by Gauss-Hermite: |z| < 5 for each of four rows."""
    text = (Path(__file__).parents[2] / "tutorials/14_holes_and_tables.py").read_text()
    found = next(n for n in ast.parse(text).body if getattr(n, "name", "") == "Counts")
    names = {"torch": torch, "pyro": pyro, "dist": dist, "pv": pv}
    exec(compile(ast.Module([found], []), "tutorial", "exec"), names)
    torch.manual_seed(4)
    program = names["Counts"](3, 1).double()
    x = torch.tensor([[0.0, 4, 2], [9, 0, math.nan], [0, 0, 0], [math.nan, 30, 1]]).double()
    size = torch.tensor([8.0, 12.0, 3.0, 40.0]).double()
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(100))
    with torch.no_grad():
        share, gate = program.decoder(points[:, None]).chunk(2, -1)
        r, kept = program.log_dispersion.exp(), gate.sigmoid()[:, None]
        mean = size[:, None] * share.softmax(-1)[:, None]
        n = x.nan_to_num()
        nb = torch.lgamma(n + r) - torch.lgamma(r) - torch.lgamma(n + 1)
        nb = nb + r * (r / (r + mean)).log() + n * (mean / (r + mean)).log()
        cells = (kept * (n == 0) + (1 - kept) * nb.exp()).masked_fill(x.isnan(), 1.0)
    exact = (cells.prod(-1) * weights[:, None]).sum(0).log() - 0.5 * math.log(2 * math.pi)
    estimate = pv.log_likelihood(program, (x, size), num_particles=4000)
    assert ((estimate.log_prob - exact).abs() < 5 * estimate.noise).all()
    assert (estimate.noise < 0.03).all()


def test_cells_of_a_program_that_takes_no_particles_are_those_of_the_exact_posterior():
    """Its rows are copied for each draw; a raw error before. |z| < 5 over 30 cells."""
    torch.manual_seed(0)
    weight, ok = torch.randn(4, 2), torch.rand(30, 4) > 0.3
    ok[:, 0] = True

    def model(x, ok):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = torch.stack([z[:, 0], z[:, 1]], 1)  # rows alone
            pyro.sample("x", dist.Normal(z @ weight.T, 1.0).mask(ok).to_event(1), obs=x)

    seen = weight * ok[:, :, None]  # (N, 4, 2)
    precision = torch.eye(2) + seen.mT @ seen
    x = torch.randn(30, 2) @ weight.T + torch.randn(30, 4)
    mean = torch.linalg.solve(precision, (seen.mT @ x[:, :, None])[..., 0])

    def guide(x, ok):
        seen = weight * ok[:, :, None]
        precision = torch.eye(2) + seen.mT @ seen
        mean = torch.linalg.solve(precision, (seen.mT @ x[:, :, None])[..., 0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision))

    found = pv.impute(pv.Program(model, guide), (x, ok), num_particles=500)
    torch.testing.assert_close(found.values[ok], x[ok], rtol=0, atol=0)
    assert bool((found.missing == ~ok).all())
    z = (found.values - mean @ weight.T)[~ok] / found.stderr[~ok]
    assert bool((z.abs() < 5).all()) and bool((found.stderr[~ok] < 0.2).all())
