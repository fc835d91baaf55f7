"""What functions make takes its loaded values as it is made, where a user runs them.

A verb reads a batch before it uses it, and gives what the functions have made of that batch its
loaded values then. A user who runs the functions inside ``with program.running():`` reads none.
There a tensor takes its values as a part of the program gets it, alone or within a module. Networks
that lie elsewhere, in a cache or in a variable, take theirs before they are called or announced.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from pyro_vae.errors import ProgramError
from pyro_vae.program.parameters.loaded import READ_FIRST
from pyro_vae.program.parameters.values import AVERAGES, key_of, listed
from pyro_vae.torch_private import unwarned_of_hooks

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters

_REGISTRATIONS = (
    register_module_parameter_registration_hook,
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)


class Arrivals(Messenger):
    """Gives what is made inside a block, on this thread, what a load has kept for it.

    Arguments:
        own: Parameters of the program whose functions run in it.
    """

    def __init__(self, own: "Parameters") -> None:
        super().__init__()
        self._own = own
        self._made = 0  # parameters that had been made when networks were searched for
        self._given: list[tuple[Tensor, Tensor]] = []  # places and values, before their first use

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Give it inside this block.

        Raises:
            CheckpointError: Functions make what does not fit what was loaded.
            ProgramError: They have used what only a look at rows can give its values.
        """
        mine = threading.get_ident()

        def registered(module: nn.Module, name: str, made: Any) -> None:
            if threading.get_ident() == mine and self._waits:
                self._arrive(module, name, made)

        def called(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == mine and self._waits:
                self._use(chain(module.parameters(), module.buffers()))
                self._require_known(module)

        if not self._waits:
            yield
            return
        with ExitStack() as hooks, unwarned_of_hooks(), self:
            for register in _REGISTRATIONS:
                hooks.callback(register(registered).remove)
            hooks.callback(register_module_forward_pre_hook(called).remove)
            yield
        self._settle()

    @property
    def _waits(self) -> bool:
        """Whether values wait for places or uses, outside of looks: those leave nothing behind."""
        loads = self._own.loads
        return not loads.looks and bool(self._given or loads.waiting)

    def _pyro_param(self, msg: Any) -> None:
        if self._waits:
            self._use(msg["args"][1:2])  # a weight that pyro.module announces

    def _pyro_sample(self, _: Any) -> None:
        if self._waits:
            self._use(())
            nameless = self._own.loads.nameless
            if nameless:
                raise _unread(nameless, "a density may depend on their tensors")

    def _arrive(self, module: nn.Module, name: str, made: Any) -> None:
        """Give a tensor that a part gets, or those of a module that it gets, their values."""
        for path, part in self._own.parts.named_modules(prefix="parts", remove_duplicate=False):
            if part is module:
                _follow(made, part)
                self._given += self._own.loads.give(_tensors_of(f"{path}.{name}", made), READ_FIRST)

    def _use(self, tensors: Iterable[Any]) -> None:
        """Give what is about to be used its values.

        Once more, where it has them: the functions may have begun it after they had put it there.
        """
        for place, value in self._given:
            place.data.copy_(value)
        self._given.clear()
        used = {id(tensor) for tensor in tensors}
        if used and self._own.loads.expected:
            places = self._places()
            mine = {name: place for name, place in places.items() if id(place) in used}
            self._own.loads.give(mine, READ_FIRST)

    def _places(self) -> dict[str, Tensor]:
        """Return the tensors of the parts, with those of networks that have been made meanwhile."""
        own = self._own
        if len(own.made) != self._made:
            self._made = len(own.made)
            before = set(own.parts)
            own.add_reached(own.search())
            for name in own.parts.keys() - before:
                _follow(own.parts[name], own.parts)
        return own.part_tensors()

    def _require_known(self, module: nn.Module) -> None:
        """Refuse a call of a network that no search finds, where one such waits."""
        own = self._own
        homeless = [name for name in own.loads.expected if name.split(".")[1] not in own.parts]
        strange = homeless and all(module is not part for part in own.parts.modules())
        if strange and any(True for _ in chain(module.parameters(), module.buffers())):
            raise _unread(homeless, f"a {type(module).__name__} that was called may be theirs")

    def _settle(self) -> None:
        """Compare what has been made in the block with what was loaded, at its end."""
        own = self._own
        if self._waits:
            there = [name for name, each in self._places().items() if not is_lazy(each)]
            late = sorted(own.loads.expected.keys() & there)
            if late:
                raise _unread(late, "its networks may have been used without being called")
        if own.fresh and own.loads.loaded is not None:
            averages = f"values.{key_of(AVERAGES)}"
            made = {name for name in own.tensors() if not name.startswith(averages)}
            own.loads.loaded.require_known(made - own.at_first)
        own.types.warn_of_rounding()


def _follow(made: Any, part: nn.Module) -> None:
    """Put a module into eval mode where its part is in that, as what is loaded is."""
    if isinstance(made, nn.Module) and not part.training:
        made.eval()


def _unread(names: list[str], why: str) -> ProgramError:
    return ProgramError(
        f"running: what was loaded holds {listed(names)}, whose place only a look at rows finds in "
        f"time ({why}): call program.read(rows) before the functions run"
    )


def _tensors_of(name: str, made: Any) -> dict[str, Tensor]:
    """Return the tensors of what a module gets, by their names."""
    if isinstance(made, nn.Module):
        return dict(made.state_dict(prefix=f"{name}.", keep_vars=True))
    return {name: made} if isinstance(made, Tensor) else {}
