"""The VQ-VAE. Shapes: B batch, P codes per datum, D code dim, K codes, * leading sample dims."""

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import Bernoulli, Observation, observation_config
from pyro_vae.conditionals.code_priors import AutoregressiveCodes, FactorisedCodes, UniformCodes
from pyro_vae.conditionals.observations import observation
from pyro_vae.conditionals.outputs import widen
from pyro_vae.conditionals.quantised import Codebook
from pyro_vae.distributions import Quantised
from pyro_vae.errors import ConfigError
from pyro_vae.models.grids import GridDecoder, GridEncoder, grid_of
from pyro_vae.models.networks import checked_mean, shared_config
from pyro_vae.models.zoo_program import OneLatent, register
from pyro_vae.nn import MLP, OneHot, Shape

PRIORS = ("autoregressive", "factorised", "uniform")


@typed
class VQVAE(OneLatent):
    r"""A VAE with discrete latents: each datum is P vectors out of a codebook of K.

    .. math:: k \sim p(k_1, \dots, k_P), \quad z_i = e_{k_i}, \quad x \sim p(x \mid decoder(z)),
        \qquad q(z_i \mid x) = \delta(z_i - e_{k}), \; k = \arg\min_k \|encoder(x)_i - e_k\|

    The encoder learns by the gradient at the code, handed straight through; the codebook follows
    the encodings by running means, one step per training step, and never in eval mode. Train it
    with ``pv.VQ``, the ELBO with a commitment of encodings to their codes. The prior over codes is
    learnt at the same time, by the ELBO's own term (its gradient reaches nothing else), so that the
    program generates; under the uniform prior the KL is P log K. ``pv.code_usage`` tells how much
    of the codebook is in use.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        num_codes: K.
        code_dim: D.
        hidden: "conv": channels, each layer halves the image, so that P is the pixels left; "mlp":
            widths of hidden layers. The decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        network: "conv" for images (C, H, W), or "mlp".
        positions: P, for "mlp" only.
        prior: "autoregressive", "factorised" or "uniform".
        prior_width, prior_depth: of the autoregressive prior, a causal transformer.
        decay, revive: of the codebook's running means and dead codes, as for `Codebook`.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    Raises:
        ConfigError: for an argument out of range.

    References:
        Neural discrete representation learning (van den Oord et al., 2017), arXiv:1711.00937.

    Example:
        >>> vq = VQVAE((1, 28, 28), 64)
        >>> vq.prior().sample((5,)).shape
        torch.Size([5, 49, 16])
        >>> vq.codes(vq.example(5)).shape
        torch.Size([5, 49])
    """

    kind = "vqvae"

    def __init__(
        self,
        data_dim: Shape,
        num_codes: int = 128,
        code_dim: int = 16,
        hidden: Sequence[int] = (32, 64),
        *,
        activation: str = "relu",
        observation: Observation = Bernoulli,
        network: str = "conv",
        positions: int | None = None,
        prior: str = "autoregressive",
        prior_width: int = 64,
        prior_depth: int = 2,
        decay: float | None = 0.99,
        revive: float = 0.02,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(data_dim)
        if network not in ("conv", "mlp"):
            raise ConfigError(f'network={network!r}; expected "conv" or "mlp"')
        if prior not in PRIORS:
            raise ConfigError(f"prior={prior!r}; expected one of {', '.join(PRIORS)}")
        if (positions is None) == (network == "mlp"):
            raise ConfigError(f"positions={positions!r}: give it for an MLP, and for no other")
        shared = shared_config(
            self.data_shape, positive("code_dim", code_dim), hidden, activation, network
        )
        del shared["latent_dim"]
        self.config = {
            **shared,
            "num_codes": positive("num_codes", num_codes),
            "code_dim": int(code_dim),
            "observation": observation_config(observation),
            "positions": positions,
            "prior": prior,
            "prior_width": positive("prior_width", prior_width),
            "prior_depth": positive("prior_depth", prior_depth),
            "decay": decay,
            "revive": revive,
        }
        conv = network == "conv"
        count = math.prod(grid_of(self.data_shape, len(tuple(hidden)))) if conv else positions
        self.positions = positive("positions", count)
        self.encoder, self.decoder = self._networks(observation, data_mean)
        self.codebook = Codebook(num_codes, code_dim, self.positions, decay=decay, revive=revive)
        self.code_prior: nn.Module
        if prior == "autoregressive":
            self.code_prior = AutoregressiveCodes(
                num_codes, self.positions, prior_width, prior_depth
            )
        else:
            chosen = FactorisedCodes if prior == "factorised" else UniformCodes
            self.code_prior = chosen(num_codes, self.positions)

    def _networks(self, spec: Observation, data_mean: Tensor | None) -> tuple[nn.Module, nn.Module]:
        """Return x -> encodings (*, P, D), and z -> p(x | z)."""
        assert self.config is not None
        code_dim, widths = self.config["code_dim"], self.config["hidden"]
        chosen, options = observation(spec)
        shape = widen(self.data_shape, chosen.width(**options))
        # A class number is a name, not a quantity: the encoder reads it as one of K bits.
        named = chosen.__name__ == "Categorical"
        seen = shape if named else self.data_shape
        kind = {"activation": self.config["activation"]}
        encoder: nn.Module
        net: MLP | GridDecoder
        if self.config["network"] == "conv":
            encoder = GridEncoder(seen, code_dim, widths, **kind)
            net = GridDecoder(code_dim, shape, widths[::-1], **kind)
        else:
            grid = (self.positions, code_dim)
            encoder, net = MLP(seen, grid, widths, **kind), MLP(grid, shape, widths[::-1], **kind)
        if named:
            one_hot = OneHot(options["num_classes"], len(self.data_shape))
            encoder = nn.Sequential(one_hot, encoder)
        if data_mean is not None:
            checked_mean(data_mean, self.data_shape)
            net.set_output_bias(chosen.output_bias(data_mean, **options))
        return encoder, chosen(net, event_dim=len(self.data_shape), **options)

    def prior(self) -> Quantised:
        """Return p(z), event (P, D)."""
        return Quantised(self.code_prior(), self.codebook.vectors.detach().clone())

    def guide(self, x: Tensor) -> None:
        """Set z to the codes nearest to the encodings."""
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.codebook(self.encoder(x)))  # (B | P, D)

    @typed
    def codes(self, x: Tensor) -> Tensor:
        """Return the numbers of the codes of data, (*, data) to (*, P)."""
        with torch.no_grad():
            return self.prior().numbers(self.encoder(x))
