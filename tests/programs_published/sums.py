"""Discrete latents that are summed out."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints

from programs_published.pair import ENUM, ENUM_2, A, N, Pair, marginal, rows_of_two, wide


class Semi(nn.Module):
    """A label of two classes that a batch has or has not."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 1)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("semi", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_full((len(x), 2), 0.5)), obs=y)
            mean = z[..., None] * A + 2 * y
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if y is None:
                logits = self.encode(x)
                law = dist.OneHotCategorical(logits=torch.cat([logits, -logits], -1))
                y = pyro.sample("y", law)
            pyro.sample("z", wide(x - 2 * y))


def _semi(labelled: bool) -> Pair:
    program = Semi()
    guide = config_enumerate(program.guide, "parallel", expand=True)
    x, y = rows_of_two(), torch.eye(2)[torch.arange(N) % 2]
    each = torch.stack([marginal(x - 2 * torch.eye(2)[k]) for k in (0, 1)])
    exact = each.logsumexp(0) - torch.tensor(2.0).log()
    if labelled:
        exact = marginal(x - 2 * y) - torch.tensor(2.0).log()
    return Pair(program.model, guide, (x, y) if labelled else x, elbo=ENUM, log_prob=exact)


def mixture() -> Pair:
    """A Gaussian mixture: assignments summed out, weights and means by their mode."""

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        weights = pyro.param("w", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        pyro.sample("weights", dist.Delta(weights, event_dim=1))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Delta(pyro.param("l", torch.tensor([-1.0, 2.0]))))

    x = rows_of_two()[:, 0]
    each = dist.Normal(torch.tensor([-1.0, 2.0]), 1.0).log_prob(x[:, None])
    exact = (each + torch.tensor([0.3, 0.7]).log()).logsumexp(-1)
    return Pair(model, guide, x, elbo=ENUM, log_prob=exact, code=None)


STEP = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
TONES = torch.tensor([[0.9, 0.2], [0.1, 0.6]])


def forward(y: Tensor) -> Tensor:
    """Return log p(y) by the forward recursion; the chain starts from the first row of STEP."""
    belief = torch.tensor([1.0, 0.0])
    total = torch.zeros(())
    for tones in y:
        belief = belief @ STEP
        belief = belief * torch.where(tones.bool(), TONES, 1 - TONES).prod(-1)
        total = total + belief.sum().log()
        belief = belief / belief.sum()
    return total


def hidden_markov() -> Pair:
    """A hidden Markov model, plates at -1 and -2, states summed out."""

    def model(sequences: Tensor, lengths: Tensor) -> None:
        sound = pyro.param("sound", TONES.clone(), constraint=constraints.unit_interval)
        tones = pyro.plate("tones", 2, dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2):
            state: Any = 0
            for t in pyro.markov(range(sequences.shape[1])):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(
                        f"s_{t}", dist.Categorical(STEP[state]), infer={"enumerate": "parallel"}
                    )
                    with tones:
                        law = dist.Bernoulli(sound[state.squeeze(-1)])
                        pyro.sample(f"y_{t}", law, obs=sequences[:, t])

    def guide(sequences: Tensor, lengths: Tensor) -> None:
        pass

    y = (torch.arange(N * 3 * 2).reshape(N, 3, 2) % 5 < 2).float()
    lengths = torch.tensor([3, 2, 3, 1, 2, 3])
    exact = torch.stack([forward(y[n, : lengths[n]]) for n in range(N)])
    return Pair(model, guide, (y, lengths), elbo=ENUM_2, log_prob=exact, code=None)


def topics() -> Pair:
    """Documents in the second dimension, words in a plate inside, topics summed out."""
    vocabulary = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])

    def model(words: Tensor) -> None:
        with pyro.plate("documents", words.shape[1], dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", len(words), dim=-2):
                k = pyro.sample("k", dist.Categorical(theta), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(vocabulary[k]), obs=words)

    def guide(words: Tensor) -> None:
        with pyro.plate("documents", words.shape[1], dim=-1):
            more = pyro.param("more", torch.tensor(1.5), constraint=constraints.positive)
            share = more + vocabulary[:, words].mean(1)
            pyro.sample("theta", dist.Dirichlet(share.T))

    words = torch.arange(4 * N).reshape(4, N) % 7 % 3
    grid = (torch.arange(4000) + 0.5) / 4000
    theta = torch.stack([grid, 1 - grid], -1) @ vocabulary  # (4000, 3)
    exact = theta.log()[:, words].sum(1).logsumexp(0) - torch.tensor(4000.0).log()
    return Pair(model, guide, words, elbo=ENUM_2, log_prob=exact, options={"dim": 1}, code="theta")


def stick_breaking() -> Pair:
    """A truncated Dirichlet process: globals in plates, a categorical factor per datum."""

    def weights(sticks: Tensor) -> Tensor:
        left = (1 - sticks).cumprod(-1)
        return nn.functional.pad(sticks, (0, 1), value=1) * nn.functional.pad(left, (1, 0), value=1)

    def model(x: Tensor) -> None:
        with pyro.plate("sticks", 2):
            sticks = pyro.sample("b", dist.Beta(1.0, 1.0))
        with pyro.plate("atoms", 3):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights(sticks)))
            pyro.sample("x", dist.Normal(mu[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        kappa = pyro.param("kappa", torch.ones(2), constraint=constraints.positive)
        tau = pyro.param("tau", torch.tensor([-1.0, 0.5, 2.0]))
        phi = pyro.param(
            "phi",
            lambda: (1 + torch.arange(3.0 * len(x)).reshape(-1, 3) % 4) / 10,
            constraints.simplex,
        )
        with pyro.plate("sticks", 2):
            pyro.sample("b", dist.Beta(torch.ones(2), kappa))
        with pyro.plate("atoms", 3):
            pyro.sample("mu", dist.Normal(tau, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(phi))

    return Pair(model, guide, rows_of_two()[:, 0], code=None, whole=True)


PAIRS: dict[str, Callable[[], Pair]] = {
    "labels_given": functools.partial(_semi, labelled=True),
    "labels_missing": functools.partial(_semi, labelled=False),
    "mixture": mixture,
    "hidden_markov": hidden_markov,
    "topics": topics,
    "stick_breaking": stick_breaking,
}
