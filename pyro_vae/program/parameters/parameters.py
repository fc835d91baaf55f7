"""The tensors that a program trains, and what a ``pyro.param`` statement is answered with."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, count
from typing import Any

import pyro
import torch
from pyro.nn.module import PyroModule
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER, ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.modules.module import register_module_parameter_registration_hook

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.program.handlers import OwnParameters, pyro_modules_at_home
from pyro_vae.program.parameters.loaded import Loaded, is_wider, tell_of_rounding, unlike
from pyro_vae.program.parameters.modules import owners, unique_name
from pyro_vae.program.parameters.object_graph import empty_globals
from pyro_vae.program.parameters.values import AVERAGES, Value, key_of, name_of
from pyro_vae.program.parameters.watch import Statements, Watch
from pyro_vae.program.told import silenced


class Parameters:
    """What a program trains: the modules behind its functions, and values of ``pyro.param``.

    Statements are answered from here; the global parameter store is neither read nor written.

    Arguments:
        functions: Model and guide.
        modules: Modules given by name.
        store: What ``read_store`` returns, to be taken over where a statement asks for it.
    """

    def __init__(
        self,
        functions: tuple[Callable[..., Any], ...],
        modules: Mapping[str, nn.Module] | None = None,
        store: Mapping[str, tuple[Tensor, Any]] | None = None,
    ) -> None:
        self.functions = functions
        self._given = dict(modules or {})
        self._reached = self.search()
        self.parts = nn.ModuleDict({**self._reached, **self._given})
        self.values = nn.ParameterDict()  # unconstrained
        self.known: dict[str, Value] = {}  # of each of these, by key
        self.home: torch.device | None = None  # where new values are made
        self.dtype: torch.dtype | None = None  # to which all has been converted
        self._converts_first = False  # whether what a first run makes is converted at once
        self.fresh = True  # the functions have not run
        self.moved = False  # a training has taken a step
        self.version = 0  # one more whenever a run has found new parameters
        self.store = dict(store or {})  # what no statement has asked for yet
        self.watch: Watch | None = None  # while it is found out what the functions use
        # Of tensors that statements ask for: whether one outside of any ``poutine.block`` has.
        self.shown: dict[Tensor, bool] = {}
        self.outdated: set[str] = set()  # values of functions that were replaced
        # Parameters that runs have made, but for those of batches that were read: whether a
        # statement outside of blocks has asked for one; None: no statement has.
        self.made: dict[nn.Parameter, bool | None] = {}
        self.announced: dict[str, Tensor] = {}  # by the names of statements, as batches were read
        self.expected: dict[str, Tensor] = {}  # saved tensors of parts that are still to be made
        self.filled: set[Tensor] = set()  # what a load has given its value, and the store does not
        self.arriving: dict[str, Tensor | None] = {}  # by key, where a load that goes on comes to
        self.saved_type: torch.dtype | None = None  # of the networks in what was loaded
        self._rounded: dict[str, torch.dtype] = {}  # what is to be told of types, by name
        self._given_now: list[tuple[Tensor, Tensor]] = []  # places that got their value in a look
        self._at_first = set(self.part_tensors())
        # Of ``load_state_dict``, while it runs: torch tells its hooks True.
        self.strict: bool | None = None
        self.loaded: Loaded | None = None
        self.asked: frozenset[str] = frozenset()  # keys that the first batch of training asks for
        self.early: set[str] = set()  # keys of what the optimizer has been made over
        # Keys of what is still to join it, and whether it has in the run that goes on.
        self.withheld: dict[str, bool] = {}
        self._lent: set[str] = set()  # keys of what is given and may be taken back

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each parameter once."""
        return nn.ModuleList([self.parts, self.values]).parameters()

    def with_made(self) -> list[nn.Parameter]:
        """Return them, and those of networks that are made and not yet held, each once."""
        return list(dict.fromkeys([*self.parameters(), *self.made]))

    def part_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the parts, as a file names them."""
        state = self.parts.state_dict(prefix="parts.", keep_vars=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

    def put(self, key: str, value: Tensor, known: Value | None = None) -> None:
        """Hold a value, of which this is known; None: what was."""
        self.values[key] = value
        self.known[key] = known or self.known.get(key, Value())

    def tell(self, key: str, **facts: Any) -> None:
        """Know more of a value."""
        self.known[key] = replace(self.known[key], **facts)

    def drop(self, key: str) -> None:
        """Hold a value no longer."""
        if key in self.values:
            self.shown.pop(self.values[key], None)
            del self.values[key], self.known[key]

    @property
    def frozen(self) -> set[Tensor]:
        """What a ``poutine.block`` hides wherever it occurs: it is not trained."""
        return {value for value, shown in self.shown.items() if not shown}

    def freeze(self, hidden: Mapping[str, Tensor], stated: Mapping[str, Tensor]) -> None:
        """Train no more what statements inside a ``poutine.block`` alone bring up, as stock SVI.

        Arguments:
            hidden, stated: Unconstrained tensors by the names of statements.
        """
        leaves = {name: value for name, value in stated.items() if value.is_leaf}
        self.announced |= leaves
        for value in leaves.values():
            self._show(value)
        for name, value in hidden.items():
            self._hide(self.values.get(key_of(name), value))

    def _show(self, value: Tensor) -> None:
        """Train from now on what a statement outside of any ``poutine.block`` asks for."""
        self.version += self.shown.get(value) is False
        self.shown[value] = True

    def _hide(self, value: Tensor) -> None:
        """Train not what statements inside of blocks alone have asked for so far."""
        self.shown.setdefault(value, False)

    def share_values(self, other: "Parameters") -> None:
        """Answer ``pyro.param`` statements with another program's values from now on."""
        self.values, self.known = other.values, other.known
        self.dtype = other.dtype

    def replace(self, functions: tuple[Callable[..., Any], ...]) -> None:
        """Serve other functions: values that they do not use are dropped once they have run."""
        self.functions = functions
        self._reached = self.search()
        self.parts.clear()
        self.parts.update({**self._reached, **self._given})
        self._start_anew()

    def search(self) -> dict[str, nn.Module]:
        """Return the modules that the functions can reach now, by name."""
        return owners(*self.functions, given=self._given.values())

    def follow(self) -> bool:
        """Search again, and return whether a network stands in another's place since the last time.

        A notebook's cell that runs again, or an assignment to an attribute, puts it there.
        """
        now, before = self.search(), self._reached
        if self.made and not self.fresh:
            self.hold_made(now)
        gone = [name for name, module in before.items() if now.get(name) is not module]
        if not gone:
            return False
        for name in gone:
            if name in self.parts and self.parts[name] is before[name]:
                del self.parts[name]
        self.add_reached(now)
        self._start_anew()
        return True

    def add_reached(self, reached: Mapping[str, nn.Module]) -> None:
        """Train the modules of a search that no part holds."""
        self._reached = dict(reached)
        for name, module in reached.items():
            if all(module is not known for known in self.parts.modules()):
                self.add_part(name, module)

    def hold_made(self, reached: Mapping[str, nn.Module]) -> None:
        """Train what runs have made, as far as a search finds it now, and no block hides it."""
        before = len(self.parts)
        self.add_reached(reached)
        held = [parameter for parameter in self.parameters() if parameter in self.made]
        for parameter in held:
            asked = self.made[parameter]
            if asked is not None:
                (self._show if asked else self._hide)(parameter)
        self.made.clear()
        self.version += bool(held) or len(self.parts) != before

    def _start_anew(self) -> None:
        self.announced.clear()
        self.outdated = set(self.values)
        self.shown.clear()
        self._at_first = set(self.part_tensors())

    def remembered(self) -> Callable[[], None]:
        """Return a function that puts back which parameters and parts there are now."""
        homes: list[Any] = [self.values, self.parts, self.known, self.shown, self.store]
        homes += [self.announced, self.expected]
        contents = [list(home.items()) for home in homes]  # a mapping would be sorted
        outdated, filled = {*self.outdated}, {*self.filled}
        names = "fresh", "_reached", "loaded", "_converts_first"
        own = {name: getattr(self, name) for name in names}

        def put_back() -> None:
            for home, before in zip(homes, contents, strict=True):
                home.clear()
                home.update(before)
            self.outdated, self.filled = outdated, filled
            vars(self).update(own)

        return put_back

    # -- while the functions run -----------------------------------------------------------------

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the ``pyro.param`` statements of this block; nothing else does."""
        state = self._store_state()
        before, store = state["params"], pyro.get_param_store()
        with (
            pyro_modules_at_home(),
            # For what is hidden from our handler (poutine.block): a store with the same tensors.
            store.scope(state),
            self._asked_by(store),
            OwnParameters(self._parameter),
            self._noting_made(),
            nullcontext() if self.watch is None else self.watch.watching(),
            Statements(self._note_asked).telling(),
        ):
            yield
        if len(state["params"]) > len(before):
            self._keep_hidden(state, set(before))

    @contextmanager
    def _noting_made(self) -> Iterator[None]:
        """Note the parameters that modules get inside: of a new network, or a ``PyroParam``.

        Those of a copy of a network are registered by nobody.
        """
        mine, copied = threading.get_ident(), nn.Parameter.__deepcopy__

        def note(parameter: nn.Parameter) -> None:
            if threading.get_ident() == mine:
                self.made[parameter] = None

        def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            new = module._parameters.get(name) is not parameter and module is not self.values
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

    def _note_asked(self, name: str, value: Tensor, hidden: bool) -> None:
        """Note how a statement asks for what runs have made, or for what blocks have hidden."""
        if isinstance(value, nn.Parameter) and value in self.made:
            self.made[value] = not hidden or bool(self.made[value])
        elif not hidden and self.shown.get(value) is False and not name.startswith(AVERAGES):
            self._show(value)

    def _store_state(self) -> Any:
        """Return the values of plain ``pyro.param`` statements as Pyro's store keeps them."""
        # A loaded value has a constraint once a statement has asked for it.
        stated = {k: v for k, v in self.known.items() if v.name and v.constraint is not None}
        return {
            "params": {value.name: self._typed(key) for key, value in stated.items()},
            "constraints": {value.name: value.constraint for value in stated.values()},
        }

    @contextmanager
    def _asked_by(self, store: Any) -> Iterator[None]:
        """Let Pyro's store ask here for what it lacks, before it makes a value of its own.

        A value that was loaded has no name, and no constraint, before a statement has asked for it.
        """
        before = vars(store).get("setdefault")  # of another program, which runs around this one
        mine, write = threading.get_ident(), ParamStoreDict.__setitem__

        def answer(name: str, initial: Any, constraint: Any) -> None:
            value = self._value(name, initial, constraint, itself=False)
            self._hide(value)
            typed, kept = self._typed(key_of(name)), self.known[key_of(name)].constraint
            store.set_state({"params": {name: typed}, "constraints": {name: kept}})

        def setdefault(name: str, initial: Any, constraint: Any = constraints.real) -> Tensor:
            if name not in store and _MODULE_NAMESPACE_DIVIDER not in name:
                answer(name, initial, constraint)
            return type(store).setdefault(store, name, initial, constraint)

        def setitem(other: ParamStoreDict, name: str, value: Tensor) -> None:
            ours = other is store and threading.get_ident() == mine
            if ours and name not in store and self._waits_for(name):
                answer(name, value, constraints.real)  # a function writes where the store lacks it
            else:
                write(other, name, value)

        store.setdefault = setdefault
        ParamStoreDict.__setitem__ = setitem  # type: ignore[method-assign]
        try:
            yield
        finally:
            ParamStoreDict.__setitem__ = write  # type: ignore[method-assign]
            del store.setdefault
            if before is not None:
                store.setdefault = before

    def _waits_for(self, name: str) -> bool:
        """Return whether there is a value for a name that no statement has asked for."""
        key = key_of(name)
        asked = key not in self.known or self.known[key].constraint is not None
        return not (asked or _MODULE_NAMESPACE_DIVIDER in name)

    def _keep_hidden(self, state: Any, before: set[str]) -> None:
        """Keep the values that functions have written into Pyro's store themselves."""
        for name, value in state["params"].items():
            known = name in before or key_of(name) in self.values
            if not known and _MODULE_NAMESPACE_DIVIDER not in name:
                self._make(name, *self.store.get(name, (value, state["constraints"][name])))

    def _parameter(self, name: str, initial: Any, constraint: Any) -> Tensor:
        key = key_of(name)
        if isinstance(initial, Tensor) and _MODULE_NAMESPACE_DIVIDER in name:
            # A module's own weight, or the tensor that a tracer has put in its place.
            return self.values.get(key, initial)
        unconstrained = self._value(name, initial, constraint)
        if not name.startswith(AVERAGES):
            self._show(unconstrained)
        value = transform_to(self.known[key].constraint)(self._typed(key))
        value = value.view_as(value)  # a new object: the attribute below must not stick
        value.unconstrained = weakref.ref(unconstrained)  # what Pyro's plates expect of a param
        return value

    def _value(self, name: str, initial: Any, constraint: Any, *, itself: bool = True) -> Tensor:
        """Return the unconstrained value that a statement asks for; make it where there is none.

        Arguments:
            name, initial, constraint: Of the statement.
            itself: Hold a parameter that is given for the value itself, as Pyro's store does.
        """
        key = key_of(name)
        if key not in self.values:
            if name in self.store:
                self._make(name, *self.store[name])
            elif itself and isinstance(initial, nn.Parameter) and constraint is constraints.real:
                self.hold(key, initial)
            elif initial is None:
                raise ProgramError(f"pyro.param({name!r}) is read before it is given a value")
            else:
                self._make(name, _unconstrained(initial, constraint), constraint)
        elif initial is not None:
            self._compare(key, lambda: _unconstrained(initial, constraint))
        elif self.known[key].constraint is None and not self.known[key].found:
            raise ProgramError(
                f"pyro.param({name!r}) is read before a statement has told the constraint of what "
                "was loaded: call program.read(rows) first, on rows that reach its statement, "
                f"pyro.param({name!r}, start, constraint=...)"
            )
        self._note_statement(key, name, constraint)
        return self.values[key]

    def _note_statement(self, key: str, name: str, constraint: Any) -> None:
        """Note the statement that asks for a value."""
        known = self.known[key]
        if known.name is None:  # in the order of the statements: so functions read the store
            self.known[key] = self.known.pop(key)
        if known.name != name or known.constraint is None:
            told = constraint if known.constraint is None else known.constraint
            self.tell(key, name=name, constraint=told)

    def _compare(self, key: str, start: Callable[[], Tensor]) -> None:
        """Compare a value that was given before the first run with that of its statement."""
        if self.fresh and self.loaded is not None:
            own = self.loaded.compare(key, self.values[key], start)
            if self._is_untyped(key):
                dtype = self._type_in_place(self.values[key], own)
                if dtype is not None and dtype.is_floating_point:
                    self.tell(key, type=dtype)

    def _is_untyped(self, key: str) -> bool:
        """Return whether a value was loaded and no statement has told which type it takes."""
        value = self.known[key]
        return self.fresh and self.dtype is None and value.loaded and value.constraint is None

    def _type_in_place(self, value: Tensor, own: Tensor | None) -> torch.dtype | None:
        """Return the type of a loaded value's statement, as a copy has it; None: it stays.

        It does where it has that of the networks, or where values are all: they are as they were.
        """
        beside = self._type_of_parts
        if value.dtype == beside or (beside is None and not self._expects_floats):
            return None
        return beside if own is None else own.dtype

    def _typed(self, key: str) -> Tensor:
        """Return a value in the type that it will take."""
        dtype = self.known[key].type
        return self.values[key] if dtype is None else self.values[key].to(dtype)

    def _take_types(self) -> None:
        """Convert loaded values once the first run has ended: looks move weights in place.

        What it has not asked for goes the way of the networks whose type it had when it was saved.
        """
        beside = self._type_of_parts
        for key, value in list(self.known.items()):
            left = self._is_untyped(key) and self.values[key].dtype == self.saved_type
            dtype = beside if left else value.type
            if dtype is not None:
                self.tell(key, type=None)
                self._take_type(key, dtype)

    def _take_type(self, key: str, dtype: torch.dtype) -> None:
        """Convert a value that was loaded, as the copy to a network does."""
        value = self.values[key]
        if value.is_floating_point():
            self._note_rounding(f"values.{key}", value, dtype)
            value.data = value.data.to(dtype)

    @property
    def _expects_floats(self) -> bool:
        return _type_of(self.expected.values()) is not None

    def _note_rounding(self, key: str, value: Tensor, dtype: torch.dtype) -> None:
        if is_wider(value.dtype, dtype):
            self._rounded[key] = dtype

    @property
    def _type_of_parts(self) -> torch.dtype | None:
        return _type_of(self.parts.parameters())

    @property
    def precision(self) -> torch.dtype | None:
        """The dtype of the first float among the parameters whose types are known."""
        waits = self._expects_floats
        known = (v for key, v in self.values.items() if not (waits and self._is_untyped(key)))
        return _type_of(chain(self.parts.parameters(), known))

    def converted(self, dtype: torch.dtype) -> None:
        """Make values that come late, and keep loaded ones, in the type that all was given."""
        self.dtype = dtype
        for key in self.known:
            self.tell(key, type=None)

    def _as_converted(self, value: Tensor) -> Tensor:
        """Return a new value where the data are, in the type of the rest, once that has it."""
        kept = (self.fresh and not self._converts_first) or not value.is_floating_point()
        return value.to(self.home, None if kept else self.dtype)

    def convert_first(self) -> bool:
        """Have a first run make values in the type that networks were converted to.

        Other than in the types of their statements, in which some programs run alone.

        Returns:
            Whether that is a change.
        """
        before, beside = self._converts_first, self._type_of_parts
        self._converts_first = self.fresh and None not in (beside, self.dtype)
        return self._converts_first and not before

    def _make(self, name: str, unconstrained: Tensor, constraint: Any) -> None:
        key = key_of(name)
        # Where the data are: the function may not have said.
        value = nn.Parameter(self._as_converted(unconstrained.detach()).clone())
        self.put(key, value, Value(name, constraint))
        if name.startswith(AVERAGES):
            self._hide(value)
        else:
            self.version += 1

    def take_average(self, key: str, value: Tensor) -> None:
        """Give a running mean of Pyro's the value that a file holds."""
        if key not in self.values:
            self.put(key, nn.Parameter(value.clone(), requires_grad=False))
            self._hide(self.values[key])

    def stated(self) -> dict[int, str]:
        """Return the names that statements give parameters, by the parameters' ids."""
        named = {k: v.name or name_of(k) for k, v in self.known.items() if not v.found}
        of_values = {id(self.values[key]): name for key, name in named.items()}
        return {id(value): name for name, value in self.announced.items()} | of_values

    # -- what has been found ---------------------------------------------------------------------

    def hold(self, key: str, tensor: Tensor) -> None:
        """Train a tensor itself; one loaded before the functions first ran gives it its value."""
        if key in self.values:
            if self.values[key].shape != tensor.shape:
                raise unlike(f"values.{key}", self.values[key].shape, tensor.shape)
            tensor.data.copy_(self.values[key].data)
            if self.values[key] in self.filled:
                self._note_filled(tensor)
        if not isinstance(tensor, nn.Parameter):
            tensor._is_param = True  # PyTorch's own mark: it stays itself
        self.put(key, tensor)
        self.version += 1

    def hold_found(self, tensor: Tensor) -> None:
        """Train a tensor that has no name, under one by the order in which such are found."""
        taken = {key for key, value in self.known.items() if value.found}
        # A file may have made room for it.
        key = next(free for index in count() if (free := f"found-{index}") not in taken)
        self.hold(key, tensor)
        self.tell(key, found=True)

    def add_part(self, name: str, module: nn.Module) -> None:
        """Train a module that was not known before."""
        self.parts[unique_name(set(self.parts), name)] = module

    # -- saved tensors of what is still to be made ------------------------------------------------

    @property
    def made_late(self) -> list[str]:
        """The names of the parts' tensors that came only with the functions' first run."""
        return sorted({*self.part_tensors(), *self.expected} - self._at_first)

    def awaited(self, tensors: Mapping[str, Tensor], late: list[str]) -> dict[str, Tensor]:
        """Return the saved tensors for which there will be a place once the functions have run.

        Arguments:
            tensors: What a file holds.
            late: ``made_late`` of the program that was saved.
        """
        if not self.fresh:
            return {}
        values = {
            key: value
            for key, value in tensors.items()
            if key.startswith("values.") and key.count(".") == 1 and value.is_floating_point()
        }
        growing = tuple(
            f"parts.{name}."
            for name, part in self.parts.items()
            if any(isinstance(module, PyroModule) for module in part.modules())
        ) + tuple(f"parts.{name}." for name in empty_globals(*self.functions))
        here = self.part_tensors()
        parts = {
            key: value
            for key, value in tensors.items()
            if key not in here
            and key.startswith("parts.")
            and (key in late or key.startswith(growing))
        }
        known = self.values and self.loaded is None  # another program's
        return ({} if known else values) | parts

    @property
    def waiting(self) -> set[str]:
        """The names of tensors that were given, and that the functions have yet to ask for."""
        given = self.fresh and self.loaded is not None
        return {*self.expected, *(f"values.{key}" for key in self.values if given)}

    def expect(self, tensors: Mapping[str, Tensor], strict: bool | None = None) -> None:
        """Keep saved tensors until the functions ask for them.

        Arguments:
            tensors: They take the place of those that were kept before.
            strict: Of ``load_state_dict``: False keeps those that have other names; None of a file.
        """
        for key in self.waiting - tensors.keys() if strict is not False else ():
            self.expected.pop(key, None)
            self.drop(key.removeprefix("values."))
        self.loaded = Loaded(strict)
        for key, value in sorted(tensors.items()):  # a file holds them in no order
            if key.startswith("values."):
                name = key.removeprefix("values.")
                self.put(name, nn.Parameter(value.clone()), Value(loaded=True))
                self._note_filled(self.values[name])
                if self.dtype is not None:
                    self._take_type(name, self.dtype)
            else:
                self.expected[key] = value.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts' tensors and the values, as a file names them."""
        return {**self.part_tensors(), **{f"values.{k}": v for k, v in self.values.items()}}

    def arrive(self) -> None:
        """Know by what a load has given, or has put in the place of another, what was known."""
        here = self.tensors()
        for key in self.arriving.keys() & here.keys():
            before, now = self.arriving[key], here[key]
            if before in self.shown:
                self.shown[now] = self.shown.pop(before)
            self._note_filled(now)
        self.arriving = {}

    def _note_filled(self, tensor: Tensor) -> None:
        """Note that the value of a tensor comes from a load: that of the store is outdated."""
        if self.store:
            self.filled.add(tensor)

    @property
    def unasked(self) -> list[str]:
        """The keys of values for which a program that reads the same data alone has no place.

        Other data have asked for them, before the training or within it, or a load has left them.
        """
        averages = key_of(AVERAGES)  # they are made anew
        named = [key for key in self.values if not self.known[key].found]
        return [key for key in named if key not in self.asked and not key.startswith(averages)]

    @property
    def untrained(self) -> set[Tensor]:
        """What no optimizer moves now: values that blocks hide, and those that are still to join.

        One that requires no gradient is none of them: a callback may thaw it.
        """
        return self.frozen | {self.values[key] for key in self.withheld.keys() & self.values.keys()}

    def begin(self, trained: Iterable[nn.Parameter]) -> None:
        """Note what an optimizer is made over: values that come later join it."""
        first = {*trained}
        self.early = {key for key, value in self.values.items() if value in first}

    def statement_of(self, key: str) -> str | None:
        """Return the name of the statement that has asked for a value; None where none has."""
        return self.known[key].name

    def lend(self, values: Mapping[str, Tensor], names: Mapping[str, str], shown: set[str]) -> None:
        """Hold values, by key, that the functions may ask for on other data.

        Arguments:
            values: Unconstrained.
            names: Of their statements, as far as these are known.
            shown: Keys of those that not only blocks have asked for.
        """
        for key, value in values.items():
            self.put(key, nn.Parameter(value.clone()), Value(names.get(key)))
            self.shown[self.values[key]] = key in shown
        self._lent = set(values)
        self.version += bool(values)

    def keep_lent(self) -> None:
        """Hold them from now on."""
        self._lent = set()

    def take_back(self) -> None:
        """Hold them no longer."""
        self.withheld = {}
        for key in self._lent:
            self.drop(key)
        self.version += bool(self._lent)
        self._lent = set()

    def fill(self, values: set[str], used: set[str]) -> None:
        """Give the parts their saved tensors, once the functions have run.

        Arguments:
            values: The keys of the values before that run.
            used: The keys of the values that it used.

        Raises:
            CheckpointError: One does not fit, or the program makes others than the file holds.
        """
        here = self.part_tensors()
        found = self.expected.keys() & here.keys()
        for key in found:
            if here[key].shape != self.expected[key].shape:
                raise unlike(key, self.expected[key].shape, here[key].shape)
        if self.fresh and self.loaded is not None:
            averages = f"values.{key_of(AVERAGES)}"  # which training alone asks for
            left = {*self.expected, *(f"values.{key}" for key in values - used)} - found
            missed = {key for key in left if not key.startswith(averages)}
            made = {*here, *(f"values.{key}" for key in used - values)} - self._at_first - found
            self.loaded.require_shapes()
            self.loaded.settle(missed, made, {f"values.{key_of(name)}" for name in self.store})
        # One that another part has had since the load, too: it may have been trained meanwhile.
        shared = {id(tensor) for key, tensor in here.items() if key not in found}
        for key in found:
            if id(here[key]) in shared:
                del self.expected[key]
                continue
            self._note_rounding(key, self.expected[key], here[key].dtype)
            self._given_now.append((here[key], self.expected.pop(key)))
            self._note_filled(here[key])
        self._give()
        self._take_types()
        if self._rounded and not silenced():
            tell_of_rounding(self._rounded)
            self._rounded = {}

    def give_again(self) -> None:
        """Give what got its value in a look, which has put back what it found, the value again."""
        self._give()
        self._given_now.clear()

    def _give(self) -> None:
        for place, value in self._given_now:
            place.data.copy_(value)


