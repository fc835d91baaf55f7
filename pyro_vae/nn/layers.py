"""Dense networks, tensors -> tensors. Shapes: * any leading dims, D features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import number, positive, shaped, shown, typed
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn.shapes import Shape, as_shape, leading_dims, sizes

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}


@typed
def activation_layer(name: str) -> nn.Module:
    """Return a new activation layer.

    Arguments:
        name: key of `ACTIVATIONS`.

    Raises:
        ConfigError: An unknown name.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"activation={name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def _device(device: torch.device | str | int | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device: got {device!r}, expected one as 'cpu' or 'cuda:0'") from None


@typed
class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one row, which has no variance, by running moments.

    The last batch of an epoch may be one row. It is a `torch.nn.BatchNorm1d`.

    Arguments:
        num_features: number C of features.
        eps: what is added to a variance.
        momentum: share of a batch in the running moments; None: their mean over all batches.
        affine: whether it learns a weight and a bias.
        track_running_stats: whether it keeps running moments; without them, a batch of one row is
            refused, as torch does.
        device: of its parameters; None is torch's own choice.
        dtype: of its parameters, floats; None is torch's default.
        bias: whether it learns a bias, where it learns a weight.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> BatchNorm(3)(torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        number("eps", eps, "[0, inf)")
        if momentum is not None:
            number("momentum", momentum, "[0, 1]")
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigError(f"dtype: got {dtype}, expected one of floats, as torch.float32")
        size = positive("num_features", num_features)
        home = _device(device)
        super().__init__(size, eps, momentum, affine, track_running_stats, home, dtype)
        if not bias:  # an argument of the newer releases of torch alone
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C) over N."""
        if self.training and self.track_running_stats and len(x) == 1:
            moments = (self.running_mean, self.running_var)
            return nn.functional.batch_norm(x, *moments, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@typed
class _Residual(nn.Module):
    r"""A residual block, :math:`h + g \odot f(A h + a)`, the identity at the start (g = 0)."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.activation = activation_layer(activation)
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.gain * self.activation(self.inner(h))


@typed
class MLP(nn.Module):
    r"""A multi-layer perceptron between events of any shape.

    .. math:: h_l = f(W_l h_{l-1} + b_l), \quad y = W_{L+1} h_L + b_{L+1}

    Weights start as in `torch.nn.Linear`, except under "tanh": Glorot-uniform, biases zero (Glorot
    and Bengio, 2010), as in the IWAE recipe (Burda et al., 2016, arXiv:1509.00519).

    Arguments:
        in_shape: input event shape, as 784 or (1, 28, 28).
        out_shape: output event shape.
        hidden: widths of the hidden layers; () is an affine map.
        activation: name in `ACTIVATIONS`, or "glu": gated layers (W h + b) ⊙ σ(V h + c), whose
            weights start as in He et al. (2015), arXiv:1502.01852.
        dropout: probability of dropping a hidden unit while training, in [0, 1).
        batch_norm: normalise hidden units over all leading dims, before the activation.
        residual: after each hidden layer, a residual block that starts as the identity.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> MLP((1, 28, 28), 20, hidden=(400,))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = (
            as_shape("in_shape", in_shape),
            as_shape("out_shape", out_shape),
        )
        number("dropout", dropout, "[0, 1)")
        gated = activation == "glu"
        if not gated:
            activation_layer(activation)  # an unknown name is an error without hidden layers too
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for size in sizes("hidden", hidden):
            layers.append(nn.Linear(width, 2 * size if gated else size))
            if batch_norm:
                layers.append(BatchNorm(2 * size if gated else size))
            layers.append(nn.GLU(-1) if gated else activation_layer(activation))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            if residual:
                layers.append(_Residual(size, "relu" if gated else activation))
            width = size
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(width, math.prod(self.out_shape))
        if activation == "tanh":
            self.apply(glorot)
        elif gated:
            self.apply(_he)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in_shape) to (*, out_shape)."""
        lead = leading_dims(x, self.in_shape)
        h = x.reshape(math.prod(lead), math.prod(self.in_shape)).to(self.output.weight.dtype)
        return self.output(self.hidden(h)).reshape(lead + self.out_shape)

    @typed
    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start the output at `bias`, shape `out_shape`."""
        self.output.bias.copy_(shaped("bias", bias, self.out_shape).reshape(-1))


class OneHot(nn.Module):
    """Spread whole numbers 0..K-1 over K channels: (*, C, ...) to (*, K C, ...), class-major.

    Arguments:
        num_classes: K.
        event_dim: number of dims of one datum; its first dim is widened.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> OneHot(3)(torch.tensor([[0, 2]]))
        tensor([[1., 0., 0., 0., 0., 1.]])
    """

    classes: Tensor

    @typed
    def __init__(self, num_classes: int, event_dim: int = 1) -> None:
        super().__init__()
        self.num_classes = positive("num_classes", num_classes)
        self.event_dim = positive("event_dim", event_dim)
        self.register_buffer("classes", torch.arange(self.num_classes) + 0.0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, C, ...) to (*, K C, ...) in the buffer's dtype."""
        if not isinstance(x, Tensor) or x.dim() < self.event_dim:
            raise DataError(
                f"network input: got {shown(x)}, expected a tensor of event_dim={self.event_dim}"
            )
        classes = self.classes.reshape(-1, *(1,) * self.event_dim)
        hot = (x.unsqueeze(-self.event_dim - 1) == classes).to(self.classes.dtype)
        return hot.flatten(-self.event_dim - 1, -self.event_dim)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, event_dim={self.event_dim}"


def _he(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight)


def glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
