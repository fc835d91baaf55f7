"""Deep exponential families. Shapes: B batch, D data, K_l units of layer l, * sample dims."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import integer, number, positive, typed
from pyro_vae.conditionals import bounded
from pyro_vae.errors import ConfigError
from pyro_vae.models.networks import checked_mean
from pyro_vae.models.zoo_program import ZooProgram, register
from pyro_vae.nn import MLP, sizes

_FLOOR = 1e-6  # of a mean that is a sum of products: all of them may underflow
_CHOICES = {
    "family": ("gamma", "poisson", "gaussian"),
    "observation": ("poisson", "bernoulli"),
    "weights": ("bayesian", "point"),
    "posterior": ("gamma", "lognormal"),
}


@typed
class DEF(ZooProgram):
    r"""A deep exponential family: layers of gamma, Poisson or Gaussian units, global weights.

    .. math:: w_l \sim p(w), \quad z_L \sim p(z), \quad
        z_l \sim \mathrm{ExpFam}(\text{mean}\ w_l^\top z_{l+1}), \quad
        x \sim \mathrm{Poisson}(w_0^\top z_1)

    ========== =================================================== ============ ================
    family     layers                                              weights      mean of x
    ========== =================================================== ============ ================
    gamma      Gamma(shape a, mean :math:`w^\top z`); top mean 1   Gamma(.1,.3) :math:`w_0^\top z_1`
    poisson    Poisson(:math:`w^\top z`); top Poisson(1)           Gamma(.1,.3) :math:`w_0^\top z_1`
    gaussian   N(:math:`w^\top z`, 1); top N(0, 1)                 N(0, 1)      softplus of it
    ========== =================================================== ============ ================

    Bernoulli data are 1 with probability :math:`1 - e^{-m}`, m the mean above. The posterior is
    factorised over weights and units; Poisson units have no pathwise gradient (use ``pv.RLOO``).
    A minibatch stands for all N data: ``pv.fit`` weighs it by N/B against the weights.

    Arguments:
        data_dim: number D of data dimensions.
        latent_dims: units of each layer, from the one next to the data upwards: sites ``z1``, ...
        family: "gamma" (sparse), "poisson" or "gaussian".
        observation: "poisson" for counts, "bernoulli" for bits.
        weights: "bayesian": sites ``w0``, ``w1``, ... outside the plate, with a posterior of their
            own; "point": parameters, estimated by maximum likelihood.
        posterior: of gamma units and weights: "gamma" or "lognormal".
        shape: a, the shape of gamma units.
        hidden: widths of the encoder x -> q(z | x).
        num_data: N. Without an encoder: each training datum has variational parameters of its own,
            and a batch is ``{"x": x, "row": row}``, as ``rows`` makes it.
        data_mean: training mean, shape (D,); starts the weights of the lowest layer.

    Raises:
        ConfigError: for an argument out of range.

    References:
        Deep exponential families (Ranganath et al., 2015), arXiv:1411.2581; Reparameterization
        gradients through acceptance-rejection sampling (Naesseth et al., 2017), arXiv:1610.05683.

    Example:
        >>> DEF(64, (20, 5)).guide_of(torch.ones(3, 64))["z1"].event_shape
        torch.Size([20])
    """

    kind = "def"
    config: dict[str, Any]
    one: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (100, 40, 15),
        *,
        family: str = "gamma",
        observation: str = "poisson",
        weights: str = "bayesian",
        posterior: str = "gamma",
        shape: float = 0.1,
        hidden: Sequence[int] = (200,),
        num_data: int | None = None,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(positive("data_dim", data_dim))
        (self.data_dim,) = self.data_shape
        self.latent_dims = sizes("latent_dims", latent_dims)
        self.num_data = None if num_data is None else positive("num_data", num_data)
        self.config = {
            "data_dim": self.data_dim,
            "latent_dims": list(self.latent_dims),
            "family": family,
            "observation": observation,
            "weights": weights,
            "posterior": posterior,
            "shape": shape,
            "hidden": list(sizes("hidden", hidden)),
            "num_data": self.num_data,
        }
        if not self.latent_dims:
            raise ConfigError(f"latent_dims={latent_dims!r} is empty; expected as (100, 40, 15)")
        for name, known in _CHOICES.items():
            value = self.config[name]
            if value not in known:
                raise ConfigError(f"{name}={value!r}; expected one of {', '.join(known)}")
        shape = number("shape", shape, "(0, inf)")
        self.family, self.shape = family, float(shape)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self._make_weights(data_mean)
        width = (1 if family == "poisson" else 2) * sum(self.latent_dims)
        if self.num_data is None:
            self.encoder = MLP(self.data_dim, width, self.config["hidden"], activation="relu")
        else:
            self.table = nn.Parameter(0.1 * torch.randn(self.num_data, width))

    def _make_weights(self, data_mean: Tensor | None) -> None:
        outs = (self.data_dim, *self.latent_dims)
        starts = [torch.zeros(o) if self.family == "gaussian" else -torch.ones(o) for o in outs]
        if data_mean is not None and self.family != "gaussian":
            checked_mean(data_mean, (self.data_dim,))
            starts[0] = (data_mean.clamp(min=0.01) / self.latent_dims[0]).log()
        pairs = list(zip(self.latent_dims, outs, starts, strict=False))
        self.weight_loc = nn.ParameterList(s + 0.3 * torch.randn(k, o) for k, o, s in pairs)
        if self.config["weights"] == "bayesian":
            self.weight_spread = nn.ParameterList(torch.full((k, o), -1.0) for k, o, _ in pairs)

    # -- the pieces ------------------------------------------------------------------------------

    def layer(self, mean: Tensor) -> TorchDistributionMixin:
        """Return p(z_l | its mean), event (K_l,); the mean is a location for Gaussian units."""
        if self.family == "gaussian":
            return dist.Normal(mean, self.one).to_event(1)
        mean = mean.clamp(min=_FLOOR)
        if self.family == "poisson":
            return dist.Poisson(mean).to_event(1)
        return dist.Gamma(self.shape * torch.ones_like(mean), self.shape / mean).to_event(1)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z_L), event (K_L,)."""
        level = 0.0 if self.family == "gaussian" else 1.0
        return self.layer(level * self.one.expand(self.latent_dims[-1]))

    def observed(self, mean: Tensor) -> TorchDistributionMixin:
        """Return p(x | its mean), event (D,)."""
        mean = F.softplus(mean) if self.family == "gaussian" else mean
        mean = mean.clamp(min=_FLOOR)
        if self.config["observation"] == "poisson":
            return dist.Poisson(mean).to_event(1)
        # logit(1 - exp(-m)) = m + log(1 - exp(-m))
        return dist.Bernoulli(logits=mean + torch.log(-torch.expm1(-mean))).to_event(1)

    def weight_prior(self, level: int) -> TorchDistributionMixin:
        """Return p(w_l), event (K_{l+1}, K_l): sparse for families of positive units."""
        ones = self.one.expand(self.weight_loc[level].shape)
        if self.family == "gaussian":
            return dist.Normal(0 * ones, ones).to_event(2)
        return dist.Gamma(0.1 * ones, 0.3 * ones).to_event(2)

    def weight_posterior(self, level: int) -> TorchDistributionMixin:
        """Return q(w_l), event (K_{l+1}, K_l)."""
        loc, spread = self.weight_loc[level], self.weight_spread[level]
        return self._factor(loc, spread, self.family != "gaussian").to_event(2)

    def guide_of(self, x: Tensor, row: Tensor | None = None) -> dict[str, TorchDistributionMixin]:
        """Return q(z_l | x) by site: from the encoder, or from the rows of the table."""
        if self.num_data is None:
            counts = self.config["observation"] == "poisson"
            raw = self.encoder(torch.log1p(x.clamp(min=0)) if counts else x)
        elif row is None:
            raise ConfigError("this DEF has parameters per datum: pass model.rows(x), with rows")
        else:
            raw = self.table.index_select(0, row)
        first, *second = raw.split(sum(self.latent_dims), -1)
        factors = {}
        start = 0
        for level, size in enumerate(self.latent_dims, 1):
            units = slice(start, start + size)
            start += size
            if self.family == "poisson":
                q = dist.Poisson(bounded(first[..., units]).exp())
            else:
                q = self._factor(first[..., units], second[0][..., units], self.family == "gamma")
            factors[f"z{level}"] = q.to_event(1)
        return factors

    def _factor(self, loc: Tensor, spread: Tensor, positive: bool) -> Any:
        if not positive:
            return dist.Normal(loc, bounded(spread).exp())
        if self.config["posterior"] == "lognormal":
            # Bounded six times wider: exact to e^±42, a number of float32 beyond.
            return dist.LogNormal(6 * bounded(loc / 6), bounded(spread).exp())
        # More spread, less shape; in float32 a smaller one would draw numbers that underflow.
        shape = (-2 * bounded(spread)).exp() + 0.05
        return dist.Gamma(shape, shape * (-bounded(loc)).exp())

    # -- the program -----------------------------------------------------------------------------

    def _weight(self, level: int) -> Tensor:
        if self.config["weights"] == "bayesian":
            return pyro.sample(f"w{level}", self.weight_prior(level))
        loc = self.weight_loc[level]
        return loc if self.family == "gaussian" else bounded(loc).exp()

    def model(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        """Draw the weights, then the layers from the top down; observe x, shape (B | D)."""
        register(self)
        weights = [self._weight(level) for level in range(len(self.latent_dims))]
        with pyro.plate("data", len(x)):
            top = len(self.latent_dims)
            z = pyro.sample(f"z{top}", self.prior())
            for level in range(top - 1, 0, -1):
                z = pyro.sample(f"z{level}", self.layer(z @ weights[level]))  # (B | K_l)
            return pyro.sample("x", self.observed(z @ weights[0]), obs=x)  # (B | D)

    def guide(self, x: Tensor, row: Tensor | None = None) -> None:
        """Draw the weights and each layer from its own factor."""
        register(self)
        if self.config["weights"] == "bayesian":
            for level in range(len(self.latent_dims)):
                pyro.sample(f"w{level}", self.weight_posterior(level))
        with pyro.plate("data", len(x)):
            for name, factor in self.guide_of(x, row).items():
                pyro.sample(name, factor)

    @typed
    def rows(self, x: Tensor, start: int = 0) -> dict[str, Tensor]:
        """Return training data with the numbers of their rows in the table, from ``start`` on."""
        start, x = integer("start", start, 0), torch.atleast_1d(x)
        return {"x": x, "row": torch.arange(start, start + len(x), device=x.device)}

    @typed
    def example(self, n: int = 2) -> Tensor | dict[str, Tensor]:
        """Return a batch of n rows of zeros, shape (n | D)."""
        x = super().example(n)
        if self.num_data is None:
            return x
        return {"x": x, "row": torch.arange(n, device=x.device) % self.num_data}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items())
