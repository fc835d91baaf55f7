"""Data, plates and weights of the shapes that publications have."""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from programs_published.pair import A, N, Pair, marginal, plain, rows_of_two, wide


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
    return Pair(plain, guide, x, log_prob=marginal(x), weighted=True)


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
    "come_and_go": come_and_go,
    "odd_places": odd_places,
    "weighted": weighted,
    "factors": factors,
    "factor_of_data": factor_of_data,
    "nested": nested,
    "subsampled_guide": subsampled_guide,
    "words_in_documents": words_in_documents,
}
