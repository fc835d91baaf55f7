"""The deterministic baseline. Shapes: B batch, Z code, * leading sample dims."""

from collections.abc import Sequence

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import Point, SquaredError
from pyro_vae.distributions import NoPrior
from pyro_vae.models.networks import decoder_of, encoder_net, shared_config
from pyro_vae.models.zoo_program import OneLatent
from pyro_vae.nn import Shape


@typed
class Autoencoder(OneLatent):
    r"""The deterministic baseline: its loss under `Trace_ELBO` is the squared error, exactly.

    .. math:: z = encoder(x), \qquad loss(x) = \|x - decoder(z)\|^2

    The guide puts all mass on encoder(x), of log density 0; the model has no prior (`NoPrior`, log
    density 0) and scores x by `SquaredError`. It can encode and reconstruct; it cannot generate and
    has no likelihood: asking for a draw from its prior raises `ProgramError`.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dim: size Z of the code.
        hidden: widths of the encoder's hidden layers ("conv": channels); the decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        network: "mlp", or "conv" for images (C, H, W).
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Reducing the dimensionality of data with neural networks (Hinton and Salakhutdinov, 2006).

    Example:
        >>> autoencoder = Autoencoder(784, 2)
        >>> autoencoder.encoder(autoencoder.example(5)).event_shape
        torch.Size([2])
    """

    kind = "autoencoder"

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        network: str = "mlp",
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(data_dim)
        self.latent_dim = positive("latent_dim", latent_dim)
        self.config = shared_config(data_dim, latent_dim, hidden, activation, network)
        shape, size = self.data_shape, self.latent_dim
        nets = (hidden, activation, network, SquaredError)
        self.encoder = Point(encoder_net(shape, size, *nets))
        self.decoder = decoder_of(shape, size, *nets, data_mean)

    def prior(self) -> TorchDistributionMixin:
        """Return the absence of a prior, event (Z,)."""
        return NoPrior((self.latent_dim,))