def with_expected(program: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Add to a program's state what it was given and has no place for yet (a hook)."""
    state.update({prefix + key: value for key, value in program.own.expected.items()})


def expect_more(program: Any, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Keep of a state that is loaded what the functions will make when they first run (a hook)."""
    errors, strict = others[-1], program.own.strict
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    here = program.own.part_tensors()
    places = program.own.tensors()
    program.own.arriving = {key: places.get(key) for key in own}
    waits = bool(program.own.waiting)
    if strict is not None or not waits:  # not of a file, of which all this is known
        awaited = program.own.awaited(own, [])
        if awaited or (waits and not strict):
            program.own.expect(awaited, strict)
        elif waits:  # nothing takes the place of what waits: torch says of values that they lack
            others[-3].extend(prefix + key for key in program.own.expected.keys() - own.keys())
        elif strict and program.own.fresh and not program.own.values:
            program.own.loaded = Loaded(False)  # of one that has not run either: what lacks is told
    for key in program.own.expected.keys() & own.keys():
        program.own.expected[key] = state.pop(prefix + key).clone()
    parts = [value for key, value in own.items() if key.startswith("parts.")]
    program.own.saved_type = _type_of([*parts, *program.own.expected.values()])
    unknown = own.keys() - here.keys() - program.own.expected.keys()
    if (
        strict is not False
        and program.own.fresh
        and any(key.startswith("parts.") for key in unknown)
    ):
        errors.append("networks that the functions make have no place yet: program.read(rows)")


def arrived(program: Any, _: Any) -> None:
    """Know of a state that has been loaded what it has come to (a hook)."""
    program.own.arrive()


def read_store(store: Any) -> dict[str, tuple[Tensor, Any]]:
    """Return the unconstrained values and the constraints of a parameter store, copied.

    Raises:
        ConfigError: It is none, or it is empty.
    """
    if not isinstance(store, ParamStoreDict) or not len(store):
        kind = "an empty store" if isinstance(store, ParamStoreDict) else type(store).__name__
        raise ConfigError(f"params: got {kind}, expected pyro.get_param_store() with parameters")
    state = store.get_state()
    return {
        name: (value.detach().clone(), state["constraints"].get(name, constraints.real))
        for name, value in state["params"].items()
    }


def _unconstrained(initial: Any, constraint: Any) -> Tensor:
    """Return the value with which a statement begins, without its constraint."""
    start = torch.as_tensor(initial() if callable(initial) else initial).detach()
    return transform_to(constraint).inv(start)


def _type_of(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """Return the dtype of the first float among tensors; None where none is."""
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
