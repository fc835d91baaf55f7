"""Labels as conditions, and labels that lack: against sums and integrals written by hand."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.conditionals import Gaussian
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.models import M2, ConditionalVAE, Resampled

EXACT = {"rtol": 1e-9, "atol": 1e-9}
X = torch.tensor([[0.4, -1.2], [1.5, 0.3], [-0.6, 0.2], [0.1, 2.0]], dtype=torch.float64)
LABELS = torch.tensor([2, -1, 0, -1])


def m2():
    """Three labels, one unit of code: small enough for Gauss-Hermite."""
    torch.manual_seed(4)
    program = M2(2, 3, 1, (4,), observation=Gaussian, prior="conditional").double()
    with torch.no_grad():
        program.conditional.encoder.joined.rest.output.bias[1] += 0.6  # wider than the posterior
    return program


def by_quadrature(program, x):
    """log p(x, y) of each label by 60 nodes, (N, 3): z = loc + scale sqrt(2) t."""
    nodes, weights = np.polynomial.hermite.hermgauss(60)
    t, w = torch.tensor(nodes), torch.tensor(weights)
    parts = program.conditional
    found = []
    with torch.no_grad():
        for label in range(3):
            c = torch.eye(3, dtype=torch.float64)[label]
            prior = parts.prior(c).base_dist
            z = prior.loc + prior.scale * math.sqrt(2) * t[:, None]
            density = parts.decoder(z[:, None], c.expand(60, 1, 3)).log_prob(x)  # (60, N)
            found.append((density + w.log()[:, None]).logsumexp(0) - 0.5 * math.log(math.pi))
    return torch.stack(found, -1) - math.log(3)


def test_a_label_that_lacks_is_summed_out_as_quadrature_has_it():
    """log p(x) without a label and log p(x, y) with one, in one batch; |z| < 5."""
    program = m2()
    exact = by_quadrature(program, X)
    wanted = torch.where(
        LABELS >= 0, exact.gather(1, LABELS.clamp(min=0)[:, None])[:, 0], exact.logsumexp(1)
    )
    torch.manual_seed(0)
    found = pv.log_likelihood(program, (X, LABELS), num_particles=2000)
    assert ((found.log_prob - wanted) / found.noise.clamp(min=1e-6)).abs().max() < 5
    alone = pv.log_likelihood(program, X, num_particles=2000)
    assert ((alone.log_prob - exact.logsumexp(1)) / alone.noise).abs().max() < 5
    assert (pv.elbo(program, (X, LABELS), num_particles=500) < wanted + 0.02).all()


def test_probabilities_of_labels_are_bayes():
    program = m2()
    exact = by_quadrature(program, X)
    torch.manual_seed(1)
    found = pv.classify(program, X, num_particles=2000)
    torch.testing.assert_close(found.probabilities, exact.softmax(1), rtol=0.0, atol=0.05)
    torch.testing.assert_close(found.log_likelihood, exact.logsumexp(1), rtol=0.0, atol=0.1)
    given = pv.classify(program, (X, LABELS), num_particles=5).probabilities
    assert given[0].tolist() == [0.0, 0.0, 1.0] and given[2].tolist() == [1.0, 0.0, 0.0]
    fast = pv.classify(program, (X, LABELS)).probabilities
    torch.testing.assert_close(fast[[1, 3]], program.classifier(X).softmax(1)[[1, 3]].detach())
    assert fast[0].tolist() == [0.0, 0.0, 1.0]
    true = found.predicted
    assert found.accuracy(true) == 1.0
    assert found.predictive(true) == pytest.approx(found.probabilities.amax(1).log().mean().item())
    with pytest.raises(DataError, match="0 to 2"):
        found.accuracy(true + 3)


def test_hmc_runs_over_codes_with_the_label_summed_out():
    """The posterior mean of z against a grid; |z| < 5."""
    program = m2()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None].expand(-1, 4, 1)
    with torch.no_grad():
        joint = torch.stack([_log_joint(program, grid, label) for label in range(3)])
        weight = torch.where(
            LABELS >= 0, joint.gather(0, _place(LABELS, joint))[0], joint.logsumexp(0)
        ).softmax(0)
    mean = (weight * grid[..., 0]).sum(0)
    torch.manual_seed(2)
    drawn = pv.refine(
        program, (X, LABELS), pv.HMC(num_draws=150, warmup=100, chains=6, num_leapfrog=4)
    )
    error = drawn.scale[:, 0] / drawn.ess.reshape(-1).sqrt()
    assert ((drawn.mean[:, 0] - mean) / error).abs().max() < 5


def _log_joint(program, z, label):
    c = torch.eye(3, dtype=torch.float64)[label].expand(*z.shape[:-1], 3)
    parts = program.conditional
    return parts.prior(c).log_prob(z) + parts.decoder(z, c).log_prob(X)


def _place(labels, joint):
    return labels.clamp(min=0).expand(1, *joint.shape[1:])


def test_the_objective_is_the_sum_over_labels_value_and_gradient():
    """Against the formula at the same noise, labelled and not; and against the hand-made loss."""
    program, weight = m2(), 3.0
    objective = pv.SemiSupervised(weight)
    wrapped = pv.Program.of(program)
    (update,) = objective.updates(wrapped)
    with wrapped.running():
        joint = wrapped.joint((X, LABELS))
        torch.manual_seed(3)
        loss = update.loss(joint)
        torch.manual_seed(3)
        noise = torch.randn(3, 4, 1, dtype=torch.float64)
    logits = program.classifier(X).log_softmax(-1)
    total = 0.0
    for n, label in enumerate(LABELS.tolist()):
        q = logits[n].exp() if label < 0 else torch.eye(3, dtype=torch.float64)[label]
        for y in range(3):
            c = torch.eye(3, dtype=torch.float64)[y]
            posterior = program.conditional.encoder(X[n], c)
            z = posterior.base_dist.loc + posterior.base_dist.scale * noise[y, n]
            log_w = program.conditional.prior(c).log_prob(z) - math.log(3)
            log_w = log_w + program.conditional.decoder(z, c).log_prob(X[n])
            log_w = log_w - posterior.log_prob(z)
            if label < 0:
                log_w = log_w - logits[n, y]
            total = total - q[y] * log_w / 4
    total = total - weight * (logits[0, 2] + logits[2, 0]) / 2
    torch.testing.assert_close(loss, total, **EXACT)
    parameters = list(program.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(total, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)
    with pytest.raises(ProgramError, match="no classifier"):
        objective.updates(pv.Program.of(pv.models.VAE(2, 1, (4,))))


def test_a_linear_conditional_vae_is_a_gaussian():
    """p(x | c) = N(B A c, B B' + s² I), by importance sampling from the exact posterior."""
    torch.manual_seed(5)
    program = ConditionalVAE(2, 1, (4,), covariates=3, observation=Gaussian, decoder="latent")
    program.double()
    a, b = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    scale = 0.7

    class Prior(torch.nn.Module):
        def forward(self, c):
            return dist.Normal((c @ a)[..., None], 1.0).to_event(1)

    class Decoder(torch.nn.Module):
        def forward(self, z, c):
            return dist.Normal(z * b, scale).to_event(1)

    class Posterior(torch.nn.Module):
        def forward(self, x, c):
            variance = 1 / (1 + b @ b / scale**2)
            loc = variance * (c @ a + x @ b / scale**2)
            return dist.Normal(loc[..., None], variance.sqrt()).to_event(1)

    program.prior_net, program.decoder, program.encoder = Prior(), Decoder(), Posterior()
    c = torch.randn(4, 3, dtype=torch.float64)
    covariance = torch.outer(b, b) + scale**2 * torch.eye(2, dtype=torch.float64)
    exact = dist.MultivariateNormal((c @ a)[:, None] * b, covariance).log_prob(X)
    torch.testing.assert_close(pv.elbo(program, (X, c)), exact, **EXACT)
    torch.testing.assert_close(
        pv.log_likelihood(program, (X, c), num_particles=3).log_prob, exact, **EXACT
    )


def test_conditions_are_kept_datum_by_datum(tmp_path):
    """Samples, reconstructions and lines follow each row's own label."""
    program = ConditionalVAE(2, 1, (8,), num_classes=3, observation=Gaussian, prior="standard")
    with torch.no_grad():
        program.decoder.net.second.weight.mul_(40)
    c = torch.tensor([0, 1, 2, 1, 0])
    made = pv.generate(program, 5, given={"c": c}, mean=True)
    near = torch.cdist(made, made) + 1e3 * torch.eye(5)
    assert c[near.argmin(1)][[0, 1, 3, 4]].tolist() == [0, 1, 1, 0]
    x = torch.zeros(5, 2)
    alone = torch.cat([pv.reconstruct(program, (x[i : i + 1], c[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(pv.reconstruct(program, (x, c)), alone)
    line = pv.interpolate(program, (x, c), (x, c.flip(0)), steps=2)
    torch.testing.assert_close(line[:, 0], alone)
    torch.testing.assert_close(line[:, 1], alone.flip(0))
    pv.save(program, tmp_path)  # one that has seen no data takes each class in turn
    near = torch.cdist(pv.generate(pv.load(tmp_path), 5, mean=True), made)
    assert c[near.argmin(1)].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("place", [12, 3, -2, 1.5])
def test_a_class_out_of_range_is_named(place):
    labels = torch.tensor([0.0, place, 1.0])
    x = torch.zeros(3, 2)
    with pytest.raises(DataError, match=rf"label: got class {place:g} in row 1.*-1 where"):
        pv.elbo(M2(2, 3, 1, (4,)), (x, labels))
    conditional = ConditionalVAE(2, 1, (4,), num_classes=3)
    with pytest.raises(DataError, match=rf"c: got class {place:g} in row 1.*from 0 to 2$"):
        pv.fit(conditional, {"x": x, "c": labels}, epochs=1)
    with pytest.raises(DataError, match=r"c: got class -1 in row 1"):
        pv.elbo(conditional, (x, torch.tensor([0, -1, 2])))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool, torch.float32])
def test_labels_of_any_type_are_whole_numbers(dtype):
    """And a list of two batches is their rows together, as one of three is."""
    program, conditional = M2(2, 3, 1, (4,)), ConditionalVAE(2, 1, (4,), num_classes=3)
    x, y = torch.rand(4, 2).round(), torch.tensor([1, 0, 1, 1])
    for one in (program, conditional):
        found = []
        for data in ((x, y), (x, y.to(dtype)), [(x[:2], y[:2].to(dtype)), (x[2:], y[2:])]):
            torch.manual_seed(0)
            found.append(pv.elbo(one, data))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        with pytest.raises(DataError, match="got class 3 in row 1"):
            pv.elbo(one, [(x[:2], y[:2] + 3 * torch.arange(2)), (x[2:], y[2:])])
    objective = pv.SemiSupervised(2.0)
    run = pv.fit(program, (x, y.to(dtype)), objective=objective, epochs=1, compile=False)
    assert run.steps == 1
    with pytest.raises(DataError, match="got class 255 in row 0"):
        pv.elbo(program, (x, torch.full((4,), 255, dtype=torch.uint8)))


def test_labels_come_as_a_column_of_a_data_frame():
    """By place, whatever the index; a hole is no class, and names are none."""
    x, y = torch.rand(4, 2).round(), torch.tensor([1, 0, 2, 1])
    column = pd.Series(y.numpy(), index=[7, 5, 3, 1])
    for program in (M2(2, 3, 1, (4,)), ConditionalVAE(2, 1, (4,), num_classes=3)):
        found = []
        for labels in (y, column, column.astype("Int64"), column.astype("category")):
            torch.manual_seed(0)
            found.append(pv.elbo(program, (x, labels)))
        assert all(torch.equal(each, found[0]) for each in found)
        for labels in (column.astype("Int64").mask(column == 0), column.where(column > 0)):
            with pytest.raises(DataError, match="got class nan in row 1"):
                pv.elbo(program, (x, labels))
        numbers = [2, 0, 1, 0]
        for odd in (True, np.timedelta64(1, "s"), np.complex64(1)):
            strange = pd.Series([odd, *numbers[1:]], dtype=object)
            with pytest.raises(DataError, match=r"got (True beside 1|timedelta64|complex64)"):
                pv.elbo(program, (x, strange))
        with pytest.raises(DataError, match="got complex numbers"):
            pv.elbo(program, (x, torch.tensor(numbers) + 0j))
        for names in (column.astype(str) + "st", ["a", "b", "c", "d"]):
            with pytest.raises(DataError, match=r"expected class numbers .*pd\.factorize"):
                pv.elbo(program, (x, names))
    with pytest.raises(DataError, match="c: got NoneType, expected class numbers"):
        pv.elbo(program, (x, None))
    found = pv.classify(M2(2, 3, 1, (4,)), x)
    assert found.predictive(y.to(torch.uint8)) == found.predictive(y)


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize(("hidden", "least"), [(False, 0.0), (False, -torch.inf), (True, 0.0)])
def test_a_label_that_the_guide_draws_is_asked_of_the_model(event, hidden, least):
    """Bayes' rule of a mixture of three, under a guide whose q(y | x) says the contrary, or never.

    Of z the guide is exact, so that each weight is p(x, y): no Monte Carlo error.
    """
    prior, loc = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([-2.0, 0.0, 2.0])
    kind = dist.OneHotCategorical if event else dist.Categorical

    def mean(y):
        return y @ loc if event else loc[y]

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Bernoulli(0.5)) if hidden else 0.0
            y = pyro.sample("y", kind(prior), obs=y)
            z = pyro.sample("z", dist.Normal(mean(y), 1.0))
            pyro.sample("x", dist.Normal(z + 0 * u, 1.0), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            logits = torch.stack([x, 0 * x + least, -x], -1)
            y = pyro.sample("y", kind(logits=logits)) if y is None else y
            pyro.sample("z", dist.Normal((mean(y) + x) / 2, 0.5**0.5))

    x, program = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.5]), pv.Program(model, guide)
    exact = prior.log() + dist.Normal(loc, 2**0.5).log_prob(x[:, None])
    found = pv.classify(program, x, num_particles=7, site="y" if hidden else None)
    torch.testing.assert_close(found.probabilities, exact.softmax(-1))
    torch.testing.assert_close(found.log_likelihood, exact.logsumexp(-1))
    if hidden:
        with pytest.raises(ProgramError, match=r"several discrete latents, u, y; say which"):
            pv.classify(program, x, num_particles=7)
    given = (x, torch.eye(3)[[0, 1, 2, 0, 1]] if event else torch.arange(5) % 3)
    with pytest.raises(ProgramError, match=r"no discrete latent|expected one of u"):
        pv.classify(pv.Program(model, guide), given, num_particles=7, site="y")


def test_a_row_has_one_class_number_or_one_vector_of_covariates():
    """A vector of two numbers would be the covariates of both rows."""
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    for program in (M2(2, 2, 1, (4,)), ConditionalVAE(2, 1, (4,), num_classes=2)):
        for labels in (torch.eye(2), y[:, None]):
            with pytest.raises(DataError, match=r"got labels of shape .*labels\.argmax\(-1\)"):
                pv.elbo(program, (x, labels))
        with pytest.raises(DataError, match=r"got DataFrame, .*one column of the data frame"):
            pv.elbo(program, (x, pd.DataFrame({"y": y.numpy()})))
    program = ConditionalVAE(2, 1, (4,), covariates=2)
    for c in (torch.ones(2), torch.ones(2, 3), None):
        with pytest.raises(DataError, match=r"c: got .*, expected covariates \(N, 2\)"):
            pv.elbo(program, (x, c))


def test_a_condition_that_nothing_depends_on_is_refused():
    with pytest.raises(ConfigError, match="expected one of them"):
        ConditionalVAE(2, 1)
    with pytest.raises(ConfigError, match="nothing depends on the condition"):
        ConditionalVAE(2, 1, num_classes=2, prior="standard", decoder="latent")
    with pytest.raises(ProgramError, match="no discrete latent of few values"):
        pv.classify(pv.models.VAE(2, 1, (4,)), torch.zeros(3, 2), num_particles=3)
    with pytest.raises(ProgramError, match="no discrete latent of few values"):
        pv.classify(pv.models.VAE(2, 1, (4,)), torch.zeros(3, 2))


def test_a_program_without_a_classifier_is_asked_with_a_hundred_draws():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2.0 * y, 1.0), obs=x)

    x = torch.tensor([0.0, 1.0, 3.0])
    program = pv.Program(model, lambda x: None)
    found, asked = pv.classify(program, x), pv.classify(program, x, num_particles=100)
    torch.testing.assert_close(found.probabilities[:, 1], (2 * x - 2).sigmoid())
    torch.testing.assert_close(found.ess, asked.ess)


