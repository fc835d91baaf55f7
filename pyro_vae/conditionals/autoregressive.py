"""Bits that depend on the bits before them. Shapes: * any leading dims, Z bits."""

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive
from pyro_vae.distributions import AutoregressiveBits


class Autoregressive(nn.Module):
    r"""Binary units that see the network's output and the units before them.

    .. math:: z_i \sim \mathrm{Bernoulli}\Big(\sigma\big(net(h)_i
        + \textstyle\sum_{j<i} W_{ij} z_j\big)\Big)

    Arguments:
        net: network that gives the logits (*, Z).
        size: number Z of units.

    References:
        Deep autoregressive networks (Gregor et al., 2014), arXiv:1310.8499.

    Example:
        >>> Autoregressive(nn.Linear(3, 4), 4)(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 4])
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net = net
        size = positive("size", size)
        self.weight = nn.Parameter(torch.zeros(size, size))

    def forward(self, h: Tensor) -> AutoregressiveBits:
        return AutoregressiveBits(self.net(h), self.weight)
