"""What Pyro functions use as they run: modules called, parameters stated, hidden and made."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_pre_hook,
    register_module_parameter_registration_hook,
)

from pyro_vae.program.handlers import parameter_of
from pyro_vae.torch_private import unwarned_of_hooks


class Watch:
    """Takes down what is used inside its block, on this thread.

    A module that the program does not know runs in eval mode there, as the known ones do.
    """

    def __init__(self) -> None:
        self.known: set[int] = set()  # ids of modules
        self.called: list[nn.Module] = []  # unknown ones, none inside another
        self.stated: dict[str, Tensor] = {}  # unconstrained values by the names of statements
        self.hidden: dict[str, Tensor] = {}  # those that a ``poutine.block`` hides from us
        self._inside: set[int] = set()
        self._training: list[nn.Module] = []

    def announced(self) -> dict[str, Tensor]:
        """Return the parameters that were stated, hidden ones included."""
        return {**self.hidden, **self.stated}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch which modules are called inside this block."""
        mine = threading.get_ident()

        def call(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == mine:
                self._call(module)

        hook = register_module_forward_pre_hook(call)
        try:
            with unwarned_of_hooks():
                yield
        finally:
            hook.remove()
            for part in self._training:
                part.training = True
            self._training.clear()
            self._inside.clear()

    def _call(self, module: nn.Module) -> None:
        if id(module) in self._inside or id(module) in self.known:
            return
        self.called.append(module)
        self._inside |= {id(part) for part in module.modules()}
        for part in module.modules():
            if part.training:
                self._training.append(part)
                part.training = False


class Statements(Messenger):
    """Tells of each parameter that a statement asks for inside its block, on this thread.

    Arguments:
        tell: Takes a name, an unconstrained value, and whether a ``poutine.block`` hides it.
    """

    def __init__(self, tell: Callable[[str, Tensor, bool], None]) -> None:
        super().__init__()
        self._tell = tell

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell of what runs inside this block."""
        mine = threading.get_ident()
        # Of another program, which runs around this one.
        around = vars(BlockMessenger).get("_postprocess_message")
        then: Any = around or Messenger._postprocess_message

        def postprocess(block: Messenger, msg: Any) -> None:
            """Tell of what a block stops: nobody else sees it."""
            stopped = msg["type"] == "param" and msg["stop"] and isinstance(msg["value"], Tensor)
            if stopped and threading.get_ident() == mine:
                self._tell(msg["name"], parameter_of(msg["value"]), True)
            then(block, msg)

        BlockMessenger._postprocess_message = postprocess  # type: ignore[assignment,method-assign]
        try:
            with self:
                yield
        finally:
            del BlockMessenger._postprocess_message
            if around is not None:
                BlockMessenger._postprocess_message = around  # type: ignore[method-assign]

    def _pyro_post_param(self, msg: Any) -> None:
        self._tell(msg["name"], parameter_of(msg["value"]), False)


@contextmanager
def noting_made(made: dict[nn.Parameter, bool | None], values: nn.ParameterDict) -> Iterator[None]:
    """Note the parameters that modules get inside: of a new network, or a ``PyroParam``.

    Those of a copy of a network are registered by nobody.

    Arguments:
        made: Takes them.
        values: The program's own, whose parameters are not meant.
    """
    mine, copied = threading.get_ident(), nn.Parameter.__deepcopy__

    def note(parameter: nn.Parameter) -> None:
        if threading.get_ident() == mine:
            made[parameter] = None

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        new = module._parameters.get(name) is not parameter and module is not values
        if new and parameter is not None:
            note(parameter)

    def copy(parameter: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
        known, result = id(parameter) in memo, copied(parameter, memo)
        if not known:
            note(result)
        return result

    hook = register_module_parameter_registration_hook(register)
    nn.Parameter.__deepcopy__ = copy  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Parameter.__deepcopy__ = copied  # type: ignore[method-assign]
        hook.remove()
