"""Models that take one value at a time of the latents summed out: sums written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.log_joint import LogJoint

torch.manual_seed(31)
X = torch.randn(7, dtype=torch.float64) * 1.5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Flat(nn.Module):
    """Two labels and a latent behind them, by a network of matrices alone: no further dimension."""

    def __init__(self, guided=False):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.7, 1.1], dtype=torch.float64))
        self.guided = guided  # whether the guide draws the labels

    def model(self, x):
        with pyro.plate("data", len(x)):
            share = x.new_tensor([0.2, 0.3, 0.5])
            y = pyro.sample("y", dist.OneHotCategorical(share))
            on = pyro.sample("on", dist.Bernoulli(0.2 + 0.5 * y[..., 0]))
            z = pyro.sample("z", dist.Normal(0.3 * on, 1.0))
            inputs = torch.cat([y, on.reshape(-1, 1), z.reshape(-1, 1)], 1)
            loc = torch.mm(inputs, self.weight[:, None]).reshape(len(x))
            pyro.sample("x", dist.Normal(loc, 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.guided:
                pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3))
                pyro.sample("on", dist.Bernoulli(0.4 + 0 * x))
            pyro.sample("z", dist.Normal(0.2 * x, 0.9))

    def parts(self, x):
        """Return log p(y, on) and the moments of x given them, z summed out, ``(3, 2, 1)``."""
        share = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        on = 0.2 + torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
        log_p = torch.stack([(share * (1 - on)).log(), (share * on).log()], 1)
        flag = torch.tensor([0.0, 1.0], dtype=torch.float64)
        loc = self.weight[:3, None] + self.weight[3] * flag + self.weight[4] * 0.3 * flag
        return log_p[..., None], loc[..., None], flag[:, None]

    def given_z(self, x, z):
        """Return log p(y, on, z, x), ``(3, 2, *z)``."""
        log_p, loc, flag = self.parts(x)
        prior = dist.Normal(0.3 * flag, 1.0).log_prob(z[..., None, :]).movedim(-2, 0)
        extra = (...,) + (None,) * (z.dim() - 1)
        mean = loc[extra] + self.weight[4] * (z - 0.3 * flag[extra])
        return log_p[extra] + prior + dist.Normal(mean, 0.8).log_prob(x)

    def exact(self, x):
        log_p, loc, _ = self.parts(x)
        scale = (self.weight[4] ** 2 + 0.8**2) ** 0.5
        return (log_p + dist.Normal(loc, scale).log_prob(x)).detach()


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_model_that_takes_one_value_at_a_time_is_summed_value_by_value(num_particles):
    """Values and gradients by the sum over both labels, written by hand."""
    case = Flat()
    terms = pv.Program.of(case).terms(X, 1, num_particles)
    assert list(terms.log_p) == ["z", "x (y, on summed out)"]
    z = terms.latents["z"][0].value.reshape(num_particles, 7)
    exact = case.given_z(X, z).flatten(0, 1).logsumexp(0)
    torch.testing.assert_close(sum(terms.log_p.values())[0], exact, **EXACT)
    got = torch.autograd.grad(sum(terms.log_p.values()).sum(), [case.weight])
    torch.testing.assert_close(got, torch.autograd.grad(exact.sum(), [case.weight]), **EXACT)


def test_labels_that_the_guide_draws_are_summed_one_by_one_where_a_verb_sums():
    """The density that all such verbs move on, at two chains; and one verb of them to its end."""
    case = Flat(guided=True)
    density = LogJoint(pv.Program.of(case), X)
    z = torch.randn(2, 7, dtype=torch.float64)
    exact = case.given_z(X, z).flatten(0, 1).logsumexp(0)
    torch.testing.assert_close(density.log_joint(z[..., None]), exact, **EXACT)
    torch.manual_seed(11)
    chains = pv.ais(case, X, pv.AIS(6, 32, num_leapfrog=1, pilot=10, start="prior"))
    error = (1 / chains.ess - 1 / 32).clamp(min=1e-6).sqrt()
    exact = case.exact(X).flatten(0, 1).logsumexp(0)
    assert ((chains.log_prob - exact) / error).abs().max() < 5.0


def test_what_is_summed_value_by_value_is_drawn_from_its_posterior():
    """Relative frequencies of both labels together against Bayes' rule (|z| < 5)."""
    case, n = Flat(), 4000
    x = X[:1].expand(n).clone()
    torch.manual_seed(12)
    joint = pv.Program.of(case).joint(x)
    with torch.no_grad():
        complete = joint.with_discrete(joint.guide_trace(1))
    y, on, z = (complete.nodes[name]["value"] for name in ("y", "on", "z"))
    p = case.given_z(x, z).flatten(0, 1).softmax(0).detach()  # of each draw, (6, n)
    seen = nn.functional.one_hot((2 * y.argmax(-1) + on).long(), 6).T
    z_score = (seen - p).sum(1) / (p * (1 - p)).sum(1).sqrt()
    assert z_score.abs().max() < 5.0
    assert pv.reconstruct(case, X, mean=False).shape == X.shape
    assert pv.encode(case, X)["y"].shape == (7, 3)


