"""An autoregressive likelihood of binary data. Shapes: * any leading dims, D dims of a datum."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import number, positive, typed
from pyro_vae.conditionals.conditional import Conditional
from pyro_vae.distributions import AutoregressiveBernoulli
from pyro_vae.errors import ConfigError


class MaskedNetwork(nn.Module):
    r"""One hidden layer whose output d sees inputs before d only.

    .. math:: h = \mathrm{relu}(W_1 (2x - 1) + b), \qquad y = W_2 h

    Hidden unit k sees the inputs up to a degree m_k, spread evenly over 1..D-1, and feeds the
    outputs after it.

    Arguments:
        size: number D of inputs and outputs.
        hidden: number of hidden units.
        dropout: share of inputs that are hidden from the network while training, in [0, 1).
    """

    reach: Tensor

    def __init__(self, size: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.size, self.dropout = size, dropout
        self.input = nn.Linear(size, hidden)
        self.output = nn.Linear(hidden, size, bias=False)
        spread = torch.arange(hidden, dtype=torch.float64) * max(1, size - 1) / hidden
        degree = spread.floor().long()
        # reach[k, d]: whether hidden unit k sees input d; it feeds the outputs after its last input
        self.register_buffer("reach", torch.arange(size) <= degree[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (*, D) for x of shape (*, D)."""
        seen = F.dropout(2 * x - 1, self.dropout, self.training)
        hidden = F.linear(seen, self.input.weight * self.reach, self.input.bias)
        return F.linear(torch.relu(hidden), self.output.weight * ~self.reach.mT)

    @torch.no_grad()
    def draw(self, logits: Tensor) -> Tensor:
        """Return bits (N, D), one dimension after another, from the logits (N, D) added to y."""
        uniform = torch.rand_like(logits)
        into, out = self.input.weight * self.reach, self.output.weight * ~self.reach.mT
        hidden = self.input.bias.expand(len(logits), -1).clone()
        bits = torch.empty_like(logits)
        for d in range(self.size):
            logit = logits[:, d] + torch.relu(hidden) @ out[d]
            bits[:, d] = (uniform[:, d] < torch.sigmoid(logit)).to(logits.dtype)
            hidden += (2 * bits[:, d, None] - 1) * into[:, d]
        return bits


@typed
class MADE(Conditional):
    r"""Binary dimensions that see the code and all dimensions before them: a strong decoder.

    .. math:: x_d \sim \mathrm{Bernoulli}\big(\sigma(net(z)_d + y_d(x_{<d}))\big)

    Such a decoder can describe the data without the code, and a VAE with it collapses unless it is
    cured (`pv.diagnose` says so). With `input_dropout` it is weakened: while training it does not
    see all of x ("word dropout").

    Arguments:
        net: network that gives the logits; its `out_shape` is the shape of one datum.
        hidden: hidden units of the masked network.
        input_dropout: share of pixels hidden from it while training, in [0, 1).
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    References:
        MADE: masked autoencoder for distribution estimation (Germain et al., 2015),
        arXiv:1502.03509; Generating sentences from a continuous space (Bowman et al., 2016),
        arXiv:1511.06349.

    Example:
        >>> from pyro_vae.nn import MLP
        >>> MADE(MLP(2, 6), hidden=8)(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 6])
    """

    def __init__(
        self, net: nn.Module, *, hidden: int = 512, input_dropout: float = 0.0, event_dim: int = 1
    ) -> None:
        super().__init__(net, event_dim=event_dim)
        shape = getattr(net, "out_shape", None)
        if not isinstance(shape, tuple):
            raise ConfigError(
                f"net: {type(net).__name__} has no out_shape; expected a network of pyro_vae.nn, "
                "or one with the shape of a datum as its attribute"
            )
        dropout = number("input_dropout", input_dropout, "[0, 1)")
        units = positive("hidden", hidden)
        self.autoregression = MaskedNetwork(math.prod(shape), units, dropout)

    @staticmethod
    @typed
    def width(hidden: int = 512, input_dropout: float = 0.0) -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    @typed
    def output_bias(mean: Tensor, hidden: int = 512, input_dropout: float = 0.0) -> Tensor:
        """Return logits of the training mean, clipped to [0.001, 0.999]."""
        return torch.logit(mean.clamp(0.001, 0.999))

    def forward(self, z: Tensor) -> AutoregressiveBernoulli:
        return AutoregressiveBernoulli(self.net(z), self.autoregression, self.event_dim)
