"""The tensors that a program trains: networks behind its functions, and values of ``pyro.param``.

Each idea about them has a module of its own: how statements are answered (``statements``), what is
known of a value (``values``), which type it takes (``value_types``), which constraint a file tells
(``saved_constraints``), what loads give (``loads``) and the store of ``params=`` (``given_store``),
which values come late to a training (``late_values``), and what is used as the functions run
(``watch``, ``discovery``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.program.parameters.given_store import Entries, GivenStore
from pyro_vae.program.parameters.late_values import LateValues
from pyro_vae.program.parameters.loaded import unlike
from pyro_vae.program.parameters.loads import Loads
from pyro_vae.program.parameters.modules import owners, unique_name
from pyro_vae.program.parameters.saved_constraints import SavedConstraints
from pyro_vae.program.parameters.statements import Answers
from pyro_vae.program.parameters.value_types import ValueTypes
from pyro_vae.program.parameters.values import AVERAGES, FOUND, Value, key_of, name_of
from pyro_vae.program.parameters.watch import Statements, Watch, noting_made
from pyro_vae.program.told import Told


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
        store: Entries | None = None,
    ) -> None:
        self.functions = functions
        self._given = dict(modules or {})
        self._reached = self.search()
        self.parts = nn.ModuleDict({**self._reached, **self._given})
        self.values = nn.ParameterDict()  # unconstrained
        self.known: dict[str, Value] = {}  # of each of these, by key
        # Of tensors that statements ask for: whether one outside of any ``poutine.block`` has.
        self.shown: dict[Tensor, bool] = {}
        # Parameters that runs have made, but for those of batches that were read: whether a
        # statement outside of blocks has asked for one; None: no statement has.
        self.made: dict[nn.Parameter, bool | None] = {}
        self.announced: dict[str, Tensor] = {}  # by the names of statements, as batches were read
        self.outdated: set[str] = set()  # keys of values of functions that were replaced
        # Names of tensors and of modules: others come with the first run.
        self.at_first = set(self.part_tensors())
        self.parts_at_first = {name for name, _ in self.parts.named_modules()}
        self.fresh = True  # the functions have not run
        self.moved = False  # a training has taken a step
        self.version = 0  # one more whenever a run has found new parameters
        self.home: torch.device | None = None  # where new values are made
        self.starts: dict[Tensor, Tensor] | None = None  # of values made in a look, while it lasts
        self.watch: Watch | None = None  # while it is found out what the functions use
        self.store = GivenStore(store)
        self.types = ValueTypes(self)
        self.told = Told()
        self.constraints = SavedConstraints(self)
        self.loads = Loads(self)
        self.late = LateValues(self)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each parameter once."""
        return nn.ModuleList([self.parts, self.values]).parameters()

    def with_made(self) -> list[nn.Parameter]:
        """Return each parameter once, with those of networks that are made and not yet held."""
        return list(dict.fromkeys([*self.parameters(), *self.made]))

    def part_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the parts, as a file names them."""
        state = self.parts.state_dict(prefix="parts.", keep_vars=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts' tensors and the values, as a file names them."""
        return {**self.part_tensors(), **{f"values.{k}": v for k, v in self.values.items()}}

    @property
    def made_late(self) -> list[str]:
        """The names of the parts' tensors that came only with the functions' first run."""
        return sorted({*self.part_tensors(), *self.loads.expected} - self.at_first)

    def names(self) -> dict[int, str]:
        """Return the names that statements give parameters, by the parameters' ids."""
        named = {k: v.name or name_of(k) for k, v in self.known.items() if not v.found}
        of_values = {id(self.values[key]): name for key, name in named.items()}
        return {id(value): name for name, value in self.announced.items()} | of_values

    def share_values(self, other: "Parameters") -> None:
        """Answer ``pyro.param`` statements with another program's values from now on."""
        self.values, self.known = other.values, other.known
        self.types.dtype = other.types.dtype

    # -- values ----------------------------------------------------------------------------------

    def put(self, key: str, value: Tensor, known: Value | None = None) -> None:
        """Hold a value, of which this is known; None: what was."""
        self.values[key] = value
        self.known[key] = known or self.known.get(key, Value())

    def note(self, key: str, **facts: Any) -> None:
        """Note what is known of a value from now on."""
        self.known[key] = replace(self.known[key], **facts)

    def drop(self, key: str) -> None:
        """Hold a value no longer."""
        if key in self.values:
            self.shown.pop(self.values[key], None)
            del self.values[key], self.known[key]

    def make(self, name: str, unconstrained: Tensor, constraint: Any) -> None:
        """Make the value of a statement."""
        value = nn.Parameter(self.types.of_new(unconstrained.detach()).clone())
        self.put(key_of(name), value, Value(name, constraint))
        self._note_start(value)
        if name.startswith(AVERAGES):
            self.hide(value)
        else:
            self.version += 1

    def take_average(self, key: str, value: Tensor) -> None:
        """Give a running mean of Pyro's the value that a file holds."""
        if key not in self.values:
            self.put(key, nn.Parameter(value.clone(), requires_grad=False))
            self.hide(self.values[key])

    def hold(self, key: str, tensor: Tensor) -> None:
        """Train a tensor itself; one loaded before the functions first ran gives it its value."""
        if key in self.values:
            before = self.values[key]
            if before.shape != tensor.shape:
                raise unlike(f"values.{key}", before.shape, tensor.shape)
            tensor.data.copy_(before.data)
            if before in self.store.outdated:
                self.store.note_loaded(tensor)
        if not isinstance(tensor, nn.Parameter):
            tensor._is_param = True  # PyTorch's own mark: it stays itself
        self.put(key, tensor)
        self._note_start(tensor)
        self.version += 1

    def _note_start(self, value: Tensor) -> None:
        if self.starts is not None and not value.is_meta:
            self.starts[value] = value.detach().clone()

    def hold_found(self, tensor: Tensor) -> None:
        """Train a tensor that has no name, under one by the order in which such are found."""
        taken = {key for key, value in self.known.items() if value.found}
        # A file may have made room for it.
        key = next(free for index in count() if (free := f"{FOUND}{index}") not in taken)
        self.hold(key, tensor)
        self.note(key, found=True)

    # -- what statements ask for -----------------------------------------------------------------

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the ``pyro.param`` statements of this block; nothing else does."""
        self.follow_values()
        self.told.give()
        watch = self.watch  # another may watch runs inside of this block

        def tell(name: str, value: Tensor, hidden: bool) -> None:
            if watch is not None:
                (watch.hidden if hidden else watch.stated)[name] = value
            self._note_asked(name, value, hidden)

        with (
            Answers(self).giving(),
            noting_made(self.made, self.values),
            Statements(tell).telling(),
            nullcontext() if watch is None else watch.watching(),
        ):
            yield

    def follow_values(self) -> None:
        """Forget values that a user has removed from ``values``, and know those put there."""
        for key in self.known.keys() - self.values.keys():
            del self.known[key]
        for key in self.values.keys() - self.known.keys():
            self.known[key] = Value()

    def note_statement(self, key: str, name: str, constraint: Any) -> None:
        """Note the statement that asks for a value: the first of them tells its constraint."""
        known = self.known[key]
        if known.name is None:  # in the order of the statements: so functions read the store
            self.known[key] = self.known.pop(key)
        if known.constraint is None:
            self.note(key, name=name, constraint=constraint)
        elif known.name != name:
            self.note(key, name=name)

    def _note_asked(self, name: str, value: Tensor, hidden: bool) -> None:
        """Note how a statement asks for what runs have made, or for what blocks have hidden."""
        if isinstance(value, nn.Parameter) and value in self.made:
            self.made[value] = not hidden or bool(self.made[value])
        elif not hidden and self.shown.get(value) is False and not name.startswith(AVERAGES):
            self.show(value)

    @property
    def frozen(self) -> set[Tensor]:
        """What a ``poutine.block`` hides wherever it occurs: it is not trained, as by stock SVI."""
        return {value for value, shown in self.shown.items() if not shown}

    @property
    def untrained(self) -> set[Tensor]:
        """What no optimizer moves now: values that blocks hide, and those that are still to join.

        One that requires no gradient is none of them: a callback may thaw it.
        """
        return self.frozen | self.late.withheld_tensors

    def show(self, value: Tensor) -> None:
        """Train from now on what a statement outside of any ``poutine.block`` asks for."""
        self.version += self.shown.get(value) is False
        self.shown[value] = True

    def hide(self, value: Tensor) -> None:
        """Train not what statements inside of blocks alone have asked for so far."""
        self.shown.setdefault(value, False)

    def note_read(self, hidden: Mapping[str, Tensor], stated: Mapping[str, Tensor]) -> None:
        """Note what statements have asked for as a batch was read.

        Arguments:
            hidden, stated: Unconstrained tensors by the names of statements; blocks hide the first.
        """
        leaves = {name: value for name, value in stated.items() if value.is_leaf}
        self.announced |= leaves
        for value in leaves.values():
            self.show(value)
        for name, value in hidden.items():
            self.hide(self.values.get(key_of(name), value))

    # -- networks --------------------------------------------------------------------------------

    def search(self) -> dict[str, nn.Module]:
        """Return the modules that the functions can reach now, by name."""
        return owners(*self.functions, given=self._given.values())

    def add_part(self, name: str, module: nn.Module) -> None:
        """Train a module that was not known before."""
        self.parts[unique_name(set(self.parts), name)] = module

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
                (self.show if asked else self.hide)(parameter)
        self.made.clear()
        self.version += bool(held) or len(self.parts) != before

    # -- functions and networks that are replaced ------------------------------------------------

    def replace(self, functions: tuple[Callable[..., Any], ...]) -> None:
        """Serve other functions: values that they do not use are dropped once they have run."""
        self.functions = functions
        self._reached = self.search()
        self.parts.clear()
        self.parts.update({**self._reached, **self._given})
        self._start_anew()

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

    def _start_anew(self) -> None:
        self.announced.clear()
        self.outdated = set(self.values)
        self.shown.clear()
        self.at_first = set(self.part_tensors())
        self.parts_at_first = {name for name, _ in self.parts.named_modules()}

    def remembered(self) -> Callable[[], None]:
        """Return a function that puts back which parameters and parts there are now."""
        homes: list[Any] = [self.values, self.known, self.parts, self.shown, self.announced]
        homes += [self.store.entries, self.loads.expected]
        contents = [list(home.items()) for home in homes]  # ParameterDict sorts a mapping
        outdated, of_store = {*self.outdated}, {*self.store.outdated}
        own = self.fresh, self._reached, self.loads.loaded, self.types.converts_first

        def put_back() -> None:
            for home, before in zip(homes, contents, strict=True):
                home.clear()
                home.update(before)
            self.outdated, self.store.outdated = outdated, of_store
            self.fresh, self._reached, self.loads.loaded, self.types.converts_first = own

        return put_back
