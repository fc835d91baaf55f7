"""What an encoder gets of data with holes. Shapes: * leading dims, D cells, F features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import number, positive, shape_of, typed


@typed
class ZeroImputation(nn.Module):
    """Data with zero in the place of what is missing.

    Arguments:
        data_shape: shape of one datum.
        fill: what stands there, as 0.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(self, data_shape: Sequence[int], fill: float = 0.0) -> None:
        super().__init__()
        self.features = shape_of("data_shape", data_shape)
        self.fill = number("fill", fill, "(-inf, inf)")

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Map data and which cells are observed, (*, data) both, to (*, data)."""
        return torch.where(observed, x, torch.full_like(x, self.fill))


@typed
class LearnedConstant(nn.Module):
    """Data with a learned number for each cell in the place of what is missing.

    Arguments:
        data_shape: shape of one datum.

    Raises:
        ConfigError: no shape of numbers of at least 1.

    References:
        MIWAE: deep generative modelling and imputation of incomplete data (Mattei and Frellsen,
        2019), arXiv:1812.02633.
    """

    def __init__(self, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.features = shape_of("data_shape", data_shape)
        self.constant = nn.Parameter(torch.zeros(self.features))

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Map data and which cells are observed, (*, data) both, to (*, data)."""
        return torch.where(observed, x, self.constant)


@typed
class SetEncoding(nn.Module):
    r"""The set of observed cells, each embedded with its place, and added up.

    .. math:: h = \sum_{d \in o} \mathrm{relu}\big(W (x_d e_d) + V e_d\big)

    Arguments:
        data_shape: shape of one datum.
        width: F.
        embedding: size of the vector e_d of a cell.

    Raises:
        ConfigError: an argument out of its range.

    References:
        EDDI: efficient dynamic discovery of high-value information with partial VAE (Ma et al.,
        2019), arXiv:1809.11142.
    """

    def __init__(self, data_shape: Sequence[int], width: int = 64, embedding: int = 16) -> None:
        super().__init__()
        self.features = (positive("width", width),)
        shape = shape_of("data_shape", data_shape)
        self.event_dim = len(shape)
        size = positive("embedding", embedding)
        self.places = nn.Parameter(torch.randn(math.prod(shape), size))
        self.value, self.place = nn.Linear(size, width, bias=False), nn.Linear(size, width)

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Map data and which cells are observed, (*, data) both, to (*, F)."""
        known = torch.where(observed, x, torch.zeros_like(x)).flatten(-self.event_dim)
        each = known.unsqueeze(-1) * self.value(self.places) + self.place(self.places)
        return (each.relu() * observed.flatten(-self.event_dim).unsqueeze(-1)).sum(-2)


IMPUTATIONS = {"zero": ZeroImputation, "constant": LearnedConstant, "set": SetEncoding}
