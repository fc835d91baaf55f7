"""VAEs of data given labels or covariates. Shapes: B batch, Z latent, C condition, * leading dims.

The condition is an input, never a site: a likelihood is that of x given it, and `generate` takes it
by ``given``, datum by datum.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import (
    Bernoulli,
    Categorical,
    Gaussian,
    Observation,
    observation,
    observation_config,
    widen,
)
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.plain_cells import require_plain
from pyro_vae.models.zoo_program import ZooProgram, plain, register
from pyro_vae.nn import MLP, OneHot, Shape, activation_layer, as_shape, sizes


class Joined(nn.Module):
    """A perceptron of two vectors, of which each may lack leading dims that the other has.

    The first layer is a sum of two: what does not depend on the second vector is computed once.

    Arguments:
        one, other: sizes of the vectors.
        out: output event shape.
        hidden: widths of the hidden layers, at least one.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
    """

    def __init__(
        self, one: int, other: int, out: Shape, hidden: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        if not hidden:
            raise ConfigError("hidden: got (), expected at least one width")
        width, *rest = sizes("hidden", hidden)
        joint = nn.Linear(one + other, width)  # starts as one layer of both would
        self.first, self.second = nn.Linear(one, width), nn.Linear(other, width, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(joint.weight[:, :one])
            self.first.bias.copy_(joint.bias)
            self.second.weight.copy_(joint.weight[:, one:])
        self.activation = activation_layer(activation)
        self.rest = MLP(width, out, rest, activation=activation)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Map (*, one) and (*, other) to (*, out)."""
        return self.rest(self.activation(self.first(one) + self.second(other)))


