"""Programs of the shapes that publications have, each with its number from mathematics or Pyro.

Most are one model in other clothes, so that log p(x) is known: z ~ N(0, 1) and x_d ~ N(a_d z, 1)
per datum, which makes x Gaussian with covariance I + a a'. The guide is wider than the posterior,
so that a bound lies below the likelihood.
"""

import argparse
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.cevae import CEVAE
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.mue.models import FactorMuE, ProfileHMM
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_value,
)
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

N = 6
A = torch.tensor([1.0, -0.5])
ENUM = functools.partial(TraceEnum_ELBO, max_plate_nesting=1)
ENUM_2 = functools.partial(TraceEnum_ELBO, max_plate_nesting=2)


@dataclass
class Pair:
    """A program, its data and what is known of it.

    Arguments:
        model, guide: The functions.
        data: A batch of ``rows`` data.
        rows: Their number.
        elbo: The class of Pyro's that scores it.
        log_prob: log p(x) per datum, ``(rows,)``; None where it is not known.
        weighted: The ELBO carries weights or factors, which a likelihood leaves out.
        options: Keywords of ``pv.Program``.
        code: The continuous local latent, if there is one.
        whole: The program takes its rows all at once.
        hidden: It has weights that no statement of Pyro's names.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Any
    rows: int = N
    elbo: Callable[[], Any] = Trace_ELBO
    log_prob: Tensor | None = None
    weighted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = "z"
    whole: bool = False
    hidden: bool = False

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The ``(args, kwargs)`` of stock Pyro."""
        if isinstance(self.data, Mapping):
            return (), dict(self.data)
        if isinstance(self.data, tuple) and not isinstance(self.data, PackedSequence):
            return self.data, {}
        return (self.data,), {}


def rows_of_two(n: int = N) -> Tensor:
    """Return n data of two numbers, no two alike."""
    return torch.stack([torch.linspace(-1.5, 2.0, n), torch.linspace(1.0, -0.3, n).square()], -1)


def marginal(x: Tensor) -> Tensor:
    """Return log p(x) of the one model, ``(n,)``."""
    return dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + A[:, None] * A).log_prob(x)


def wide(x: Tensor) -> dist.Normal:
    """Return the guide: the posterior's mean, 1.3 times its scale."""
    stretch = pyro.param("stretch", torch.tensor(1.3), constraint=constraints.positive)
    precision = 1 + A.square().sum()
    return dist.Normal(x @ A / precision, stretch * precision.rsqrt())


def other_name() -> Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=marginal(x))


def without_size() -> Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=marginal(x))


def second_dimension() -> Pair:
    """The plate of the data at dim -2, that of the columns at -1."""

    def model(x: Tensor) -> None:
        columns = pyro.plate("columns", 2, dim=-1)
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with columns:
                pyro.sample("x", dist.Normal(z * A, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            q = wide(x)
            pyro.sample("z", dist.Normal(q.loc[:, None], q.scale[:, None]))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=marginal(x))


def columns() -> Pair:
    """Two sites that observe a column each."""

    def model(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(batch.new_zeros(()), 1.0))
            pyro.sample("first", dist.Normal(A[0] * z, 1.0), obs=batch[:, 0])
            pyro.sample("second", dist.Normal(A[1] * z, 1.0), obs=batch[:, 1])

    def guide(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            pyro.sample("z", wide(batch))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=marginal(x))


def slices() -> Pair:
    """A site per time step, each a slice of the sequences."""

    def model(sequences: Tensor) -> None:
        with pyro.plate("sequences", len(sequences)):
            z = pyro.sample("z", dist.Normal(sequences.new_zeros(()), 1.0))
            for t in pyro.markov(range(sequences.shape[1])):
                law = dist.Normal(z[..., None] * A[t], 1.0).to_event(1)
                pyro.sample(f"x_{t}", law, obs=sequences[:, t])

    def guide(sequences: Tensor) -> None:
        with pyro.plate("sequences", len(sequences)):
            pyro.sample("z", wide(sequences[..., 0]))

    x = rows_of_two()
    return Pair(model, guide, x[..., None], log_prob=marginal(x))


def cast() -> Pair:
    """Integers that the model turns into floats."""

    def model(counts: Tensor) -> None:
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A, 1.0).to_event(1)
            pyro.sample("x", law, obs=counts.float())

    def guide(counts: Tensor) -> None:
        with pyro.plate("data", len(counts)):
            pyro.sample("z", wide(counts.float()))

    x = (2 * rows_of_two()).long()
    return Pair(model, guide, x, log_prob=marginal(x.float()))


