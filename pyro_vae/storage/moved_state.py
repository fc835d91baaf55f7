"""The plain Python values that a run moves: its continuation goes on with them."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from pyro_vae.errors import CheckpointError
from pyro_vae.program.program import Program
from pyro_vae.storage.differences import differences
from pyro_vae.storage.packed_values import Making, NotKeptError, Packing, filled, is_alike
from pyro_vae.storage.plain_places import Place, key_of, names_in_code, places, vacant_place
from pyro_vae.storage.plain_state import settings_that_differ, tell, weights_of
from pyro_vae.storage.plain_values import OTHER, description, is_constant, kind_of, memories, shown

# What the last run of this process has left, which nobody has chosen anew: names of places by
# where they are, and values by name.
_Left = tuple[dict[tuple[int, str], str], dict[str, Any]]
_left: WeakKeyDictionary[Program, _Left] = WeakKeyDictionary()


class MovedState:
    """The plain values that a run moves.

    Arguments:
        program: As it is before the first step.
        main: Whether this is the process that writes the file, of several.
    """

    def __init__(self, program: Program, *, main: bool = True) -> None:
        self._program, self._main = program, main
        names, self._left = _left.get(program, ({}, {}))
        found = places(program, names)
        self._names = {place.at: name for name, place in found.items()}
        self._before = self._descriptions(found)

    def _descriptions(self, found: Mapping[str, Place]) -> dict[str, Any]:
        weights = weights_of(self._program)
        told = {name: description(place.value, weights) for name, place in found.items()}
        return {name: value for name, value in told.items() if value != OTHER}

    def leave(self) -> None:
        """Note what this run leaves in the program: another one of this process may go on."""
        found = places(self._program, self._names)
        names = {place.at: name for name, place in found.items()}
        _left[self._program] = names, self._descriptions(found)

    def take(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of what has moved since the run began: arrays, and what JSON holds."""
        found, before = places(self._program, self._names), self._before
        packing, moved = Packing(weights_of(self._program)), dict[str, Any]()
        first: dict[int, str] = {}  # names by what they hold
        same: dict[str, str] = {}  # the second name of one thing, and the first
        memory: dict[str, list[str]] = {}  # names of what has memory in common with others
        for name, now in self._descriptions(found).items():
            if name in before and now == before[name]:
                continue
            value = found[name].value
            try:
                moved[name] = packing.pack(value, name)
            except NotKeptError as why:
                moved[name] = {"kind": "lost", "name": shown(now), "why": str(why)}
            if kind_of(moved[name]) in (None, "lost"):
                continue
            if first.setdefault(id(value), name) != name:
                same[name] = first[id(value)]
            others = {first.setdefault(at, name) for at in memories(value)} - {name}
            if others:
                memory[name] = sorted(others)
        told = {"before": before, "moved": moved, "same": same, "memory": memory}
        return packing.tensors, told

    def put_back(self, tensors: Mapping[str, Tensor], saved: Any, where: str) -> None:
        """Set what the run had moved, and warn of what it had not and is another here.

        What was chosen anew for this continuation stays: plain numbers and words that begin as
        others than the run began with, arrays of zeros or ones too, and all that a further process
        begins with otherwise (its rank, a generator of its own seed), for the file is of the first.
        Other arrays and generators go on as the run left them, for they may be drawn without a
        seed, and are told of.

        Arguments:
            tensors: Of the file, by name.
            saved: What else the file says, looked at by ``check_moved``.
            where: The file.
        """
        if saved is None:  # of an older version
            return
        before, moved, here = saved["before"], saved["moved"], self._before
        unmoved = {name: told for name, told in before.items() if name not in moved}
        left = {name for name, told in self._left.items() if here.get(name) == told}
        # Numbers that the last run of this process has moved after the file was written.
        again = {k: v for k, v in unmoved.items() if k in left and _is_number_but(v, here.get(k))}
        putting = _Putting(self._program, self._names, tensors, saved)
        lines: list[str] = []
        for name, packed in (moved | again).items():
            began, begins = before.get(name), here.get(name)
            told = f"{shown(packed)}, which the run has moved"
            chosen = name not in left and any(differences(began, begins, name))
            if chosen and not self._main:
                lines.append(f"{name} = {told}, is not kept: this process has {shown(begins)}")
            elif chosen and not putting.may_be_drawn(name, began, begins):
                now = f"this run {shown(begins)}"
                lines.append(f"{name} = {shown(began)}, {now}; {told}, is not kept")
            else:
                lines += putting.put(name, packed, told)
                lines += [f"{name} begins otherwise here, and goes on as {told}"] if chosen else []
        still = {name: told for name, told in here.items() if name not in putting.done}
        self._before = still | {name: before[name] for name in putting.done if name in before}
        differing = settings_that_differ(self._program, unmoved) if self._main else ()
        tell([*lines, *differing], where)