@typed
class ConditionalVAE(ZooProgram):
    r"""A VAE of x given a condition c: a label, or covariates.

    .. math:: z \sim p(z \mid c), \quad x \sim p(x \mid z, c), \quad q(z \mid x, c)

    Batches are pairs (x, c): class numbers 0..K-1 of shape (B), or covariates of shape
    (B | covariates). `generate` without ``given`` takes the conditions of rows that it has seen;
    of a program that has seen none, as one from a file, each class in turn, or covariates of zeros.

    Arguments:
        data_dim: shape of one datum.
        latent_dim: number Z of latent units.
        hidden: widths of the hidden layers of all networks, at least one.
        num_classes: K, where the condition is a label.
        covariates: shape of a condition of real numbers, in its place.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        prior: "conditional" learns p(z | c) by a network; "standard" is N(0, I) whatever c is.
        decoder: "both" decodes z and c; "latent" z alone: all that c says of x then goes through
            the prior.

    Raises:
        ConfigError: both kinds of condition or none; or neither prior nor decoder depends on it.

    References:
        Learning structured output representation using deep conditional generative models (Sohn et
        al., 2015).

    Example:
        >>> import pyro_vae as pv
        >>> vae = ConditionalVAE(784, 20, num_classes=10)
        >>> pv.generate(vae, 3, given={"c": torch.tensor([7, 7, 1])}).shape
        torch.Size([3, 784])
    """

    kind = "conditional_vae"
    example: Any = None  # pairs, by place or by name

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        num_classes: int | None = None,
        covariates: Shape | None = None,
        activation: str = "relu",
        observation: Observation = Bernoulli,
        prior: Literal["conditional", "standard"] = "conditional",
        decoder: Literal["both", "latent"] = "both",
    ) -> None:
        super().__init__(data_dim)
        if (num_classes is None) == (covariates is None):
            raise ConfigError(
                f"num_classes={num_classes!r} and covariates={covariates!r}; expected one of them: "
                "the number of labels, or the shape of a condition of real numbers"
            )
        if prior == "standard" and decoder == "latent":
            raise ConfigError(
                'prior="standard" and decoder="latent": nothing depends on the condition; take '
                'prior="conditional" or decoder="both"'
            )
        self.latent_dim = positive("latent_dim", latent_dim)
        self.num_classes = None if num_classes is None else positive("num_classes", num_classes)
        self.covariates = () if covariates is None else as_shape("covariates", covariates)
        self.config = {
            "data_dim": plain(self.data_shape),
            "latent_dim": self.latent_dim,
            "hidden": list(sizes("hidden", hidden)),
            "num_classes": self.num_classes,
            "covariates": plain(self.covariates) if self.covariates else None,
            "activation": activation,
            "observation": observation_config(observation),
            "prior": prior,
            "decoder": decoder,
        }
        size = self.num_classes or math.prod(self.covariates)
        self.encoder, self.decoder = _networks(
            self.data_shape,
            size,
            latent_dim,
            tuple(hidden),
            activation,
            observation,
            sees=decoder == "both",
        )
        learned = prior == "conditional"
        net = MLP(size, 2 * latent_dim, hidden, activation=activation) if learned else None
        self.prior_net = Gaussian(net) if net is not None else None

    def blank(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n rows of zeros under each class in turn, or under covariates of zeros."""
        x = ZooProgram.example(self, n)
        if self.num_classes is None:
            return x, x.new_zeros(n, *self.covariates)
        return x, torch.arange(n, device=x.device) % self.num_classes

    def reads(self, data: Any) -> Any:
        """Return data, labels as whole numbers.

        Raises:
            DataError: a class out of range, or covariates of another shape.
        """
        if self.num_classes is None:
            return _with(data, "c", self._covariates)
        return with_classes(data, "c", self.num_classes, 0)

    def _covariates(self, c: Any) -> Any:
        """Return covariates as they are; a vector of them would be the condition of all rows."""
        if c is None or (hasattr(c, "shape") and tuple(c.shape[1:]) != self.covariates):
            got = "None" if c is None else f"shape {tuple(c.shape)}"
            raise DataError(
                f"c: got {got}, expected covariates (N, {', '.join(map(str, self.covariates))})"
            )
        return c

    def features(self, c: Tensor) -> Tensor:
        """Return a condition as a vector, (*, C): one-hot where it is a label."""
        if self.num_classes is None:
            return c.flatten(-len(self.covariates)).to(self.origin.dtype)
        return one_hot(c, self.num_classes, self.origin.dtype)

    def prior(self, features: Tensor) -> TorchDistributionMixin:
        """Return p(z | c) of conditions as vectors, event (Z,)."""
        if self.prior_net is not None:
            return self.prior_net(features)
        zero = self.origin.expand(self.latent_dim)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def model(self, x: Tensor, c: Tensor) -> Tensor:
        """Draw z and observe x, shape (B | data), given c."""
        register(self)
        with pyro.plate("data", len(x)):
            features = self.features(c)
            z = pyro.sample("z", self.prior(features))  # (B | Z)
            return pyro.sample("x", self.decoder(z, features), obs=x)  # (B | data)

    def guide(self, x: Tensor, c: Tensor) -> None:
        """Draw z from the encoder's Gaussian."""
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x, self.features(c)))  # (B | Z)


class _Encoder(nn.Module):
    """q(z | x, c): a diagonal Gaussian."""

    def __init__(self, spread: nn.Module, joined: Joined, event_dim: int) -> None:
        super().__init__()
        self.event_dim, self.spread, self.joined = event_dim, spread, joined
        self.gaussian = Gaussian(nn.Identity())

    def forward(self, x: Tensor, features: Tensor) -> TorchDistributionMixin:
        """Return q(z | x, c) of data (*, data) and conditions (*, C), event (Z,)."""
        flat = self.spread(x).flatten(-self.event_dim).to(features.dtype)
        return self.gaussian(self.joined(flat, features))


class _Decoder(nn.Module):
    """p(x | z, c), or p(x | z) where the network sees no condition."""

    def __init__(self, net: nn.Module, of: nn.Module) -> None:
        super().__init__()
        self.net, self.of = net, of

    def forward(self, z: Tensor, features: Tensor) -> TorchDistributionMixin:
        """Return p(x | z, c) of codes (*, Z) and conditions (*, C), event one datum."""
        return self.of(self.net(z, features) if isinstance(self.net, Joined) else self.net(z))


