"""What the programs of the zoo have in common. Shapes: B batch."""

import itertools
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.names import missing, no_call
from pyro_vae.nn import Shape, as_shape

_serial = itertools.count()


class ZooProgram(nn.Module):
    """A program over data of one shape, under a name that no other program of this process has.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
    """

    kind: str  # the first part of the name
    config: dict[str, Any] | None  # the constructor's arguments for JSON; None: not all of them are
    origin: Tensor

    def __init__(self, data_dim: Shape) -> None:
        super().__init__()
        self.name = f"{self.kind}_{next(_serial)}"
        self.data_shape = as_shape("data_dim", data_dim)
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @typed
    def example(self, n: int = 2) -> Any:
        """Return a batch of n rows of zeros, shape (n | data)."""
        return self.origin.new_zeros(positive("n", n), *self.data_shape)

    forward = no_call

    if not TYPE_CHECKING:  # which would take any name for one of its own

        def __getattr__(self, name: str) -> Any:
            """Say that verbs are functions of the library, where one is asked of a program.

            Raises:
                AttributeError: The program has nothing of this name.
            """
            return missing(self, name, super().__getattr__)

    def extra_repr(self) -> str:
        names = ("latent_dim", "latent_dims", "positions")
        sizes = [f"{name}={getattr(self, name)}" for name in names if hasattr(self, name)]
        return ", ".join([f"data_dim={plain(self.data_shape)}", *sizes])


class OneLatent(ZooProgram):
    """A program of one latent z: model and guide around `prior`, `decoder` and `encoder`."""

    encoder: Any
    decoder: Any

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event one code."""
        raise NotImplementedError

    def model(self, x: Tensor) -> Tensor:
        """Draw z from the prior and observe x, shape (B | data)."""
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | code)
            return pyro.sample("x", self.decoder(z), obs=x)  # (B | data)

    def guide(self, x: Tensor) -> None:
        """Draw z from the encoder's distribution."""
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))  # (B | code)


def plain(shape: tuple[int, ...]) -> int | list[int]:
    """Return a shape as JSON keeps it: 784 or [1, 28, 28]."""
    return shape[0] if len(shape) == 1 else list(shape)


def register(program: ZooProgram) -> None:
    """Tell Pyro of a program's parameters, as ``pyro.module`` does, where nobody holds them yet.

    Stock ``SVI.step`` trains nothing without it. Where a handler of this library answers for the
    parameters, a message for each of them would only cost time (some 15 % of a small step), unless
    a stock loss is on the stack that looks for them in its traces.
    """
    held = any(getattr(handler, "holds_parameters", False) for handler in _PYRO_STACK)
    wanted = any(getattr(handler, "wants_parameters", False) for handler in _PYRO_STACK)
    if wanted or not held:
        pyro.module(program.name, program)
