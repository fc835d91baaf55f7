"""What every objective promises: finite updates, and 1/N of what speaks of no datum."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import TABLE
from programs import CASES
from torch import nn

import pyro_vae as pv

every = pytest.mark.parametrize("name", TABLE)
N = 7  # data; a batch has 3 of them
X = torch.linspace(-1.0, 2.0, 3, dtype=torch.float64)
PROGRAMS = {"paths": "vae", "any": "vae", "bits": "sbn", "codes": "vq", "labels": "m2"}
OF_ANY_PROGRAM = [n for n, row in TABLE.items() if row.latents not in ("codes", "labels")]


class Ridge(nn.Module):
    """z -> x per datum, a factor on a parameter, and a global w of which x knows nothing."""

    def __init__(self, bits, weight=0.0, has_global=False):
        super().__init__()
        for name, value in {"mean": 0.4, "slope": 0.6, "shift": 0.3, "centre": -0.8}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        self.bits, self.weight, self.has_global = bits, weight, has_global
        self.drawn = []  # the values of w

    def latent(self, loc):
        return dist.Bernoulli(logits=loc) if self.bits else dist.Normal(loc, 0.8)

    def model(self, x):
        if self.has_global:
            pyro.sample("w", dist.Normal(self.mean, x.new_ones(())))
        if self.weight:
            pyro.factor("ridge", -self.weight * self.slope.square())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.latent((x * 0).unsqueeze(-1)).to_event(1))
            pyro.sample("x", dist.Normal(self.slope * z.squeeze(-1), 1.0), obs=x)

    def guide(self, x):
        if self.has_global:
            w = pyro.sample("w", dist.Normal(self.centre, x.new_full((), 0.7)))
            self.drawn.append(w.item())
        with pyro.plate("data", len(x)):
            loc = (self.shift * x).unsqueeze(-1)
            pyro.sample("z", self.latent(loc).to_event(1))


@functools.cache
def read(name):
    """Return a program that has read its data, once for all objectives."""
    torch.manual_seed(0)
    program = pv.Program.of(CASES[name].build())
    data = program.adapt(CASES[name].data(12))
    program.read(data)
    return program, data


ridge = functools.cache(Ridge)  # read once for all objectives: none of them trains it


def loss_and_gradients(row, source, particles=2, samples=1):
    """Return the last update's loss on 3 of 7 data, and its gradient by the parameter's name."""
    torch.manual_seed(4)
    program = pv.Program.of(source)
    program.read(X)
    with program.running():
        update = row.build(particles, samples).updates(program)[-1]
        joint = program.joint(X, size=N)
        joint.num_plates  # noqa: B018 - it looks once, before the record starts
        source.drawn.clear()
        torch.manual_seed(5)
        loss = update.loss(joint)
    named = dict(source.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, grads, strict=True))


def test_every_public_objective_has_a_row():
    kinds = {type(row.build(2, 1)) for row in TABLE.values()}
    public = [getattr(pv, name) for name in pv.__all__]
    assert kinds == {
        kind for kind in public if isinstance(kind, type) and hasattr(kind, "updates")
    } - {pv.Objective, pv.TermsObjective}


@every
def test_updates_are_finite_and_reach_all_parameters(name):
    program, data = read(PROGRAMS[TABLE[name].latents])
    reached = set()
    with program.running():
        for update in TABLE[name].build(2, 1).updates(program):
            loss = update.loss(program.joint(data))
            assert loss.dim() == 0 and torch.isfinite(loss)
            grads = torch.autograd.grad(loss, update.parameters, allow_unused=True)
            for parameter, grad in zip(update.parameters, grads, strict=True):
                if grad is not None:
                    assert torch.isfinite(grad).all()
                    reached |= {id(parameter)} if bool((grad != 0).any()) else set()
    assert {id(p) for p in program.parameters()} <= reached


@pytest.mark.parametrize("name", OF_ANY_PROGRAM)
def test_a_factor_on_no_datum_bears_one_over_n(name):
    """Value and gradient, with and without it at the same noise: λθ²/N and 2λθ/N."""
    row, weight = TABLE[name], 50.0
    bits = row.latents == "bits"
    loss, grads = loss_and_gradients(row, ridge(bits, weight))
    plain, others = loss_and_gradients(row, ridge(bits))
    assert (loss - plain).item() == pytest.approx(weight * 0.36 / N, rel=1e-9)
    assert (grads["slope"] - others["slope"]).item() == pytest.approx(
        2 * weight * 0.6 / N, rel=1e-9
    )
    torch.testing.assert_close(grads["shift"], others["shift"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", [n for n in OF_ANY_PROGRAM if TABLE[n].has_globals])
def test_the_globals_bear_one_over_n(name, samples):
    """Gradients in the prior's mean and, through w, in the guide's, at the w that was drawn."""
    row = TABLE[name]
    source = ridge(row.latents == "bits", has_global=True)
    _, grads = loss_and_gradients(row, source, samples=samples)
    drawn = set(source.drawn)  # those that cut the draws run the guide once more
    w = sum(drawn) / len(drawn)
    prior = w - source.mean.item()
    assert grads["mean"].item() == pytest.approx(-prior / N, rel=1e-9)
    path = row.sticks * (w - source.centre.item()) / 0.49 - prior
    assert grads["centre"].item() == pytest.approx(-path / N, rel=1e-9)


@every
@pytest.mark.parametrize("beta", [0.5, torch.tensor(0.5)])
def test_takes_a_kl_weight_or_says_why_not(name, beta):
    program, data = read(PROGRAMS[TABLE[name].latents])
    update = TABLE[name].build(2, 1).updates(program)[-1]
    with program.running():
        joint = program.joint(data, beta=beta)
        if name in ("free bits", "target KL"):
            with pytest.raises(pv.errors.ProgramError, match="'z' stands under a KL weight"):
                update.loss(joint)
            return
        assert torch.isfinite(update.loss(joint))