def test_batches_of_two_sources():
    x = torch.arange(40.0)[:, None]
    loader = pv.data.mixed(
        (x[:7], torch.arange(7)), (x[7:], torch.full((33,), -1)), batch_size=10, share=0.3
    )
    torch.manual_seed(0)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert [int((y >= 0).sum()) for _, y in batches] == [3] * 5
    rest = torch.cat([rows[y < 0, 0] for rows, y in batches])
    assert sorted(rest.tolist()) == list(range(7, 40))  # each once
    first = torch.cat([y[y >= 0] for _, y in batches])
    assert all(int((rows[:, 0] == y).sum()) == 3 for rows, y in batches)
    assert (first.bincount(minlength=7) - 15 / 7).abs().max() < 1  # the others go round
    with pytest.raises(ConfigError, match="expected 1 to 9"):
        pv.data.mixed(x, x, batch_size=10, share=0.01)
    with pytest.raises(DataError, match="as in first"):
        pv.data.mixed(x, x[:, :0], batch_size=10, share=0.5)
    column = pd.Series([3, 4, 5], index=[7, 2, 9])
    rows, y = next(iter(pv.data.mixed((x[3:6], column), (x, 0 * x[:, 0]), batch_size=9, share=0.4)))
    assert torch.equal(rows[:3, 0].sort().values, torch.tensor([3.0, 4, 5]))
    assert torch.equal(rows[:4, 0], y[:4].float())
    xarray = pytest.importorskip("xarray", reason="needs the extra 'frames'")
    array = xarray.DataArray(x[3:6].numpy(), dims=("cell", "gene"))
    rows = next(iter(pv.data.mixed(array, x, batch_size=9, share=0.4)))
    assert torch.equal(rows[:3, 0].sort().values, torch.tensor([3.0, 4, 5]))
    named = xarray.Dataset({"x": array})
    batch = next(iter(pv.data.mixed(named, {"x": x}, batch_size=9, share=0.4)))
    assert list(batch) == ["x"] and batch["x"].shape == (9, 1)
    with pytest.raises(DataError, match=r"got DataFrame, .*program\.reads\(frame\)"):
        pv.data.mixed(pd.DataFrame(x.numpy()), x, batch_size=10, share=0.5)