def _is_number_but(told: Any, another: Any) -> bool:
    return told != another and not isinstance(told, dict | list)


class _Putting:
    """The way of values from a file to their places, one after the other."""

    def __init__(
        self,
        program: Program,
        names: Mapping[tuple[int, str], str],
        tensors: Mapping[str, Tensor],
        saved: Mapping[str, Any],
    ) -> None:
        self._program, self._places = program, places(program, names)
        self._making = Making(tensors, program.device)
        self._written = names_in_code(program)[1]
        self._same = {name: str(first) for name, first in saved.get("same", {}).items()}
        self._memory = {
            frozenset((name, str(other)))
            for name, others in saved.get("memory", {}).items()
            for other in others
        }
        self._made: dict[str, tuple[Any, Any]] = {}  # what was there, and what has come
        self.done: list[str] = []

    def may_be_drawn(self, name: str, began: Any, begins: Any) -> bool:
        """Return whether a place begins with what no seed may have fixed: no number, no zeros."""
        now = self._places[name].value if name in self._places else None
        kinds = {kind_of(began), kind_of(begins)} - {None, "float", "member"}
        fixed = kinds <= {"tensor", "array", "number"} and is_constant(now)
        return bool(kinds) and not fixed

    def put(self, name: str, packed: Any, told: str) -> list[str]:
        """Set a value, or return why it is not kept."""
        try:
            self._set(name, packed)
        except NotKeptError as why:
            return [f"{name} = {told}, is not kept ({why})"]
        self.done.append(name)
        return []

    def _set(self, name: str, packed: Any) -> None:
        written = key_of(name) in self._written
        place = self._places.get(name) or (vacant_place(self._program, name) if written else None)
        if place is None:
            raise NotKeptError("there is no such place here")
        if kind_of(packed) == "lost":
            raise NotKeptError(packed.get("why"))
        now = place.value
        made = self._making.make(packed, now, words=written)
        was, its = self._made.get(self._same.get(name, ""), (place, None))
        if was is now and is_alike(its, made):
            made = its
        made = filled(now, made, self._shared(name, now))
        self._made[name] = now, made
        if made is not now:
            place.set(made)

    def _shared(self, name: str, now: Any) -> set[int]:
        """Return the memory of a value that is also that of another, here as in the run."""
        others = {other for pair in self._memory if name in pair for other in pair} - {name}
        if not others:
            return set()
        there = (memories(self._places[other].value) for other in others & self._places.keys())
        return memories(now) & set[int]().union(*there)


def check_moved(saved: Any, where: str) -> None:
    """Look at what a file says of the plain values of a run.

    Raises:
        CheckpointError: It is malformed.
    """
    parts: dict[str, Any] = {"before": None, "moved": None, "same": {}, "memory": {}}
    found = [saved.get(*each) for each in parts.items()] if isinstance(saved, dict) else [saved]
    sane = all(isinstance(each, dict) for each in found)
    if saved is not None and not (sane and all(isinstance(v, list) for v in found[-1].values())):
        raise CheckpointError(f"{where}: its record of plain values is malformed")
