"""Passes are bounded by what a program makes of a row, where that is wider than its data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae.program import passes

WORDS, ROWS, BOUND = 400, 300, 160_000  # a word is 8 bytes, and its logits are 1,600


class Words(nn.Module):
    """One word per datum, out of many."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Embedding(WORDS, 2), nn.Linear(2, WORDS)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=self.decode(z)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 0.5).to_event(1))


class Widest(TorchDispatchMode):
    """The bytes of the largest tensor that is made inside."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and not function.is_view:
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return made


SHORT = pv.AIS(2, chains=2, num_leapfrog=1, pilot=2)
VERBS = {
    "elbo": lambda p, x: pv.elbo(p, x, num_particles=4),
    "log_likelihood": lambda p, x: pv.log_likelihood(p, x, num_particles=50).log_prob,
    "ais": lambda p, x: pv.ais(p, x, SHORT).log_prob,
    "encode": pv.encode,
    "reconstruct": lambda p, x: pv.reconstruct(p, x, mean=False),
    "local": lambda p, x: pv.infer(p, x, how="local", settings=pv.Local(2)).mean,
    "posterior draws": lambda p, x: pv.infer(p, x).log_weight(20),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_tensor_is_larger_than_a_pass_may_be(verb, monkeypatch):
    torch.manual_seed(0)
    program, x = Words(), torch.randint(WORDS, (ROWS,))
    monkeypatch.setattr(passes, "BYTES_PER_PASS", BOUND)
    with Widest() as widest:
        found = VERBS[verb](program, x)
    assert widest.bytes <= BOUND
    assert bool(torch.isfinite(torch.as_tensor(found)).all())


def test_a_narrow_program_has_passes_as_before(monkeypatch):
    """Weights are no rows: 600 bytes of data a row make passes of 266."""
    seen = []

    class Watched(pv.models.LinearVAE):
        def model(self, x):
            seen.append(len(x))
            super().model(x)

    program = Watched(150, 2)
    x = torch.rand(2 * 266, 150)
    monkeypatch.setattr(passes, "BYTES_PER_PASS", BOUND)
    pv.elbo(program, x)
    assert seen[-2:] == [266, 266]