def test_labels_teach_a_classifier_and_codes_are_drawn_anew():
    """Two clusters of four points each, one labelled point of each cluster; below it a frozen VAE.

    The clusters lie ten standard deviations apart: each accuracy is 1 or the bound has no use.
    """
    torch.manual_seed(6)
    truth = torch.arange(120) % 2
    x = (truth[:, None] * 4.0 - 2) + 0.4 * torch.randn(120, 2)
    label = torch.where(torch.arange(120) < 2, truth, -1)
    program = M2(2, 2, 1, (16,), observation=Gaussian)
    loader = pv.data.mixed((x[:2], label[:2]), (x[2:], label[2:]), batch_size=20, share=0.1)
    run = pv.fit(program, loader, objective=pv.SemiSupervised(10.0), epochs=25, lr=0.02)
    assert run.compiled == "graph"
    assert pv.classify(program, x).accuracy(truth) == 1.0
    below = Resampled(pv.models.VAE(2, 3, (4,), observation=Gaussian))
    drawn, kept = below((x, label))
    assert kept is label and drawn.shape == (120, 3) == below.mean(x).shape
    assert not torch.equal(drawn, below((x, label))[0])
    assert not any(p.requires_grad for p in below.parameters())
    with pytest.raises(ConfigError, match="with an encoder"):
        Resampled(torch.nn.Linear(2, 2))


def test_a_label_that_is_observed_is_no_input_to_generate_for():
    m2 = M2(6, 3, 2, hidden=(4,))
    with pytest.raises(ProgramError, match=r"site 'label', .*m2\.conditional with given="):
        pv.generate(m2, 4, given={"label": torch.zeros(4, dtype=torch.long)})
    assert pv.generate(m2.conditional, 4, given={"c": torch.zeros(4, dtype=torch.long)}).shape == (
        4,
        6,
    )
