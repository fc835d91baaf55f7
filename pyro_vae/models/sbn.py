"""Sigmoid belief networks: binary latents, in layers. Shapes: B batch, Z_l units of layer l."""

import itertools
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import typed
from pyro_vae.conditionals import Bernoulli
from pyro_vae.conditionals.autoregressive import Autoregressive
from pyro_vae.distributions import AutoregressiveBits, BernoulliArray
from pyro_vae.errors import ConfigError
from pyro_vae.models.networks import checked_mean
from pyro_vae.models.zoo_program import ZooProgram, plain, register
from pyro_vae.nn import MLP, Shape, sizes

KINDS = ("factorised", "autoregressive")


@typed
class SBN(ZooProgram):
    r"""A sigmoid belief network, its guide the same in the other direction.

    .. math:: z_L \sim \mathrm{Bernoulli}(\sigma(a)), \quad
        z_l \sim \mathrm{Bernoulli}(\sigma(f_l(z_{l+1}))), \quad
        x \sim \mathrm{Bernoulli}(\sigma(f_0(z_1)))

    and :math:`q(z \mid x) = q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots`. Its latents have no
    reparametrised sampler: train it with ``pv.VIMCO``, ``pv.DisARM``, ``pv.RLOO``, ``pv.NVIL`` or
    ``pv.ReweightedWakeSleep``. Networks read bits as -1 and 1, data less their mean.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dims: units of each stochastic layer, from the one next to the data upwards; they are
            the sites ``z1``, ``z2``, ...
        hidden: widths of the deterministic layers inside each conditional, of the model and of the
            guide; () is the linear network of the literature.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        guide: "factorised", or "autoregressive": each unit also sees those before it in its layer.
        prior: of the top layer, the same choice. Its parameters are learnt.
        data_mean: training mean, shape of one datum; starts the output there, and is taken from
            what the guide sees.

    Raises:
        ConfigError: for an argument out of range.

    References:
        Connectionist learning of belief networks (Neal, 1992); Neural variational inference and
        learning in belief networks (Mnih and Gregor, 2014), arXiv:1402.0030.

    Example:
        >>> sbn = SBN(784, (200, 100))
        >>> sbn.decoder(torch.ones(5, 200)).event_shape
        torch.Size([784])
    """

    kind = "sbn"
    config: dict[str, Any]
    centre: Tensor

    def __init__(
        self,
        data_dim: Shape,
        latent_dims: Sequence[int] = (200,),
        *,
        hidden: Sequence[int] = (),
        activation: str = "leaky_relu",
        guide: str = "factorised",
        prior: str = "factorised",
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(data_dim)
        self.latent_dims = sizes("latent_dims", latent_dims)
        widths = sizes("hidden", hidden)
        if not self.latent_dims:
            raise ConfigError(f"latent_dims={latent_dims!r} is empty; expected as (200,)")
        for name, value in (("guide", guide), ("prior", prior)):
            if value not in KINDS:
                raise ConfigError(f"{name}={value!r}; expected one of {', '.join(KINDS)}")
        self.config = {
            "data_dim": plain(self.data_shape),
            "latent_dims": list(self.latent_dims),
            "hidden": list(widths),
            "activation": activation,
            "guide": guide,
            "prior": prior,
        }
        down = [*self.latent_dims]
        self.layers = nn.ModuleList(
            Bernoulli(MLP(above, below, widths[::-1], activation=activation))
            for below, above in itertools.pairwise(down)
        )
        output = MLP(down[0], self.data_shape, widths[::-1], activation=activation)
        self.decoder = Bernoulli(output, event_dim=len(self.data_shape))
        seen: list[Shape] = [self.data_shape, *down]
        self.encoders = nn.ModuleList(
            _bits(MLP(below, above, widths, activation=activation), above, guide)
            for below, above in zip(seen, down, strict=False)
        )
        self.prior_logits = nn.Parameter(torch.zeros(down[-1]))
        if prior == "autoregressive":
            self.prior_weight = nn.Parameter(torch.zeros(down[-1], down[-1]))
        self.register_buffer("centre", torch.full(self.data_shape, 0.5))
        if data_mean is not None:
            self._start_at(data_mean, output)

    @torch.no_grad()
    def _start_at(self, data_mean: Tensor, output: MLP) -> None:
        checked_mean(data_mean, self.data_shape)
        self.centre.copy_(data_mean)
        output.set_output_bias(Bernoulli.output_bias(data_mean))

    def prior(self) -> TorchDistributionMixin:
        """Return p(z_L), event (Z_L,)."""
        if self.config["prior"] == "autoregressive":
            return AutoregressiveBits(self.prior_logits, self.prior_weight)
        return BernoulliArray(dist.Bernoulli(logits=self.prior_logits), 1)

    def model(self, x: Tensor) -> Tensor:
        """Draw the layers from the top down and observe x, shape (B | data)."""
        register(self)
        with pyro.plate("data", len(x)):
            top = len(self.latent_dims)
            z = pyro.sample(f"z{top}", self.prior())
            for level in range(top - 1, 0, -1):
                z = pyro.sample(f"z{level}", self.layers[level - 1](2 * z - 1))  # (B | Z_l)
            return pyro.sample("x", self.decoder(2 * z - 1), obs=x)  # (B | data)

    def guide(self, x: Tensor) -> None:
        """Draw the layers from the bottom up."""
        register(self)
        with pyro.plate("data", len(x)):
            h = x - self.centre
            for level, encoder in enumerate(self.encoders, 1):
                h = 2 * pyro.sample(f"z{level}", encoder(h)) - 1  # (B | Z_l)


def _bits(net: nn.Module, size: int, kind: str) -> nn.Module:
    return Bernoulli(net) if kind == "factorised" else Autoregressive(net, size)
