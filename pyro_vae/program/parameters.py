"""The tensors that a program trains, and what a ``pyro.param`` statement is answered with."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import OwnParameters
from pyro_vae.program.modules import leaves_behind


class Parameters:
    """What a program trains: the modules behind its functions, and values of ``pyro.param``.

    Statements are answered from here; the global parameter store is neither read nor written.

    Arguments:
        parts: The modules that the functions use, by name.
    """

    def __init__(self, parts: nn.ModuleDict) -> None:
        self.parts = parts
        self.values = nn.ParameterDict()  # unconstrained
        self.home: torch.device | None = None  # where new values are made
        self._constraints: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # of the values, dots and all
        self._ids: set[int] = set()
        self._ids_of = -1

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return each parameter once."""
        return nn.ModuleList([self.parts, self.values]).parameters()

    def share_values(self, other: "Parameters") -> None:
        """Answer ``pyro.param`` statements with another program's values from now on."""
        self.values = other.values
        self._constraints, self._names = other._constraints, other._names

    # -- while the functions run -----------------------------------------------------------------

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the ``pyro.param`` statements of this block; nothing else does."""
        with (
            pyro.settings.context(module_local_params=True),
            # For what is hidden from our handler (poutine.block): a store with the same tensors.
            pyro.get_param_store().scope(self._store_state()),
            OwnParameters(self._parameter),
        ):
            for part in self.parts.modules():
                context = getattr(part, "_pyro_context", None)
                if context is not None and not hasattr(context, "param_state"):
                    # A PyroModule built before module_local_params was on lacks it.
                    context.param_state = {"params": {}, "constraints": {}}
            yield

    def _store_state(self) -> Any:
        """Return the values of plain ``pyro.param`` statements as Pyro's store keeps them."""
        names = {key: self._names.get(key, key) for key in self.values}
        return {
            "params": {names[key]: value for key, value in self.values.items()},
            "constraints": {
                names[key]: self._constraints.get(key, constraints.real) for key in self.values
            },
        }

    def _parameter(self, name: str, initial: Any, constraint: Any) -> Tensor:
        key = _key(name)
        self._names[key] = name
        if (
            isinstance(initial, Tensor)
            and _MODULE_NAMESPACE_DIVIDER in name
            and not isinstance(initial, nn.Parameter)
        ):
            return initial  # a module's weight that a tracer has put its own tensor in place of
        if isinstance(initial, nn.Parameter):
            # pyro.module gives the module's own tensor: the answer is that tensor. One whose
            # module was not found (deep inside a closure, say) is held here, so that it trains.
            if id(initial) not in self._known_ids():
                self._hold(key, initial)
            return initial
        if key not in self.values:
            if initial is None:
                raise ProgramError(f"pyro.param({name!r}) is read before it is given a value")
            start = torch.as_tensor(initial() if callable(initial) else initial).detach()
            start = start.to(self.home)  # where the data are: the function may not have said
            self.values[key] = nn.Parameter(transform_to(constraint).inv(start).clone())
            self._constraints[key] = constraint
        unconstrained = self.values[key]
        value = transform_to(self._constraints.get(key, constraint))(unconstrained)
        value = value.view_as(value)  # a new object: the attribute below must not stick
        value.unconstrained = weakref.ref(unconstrained)  # what Pyro's plates expect of a param
        return value

    def _known_ids(self) -> set[int]:
        # Rebuilt only when the number of values changes: pyro.module asks once per weight.
        if self._ids_of != len(self.values):
            self._ids = {id(parameter) for parameter in self.parameters()}
            self._ids_of = len(self.values)
        return self._ids

    # -- what the functions do not name ----------------------------------------------------------

    def forget(self, names: Iterable[str]) -> None:
        """Drop the values of these keys."""
        for name in names:
            del self.values[name]

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for saved ``pyro.param`` values of functions that have not run yet."""
        for key, value in tensors.items():
            name = key.removeprefix("values.")
            if key.startswith("values.") and name not in self.values:
                self.values[name] = nn.Parameter(value.clone())

    def hold_hidden(self, terms: Iterable[Tensor]) -> None:
        """Hold the parameters that numbers depend on and no known module holds.

        A network deep inside an object or a list that the functions use is not found by name; its
        weights would stand still without a word.
        """
        known = {id(parameter) for parameter in self.parameters()}
        hidden = 0
        for parameter in (leaf for term in terms for leaf in leaves_behind(term)):
            if id(parameter) in known:
                continue
            known.add(id(parameter))
            key, hidden = f"found-{hidden}", hidden + 1  # by the order of the graph, as when saved
            self._hold(key, parameter)

    def _hold(self, key: str, parameter: nn.Parameter) -> None:
        """Hold a parameter; one loaded before the functions first ran gives it its value."""
        if key in self.values:
            parameter.data.copy_(self.values[key].data)
        self.values[key] = parameter


def _key(name: str) -> str:
    """Return a parameter's name as ``nn.ParameterDict`` can hold it: no dots, none of its own."""
    key = name.replace("-", "--").replace(".", "-")
    return f"{key}_" if hasattr(nn.ParameterDict, key) or hasattr(nn.Module(), key) else key