def annealed() -> Pair:
    """A number beside the rows, which weights the latent's terms."""

    def model(x: Tensor, factor: float) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=factor):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, factor: float) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=factor):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    return Pair(model, guide, (x, 0.4), log_prob=marginal(x), weighted=True)


def nothing_and_flags() -> Pair:
    def model(x: Tensor, y: Tensor | None = None, shifted: bool = False) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            mean = z[..., None] * A + (0.5 if shifted else 0.0) + (0 if y is None else y[:, None])
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None, shifted: bool = False) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide(x - 0.5 * shifted))

    x = rows_of_two()
    return Pair(model, guide, {"x": x, "y": None, "shifted": True}, log_prob=marginal(x - 0.5))


def namespace() -> Pair:
    def model(x: Tensor, args: argparse.Namespace) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A + args.shift, 1.0)
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(x: Tensor, args: argparse.Namespace) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide(x - args.shift))

    x = rows_of_two()
    args = argparse.Namespace(shift=0.5)
    return Pair(model, guide, (x, args), log_prob=marginal(x - 0.5))


def packed() -> Pair:
    """A packed copy of the sequences travels beside them, as in a deep Markov model."""

    def model(x: Tensor, reversed_: PackedSequence) -> None:
        with pyro.plate("sequences", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A, 1.0).to_event(1)
            pyro.sample("x", law, obs=x)

    def guide(x: Tensor, reversed_: PackedSequence) -> None:
        with pyro.plate("sequences", len(x)):
            steps, _ = pad_packed_sequence(reversed_, batch_first=True)
            pyro.sample("z", wide(steps[..., 0].flip(1)))

    x = rows_of_two()
    lengths = torch.full((N,), 2)
    bundle = pack_padded_sequence(x.flip(1)[..., None], lengths, batch_first=True)
    return Pair(model, guide, (x, bundle), log_prob=marginal(x))


