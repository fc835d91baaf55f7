"""The variational autoencoder. Shapes: B batch, Z latent, * leading sample dims."""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import (
    Bernoulli,
    Categorical,
    Gaussian,
    Observation,
    VampPrior,
    ZeroImputation,
    observation_config,
)
from pyro_vae.conditionals import observation as choose_observation
from pyro_vae.conditionals.imputation import IMPUTATIONS
from pyro_vae.conditionals.posteriors import POSTERIORS, Posterior, posterior_of
from pyro_vae.conditionals.priors import PRIORS, Prior, StandardNormal, prior_config, prior_of
from pyro_vae.conditionals.registry import choice_config, choose
from pyro_vae.distributions import Incomplete
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.networks import decoder_of, encoder_net, shared_config
from pyro_vae.models.zoo_program import OneLatent, ZooProgram, register
from pyro_vae.nn import Shape


@typed
class VAE(OneLatent):
    r"""A deep latent-variable model with an amortised posterior, Gaussian unless said otherwise.

    .. math:: z \sim N(0, I), \quad x \sim p(x \mid decoder(z)),
        \qquad q(z \mid x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x))

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dim: number Z of latent units.
        hidden: widths of the encoder's hidden layers ("conv": channels); the decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`, or "glu" for gated layers ("mlp").
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        network: "mlp", "residual", "skip" (the code enters every layer of the decoder), or "conv"
            for images (C, H, W).
        prior: StandardNormal, GaussianMixture, VampPrior, FlowPrior or AR1Prior of
            `pyro_vae.conditionals`, a `functools.partial` of one, or a module: encoder ->
            distribution of z.
        posterior: Gaussian (diagonal), LowRankGaussian, FullGaussian, PlanarFlow,
            InverseAutoregressiveFlow, SplineFlow of `pyro_vae.conditionals`; against collapse
            BatchNormGaussian, DeltaGaussian, FixedScaleGaussian; without a density, for `pv.AVB`,
            NoiseFed; or a partial of one.
        encoder: module (*, data) -> distribution of z, event (Z,), in place of the built one.
        decoder: module (*, Z) -> distribution of x, event one datum, in place of the built one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.
        missing: "nan": cells that are NaN are missing, and no part of the likelihood; batches are
            x, or pairs (x, observed) with a mask, shape (B | data), that is True where a cell is.
        imputation: what the encoder gets for them: "zero"; "constant", a learned number for each
            cell; "set", the observed cells as a set.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2013), arXiv:1312.6114;
        Stochastic backpropagation (Rezende et al., 2014), arXiv:1401.4082.

    Example:
        >>> from functools import partial
        >>> from pyro_vae.conditionals import InverseAutoregressiveFlow, VampPrior
        >>> vae = VAE(784, 2)
        >>> vae.decoder(vae.prior().sample((5,))).event_shape
        torch.Size([784])
        >>> vamp = VAE(784, 40, (300, 300), activation="glu", prior=VampPrior)
        >>> iaf = VAE(784, 40, posterior=partial(InverseAutoregressiveFlow, num_flows=4))
    """

    kind = "vae"

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        observation: Observation = Bernoulli,
        network: str = "mlp",
        prior: Prior = StandardNormal,
        posterior: Posterior = Gaussian,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data_mean: Tensor | None = None,
        missing: Literal["nan"] | None = None,
        imputation: Literal["zero", "constant", "set"] = "zero",
    ) -> None:
        super().__init__(data_dim)
        self.latent_dim = positive("latent_dim", latent_dim)
        self.config = {
            **shared_config(data_dim, latent_dim, hidden, activation, network),
            "observation": observation_config(observation),
            "prior": prior_config(prior),
            "posterior": choice_config("posterior", POSTERIORS, posterior),
        }
        if encoder is not None or decoder is not None or isinstance(prior, nn.Module):
            self.config = None
        if encoder is not None and posterior is not Gaussian:
            raise ConfigError("posterior chooses the built encoder; with your own leave it out")
        if decoder is not None and data_mean is not None:
            raise ConfigError(
                "data_mean starts the built decoder; with your own decoder leave it out"
            )
        shape, size = self.data_shape, self.latent_dim
        self.imputation = None
        if missing is not None:
            self.example = None  # type: ignore[method-assign, assignment]  # a mask may come
            self.imputation = _imputation(imputation, shape, observation, prior)
            if self.config is not None:
                self.config |= {"missing": missing, "imputation": imputation}
        elif imputation != "zero":
            raise ConfigError(f'imputation={imputation!r} is for data with holes: missing="nan"')
        seen = shape if self.imputation is None else self.imputation.features
        nets = (hidden, activation, network, observation)
        if encoder is None:
            encoder = posterior_of(posterior, size, lambda out: encoder_net(seen, out, *nets))
        if decoder is None:
            decoder = decoder_of(shape, size, *nets, data_mean)
        self.encoder, self.decoder = encoder, decoder
        self.latent_prior = prior_of(prior, shape, size, encoder)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        return self.latent_prior(self.encoder)

    def blank(self, n: int) -> Tensor:
        """Return n rows of zeros."""
        return ZooProgram.example(self, n)

    def model(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Draw z and observe x, shape (B | data), or the cells of it that are there."""
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | code)
            return pyro.sample("x", self.there(self.decoder(z), x, observed), obs=x)  # (B | data)

    def guide(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Draw z from the encoder's distribution, given the cells that are there."""
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(self.known(x, observed)))  # (B | code)

    def there(self, datum: Any, x: Tensor, observed: Tensor | None) -> Any:
        """Return the distribution of the cells that are there: of all, where none may lack."""
        return datum if self.imputation is None else Incomplete(datum, _observed(x, observed))

    def known(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return what the encoder gets of data."""
        return x if self.imputation is None else self.imputation(x, _observed(x, observed))


def _observed(x: Tensor, observed: Tensor | None) -> Tensor:
    """Return which cells are there: what a mask says, and no NaN.

    Raises:
        DataError: the mask has another shape than the data.
    """
    if observed is None:
        return ~x.isnan()
    if observed.shape != x.shape:  # (B) would be taken for one cell of each datum where B is D
        raise DataError(
            f"observed: got shape {tuple(observed.shape)}, expected {tuple(x.shape)}, that of the "
            "data: True where a cell is there"
        )
    return observed.bool() & ~x.isnan()


def _imputation(how: str, shape: Sequence[int], spec: Observation, prior: Prior) -> Any:
    """Return the module that fills in what an encoder gets."""
    named = choose_observation(spec)[0] is Categorical
    if named and how != "zero":
        raise ConfigError(
            f'imputation={how!r}: categories are names; expected "zero", which is none of them'
        )
    own = isinstance(prior, nn.Module)
    if how == "set" and not own and choose("prior", PRIORS, prior)[0] is VampPrior:
        raise ConfigError('imputation="set": a VampPrior has data for its encoder, not sets')
    return ZeroImputation(shape, -1.0) if named else IMPUTATIONS[how](shape)
