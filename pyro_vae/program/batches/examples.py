"""Rows that a program has seen: examples of its data, and inputs to generate for."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import (
    Batch,
    Form,
    given_arguments,
    map_batch,
    map_rows,
    named_arguments,
    named_arguments_of,
    named_arrays,
    num_rows,
    under_handlers,
)
from pyro_vae.program.batches.lengths import in_rows, with_masks, with_steps
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.checks import is_meta
from pyro_vae.program.looks.covariates import is_no_length
from pyro_vae.program.passes import bytes_per_row

if TYPE_CHECKING:
    from pyro_vae.program.program import Program

_LOOKED_AT = 64  # rows, to tell a length from other whole numbers
_NO_DEFAULT = inspect.Parameter.empty
_REMEMBERED_ROWS, _REMEMBERED_BYTES = 1000, 1 << 24


class Examples:
    """Rows of the data that a program has seen.

    Arguments:
        program: It may have an ``example(n)`` of its own.
    """

    def __init__(self, program: "Program") -> None:
        self._program = program
        self._first_rows: Batch | None = None
        self._remembered: Batch | None = None
        self._remembered_of = 0
        self._form: tuple[Any, ...] | None = None  # of the last batch that was taken as it is
        self._parameter: Tensor | None = None

    @property
    def offered(self) -> bool:
        """Whether the program has an example of its own."""
        return callable(getattr(self._program.source, "example", None))

    @property
    def known(self) -> bool:
        """Whether there are rows: of data that were seen, or the program's own."""
        blank = hasattr(self._program.source, "blank")
        return self.offered or blank or self._first_rows is not None

    def conforming(self, batch: Batch) -> bool:
        """Return whether a batch is like one that the program took as it is.

        Each batch that a transform makes is asked for it, and an example costs a small step.
        """
        return self._form is not None and self._form == self._form_of(batch)

    def conforms(self, batch: Batch) -> None:
        """Note that the program takes a batch as it is."""
        self._form = self._form_of(batch)

    def forget_form(self) -> None:
        """Look at the next batch anew."""
        self._form, self._parameter = None, None

    def _form_of(self, batch: Batch) -> tuple[Any, ...] | None:
        """Return what decides whether a lone tensor of floats is taken as it is, else None."""
        if not (isinstance(batch, Tensor) and batch.is_floating_point()):
            return None
        if self._parameter is None:
            self._parameter = next(self._program.parameters(), None)
        own = self._parameter
        precision = None if own is None else (own.dtype, own.device)
        return batch.shape[1:], batch.dtype, batch.device, precision

    def forget(self) -> None:
        """Drop the first rows: functions that were replaced may take other arguments."""
        self._first_rows = None

    def meet(self, batch: Batch) -> None:
        """Keep some rows of the first batch that the functions run on."""
        if self._first_rows is None:
            few = map_rows(lambda leaf: leaf[:8].detach(), batch)
            self._first_rows = map_batch(torch.clone, few)

    @property
    def first_rows(self) -> Batch | None:
        """Rows of the first batch that the program has seen; None before."""
        return self._first_rows

    def unlike(self, batch: Batch) -> str:
        """Return how the shape of a row differs from those seen first, and what to do; else ""."""
        seen = {} if self._first_rows is None else self.by_argument(self._first_rows)
        others = {
            name: (tuple(leaf.shape[1:]), tuple(seen[name].shape[1:]), len(leaf.shape))
            for name, leaf in self.by_argument(batch).items()
            if name in seen and leaf.shape[1:] != seen[name].shape[1:]
        }
        for name, (here, before, dims) in others.items():
            way_out = "give the columns that it has been trained on, a datum in each row"
            if before in [shape for shape, *_ in others.values()]:
                way_out = f"give the arguments in the order {', '.join(seen)}, or a dict by name"
            elif dims == len(before):
                way_out = f"one row is a batch of one: {name}[None]"
            return (
                f"{name}: got rows of shape {here}, expected {before}, as the program has seen "
                f"before; {way_out}"
            )
        return ""

    def below(self, batch: Batch) -> list[tuple[str, Tensor, float]]:
        """Return which data lie below those seen, or below 0 where none were.

        Returns:
            For each: what it holds, in words, the data, and the least that was seen.
        """
        known = self._first_rows if self._remembered is None else self._remembered
        seen = {} if known is None else self.by_argument(known)
        found = []
        for name, leaf in self.by_argument(batch).items():
            before = seen.get(name)
            if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.is_meta:
                continue
            low, high = float(leaf.min()), float(leaf.max()) + 0.0  # -0 is 0
            least = float(before.min()) if isinstance(before, Tensor) else 0.0
            if low < least:
                told = f", those seen before from {least:g} on" if name in seen else ""
                found.append((f"{name} has numbers from {low:g} to {high:g}{told}", leaf, least))
        return found

    def by_argument(self, batch: Batch) -> dict[str, Tensor | SparseRows]:
        """Return the arrays of a batch, under the model's own names where they are given none."""
        own = self._own_names(batch)
        return {own.get(name, name): leaf for name, leaf in named_arrays(batch)}

    def all_by_argument(self, batch: Batch) -> dict[str, Any]:
        """Return what ``by_argument`` does, and all else that the model is given."""
        own = self._own_names(batch)
        return {own.get(name, name): leaf for name, leaf in named_arguments_of(batch)}

    def _own_names(self, batch: Batch) -> dict[str, str]:
        """Return the model's names of arguments by those that a batch has for them."""
        args, _ = given_arguments(batch)
        model = under_handlers(self._program.own.functions[0])
        in_order = [
            name
            for name, parameter in inspect.signature(model).parameters.items()
            if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD
        ]
        if args and isinstance(args[-1], Form):  # in containers, of which these say nothing
            in_order = []
        own = {f"batch[{place}]": name for place, name in enumerate(in_order)}
        own["batch"] = own.get("batch[0]", "batch")
        return own

    def example(self, n: int = 2) -> Batch:
        """Return n example rows: the program's own, else rows of the first batch that it saw.

        Raises:
            ProgramError: The program offers none and has seen no data.
        """
        positive("n", n)
        if self.offered:
            return self._program.source.example(n)
        if self._first_rows is None and hasattr(self._program.source, "blank"):
            return self._program.source.blank(n)  # one of several forms that it takes
        if self._first_rows is None:
            raise ProgramError(
                "this program has seen no data since it was made or loaded (a file holds none); "
                "show it some rows, pv.Program.of(program).read(rows), or give n of them: "
                "pv.generate(program, n, given=rows)"
            )
        return self._picked(self._first_rows, torch.arange(n) % num_rows(self._first_rows))

    def inputs(self, n: int) -> Batch:
        """Return n rows to generate data for, drawn at random from those seen.

        An argument that is observed is an input too, where the model reads more off it than the
        value that is drawn anew: the length of a document, what is missing.
        """
        known = self._remembered
        if known is None:
            return self.example(n)
        return self._picked(known, torch.randint(num_rows(known), (n,)))

    def by_name(self, given: Batch) -> Batch:
        """Return arguments by name where they lack some that the data seen have; else as given."""
        if self._first_rows is None or not isinstance(given, tuple | Tensor):
            return given
        seen = self._seen()
        named = named_arguments(self._program.own.functions[0], *given_arguments(given))
        return named if named.keys() < seen.keys() else given

    def completed(self, given: Mapping[str, Any], n: int, optional: bool = False) -> Batch:
        """Return arguments by name with those added, n rows, that the model needs and observes.

        Their values do not matter: they are drawn anew.

        Arguments:
            given: Some arguments, n rows each.
            n: Rows.
            optional: Whether to add those too that have a default, and were observed before.
        """
        model = self._program.own.functions[0]  # the user's, which takes data in their own form
        parameters = inspect.signature(under_handlers(model)).parameters
        # The arguments alone may introduce the program: its sites are not known then.
        observed = self.observed(self.example()) if optional else {}
        needed = [
            name
            for name, parameter in parameters.items()
            if name not in given
            and (parameter.default is parameter.empty or name in observed)
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        needed += [name for name in observed if name not in {*parameters, *given}]  # of **others
        if not needed:
            return dict(given)
        plain = self.example(n)
        example = with_steps(plain, given, self._seen(), self._no_length)
        args, kwargs = given_arguments(self._program.as_given(example))
        known = named_arguments(model, args, kwargs)
        missing = [name for name in needed if name not in known]
        if missing:
            raise DataError(
                f"given: lacks the model's argument {missing[0]!r}, {counted(n, 'row')}"
            )
        left_out = {name: known[name] for name in needed}
        made = with_masks(left_out, given, self._seen(), self._drawn, self._no_length)
        if example is not plain:
            self._require_steps(self._by_user(plain), left_out, made)
        complete = {**made, **given}
        places = list(known)[: len(args)]
        if kwargs or set(complete) != set(places):
            return complete
        return tuple(complete[name] for name in places)  # as the program has met its constants

    def without_none(self, given: Any) -> Any:
        """Return arguments by name without those that are None, where the data seen have some.

        So a model is asked to draw what it observes elsewhere. None is left where all are such.

        Raises:
            DataError: An input of the model is None, which it has no default for.
        """
        if not self.known or not isinstance(given, Mapping | tuple | list) or not given:
            return given
        try:
            named = named_arguments(self._program.own.functions[0], *given_arguments(given))
        except DataError:  # the container is one argument
            return given
        seen = self._seen()
        known = {n: v for n, v in named.items() if v is not None or seen.get(n) is None}
        self._require_inputs(named.keys() - known.keys())
        return (known or None) if len(known) < len(named) else given

    def _require_inputs(self, names: Collection[str]) -> None:
        """Refuse None in the place of arguments that a model takes as an input."""
        model = under_handlers(self._program.own.functions[0])
        parameters = inspect.signature(model).parameters
        required = {n for n in names if n in parameters and parameters[n].default is _NO_DEFAULT}
        for name in sorted(required - self.observed(self.example()).keys() if required else ()):
            raise DataError(
                f"given: got None as {name!r}, which is an input of the model, and not drawn; give "
                "its rows, or leave it out, and rows of the data seen stand in their place"
            )

    def in_rows(self, given: Any, n: int) -> Any:
        """Return arguments by name with a number put in n rows, where data seen have one in each.

        ``{"lengths": 20}`` are 20 steps of each sequence.
        """
        if not isinstance(given, Mapping) or self._first_rows is None:
            return given
        return in_rows(given, self._seen(), n)

    def lengthened(self, given: Mapping[str, Any]) -> bool:
        """Return whether lengths are given beyond the steps of the data seen."""
        example = None if self._first_rows is None else self.example(1)
        if example is None:
            return False
        return with_steps(example, given, self._seen(), self._no_length) is not example

    def _require_steps(
        self, plain: Mapping[str, Any], longer: Mapping[str, Any], made: Mapping[str, Any]
    ) -> None:
        """Refuse lengths beyond the steps seen beside an input of each step that is left out.

        Arguments:
            plain: Arguments with as many steps as those seen, by name.
            longer: Those that are left out, with as many as the answer will have.
            made: The same, but for masks by the lengths.

        Raises:
            DataError: Names the input.
        """
        inputs = [
            name
            for name, value in longer.items()
            if made[name] is value and _shape(plain.get(name)) != _shape(value)
        ]
        for name in sorted({*inputs} - {*self._drawn()} if inputs else ()):
            raise DataError(
                f"given: lacks {name!r}, of which the model takes a value at each step; give "
                f"{name!r} too, with as many steps as the longest"
            )

    def _no_length(self, name: str, steps: int) -> bool:
        """Return whether an argument of the data seen is shown to be no length of their steps."""
        if self._program.rows.own is not None:
            return False
        with suppress(Exception):  # of data that cannot be put together anew
            known = self.example() if self._remembered is None else self._remembered
            numbers = self._by_user(known)[name]
            longest = numbers.argsort(descending=True)[:_LOOKED_AT]
            named = self._by_user(self._picked(known, longest.cpu()))
            values = (torch.full_like(named[name], int(each)) for each in numbers.aminmax())
            low, high = (self._program.adapt({**named, name: each}) for each in values)
            observed = self.observed(self.example())

            def sequences(batch: Batch) -> dict[str, Tensor]:
                leaves = self.by_argument(batch).items()
                tensors = {
                    n: each for n, each in leaves if isinstance(each, Tensor) and n in observed
                }
                return {n: each for n, each in tensors.items() if each.shape[1:2] == (steps,)}

            def moved(batch: Batch, some: Sequence[int]) -> Batch:
                seen = {id(leaf) for leaf in sequences(batch).values()}
                other = partial(_of_other_rows, some=some)
                return map_batch(lambda leaf: other(leaf) if id(leaf) in seen else leaf, batch)

            sites = [observed[name] for name in sequences(low)]
            differ = torch.stack([_unlike_rows(leaf) for leaf in sequences(low).values()]).any(0)
            behind = differ[int(numbers.max()) :]
            if len(behind) and not bool(behind.any()):  # as padding behind the longest sequence
                return False
            unlike = differ.nonzero().flatten().tolist()
            return is_no_length(self._program.reader.runs, low, high, sites, moved, unlike)
        return False

    def _drawn(self) -> Collection[str]:
        """Return the arguments that are drawn anew; all, where a site may observe any of them."""
        sites = self._program.sites
        if set(sites.observed) - sites.bindings.keys():
            return self.arguments
        return self.observed(self.example())

    def _seen(self) -> Mapping[str, Any]:
        """Return the arguments of the rows that are remembered, or of an example, by name."""
        return self._by_user(self.example() if self._remembered is None else self._remembered)

    def _by_user(self, rows: Batch) -> dict[str, Any]:
        """Return the arguments of some rows as a user gives them, by name."""
        given = given_arguments(self._program.as_given(rows))
        return named_arguments(self._program.own.functions[0], *given)

    def names(self, batch: Any) -> set[str]:
        """Return the names of the arguments of a batch."""
        return set(named_arguments(self._program.own.functions[0], *given_arguments(batch)))

    @property
    def arguments(self) -> list[str]:
        """The names of the model's arguments."""
        return [*inspect.signature(under_handlers(self._program.own.functions[0])).parameters]

    def observed(self, batch: Batch) -> dict[str, list[str]]:
        """Return the arguments of a batch that the model observes, and the sites that do."""
        args, kwargs = given_arguments(batch)
        places = tuple(each if isinstance(each, Form) else i for i, each in enumerate(args))
        model = self._program.own.functions[0]
        names = named_arguments(model, places, {key: key for key in kwargs})
        bindings = self._program.sites.bindings.items()
        found = {n: [s for s, binding in bindings if binding.key == k] for n, k in names.items()}
        return {name: sites for name, sites in found.items() if sites}

    def remember(self, data: Batch) -> None:
        """Keep some rows, evenly spaced, of the largest data set seen: inputs to generate for."""
        rows = num_rows(data)
        if rows <= self._remembered_of or is_meta(data):
            return
        most = max(1, min(rows, _REMEMBERED_ROWS, _REMEMBERED_BYTES // bytes_per_row(data)))
        kept = torch.arange(most) * rows // most
        some = map_rows(lambda leaf: leaf[kept.to(leaf.device)], data)
        self._remembered = map_batch(torch.clone, some)
        self._remembered_of = rows

    def _picked(self, batch: Batch, rows: torch.Tensor) -> Batch:
        picked = map_rows(lambda leaf: leaf[rows.to(leaf.device)], batch)
        return map_batch(lambda leaf: leaf.to(self._program.device), picked)


def _shape(value: Any) -> torch.Size | None:
    return getattr(value, "shape", None)


def _of_other_rows(leaf: Tensor, some: Sequence[int]) -> Tensor:
    """Return ``(n, T, *)`` with the values of other rows at some steps."""
    moved = leaf.clone()
    moved[:, some] = leaf[:, some].roll(1, 0)
    return moved


def _unlike_rows(leaf: Tensor) -> Tensor:
    """Return at which steps of ``(n, T, *)`` rows have unlike values."""
    differ = (leaf != leaf.roll(1, 0)) & ~(leaf.isnan() & leaf.roll(1, 0).isnan())
    return differ.movedim(1, 0).flatten(1).any(1)