def _networks(
    shape: tuple[int, ...],
    condition: int,
    latent_dim: int,
    hidden: tuple[int, ...],
    activation: str,
    spec: Observation,
    *,
    sees: bool,
) -> tuple[_Encoder, _Decoder]:
    """Return q(z | x, c), and p(x | z, c) or, where the decoder sees no condition, p(x | z)."""
    chosen, options = observation(spec)
    numbers, event_dim = chosen.width(**options), len(shape)
    named = chosen is Categorical  # a class number is a name, not a quantity
    spread = OneHot(options["num_classes"], event_dim) if named else nn.Identity()
    size = (numbers if named else 1) * math.prod(shape)
    joined = Joined(size, condition, 2 * latent_dim, hidden, activation)
    out, back = widen(shape, numbers), hidden[::-1]
    net = (
        Joined(latent_dim, condition, out, back, activation)
        if sees
        else MLP(latent_dim, out, back, activation=activation)
    )
    of = chosen(nn.Identity(), event_dim=event_dim, **options)
    return _Encoder(spread, joined, event_dim), _Decoder(net, of)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Return labels (*) as vectors (*, K); those out of range as zeros."""
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).to(dtype)


def require_classes(name: str, values: Tensor, num_classes: int, least: int) -> None:
    """Refuse labels that are none.

    Raises:
        DataError: one is not whole, below ``least`` or not below K; names its row.
    """
    if values.is_meta or not values.numel():
        return
    values = values if values.is_floating_point() else values.long()
    wrong = (values < least) | (values >= num_classes) | (values != values.floor())
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0]) if values.dim() else 0
        missing = " (-1 where it is not known)" if least < 0 else ""
        raise DataError(
            f"{name}: got class {values[wrong].flatten()[0].item():g} in row {row}, expected whole "
            f"numbers from 0 to {num_classes - 1}{missing}"
        )


def with_classes(data: Any, name: str, num_classes: int, least: int) -> Any:
    """Return a batch, or a list of them, with its labels as whole numbers.

    Arguments:
        data: pairs (x, labels), or dicts.
        name: of the labels.
        num_classes: K.
        least: 0, or -1 where labels may lack.

    Raises:
        DataError: one is out of range, or no number; names its row. Or a row has several.
    """
    return _with(data, name, lambda labels: _whole(name, labels, num_classes, least))


def _with(data: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """Return a batch, or a list of them, with its second argument changed."""
    if isinstance(data, Mapping):
        return {**data, name: change(data[name])} if name in data else data
    if isinstance(data, list) and data and all(map(_is_batch, data)):
        return [_with(each, name, change) for each in data]
    if isinstance(data, tuple | list) and len(data) == 2:
        pair = (data[0], change(data[1]))
        kind: Any = type(data)
        return kind(*pair) if hasattr(data, "_fields") else kind(pair)
    return data


def _whole(name: str, labels: Any, num_classes: int, least: int) -> Any:
    if labels is None and least < 0:
        return None
    try:
        if hasattr(labels, "columns"):  # a data frame
            raise TypeError("pass one column of the data frame, as table['label']")
        if hasattr(labels, "to_numpy"):  # a column of one
            require_plain(name, labels)
            labels = labels.to_numpy(dtype=np.float64, copy=True, na_value=np.nan)
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: got {type(labels).__name__}, expected class numbers from 0 to "
            f"{num_classes - 1} ({error}); names have theirs by pd.factorize(labels)[0]"
        ) from error
    if values.is_complex():
        raise DataError(f"{name}: got complex numbers, expected class numbers")
    if values.dim() > 1:
        raise DataError(
            f"{name}: got labels of shape {tuple(values.shape)}, expected one class number in each "
            "row, (N): take labels.argmax(-1) of one-hot vectors, labels[:, 0] of a column"
        )
    require_classes(name, values, num_classes, least)
    return labels if values.is_meta else values.long()


def _is_batch(each: Any) -> bool:
    parts = each.values() if isinstance(each, Mapping) else each
    batch = isinstance(each, Mapping | tuple | list)
    return batch and any(isinstance(part, Tensor | np.ndarray) for part in parts)
