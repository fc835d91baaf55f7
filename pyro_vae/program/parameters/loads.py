"""What loads give a program, some of it before its functions have made the place for it.

A program may be loaded before it has run. What it holds by then takes its tensors at once. Values
of ``pyro.param`` are held as they come, since any statement may ask for them, and tensors of
networks that the functions have yet to make wait. The first run makes the places; whether names,
shapes and types fit shows as it ends (``Loaded``). What it has not asked for is kept: a batch of
another kind may.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyro.nn.module import PyroModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.layouts import laid_out_like
from pyro_vae.program.parameters.loaded import Loaded, unlike
from pyro_vae.program.parameters.object_graph import empty_globals
from pyro_vae.program.parameters.value_types import type_of
from pyro_vae.program.parameters.values import AVERAGES, FOUND, Value, key_of
from pyro_vae.program.told import silenced

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters

Given = list[tuple[Tensor, Tensor]]  # places, and the values that they got
Tensors = dict[str, Tensor]  # by the names that a file gives them: "values.loc", "parts.net.weight"


class Loads:
    """What has been loaded into a program, and what of it waits."""

    def __init__(self, own: "Parameters") -> None:
        self._own = own
        self.expected: Tensors = {}  # saved tensors of parts that are still to be made
        self.loaded: Loaded | None = None  # what the first run is compared with, if anything
        self.strict: bool | None = None  # of ``load_state_dict``, while it runs; None of a file
        self._arriving: dict[str, Tensor | None] = {}  # where what a load brings comes to, by name
        self.looks = 0  # of those that run, one inside the other
        self._given_now: Given = []  # in a look

    @property
    def waiting(self) -> set[str]:
        """The names of tensors that were given, and that the functions have yet to ask for."""
        given = self._own.fresh and self.loaded is not None
        return {*self.expected, *(f"values.{key}" for key in self._own.values if given)}

    @property
    def nameless(self) -> list[str]:
        """The names of given values that no statement asks for, and that no look has found."""
        known = self._own.known.items()
        found = (k for k, v in known if v.loaded and not v.found and k.startswith(FOUND))
        return [f"values.{key}" for key in found]

    def awaited(self, tensors: Mapping[str, Tensor], late: list[str]) -> Tensors:
        """Return the saved tensors for which there will be a place once the functions have run.

        Arguments:
            tensors: What a file holds.
            late: ``made_late`` of the program that was saved.
        """
        own = self._own
        if not own.fresh:
            return {}
        values = {
            key: value
            for key, value in tensors.items()
            if key.startswith("values.") and key.count(".") == 1 and value.is_floating_point()
        }
        of_pyro = (
            name
            for name, part in own.parts.items()
            if any(isinstance(module, PyroModule) for module in part.modules())
        )
        growing = tuple(f"parts.{name}." for name in (*of_pyro, *empty_globals(*own.functions)))
        here = own.part_tensors()
        parts = {
            key: value
            for key, value in tensors.items()
            if key not in here
            and key.startswith("parts.")
            and (key in late or key.startswith(growing))
        }
        known = own.values and self.loaded is None  # another program's
        return ({} if known else values) | parts

    def expect(self, tensors: Mapping[str, Tensor], strict: bool | None = None) -> None:
        """Keep saved tensors until the functions ask for them.

        Arguments:
            tensors: They take the place of those that were kept before.
            strict: Of ``load_state_dict``: False keeps those that have other names; None of a file.
        """
        own = self._own
        for name in self.waiting - tensors.keys() if strict is not False else ():
            self.expected.pop(name, None)
            own.drop(name.removeprefix("values."))
        self.loaded = Loaded(strict)
        for name, value in sorted(tensors.items()):  # a file holds them in no order
            key = name.removeprefix("values.")
            if key == name:
                self.expected[name] = value.clone()
                continue
            own.put(key, nn.Parameter(value.clone()), Value(loaded=True))
            own.store.note_loaded(own.values[key])
            if own.types.dtype is not None:
                own.types.take_at_once(key, own.types.dtype)

    def receive(self, state: Tensors, missing: list[str], errors: list[str]) -> Tensors:
        """Take of a state that is being loaded what the functions will make when they first run.

        Arguments:
            state: By name.
            missing, errors: Of torch: names that the state lacks, and texts; more are added.

        Returns:
            What is taken: torch knows no place for it.
        """
        own, strict = self._own, self.strict
        here, places = own.part_tensors(), own.tensors()
        self._arriving = {name: places.get(name) for name in state}
        waits = bool(self.waiting)
        if strict is not None or not waits:  # not of a file, of which all this is known
            awaited = self.awaited(state, [])
            if awaited or (waits and not strict):
                self.expect(awaited, strict)
            elif waits:  # nothing takes the place of what waits: torch says of values so itself
                missing.extend(self.expected.keys() - state.keys())
            elif strict and own.fresh and not own.values:
                self.loaded = Loaded(False)  # of one that has not run either: what lacks is told
        taken = {name: state[name] for name in self.expected.keys() & state.keys()}
        self.expected |= {name: value.clone() for name, value in taken.items()}
        parts = [value for name, value in state.items() if name.startswith("parts.")]
        own.types.saved = type_of([*parts, *self.expected.values()])
        unknown = state.keys() - here.keys() - taken.keys()
        if self.loaded is not None and own.fresh:
            self.loaded = Loaded(self.loaded.strict, {*here, *state, *self.expected})
        new = any(name.startswith("parts.") for name in unknown)
        if new and strict is not False and own.fresh:
            errors.append("networks that the functions make have no place yet: program.read(rows)")
        return taken

    def arrive(self) -> None:
        """Know by what a load has given, or has put in the place of another, what was known."""
        own, here = self._own, self._own.tensors()
        for name in self._arriving.keys() & here.keys():
            before, now = self._arriving[name], here[name]
            if before in own.shown:
                own.shown[now] = own.shown.pop(before)
            own.store.note_loaded(now)
        self._arriving = {}

    # -- once the functions have run -------------------------------------------------------------

    def compare(self, key: str, start: Callable[[], Tensor]) -> None:
        """Compare a value that was given before the first run with that of its statement."""
        if self._own.fresh and self.loaded is not None:
            value = self._own.values[key]
            begun = self.loaded.compare(key, value, start)
            if begun is not None and begun.shape == value.shape:
                value.data = laid_out_like(begun, value.data)  # products are equal to the bit
            self._own.types.choose(key, begun)

    def fill(self, values: set[str], used: set[str]) -> None:
        """Give the parts their saved tensors, once the functions have run.

        Arguments:
            values: The keys of the values before that run.
            used: The keys of the values that it used.

        Raises:
            CheckpointError: One does not fit, or the program makes others than the file holds.
        """
        own = self._own
        here = own.part_tensors()
        found = self.expected.keys() & here.keys()
        self._require_shapes(here)
        if own.fresh and self.loaded is not None:
            averages = f"values.{key_of(AVERAGES)}"  # which training alone asks for
            left = {*self.expected, *(f"values.{key}" for key in values - used)} - found
            missed = {name for name in left if not name.startswith(averages)}
            made = {*here, *(f"values.{key}" for key in used - values)} - own.at_first
            made -= self.loaded.known | found
            self.loaded.require_shapes()
            stored = {f"values.{key_of(name)}" for name in own.store.entries}
            self.loaded.settle(missed, made, stored)
        self.give(here)
        self._give_again()
        own.types.take()
        if not silenced():
            own.types.warn_of_rounding()
            own.constraints.warn_of_others()

    def give(self, places: Mapping[str, Tensor], else_: str = "") -> Given:
        """Give places, by name, what is kept for them, and return what they got.

        Not one that another part has had since the load, too: it may have been trained meanwhile.

        Arguments:
            places: What the parts have, or will have.
            else_: What else to do about another shape, for the message.

        Raises:
            CheckpointError: One has another shape.
        """
        own, given = self._own, Given()
        found = self.expected.keys() & places.keys()
        self._require_shapes(places, else_)
        shared = {id(t) for name, t in own.part_tensors().items() if name not in found}
        for name in found:
            place, saved = places[name], self.expected.pop(name)
            if id(place) not in shared:
                own.types.note_rounding(name, saved, place.dtype)
                if is_lazy(place):
                    place.materialize(saved.shape)
                place.data.copy_(saved)
                own.store.note_loaded(place)
                given.append((place, saved))
        self._given_now += given if self.looks else []
        return given

    def _require_shapes(self, places: Mapping[str, Tensor], else_: str = "") -> None:
        """Refuse places of other shapes than those of what is kept for them.

        Raises:
            CheckpointError: Names one.
        """
        for name in self.expected.keys() & places.keys():
            place, saved = places[name], self.expected[name]
            if not is_lazy(place) and place.shape != saved.shape:
                raise unlike(name, saved.shape, place.shape, else_)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look inside at a program, all of whose places are put back to what they were then.

        But what is given inside: a call before may have made the place for it.
        """
        self.looks += 1
        try:
            yield
        finally:
            self.looks -= 1
            if not self.looks:
                self._give_again()
                self._given_now.clear()

    def _give_again(self) -> None:
        for place, value in self._given_now:
            place.data.copy_(value)


# -- hooks of torch --------------------------------------------------------------------------------


def add_expected(program: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Add to a program's state what it was given and has no place for yet."""
    state.update({prefix + name: value for name, value in program.own.loads.expected.items()})


def receive(program: Any, state: dict[str, Any], prefix: str, *told: Any) -> None:
    """Take out of a state that is loaded what there is no place for yet."""
    _, _, missing, _, errors = told
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    lacks: list[str] = []
    for name in program.own.loads.receive(mine, lacks, errors):
        del state[prefix + name]
    missing.extend(prefix + name for name in lacks)


def arrived(program: Any, _: Any) -> None:
    """Know of a state that has been loaded what it has come to."""
    program.own.loads.arrive()