def held() -> Pair:
    """The program holds its data; what it is called with are row numbers."""
    table = rows_of_two()

    def model(index: Tensor) -> None:
        with pyro.plate("data", len(table), subsample=index):
            z = pyro.sample("z", dist.Normal(table.new_zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A, 1.0).to_event(1)
            pyro.sample("x", law, obs=table[index])

    def guide(index: Tensor) -> None:
        with pyro.plate("data", len(table), subsample=index):
            pyro.sample("z", wide(table[index]))

    return Pair(model, guide, torch.arange(N), log_prob=marginal(table), whole=True)


def time_major() -> Pair:
    """Sequences with the datum in the second dimension."""

    def model(steps: Tensor) -> None:
        with pyro.plate("data", steps.shape[1]):
            z = pyro.sample("z", dist.Normal(steps.new_zeros(()), 1.0))
            for t in range(len(steps)):
                pyro.sample(f"x_{t}", dist.Normal(A[t] * z, 1.0), obs=steps[t])

    def guide(steps: Tensor) -> None:
        with pyro.plate("data", steps.shape[1]):
            pyro.sample("z", wide(steps.T))

    x = rows_of_two()
    return Pair(model, guide, x.T.contiguous(), log_prob=marginal(x), options={"dim": 1})


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


def come_and_go() -> Pair:
    """As many sites as the longest sequence of the batch has steps."""

    def model(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            for t in range(int(lengths.max())):
                law = dist.Normal(A[t] * z, 1.0).mask(t < lengths)
                pyro.sample(f"x_{t}", law, obs=x[:, t])

    def guide(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide(x * (torch.arange(2) < lengths[:, None])))

    x, lengths = rows_of_two(), torch.tensor([2, 1, 1, 1, 2, 1])
    short = dist.Normal(0.0, (1 + A[0] ** 2).sqrt()).log_prob(x[:, 0])
    exact = torch.where(lengths == 2, marginal(x), short)
    return Pair(model, guide, (x, lengths), log_prob=exact)


def odd_places() -> Pair:
    """Parameters in a list, in a dict, in a partial and in a plain object."""

    class Holder:
        def __init__(self) -> None:
            self.parts = {"shift": [nn.Linear(1, 2)]}

    holder = Holder()
    with torch.no_grad():
        for parameter in holder.parts["shift"][0].parameters():
            parameter.zero_()

    def model(gain: nn.Parameter, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            mean = z[..., None] * A * gain + holder.parts["shift"][0](x.new_ones(1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    gain = nn.Parameter(torch.ones(()))
    return Pair(functools.partial(model, gain), guide, x, log_prob=marginal(x), hidden=True)


def _plain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)


def auto_normal() -> Pair:
    """A factor per datum, made by Pyro."""
    x = rows_of_two()
    guide = AutoNormal(
        _plain, init_loc_fn=init_to_value(values={"z": torch.zeros(N)}), init_scale=0.9
    )
    return Pair(_plain, guide, x, log_prob=marginal(x), whole=True)


def auto_plates() -> Pair:
    """A factor per datum whose plate the user makes."""

    def plates(x: Tensor) -> Any:
        return pyro.plate("data", len(x))

    x = rows_of_two()
    guide = AutoNormal(
        _plain,
        init_loc_fn=init_to_value(values={"z": torch.zeros(N)}),
        init_scale=0.9,
        create_plates=plates,
    )
    return Pair(_plain, guide, x, log_prob=marginal(x), whole=True)


def params_of_rows() -> Pair:
    """``pyro.param`` statements with a row per datum."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x @ A / 2)
        scale = pyro.param("scale", lambda: torch.full((len(x),), 0.9), constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    x = rows_of_two()
    return Pair(_plain, guide, x, log_prob=marginal(x), whole=True)


class _Easy(EasyGuide):
    def guide(self, x: Tensor) -> None:
        group = self.group(match="z")
        with self.plate("data", len(x)):
            loc = pyro.param("loc", lambda: (x @ A / 2)[:, None])
            group.sample("zs", dist.Normal(loc, 0.9).to_event(1))


def easy_guide() -> Pair:
    """An ``EasyGuide`` over local latents: one auxiliary site, unpacked into those of the model."""
    x = rows_of_two()
    return Pair(_plain, _Easy(_plain), x, log_prob=marginal(x), whole=True)


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


def weighted() -> Pair:
    """A weight per row on all terms of a datum."""

    def model(x: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=w):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=w):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    data = x, torch.linspace(0.5, 2.0, N)
    return Pair(model, guide, data, log_prob=marginal(x), weighted=True)


def factors() -> Pair:
    """A penalty that the guide adds to the loss."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = wide(x)
            pyro.sample("z", q)
            pyro.factor("penalty", 0.1 * q.loc.square(), has_rsample=False)

    x = rows_of_two()
    return Pair(_plain, guide, x, log_prob=marginal(x), weighted=True)


def factor_of_data() -> Pair:
    """A likelihood of one's own, as a factor in the plate: the model observes nothing."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            squares = (x - z[..., None] * A).square().sum(-1)
            pyro.factor("reconstruction", -0.5 * squares - math.log(2 * math.pi))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide(x))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=marginal(x))


def regression() -> Pair:
    """Globals alone, mean field made by Pyro; two arguments, one observed under another name."""

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal((x * slope).sum(-1), 0.5), obs=y)

    x = rows_of_two()
    return Pair(model, AutoDiagonalNormal(model), (x, x.sum(-1)), code=None)


def maximum_likelihood() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.3), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        pass

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, guide, x, log_prob=dist.Bernoulli(0.3).log_prob(x), code=None)


def maximum_a_posteriori() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        p = pyro.param("p_map", torch.tensor(0.3), constraint=constraints.unit_interval)
        pyro.sample("p", dist.Delta(p))

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, guide, x, log_prob=dist.Bernoulli(0.3).log_prob(x), code=None)


def auto_delta() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, AutoDelta(model), x, code=None)


def joint_density() -> Pair:
    """A regression without a plate: all targets are one event."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        loc = x[:, 0] * w
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[:, 1])

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    return Pair(model, guide, rows_of_two(), rows=1, code=None, whole=True)


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


def nested() -> Pair:
    """A plate of steps inside the plate of data, a latent in both."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 2, dim=-1):
            scale = pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(x / 2, scale))

    x = rows_of_two()
    return Pair(model, guide, x, log_prob=dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1))


def subsampled_guide() -> Pair:
    """The guide draws its own rows of the batch, as in Attend, Infer, Repeat."""

    def model(x: Tensor, batch_size: int) -> None:
        with pyro.plate("data", len(x)) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A, 1.0).to_event(1)
            pyro.sample("x", law, obs=x[index])

    def guide(x: Tensor, batch_size: int) -> None:
        with pyro.plate("data", len(x), subsample_size=batch_size) as index:
            pyro.sample("z", wide(x[index]))

    x = rows_of_two()
    return Pair(model, guide, {"x": x, "batch_size": N}, log_prob=marginal(x))


def flow_guide() -> Pair:
    """A global under a normalising flow of Pyro's."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    guide = AutoNormalizingFlow(model, lambda n: dist.transforms.planar(n))
    return Pair(model, guide, rows_of_two(), code=None)


def words_in_documents() -> Pair:
    """Keyword arguments alone, an unused one among them."""

    def model(*, docs: Tensor, lengths: Tensor, **_: Any) -> None:
        with pyro.plate("documents", len(docs)):
            z = pyro.sample("z", dist.Normal(docs.new_zeros(()), 1.0))
            law = dist.Normal(z[..., None] * A, 1.0).to_event(1)
            pyro.sample("x", law, obs=docs)

    def guide(*, docs: Tensor, lengths: Tensor, **_: Any) -> None:
        with pyro.plate("documents", len(docs)):
            pyro.sample("z", wide(docs))

    x = rows_of_two()
    data = {"docs": x, "lengths": torch.full((N,), 2), "note": "unused"}
    return Pair(model, guide, data, log_prob=marginal(x))


PAIRS: dict[str, Callable[[], Pair]] = {
    "other_name": other_name,
    "without_size": without_size,
    "second_dimension": second_dimension,
    "columns": columns,
    "slices": slices,
    "cast": cast,
    "annealed": annealed,
    "nothing_and_flags": nothing_and_flags,
    "namespace": namespace,
    "packed": packed,
    "held": held,
    "time_major": time_major,
    "labels_given": functools.partial(_semi, labelled=True),
    "labels_missing": functools.partial(_semi, labelled=False),
    "come_and_go": come_and_go,
    "odd_places": odd_places,
    "auto_normal": auto_normal,
    "auto_plates": auto_plates,
    "params_of_rows": params_of_rows,
    "easy_guide": easy_guide,
    "mixture": mixture,
    "hidden_markov": hidden_markov,
    "topics": topics,
    "weighted": weighted,
    "factors": factors,
    "factor_of_data": factor_of_data,
    "regression": regression,
    "maximum_likelihood": maximum_likelihood,
    "maximum_a_posteriori": maximum_a_posteriori,
    "auto_delta": auto_delta,
    "joint_density": joint_density,
    "stick_breaking": stick_breaking,
    "nested": nested,
    "subsampled_guide": subsampled_guide,
    "flow_guide": flow_guide,
    "words_in_documents": words_in_documents,
}


def causal() -> Pair:
    """``pyro.contrib.cevae``: keywords, observed sites in the guide, plates with a subsample."""
    program = CEVAE(feature_dim=3, latent_dim=2, hidden_dim=4, num_layers=2)
    x = torch.cat([rows_of_two(), rows_of_two()[:, :1] ** 2], -1)
    data = {"x": x, "t": (torch.arange(N) % 2).float(), "y": (torch.arange(N) % 3 > 0).float()}
    # Both parts call a network y0_nn: stock Pyro's store holds one of them under the two names.
    return Pair(program.model, program.guide, data, weighted=True, hidden=True)


def _letters() -> Tensor:
    return torch.eye(3)[torch.arange(N * 3).reshape(N, 3) % 5 % 3]


def profile() -> Pair:
    """``pyro.contrib.mue``: globals alone, a hidden Markov model as one distribution."""
    program = ProfileHMM(latent_seq_length=3, alphabet_length=3, indel_prior_bias=2.0)
    return Pair(program.model, program.guide, (_letters(), torch.tensor(1.0)), code=None)


def factor_sequences() -> Pair:
    """``pyro.contrib.mue``: globals, a local latent, two weights that are no rows."""
    program = FactorMuE(
        data_length=3, alphabet_length=3, z_dim=2, latent_seq_length=3, indel_prior_bias=2.0
    )
    data = _letters(), torch.tensor(1.0), torch.tensor(1.0)
    return Pair(program.model, program.guide, data, code="latent")


def latent_inputs() -> Pair:
    """``pyro.contrib.gp``: a GPLVM, which holds its data and has no plate."""
    kernel = gp.kernels.RBF(2, lengthscale=torch.ones(2))
    x = rows_of_two()
    base = gp.models.SparseGPRegression(x, x.t().contiguous(), kernel, x[:3].clone())
    program = gp.models.GPLVM(base)
    return Pair(program.model, program.guide, (), rows=1, code=None, whole=True)


def inducing_points() -> Pair:
    """``pyro.contrib.gp``: a variational sparse Gaussian process."""
    x = rows_of_two()
    program = gp.models.VariationalSparseGP(
        x, x[:, 0].sin(), gp.kernels.RBF(2), x[:3].clone(), likelihood=gp.likelihoods.Gaussian()
    )
    return Pair(program.model, program.guide, (), rows=1, code=None, whole=True)


SHIPPED: dict[str, Callable[[], Pair]] = {
    "causal": causal,
    "profile": profile,
    "factor_sequences": factor_sequences,
    "latent_inputs": latent_inputs,
    "inducing_points": inducing_points,
}
PAIRS |= SHIPPED