def test_a_sum_of_too_many_values_one_by_one_is_told_so():
    def model(x):
        with pyro.plate("data", len(x)):
            c = [pyro.sample(f"c{i}", dist.Bernoulli(x.new_tensor(0.4))) for i in range(8)]
            loc = torch.cat([each.reshape(-1, 1) for each in c], 1).sum(1).reshape(len(x))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"site 'c0', .*does not run at all of its values.*128"):
        pv.elbo(pv.Program(model, lambda x: None), X)


@pytest.mark.parametrize("after", [False, True])
def test_a_site_after_an_inner_plate_is_refused_and_one_before_it_is_summed(after):
    """A class with three words below it, and a measurement of the class before or after these.

    That a site after them does not follow the words shows at some values, and proves nothing.
    """
    p, rows = X.new_tensor([0.3, 0.7]), X.new_tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    means = X.new_tensor([-1.0, 0.5, 2.0])
    centres = X.new_tensor([0.4, -1.3]).requires_grad_()
    words, v = X[:6].reshape(2, 3), X[5:, None]

    def model(words, v):
        with pyro.plate("data", len(words), dim=-2):
            kind = pyro.sample("kind", dist.Categorical(p)).expand(len(words), 1).reshape(-1, 1)
            if not after:
                pyro.sample("v", dist.Normal(centres[kind], 1.0), obs=v)
            with pyro.plate("words", 3, dim=-1):
                word = pyro.sample("word", dist.Categorical(rows[kind]))
                word = word.expand(len(words), 3).reshape(-1, 3)
                pyro.sample("x", dist.Normal(means[word], 1.0), obs=words)
            if after:
                pyro.sample("v", dist.Normal(centres[kind], 1.0), obs=v)

    each = dist.Normal(means, 1.0).log_prob(words[..., None])  # (B, words, values)
    of_words = (rows.log()[:, None, None] + each).logsumexp(-1).sum(-1)  # (kinds, B)
    exact = p.log()[:, None] + of_words + dist.Normal(centres[:, None], 1.0).log_prob(v[:, 0])
    exact = exact.logsumexp(0)
    program = pv.Program(model, lambda words, v: None)
    if after:
        with pytest.raises(ProgramError, match="hence summed out"):
            pv.elbo(program, (words, v))
        return
    torch.testing.assert_close(pv.elbo(program, (words, v)), exact.detach(), **EXACT)
    found = sum(program.terms((words, v)).log_p.values()).sum()
    got, wanted = (torch.autograd.grad(total, centres)[0] for total in (found, exact.sum()))
    torch.testing.assert_close(got, wanted, **EXACT)


def test_a_small_event_left_out_of_the_guide_is_told_as_what_it_is():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_full((2,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"'y'.* an event of 2 numbers of Bernoulli"):
        pv.elbo(pv.Program(model, lambda x: None), X)
