"""VAEs with labels that lack for most rows. Shapes: B batch, Z latent, K classes, * leading."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import integer, shown, typed
from pyro_vae.conditionals import Bernoulli, Observation
from pyro_vae.distributions import GivenLabel
from pyro_vae.errors import ConfigError
from pyro_vae.models.conditional_vae import ConditionalVAE, one_hot, with_classes
from pyro_vae.models.zoo_program import ZooProgram, plain, register
from pyro_vae.nn import MLP, Shape, sizes


@typed
class M2(ZooProgram):
    r"""A VAE of data and their labels, which may lack: a missing one is summed out exactly.

    .. math:: y \sim \mathrm{Cat}(1/K), \quad z \sim p(z \mid y), \quad x \sim p(x \mid z, y)

    Batches are x, or pairs (x, label): class numbers 0..K-1 of shape (B), -1 where the label is not
    known. The guide draws z alone, from the encoder at the given label, or at the classifier's
    probabilities where none is given; every verb sums over y. Train it with `pv.SemiSupervised`,
    whose bound teaches the classifier q(y | x) of unlabelled data too, and ask it by `pv.classify`.
    Site `y` is the label, `label` what is given of it.

    Arguments:
        data_dim: shape of one datum.
        num_classes: K, at least 2.
        latent_dim: number Z of latent units.
        hidden: widths of the hidden layers of all networks, at least one.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        prior: "standard" is N(0, I); "conditional" learns p(z | y).
        dropout: of the classifier, a probability in [0, 1).

    Raises:
        ConfigError: an argument out of its range.

    References:
        Semi-supervised learning with deep generative models (Kingma et al., 2014), arXiv:1406.5298.

    Example:
        >>> import pyro_vae as pv
        >>> m2 = M2(784, 10)
        >>> pv.generate(m2.conditional, 3, given={"c": torch.tensor([7, 7, 1])}).shape
        torch.Size([3, 784])
    """

    kind = "m2"
    example: Any = None  # labels may be given or not

    def __init__(
        self,
        data_dim: Shape,
        num_classes: int,
        latent_dim: int = 50,
        hidden: Sequence[int] = (500,),
        *,
        activation: str = "softplus",
        observation: Observation = Bernoulli,
        prior: Literal["conditional", "standard"] = "standard",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(data_dim)
        self.num_classes = integer("num_classes", num_classes, 2)
        self.conditional = ConditionalVAE(
            data_dim,
            latent_dim,
            hidden,
            num_classes=num_classes,
            activation=activation,
            observation=observation,
            prior=prior,
        )
        self.latent_dim = self.conditional.latent_dim
        spread = self.conditional.encoder.spread
        size = self.conditional.encoder.joined.first.in_features
        net = MLP(size, num_classes, hidden, activation=activation, dropout=dropout)
        self.classifier = nn.Sequential(spread, nn.Flatten(1), net)
        given = self.conditional.config or {}
        self.config = {
            "data_dim": plain(self.data_shape),
            "num_classes": self.num_classes,
            "latent_dim": self.latent_dim,
            "hidden": list(sizes("hidden", hidden)),
            "activation": activation,
            "observation": given["observation"],
            "prior": prior,
            "dropout": dropout,
        }

    def blank(self, n: int) -> Tensor:
        """Return n rows of zeros, without labels."""
        return ZooProgram.example(self, n)

    def reads(self, data: Any) -> Any:
        """Return data, labels as whole numbers; raises `DataError` for a class out of range."""
        return with_classes(data, "label", self.num_classes, -1)

    def log_prior(self) -> Tensor:
        """Return log p(y) of each label, (K,)."""
        return self.origin.new_zeros(self.num_classes).log_softmax(-1)

    def label_logits(self, x: Tensor) -> Tensor:
        """Return what the classifier says of data: log q(y | x) up to a constant, (B, K)."""
        return self.classifier(x)

    def given_logits(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """Return logits of q(y | x), (*, K), with all mass on a label where one is given."""
        if label is None:
            return logits
        sure = 1e30 * (one_hot(label, self.num_classes, logits.dtype) - 1)
        return torch.where((label >= 0).unsqueeze(-1), sure, logits)

    def model(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Draw y and z, and observe x, shape (B | data), and labels, shape (B)."""
        register(self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.log_prior()))  # (B), or (K, 1.., B)
            if label is not None:
                pyro.sample("label", GivenLabel(y, self.num_classes), obs=label)
            features = self.conditional.features(y)
            z = pyro.sample("z", self.conditional.prior(features))  # (B | Z)
            return pyro.sample("x", self.conditional.decoder(z, features), obs=x)  # (B | data)

    def guide(self, x: Tensor, label: Tensor | None = None) -> None:
        """Draw z from the encoder at a label, or at the probabilities of all."""
        register(self)
        with pyro.plate("data", len(x)):
            logits = self.given_logits(self.label_logits(x), label)
            pyro.sample("z", self.conditional.encoder(x, logits.softmax(-1)))  # (B | Z)


@typed
class Resampled(nn.Module):
    r"""Draws of a trained encoder in the place of data: M1 below an M2, resampled at each batch.

    Give it to ``pv.fit(m2, data, transform=Resampled(vae))``: an M2 over the codes of a VAE (M1)
    whose weights stand still. Judge and classify at ``.mean(x)``.

    Arguments:
        program: a trained program with `encoder`: data (*, data) -> distribution of z, event (Z,).

    Raises:
        ConfigError: the program has no encoder.

    References:
        Semi-supervised learning with deep generative models (Kingma et al., 2014), arXiv:1406.5298.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        encoder = getattr(program, "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise ConfigError(
                f"program: got {type(program).__name__}, expected one with an encoder, as VAE"
            )
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def forward(self, batch: Any) -> Any:
        """Return a batch x, or (x, label), with draws of q(z | x) in the place of x."""
        if isinstance(batch, tuple | list):
            return (self(batch[0]), *batch[1:])
        if isinstance(batch, dict):
            return {**batch, "x": self(batch["x"])}
        return self.encoder(batch).sample()

    @typed
    @torch.no_grad()
    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x), (N, Z).

        Raises:
            ConfigError: x has no rows.
        """
        if not x.dim():
            raise ConfigError(f"x: got {shown(x)}, expected one row per datum")
        return torch.cat([self.encoder(part).mean for part in x.split(1024)])
