"""What a program keeps from call to call beside its weights, in Python and in place: a way back."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_vae.callers import of_user
from pyro_vae.program.memory.contents import (
    content_given,
    content_of,
    is_as_before,
    is_made_weight,
    is_state,
    is_weight,
    version,
)
from pyro_vae.program.memory.iterators import (
    Draw,
    Record,
    Retold,
    exchanged,
    keeps,
    parts_of,
    record_of,
    source_of,
    stand_in,
    stand_ins,
    tie,
)
from pyro_vae.program.memory.noise import Noise
from pyro_vae.program.memory.uses import WEIGHTS, address_of, noting_uses
from pyro_vae.program.memory.value_places import Names, State, homes_of, moved_since, numbers_moved
from pyro_vae.program.parameters.object_graph import holders


class OwnState:
    """What functions hold beside their weights: counters, caches, flags, lists, generators.

    It stands among the attributes of modules, of other objects and of their classes, in slots,
    closures, globals and containers, in small arrays and tensors that are written in place, and
    in iterators.

    Arguments:
        functions: Model and guide.
        noise: In which looks draw from iterators.
    """

    def __init__(self, *functions: Callable[..., Any], noise: Noise) -> None:
        self.functions, self._noise = functions, noise
        self._all: _Holders | None = None
        self._stepped = False  # whether steps have drawn from iterators
        self._depth, self.settled = 0, False
        # Numbers and iterators, by name: what a block has moved and could not put back, and what
        # others have.
        self._ahead: set[str] = set()
        self._moving: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:  # cells of closures cannot be copied
        return {**vars(OwnState(noise=self._noise)), "functions": ()}

    def moment(self) -> "Moment":
        """Return what the functions hold now."""
        if self._depth == 0:
            self._noise.begin()  # the random state may be that of a look further in
        if self._all is None or self._all.moved():
            self._all = _Holders(holders(*self.functions))
            self._all.watch_iterators(self._noise)
        return Moment(self._all, anew=self._depth == 0)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave what the functions hold, on leaving, as if none had run inside.

        All of it is put back, or nothing: a flag tells what a cache holds. Nothing is where a
        network or a weight has come meanwhile, or a large one has been written to (made anew, it
        would be another one), or where a library has set a part up, as an EasyGuide its frames.
        Of blocks inside this one, what the first run leaves stays for the others: they find what
        a second call does.
        """
        before = self.moment()
        settled = self.settled if self._depth else False
        self.settled, self._depth = settled, self._depth + 1
        ended = False
        try:
            yield
            ended = True
        finally:
            self._depth -= 1
            if settled or not ended or self._depth == 0:
                self._put_back(before)
                self.settled = settled
            elif before.moved():
                self.settled = True
            if self._depth == 0:
                try:
                    before.let_go()
                finally:
                    self.release()

    def release(self) -> None:
        """Put each iterator back in its place of which nothing lies ahead."""
        if self._depth == 0 and self._all is not None:
            self._stepped = self._stepped or any(each.stepped for each in self._all.retold)
            if self._all.release():
                self._all = None

    def only_looked_at(self) -> list[str]:
        """Return the names of iterators that looks have drawn from, where no step has."""
        retold = self._all.retold if self._all and not self._stepped else []
        return [each.name for each in retold if each.ahead and not each.stepped]

    def _put_back(self, before: "Moment") -> None:
        if before.put_back():
            self._moving |= before.numbers
        else:
            self._ahead |= before.numbers
        if again := self._ahead & self._moving:
            _tell_of_counts(again)
            self._ahead -= again


