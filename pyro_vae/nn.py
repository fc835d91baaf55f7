"""Networks, tensors -> tensors. Shapes: * any leading dims, C channel, H height, W width."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pyro_vae.arguments import number, positive, shaped, shown, typed
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.scan import scan

Shape = int | Sequence[int]

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
    """Return a new activation layer by its name; raises `ConfigError` for an unknown name."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"activation={name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


@typed
def sizes(name: str, values: Any) -> tuple[int, ...]:
    """Return a new tuple of positive ints (may be empty); raises `ConfigError` otherwise."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r}; expected a sequence of whole numbers, as in (400,)")
    if isinstance(values, Tensor):
        values = values.tolist() if values.dim() == 1 else [values]
    return tuple(positive(f"{name}[{i}]", value) for i, value in enumerate(values))


@typed
def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return an event shape from 784 or (1, 28, 28); raises `ConfigError` otherwise."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return (positive(name, value),)
    shape = sizes(name, value)
    if not shape:
        raise ConfigError(f"{name}={value!r} is empty; expected a size as 784 or (1, 28, 28)")
    return shape


@typed
def image_shape(name: str, value: Any) -> tuple[int, int, int]:
    """Return (C, H, W); raises `ConfigError` otherwise."""
    shape = as_shape(name, value)
    if len(shape) != 3:
        raise ConfigError(
            f"{name}={value!r}; a convolution needs an image shape (C, H, W), as in (1, 28, 28): "
            "give one, or use an MLP"
        )
    return shape[0], shape[1], shape[2]


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one row, which has no variance, by running moments.

    The last batch of an epoch may be one row.

    Example:
        >>> BatchNorm(3)(torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C) over N."""
        if self.training and len(x) == 1:
            moments = (self.running_mean, self.running_var)
            return nn.functional.batch_norm(x, *moments, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


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
            self.apply(_glorot)
        elif gated:
            self.apply(_he)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in_shape) to (*, out_shape)."""
        lead = _leading(x, self.in_shape)
        h = x.reshape(math.prod(lead), math.prod(self.in_shape)).to(self.output.weight.dtype)
        return self.output(self.hidden(h)).reshape(lead + self.out_shape)

    @typed
    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start the output at `bias`, shape `out_shape`."""
        self.output.bias.copy_(shaped("bias", bias, self.out_shape).reshape(-1))


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
class ConvEncoder(nn.Module):
    """Strided 3x3 convolutions, each halving the image (rounded up), then one affine map.

    Arguments:
        in_shape: image shape (C, H, W).
        out_shape: output event shape.
        channels: channels of each convolution.
        activation: name in `ACTIVATIONS`; "tanh" starts Glorot-uniform, as in `MLP`.

    Example:
        >>> ConvEncoder((1, 28, 28), 20)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("in_shape", in_shape)
        self.out_shape = as_shape("out_shape", out_shape)
        widths = as_shape("channels", channels)
        layers: list[nn.Module] = []
        for before, after in zip((self.in_shape[0], *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                activation_layer(activation),
            ]
        self.convolutions = nn.Sequential(*layers)
        height, width = _halvings(self.in_shape[1:], len(widths))[-1]
        self.output = nn.Linear(widths[-1] * height * width, math.prod(self.out_shape))
        if activation == "tanh":
            self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, C, H, W) to (*, out_shape)."""
        lead = _leading(x, self.in_shape)
        h = x.reshape(math.prod(lead), *self.in_shape).to(self.output.weight.dtype)
        return self.output(self.convolutions(h).flatten(1)).reshape(lead + self.out_shape)


@typed
class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: one affine map, then transposed 3x3 convolutions.

    Odd sizes are restored exactly: 7 -> 4 -> 7, by the output padding of each layer.

    Arguments:
        in_shape: input event shape.
        out_shape: image shape (C, H, W).
        channels: channels of each hidden layer, the coarsest first.
        activation: name in `ACTIVATIONS`; "tanh" starts Glorot-uniform, as in `MLP`.

    Example:
        >>> ConvDecoder(20, (1, 28, 28))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (64, 32),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = as_shape("in_shape", in_shape)
        self.out_shape = image_shape("out_shape", out_shape)
        widths = as_shape("channels", channels)
        planes = _halvings(self.out_shape[1:], len(widths))[::-1]  # (h, w), the coarsest first
        self.coarse = (widths[0], *planes[0])
        self.input = nn.Linear(math.prod(self.in_shape), math.prod(self.coarse))
        layers: list[nn.Module] = []
        for i, after in enumerate((*widths[1:], self.out_shape[0])):
            padding = (
                planes[i + 1][0] - 2 * planes[i][0] + 1,
                planes[i + 1][1] - 2 * planes[i][1] + 1,
            )
            layers.append(activation_layer(activation))
            layers.append(
                nn.ConvTranspose2d(widths[i], after, 3, stride=2, padding=1, output_padding=padding)
            )
        self.convolutions = nn.Sequential(*layers)
        if activation == "tanh":
            self.apply(_glorot)

    def forward(self, z: Tensor) -> Tensor:
        """Map (*, in_shape) to (*, C, H, W)."""
        lead = _leading(z, self.in_shape)
        h = z.reshape(math.prod(lead), math.prod(self.in_shape)).to(self.input.weight.dtype)
        h = self.input(h).reshape(-1, *self.coarse)
        return self.convolutions(h).reshape(lead + self.out_shape)

    @typed
    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start each output channel at the mean over pixels of `bias`, shape (C, H, W)."""
        last = self.convolutions[-1]
        assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
        last.bias.copy_(shaped("bias", bias, self.out_shape).mean((1, 2)))


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
    ) -> None:
        super().__init__()
        size = 0 if data_dim is None else math.prod(as_shape("data_dim", data_dim))
        self.sees_data = data_dim is not None
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
        rows = len(_flat(z))
        return self.net(torch.cat([z, _flat(x, rows).to(z.dtype)], -1)).squeeze(-1)


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
        spectral_norm: as for `Critic`.

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
    ) -> None:
        super().__init__()
        size = math.prod(as_shape("data_dim", data_dim))
        outputs = positive("features", features) + 1
        self.code, self.data = (
            MLP(width, outputs, hidden, activation=activation) for width in (latent_dim, size)
        )
        if spectral_norm:
            self.apply(_bounded)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Map codes (B, Z) and data (B | data) to (B,)."""
        rows = len(_flat(z))
        a, b = self.code(z), self.data(_flat(x, rows))
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
        flat = _flat(x)
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


class OneHot(nn.Module):
    """Spread whole numbers 0..K-1 over K channels: (*, C, ...) to (*, K C, ...), class-major.

    Arguments:
        num_classes: K.
        event_dim: number of dims of one datum; its first dim is widened.

    Example:
        >>> OneHot(3)(torch.tensor([[0, 2]]))
        tensor([[1., 0., 0., 0., 0., 1.]])
    """

    classes: Tensor

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


@typed
class GRU(nn.Module):
    r"""A gated recurrent unit over the steps of sequences, each of its own length.

    .. math:: r, u = \sigma(W x_t + V h_{t-1} + b), \quad
        n = \tanh(W' x_t + b' + r \odot (V' h_{t-1} + c)), \quad h_t = (1 - u) n + u h_{t-1}

    Beyond its length a sequence changes nothing: read backwards it starts at its own last step. The
    weights are those of `torch.nn.GRUCell`; the first state is learned.

    Arguments:
        in_features: size X of one step.
        hidden: H.
        reverse: read from the last step to the first, so that h_t knows x_t, x_{t+1}, ...

    References:
        Learning phrase representations using RNN encoder-decoder for statistical machine
        translation (Cho et al., 2014), arXiv:1406.1078.

    Example:
        >>> GRU(3, 8)(torch.zeros(5, 7, 3), torch.tensor([7, 1, 0, 3, 7])).shape
        torch.Size([5, 7, 8])
    """

    def __init__(self, in_features: int, hidden: int, *, reverse: bool = False) -> None:
        super().__init__()
        size = positive("hidden", hidden)
        self.cell = nn.GRUCell(positive("in_features", in_features), size)
        self.start = nn.Parameter(torch.zeros(size))
        self.reverse = reverse

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, start: Tensor | None = None
    ) -> Tensor:
        """Map steps (*, T, X), with lengths (*) and a first state (*, H), to states (*, T, H)."""
        lead = _leading(x, (self.cell.input_size,))
        if not lead:
            raise DataError(f"network input: got {shown(x)}, expected sequences (*, T, X)")
        first = (*lead[:-1], len(self.start))
        for name, each, shape in (("lengths", lengths, lead[:-1]), ("start", start, first)):
            given = getattr(each, "shape", ())
            if each is not None and (not isinstance(each, Tensor) or given != shape):
                raise DataError(f"{name}: got {shown(each)}, expected shape {tuple(shape)}")
        steps = x.movedim(-2, 0).to(self.start.dtype)
        kept = []
        if lengths is not None:
            number = torch.arange(len(steps), device=x.device)
            places = number.reshape(-1, *(1,) * lengths.dim())
            kept = [(places < lengths.long()).unsqueeze(-1)]  # of bfloat16, 257 would be 256
            # What stands in the padding may be anything, NaN too.
            steps = torch.where(kept[0], steps, torch.zeros_like(steps))
        if start is None:
            start = self.start.expand(*steps.shape[1:-1], -1)
        states = scan(self._advance, start, [self._seen(steps), *kept], reverse=self.reverse)
        return states.movedim(0, -2)

    def step(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the state, (*, H), that follows a state (*, H) at one step (*, X)."""
        before, now = _leading(h, (len(self.start),)), _leading(x, (self.cell.input_size,))
        if before != now:
            raise DataError(f"got states {tuple(before)} and steps {tuple(now)}, expected as many")
        return self._advance(h, self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        """Return the part of the gates that an input gives, (*, 3 H), of inputs (*, X)."""
        return nn.functional.linear(x, self.cell.weight_ih, self.cell.bias_ih)

    def _advance(self, h: Tensor, seen: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the next state, (*, H); where `kept` (*, 1) is false, the same."""
        size = self.cell.hidden_size
        ours = nn.functional.linear(h, self.cell.weight_hh, self.cell.bias_hh)
        (ours, proposed), (theirs, given) = (each.split(2 * size, -1) for each in (ours, seen))
        reset, keep = (ours + theirs).sigmoid().chunk(2, -1)
        new = torch.addcmul(given, reset, proposed).tanh()
        new = torch.addcmul(new, keep, h - new)
        return new if kept is None else torch.where(kept, new, h)


@typed
class Transformer(nn.Module):
    r"""Masked self-attention over the steps of sequences: none sees a later one.

    .. math:: h = W x_t + p_t, \quad h \leftarrow h + \mathrm{attention}(h_{\le t}), \quad
        h \leftarrow h + \mathrm{MLP}(h)

    Places p are sines of geometric wavelengths, so that sequences may be of any length.

    Arguments:
        in_features: size X of one step.
        hidden: H, even, a multiple of the heads.
        depth: how often attention and a perceptron of width 2 H follow each other.
        heads: attention heads.

    References:
        Attention is all you need (Vaswani et al., 2017), arXiv:1706.03762.

    Example:
        >>> Transformer(3, 8)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 8])
    """

    def __init__(self, in_features: int, hidden: int, *, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        size = positive("hidden", hidden)
        if size % positive("heads", heads) or size % 2:
            raise ConfigError(f"hidden: got {size}, expected an even multiple of heads = {heads}")
        self.into = nn.Linear(positive("in_features", in_features), size)
        blocks = range(positive("depth", depth))
        self.blocks = nn.ModuleList(CausalBlock(size, heads) for _ in blocks)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map steps (*, T, X) to (*, T, H)."""
        lead = _leading(x, (self.into.in_features,))
        if not lead:
            raise DataError(f"network input: got {shown(x)}, expected sequences (*, T, X)")
        h = self.into(x.reshape(-1, *x.shape[-2:]))
        h = h + _places(h)
        for block in self.blocks:
            h = block(h)
        return self.norm(h).reshape(*lead, -1)


@typed
class CausalBlock(nn.Module):
    """Causal self-attention and a perceptron, each added to what it reads.

    Arguments:
        width: of a step.
        heads: attention heads; the width is a multiple of it.

    Example:
        >>> CausalBlock(8, 4)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if positive("width", width) % positive("heads", heads):
            raise ConfigError(f"width: got {width}, expected a multiple of heads = {heads}")
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.join = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        if len(_leading(h, (self.join.in_features,))) != 2:
            raise DataError(f"network input: got {shown(h)}, expected sequences (N, T, width)")
        n, length, width = h.shape
        parts = self.qkv(self.norms[0](h)).reshape(n, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.join(mixed.transpose(1, 2).reshape(n, length, width))
        return h + self.mlp(self.norms[1](h))


def _places(h: Tensor) -> Tensor:
    """Return sines and cosines of the number of a step, (T, H), of steps (*, T, H)."""
    steps, size = h.shape[-2:]
    # Short floats do not tell step 300 from 301.
    like: Any = {"device": h.device, "dtype": torch.promote_types(h.dtype, torch.float32)}
    rates = torch.arange(0, size, 2, **like) * (-math.log(1e4) / size)
    angles = torch.arange(steps, **like).unsqueeze(-1) * rates.exp()
    return torch.cat([angles.sin(), angles.cos()], -1).to(h.dtype)


def _leading(x: Tensor, event: tuple[int, ...]) -> torch.Size:
    """Return the dims of x to the left of its event; raises `DataError` if the event differs."""
    if not isinstance(x, Tensor):
        raise DataError(f"network input: got {shown(x)}, expected a tensor")
    split = x.dim() - len(event)
    if split < 0 or tuple(x.shape[split:]) != event:
        raise DataError(
            f"network input has shape {tuple(x.shape)}; expected "
            f"(*, {', '.join(map(str, event))}): reshape the data, or build for their shape"
        )
    return x.shape[:split]


def _halvings(plane: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return the (height, width) before and after each convolution of stride 2."""
    planes = [(plane[0], plane[1])]
    for _ in range(times):
        height, width = planes[-1]
        planes.append(((height + 1) // 2, (width + 1) // 2))
    return planes


def _flat(x: Tensor, rows: int | None = None) -> Tensor:
    """Return data (B | data) as (B, D); raises `DataError` for no such data, or other rows."""
    known = isinstance(x, Tensor) and x.dim() > 0 and rows in (None, len(x))
    if not known:
        expected = "one row per datum" if rows is None else f"{rows} rows, one for each code"
        raise DataError(f"network input: got {shown(x)}, expected a tensor of {expected}")
    return x.reshape(len(x), -1)


def _bounded(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        spectral_norm(layer)


def _he(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight)


def _glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
