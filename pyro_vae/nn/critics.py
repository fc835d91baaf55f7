"""Networks that tell two kinds of input apart: one number for each row."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn.layers import MLP, activation_layer
from pyro_vae.nn.shapes import Shape, as_shape, flat_rows, image_shape


@typed
class Critic(nn.Module):
    r"""A number for each code, T(z), or for each code of a datum, T(z, x): a perceptron.

    Arguments:
        latent_dim: Z, all numbers of one code.
        data_dim: shape of one datum; None: it sees codes alone.
        hidden: widths of the hidden layers.
        activation: name in `ACTIVATIONS`.
        spectral_norm: hold the largest singular value of each layer at 1, by
            `torch.nn.utils.parametrizations.spectral_norm` (Miyato et al., 2018, arXiv:1802.05957).
        missing: "nan": cells of a datum that are NaN are missing; the network gets 0 for them, and
            besides which cells are there.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> Critic(2, (1, 28, 28))(torch.zeros(5, 2), torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: Shape | None = None,
        hidden: Sequence[int] = (256, 256),
        *,
        activation: str = "leaky_relu",
        spectral_norm: bool = False,
        missing: Literal["nan"] | None = None,
    ) -> None:
        super().__init__()
        size = 0 if data_dim is None else _columns(data_dim, missing)
        self.sees_data, self.missing = data_dim is not None, missing
        self.net = MLP(positive("latent_dim", latent_dim) + size, 1, hidden, activation=activation)
        if spectral_norm:
            self.apply(_bounded)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Map codes (B, Z), and data (B | data) where it sees them, to (B,).

        Raises:
            ConfigError: Data for a critic of codes alone, or none for one of both.
        """
        if self.sees_data != (x is not None):
            got, fit = ("codes alone", "Z") if x is None else ("codes and data", "Z, data_dim")
            raise ConfigError(f"critic: got {got}; make it as pv.nn.Critic({fit})")
        if x is None:
            return self.net(z).squeeze(-1)
        x = _seen(flat_rows(x, len(flat_rows(z))).to(z.dtype), self.missing)
        return self.net(torch.cat([z, x], -1)).squeeze(-1)


@typed
class InnerProductCritic(nn.Module):
    r"""A critic of codes and data whose two networks meet in an inner product.

    .. math:: T(z, x) = \langle s(z), \theta(x) \rangle + a(z) + b(x)

    Arguments:
        latent_dim: Z, all numbers of one code.
        data_dim: shape of one datum.
        features: size of s and θ.
        hidden: widths of the hidden layers of both networks.
        activation: name in `ACTIVATIONS`.
        spectral_norm, missing: as for `Critic`.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Adversarial Variational Bayes (Mescheder et al., 2017), arXiv:1701.04722.

    Example:
        >>> InnerProductCritic(2, 6)(torch.zeros(5, 2), torch.zeros(5, 6)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: Shape,
        features: int = 128,
        hidden: Sequence[int] = (256, 256),
        *,
        activation: str = "leaky_relu",
        spectral_norm: bool = False,
        missing: Literal["nan"] | None = None,
    ) -> None:
        super().__init__()
        size, self.missing = _columns(data_dim, missing), missing
        outputs = positive("features", features) + 1
        self.code, self.data = (
            MLP(width, outputs, hidden, activation=activation) for width in (latent_dim, size)
        )
        if spectral_norm:
            self.apply(_bounded)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Map codes (B, Z) and data (B | data) to (B,)."""
        x = _seen(flat_rows(x, len(flat_rows(z))), self.missing)
        a, b = self.code(z), self.data(x)
        return (a[:, 1:] * b[:, 1:]).sum(-1) + a[:, 0] + b[:, 0]


@typed
class ConvCritic(nn.Module):
    """A critic of images: strided 4x4 convolutions, and a head that judges what they see.

    Arguments:
        in_shape: image shape (C, H, W).
        channels: channels of each convolution, which halves the image.
        patches: a number for each place of the last convolution, which sees a patch; False: one
            for the whole image.
        activation: name in `ACTIVATIONS`.
        spectral_norm: as for `Critic`.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017),
        arXiv:1611.07004.

    Example:
        >>> ConvCritic((1, 28, 28), (4, 8), patches=True)(torch.zeros(5, 784)).shape
        torch.Size([5, 7, 7])
    """

    def __init__(
        self,
        in_shape: Shape,
        channels: Sequence[int] = (32, 64),
        *,
        patches: bool = False,
        activation: str = "leaky_relu",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("in_shape", in_shape)
        widths = as_shape("channels", channels)
        layers: list[nn.Module] = []
        for before, after in zip((self.in_shape[0], *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                activation_layer(activation),
            ]
        self.convolutions = nn.Sequential(*layers)
        plane = tuple(side >> len(widths) for side in self.in_shape[1:])
        if min(plane) == 0:
            raise ConfigError(
                f"channels: got {widths}, {len(widths)} halvings of an image of {self.in_shape}; "
                "give fewer"
            )
        self.head = nn.Conv2d(widths[-1], 1, 1 if patches else (plane[0], plane[1]))
        self.patches = patches
        if spectral_norm:
            self.apply(_bounded)

    def see(self, x: Tensor) -> Tensor:
        """Map images (B | data) to the features that the head judges by, (B, C, h, w)."""
        flat = flat_rows(x)
        if flat.shape[1] != math.prod(self.in_shape):
            raise DataError(
                f"network input: got {shown(x)}, expected images (B, *{self.in_shape}), flat or not"
            )
        return self.convolutions(flat.reshape(-1, *self.in_shape).to(self.head.weight.dtype))

    def judge(self, features: Tensor) -> Tensor:
        """Map features to (B,), or (B, h, w) of patches."""
        told = self.head(features).squeeze(1)
        return told if self.patches else told.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B | data) to (B,), or (B, h, w) of patches."""
        return self.judge(self.see(x))

    # So that a step that asks for both see(x) and this may make the features once.
    forward.judges_what_it_sees = True  # type: ignore[attr-defined]


def _columns(data_dim: Shape, missing: str | None) -> int:
    """Return how many numbers a network gets of a datum."""
    size = math.prod(as_shape("data_dim", data_dim))
    return size if missing is None else 2 * size


def _seen(x: Tensor, missing: str | None) -> Tensor:
    """Return what a network gets of data (B, D): with holes, 0 for them, and which are there."""
    if missing is None:
        return x
    there = ~x.isnan()
    return torch.cat([torch.where(there, x, 0.0), there.to(x.dtype)], -1)


def _bounded(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        spectral_norm(layer)
