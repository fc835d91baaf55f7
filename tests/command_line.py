"""Programs as a user writes them into a file, and command lines that take them."""

from pyro_vae import cli

PROGRAM = """
import pyro, pyro.distributions as dist, torch

class Clicks(torch.nn.Module):
    def __init__(self, latent_dim=2):
        super().__init__()
        self.rate, self.code = torch.nn.Linear(latent_dim, 5), torch.nn.Linear(5, 2 * latent_dim)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.rate.in_features), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(self.rate(z).exp()).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.code(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

class Minibatch(Clicks):
    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Poisson(x[rows] + 1.0).to_event(1), obs=x[rows])

    def guide(self, x):
        pass

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vectors, self.code = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4)
        self.out = torch.nn.Linear(2, 4)

    def model(self, words, lengths, kept):
        with pyro.plate("data", len(words)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            inside = (torch.arange(5) < lengths[..., None]) & kept
            each = dist.Categorical(logits=self.out(z).unsqueeze(-2).expand(*z.shape[:-1], 5, 4))
            pyro.sample("w", each.mask(inside).to_event(1), obs=words)

    def guide(self, words, lengths, kept):
        with pyro.plate("data", len(words)):
            loc, log_scale = self.code(self.vectors(words).mean(-2)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

made = Clicks(3)
model, guide = made.model, made.guide
half = torch.nn.Linear(2, 2)

def broken():
    return half
"""


GLOBALS = """
from __future__ import annotations
from dataclasses import dataclass
import pyro, pyro.distributions as dist, pyro_vae as pv, torch

@dataclass
class Prior:
    scale: float = 1.0

def model(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(5), Prior().scale).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson((w + b).exp()).to_event(1), obs=x)

def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(5)), 0.1).to_event(1))
    pyro.sample("b", dist.Normal(torch.zeros(()), 0.1))

whole = pv.Program(model, guide)

def pair():
    return pv.Program(model, guide)

def rowwise(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate[:, None].expand(x.shape)).to_event(1), obs=x)

def by_rows():
    return pv.Program(rowwise, pyro.infer.autoguide.AutoNormal(rowwise))
"""


FEW = ["--epochs", "1", "--checkpoint_every", "null"]


def run(line, *more):
    quiet = line.split()[0] in ("train", "evaluate", "refine", "compare")
    return cli.main([*line.split(), *more, *(["--progress", "false"] if quiet else [])])


def told(capsys):
    return capsys.readouterr().err
