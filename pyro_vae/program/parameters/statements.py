"""How ``pyro.param`` statements are answered: from a program's own tensors.

A handler answers the statements that reach it. Those inside of a ``poutine.block`` do not, nor do
functions that read Pyro's parameter store themselves: they reach the store. It holds the same
tensors while the functions run, and asks here before it makes a value of its own.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER, ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import OwnParameters, pyro_modules_at_home
from pyro_vae.program.parameters.values import AVERAGES, key_of

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters


class Answers:
    """Answers the statements of one block.

    Arguments:
        own: Parameters of the program whose functions run in it.
    """

    def __init__(self, own: "Parameters") -> None:
        self._own = own
        self._store: Any = pyro.get_param_store()

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Answer the statements of this block; nothing else does."""
        state = self._state()
        before = set(state["params"])
        with (
            pyro_modules_at_home(),
            self._store.scope(state),
            self._asked_by_store(),
            OwnParameters(self._answer),
        ):
            yield
        for name, value in state["params"].items():
            if name not in before:
                self._keep(name, value, state["constraints"][name])

    def _state(self) -> dict[str, dict[str, Any]]:
        """Return the values that statements have asked for as Pyro's store keeps them."""
        state: dict[str, dict[str, Any]] = {"params": {}, "constraints": {}}
        for key, value in self._own.known.items():
            if value.name is not None and value.constraint is not None:
                state["params"][value.name] = self._own.types.now(key)
                state["constraints"][value.name] = value.constraint
        return state

    # -- the handler -----------------------------------------------------------------------------

    def _answer(self, name: str, initial: Any, constraint: Any) -> Tensor:
        own, key = self._own, key_of(name)
        if isinstance(initial, Tensor) and _MODULE_NAMESPACE_DIVIDER in name:
            # A module's own weight, or the tensor that a tracer has put in its place.
            return own.values.get(key, initial)
        unconstrained = self._value(name, initial, constraint)
        if name not in self._store:  # which functions may read from now on
            self._tell_store(name)
        if not name.startswith(AVERAGES):
            own.show(unconstrained)
        value = transform_to(own.known[key].constraint)(own.types.now(key))
        value = value.view_as(value)  # a new object: the attribute below must not stick
        value.unconstrained = weakref.ref(unconstrained)  # what Pyro's plates expect of a param
        return value

    def _value(self, name: str, initial: Any, constraint: Any, *, itself: bool = True) -> Tensor:
        """Return the unconstrained value that a statement asks for; make it where there is none.

        Arguments:
            name, initial, constraint: Of the statement.
            itself: Hold a parameter that is given for the value itself, as Pyro's store does.
        """
        own, key = self._own, key_of(name)
        if key not in own.values:
            if name in own.store.entries:
                own.make(name, *own.store.entries[name])
            elif itself and isinstance(initial, nn.Parameter) and constraint is constraints.real:
                own.hold(key, initial)
            elif initial is None:
                raise ProgramError(f"pyro.param({name!r}) is read before it is given a value")
            else:
                with own.late.drawing(name):
                    start = _unconstrained(initial, constraint)
                own.make(name, start, constraint)
        elif initial is not None:
            own.loads.compare(key, lambda: _unconstrained(initial, constraint))
            own.constraints.compare(key, name, constraint)
        elif own.known[key].constraint is None and not own.known[key].found:
            constraint = self._saved(name)
        own.note_statement(key, name, constraint)
        return own.values[key]

    def _saved(self, name: str) -> Any:
        """Return the constraint of a loaded value that is read before a statement has told it."""
        own, key = self._own, key_of(name)
        if own.known[key].saved is None:
            raise ProgramError(
                f"pyro.param({name!r}) is read before a statement has told the constraint of what "
                "was loaded: call program.read(rows) first, on rows that reach its statement, "
                f"pyro.param({name!r}, start, constraint=...)"
            )
        own.types.choose(key, None)
        return own.known[key].saved

    # -- Pyro's store ----------------------------------------------------------------------------

    @contextmanager
    def _asked_by_store(self) -> Iterator[None]:
        """Let Pyro's store ask here for what it lacks, before it makes a value of its own.

        It lacks what was loaded: that has no constraint before a statement has asked for it.
        """
        store, mine = self._store, threading.get_ident()
        around = vars(store).get("setdefault")  # of another program, which runs around this one
        write = ParamStoreDict.__setitem__

        def setdefault(name: str, initial: Any, constraint: Any = constraints.real) -> Tensor:
            if name not in store and _MODULE_NAMESPACE_DIVIDER not in name:
                self._give_store(name, initial, constraint)
            return type(store).setdefault(store, name, initial, constraint)

        def setitem(other: ParamStoreDict, name: str, value: Tensor) -> None:
            ours = other is store and threading.get_ident() == mine
            if ours and name not in store and self._waits(name):
                # A function writes where the store lacks the name: this is the statement.
                self._give_store(name, value, constraints.real)
            else:
                if ours and name in store:
                    self._tell_of_write(name)
                write(other, name, value)

        store.setdefault = setdefault
        ParamStoreDict.__setitem__ = setitem  # type: ignore[method-assign]
        try:
            yield
        finally:
            ParamStoreDict.__setitem__ = write  # type: ignore[method-assign]
            del store.setdefault
            if around is not None:
                store.setdefault = around

    def _give_store(self, name: str, initial: Any, constraint: Any) -> None:
        """Give Pyro's store the value that a statement asks it for, which no handler sees."""
        self._own.hide(self._value(name, initial, constraint, itself=False))
        self._tell_store(name)

    def _tell_store(self, name: str) -> None:
        """Let Pyro's store hold a value that a statement has asked for."""
        key = key_of(name)
        typed, kept = self._own.types.now(key), self._own.known[key].constraint
        self._store.set_state({"params": {name: typed}, "constraints": {name: kept}})

    def _tell_of_write(self, name: str) -> None:
        """Warn of a value that a function writes anew in each run: no file has what it becomes."""
        if not name.startswith(AVERAGES):
            self._own.told.warn(
                ("written", name),
                f"pyro.get_param_store()[{name!r}] is written as the program runs: what is written "
                "over a value is lost when the epoch ends, and no verb, checkpoint or file has it; "
                "keep a running value in a buffer (register_buffer) of a module of the program",
            )

    def _waits(self, name: str) -> bool:
        """Return whether there is a value for a name that no statement has asked for."""
        known = self._own.known.get(key_of(name))
        waits = known is not None and known.constraint is None
        return waits and _MODULE_NAMESPACE_DIVIDER not in name

    def _keep(self, name: str, value: Tensor, constraint: Any) -> None:
        """Keep a value that a function has written into Pyro's store itself."""
        if key_of(name) not in self._own.values and _MODULE_NAMESPACE_DIVIDER not in name:
            self._own.make(name, *self._own.store.entries.get(name, (value, constraint)))


def _unconstrained(initial: Any, constraint: Any) -> Tensor:
    """Return the value with which a statement begins, without its constraint."""
    start = torch.as_tensor(initial() if callable(initial) else initial).detach()
    return transform_to(constraint).inv(start)
