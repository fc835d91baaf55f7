"""What Pyro functions use while they run: modules called, parameters stated, parameters hidden."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.torch_private import unwarned_of_hooks


class Watch(Messenger):
    """Takes down what is used inside its block, on this thread.

    A module that the program does not know runs in eval mode there, as the known ones do.
    """

    def __init__(self) -> None:
        super().__init__()
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
    def watching(self) -> Iterator["Watch"]:
        """Watch what runs inside this block."""
        before = vars(BlockMessenger).get("_postprocess_message")
        hook = register_module_forward_pre_hook(self._on_this_thread(self._call))
        hide = self._on_this_thread(self._hide)
        BlockMessenger._postprocess_message = _hiding(hide)  # type: ignore[method-assign]
        try:
            with self, unwarned_of_hooks():
                yield self
        finally:
            hook.remove()
            del BlockMessenger._postprocess_message
            if before is not None:  # another program is read around this one
                BlockMessenger._postprocess_message = before  # type: ignore[method-assign]
            for part in self._training:
                part.training = True
            self._training.clear()
            self._inside.clear()

    def _on_this_thread(self, function: Callable[..., None]) -> Callable[..., None]:
        mine = threading.get_ident()

        def watched(*args: Any) -> None:
            if threading.get_ident() == mine:
                function(*args)

        return watched

    def _call(self, module: nn.Module, _: Any) -> None:
        if id(module) in self._inside or id(module) in self.known:
            return
        self.called.append(module)
        self._inside |= {id(part) for part in module.modules()}
        for part in module.modules():
            if part.training:
                self._training.append(part)
                part.training = False

    def _pyro_post_param(self, msg: Any) -> None:
        self.stated[msg["name"]] = _unconstrained(msg["value"])

    def _hide(self, msg: Any) -> None:
        if msg["type"] == "param" and msg["stop"] and isinstance(msg["value"], Tensor):
            self.hidden[msg["name"]] = _unconstrained(msg["value"])


class Statements(Messenger):
    """Tells of each parameter that a statement asks for inside its block, on this thread.

    Arguments:
        tell: Takes a name, an unconstrained value, and whether a ``poutine.block`` hides it.
    """

    def __init__(self, tell: Callable[[str, Tensor, bool], None]) -> None:
        super().__init__()
        self._tell, self._mine = tell, threading.get_ident()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell of what runs inside this block."""
        before = vars(BlockMessenger).get("_postprocess_message")
        hiding = _hiding(self._hide, before or Messenger._postprocess_message)
        BlockMessenger._postprocess_message = hiding  # type: ignore[method-assign]
        try:
            with self:
                yield
        finally:
            del BlockMessenger._postprocess_message
            if before is not None:
                BlockMessenger._postprocess_message = before  # type: ignore[method-assign]

    def _pyro_post_param(self, msg: Any) -> None:
        self._tell(msg["name"], _unconstrained(msg["value"]), False)

    def _hide(self, msg: Any) -> None:
        stopped = msg["type"] == "param" and msg["stop"] and isinstance(msg["value"], Tensor)
        if stopped and threading.get_ident() == self._mine:
            self._tell(msg["name"], _unconstrained(msg["value"]), True)


def _hiding(note: Callable[[Any], None], then: Any = Messenger._postprocess_message) -> Any:
    """Return what a ``poutine.block`` does after a message: nobody else sees those it stops."""

    def postprocess(self: BlockMessenger, msg: Any) -> None:
        note(msg)
        then(self, msg)

    return postprocess


def _unconstrained(value: Tensor) -> Tensor:
    reference = getattr(value, "unconstrained", None)
    leaf = None if reference is None else reference()
    return value if leaf is None else leaf