class _Holders:
    """Where values stand, and what is written in place, among the things that a walk has met."""

    def __init__(self, things: list[Any]) -> None:
        own = [thing for thing in things if thing is not _PYRO_STACK]
        self.homes = [home for thing in own for home in homes_of(thing)]
        made: dict[int, Retold] = {}
        for home in self.homes:
            home.exchange(lambda value: exchanged(value, lambda each: stand_in(each, made)))
        self.states = [home.state() for home in self.homes]
        values = [value for _, values in self.states for value in values]
        values += [each for thing in things if issubclass(type(thing), tuple) for each in thing]
        weights = [value for value in values if is_weight(value)]
        self.weights = list({id(w): w for w in weights if not is_state(w)}.values())
        self.built = {id(t) for t in things if issubclass(type(t), nn.Module)}
        self.built |= {id(weight) for weight in weights}
        inside = {id(value): value for value in (*things, *values, *made.values())}
        found = map(content_of, inside.values())
        contents = [content for content in found if content is not None]
        self.retold = [each for each in contents if type(each) is Record]
        tie(self.retold)
        self._written = [each for each in contents if type(each) is not Record]
        self.contents = contents

    def watch_iterators(self, noise: Noise) -> None:
        """Have each iterator note what a draw from it moves, and draw in a course of noise."""
        for each in self.retold:
            each.watched = lambda make: self._watched(make, noise)

    def _watched(self, make: Callable[[], Any], noise: Noise) -> Draw:
        """Make a draw, and note what it uses and what it moves."""
        states = [(home, home.state()) for home in self.homes]
        copies = [(content, content.copy()) for content in self._written]
        held = {id(value): value for _, values in self.states for value in values}
        weights = {address_of(each) for each in held.values() if is_weight(each)} - {0}
        # With gradients: a look would hide that a value depends on weights.
        with noise.going_on(), noting_uses(weights) as uses, torch.enable_grad():
            draw = Draw.of(make)
        parts = list(parts_of(draw.value))
        if any(isinstance(each, Tensor) and each.grad_fn is not None for each in parts):
            uses.add(WEIGHTS)
        # What the program holds itself is noted as such, and weights go on from here.
        memory = {address_of(each) for each in held.values()} - {0}
        parts = [each for each in parts if id(each) not in held and address_of(each) not in memory]
        pairs = [(home, was, home.state()) for home, was in states]
        homes = [(home, was, now) for home, was, now in pairs if not home.same(was, now)]
        given = [home for each in parts if keeps(each) for home in homes_of(each)]
        homes += [(home, ((), ()), home.state()) for home in given]
        contents = [c for c, copy in copies if not c.same(copy)]
        contents += [c for c in map(content_given, parts) if c is not None]
        left = [(content, content.copy()) for content in contents]

        def again() -> None:
            for home, was, now in homes:
                home.put(*moved_since(home.state(), was, now))
            for content, copy in left:
                _put(content, copy)

        return replace(draw, again=again, uses=uses)

    def release(self) -> bool:
        """Put each iterator back of which nothing lies ahead; return whether these are the last."""
        waiting = [each for each in self.retold if not each.idle]
        if len(waiting) == len(self.retold):
            return False
        for home in self.homes:
            home.exchange(lambda value: exchanged(value, source_of))
        self.retold = waiting
        return not waiting

    def moved(self) -> bool:
        """Return whether a value is another than when the walk met it."""
        pairs = zip(self.homes, self.states, strict=True)
        return not all(home.stands(state) for home, state in pairs)


class Moment:
    """All of this at one moment.

    Arguments:
        all_: Where it stands.
        anew: Whether other code has run since the one before.
    """

    def __init__(self, all_: _Holders, *, anew: bool) -> None:
        self._all = all_
        for content in all_.contents if anew else ():
            content.hold()
        self._contents = [(content, content.copy()) for content in all_.contents]
        # The names of those, and of iterators, that were others when it was put back.
        self.numbers: set[str] = set()
        self._versions = list(map(version, all_.weights))

    def moved(self) -> bool:
        """Return whether something is another now."""
        return self._all.moved() or any(not c.same(copy) for c, copy in self._contents)

    def put_back(self, *, trained: bool = False) -> bool:
        """Put all back, unless a network or a weight has come, or a large one has been written to.

        Arguments:
            trained: Whether weights may have been written to, by others, who put them back.

        Returns:
            Whether all is as before.
        """
        pairs = zip(self._all.homes, self._all.states, strict=True)
        others = [(h, now, was) for h, was in pairs if not h.same(now := h.state(), was)]
        self.numbers = {name for _, now, was in others for name in numbers_moved(now, was)}
        written = [(c, copy) for c, copy in self._contents if not c.same(copy)]
        if not (others or written):
            return True
        self.numbers |= {c.name for c, _ in written if type(c) is Record}
        if self._built(others, trained):
            return False
        for home, _, was in others:
            home.put(*was)
        for content, copy in written:
            content.put(copy)
        return True

    def let_go(self) -> None:
        """Let the program go on from here, and tell of what it lacks then."""
        for content, _ in self._contents:
            content.let_go()
        for content, _ in self._contents:
            content.tell()

    def _built(self, others: list[Any], trained: bool) -> bool:
        """Return whether networks or weights are others than at this moment."""
        if not trained and not all(map(is_as_before, self._all.weights, self._versions)):
            return True
        if any(isinstance(h, Names) and h.prepared(now, was) for h, now, was in others):
            return True
        known, swapped = self._all.built, set[int]().union(*(_swapped(*o[1:]) for o in others))
        gone = [v for _, (_, now), (_, was) in others for v in was if not any(v is w for w in now)]
        if any(id(value) in known - swapped for value in gone):
            return True
        new = [v for _, (_, now), (_, was) in others for v in now if not any(v is w for w in was)]
        made = _Holders([*holders(*new), *new])
        others_made = map(record_of, stand_ins(new))
        self.numbers |= {each.name for each in (*made.retold, *others_made)}
        built = made.built | {id(value) for value in new if is_weight(value)}
        return not built - swapped <= known


def _swapped(now: State, was: State) -> set[int]:
    """Return the ids of weights, alike, one of which a call has put in the place of the other."""
    before, found = dict(zip(*was, strict=False)), set[int]()
    for key, value in zip(*now, strict=False):
        other = before.get(key)
        if other is not value and is_made_weight(value) and is_made_weight(other):
            found |= {id(value), id(other)} if value.shape == other.shape else set()
    return found


def _put(content: Any, copy: Any) -> None:
    if not content.same(copy):
        content.put(copy)


def _tell_of_counts(names: set[str]) -> None:
    for name in sorted(names)[:1]:
        warnings.warn(
            f"{name!r}, which each call of the program moves on, is ahead by the runs that have "
            "looked at the program: the first of them has built a network, or written to a large "
            "weight, so that nothing could be put back; build networks before, as in __init__",
            stacklevel=of_user(),
        )
