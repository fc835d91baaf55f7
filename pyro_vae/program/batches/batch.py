"""A batch: what a program's functions are called with, its tensors cut into one row per datum.

A tensor is one argument, a tuple positional arguments, a dict keywords. Arguments that are no rows
(None, numbers, flags, namespaces, tensors of another length) travel along as they are.
"""

import functools
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyro_vae.arguments import shown
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batches.sparse_rows import SparseRows, is_sparse, sparse_rows
from pyro_vae.torch_private import pytree

_NUMBERS = "biuf"  # what kinds of NumPy hold real numbers
_SHOWN = 6  # arguments that a message names
_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
Batch = Any  # Tensor | tuple[Any, ...] | dict[str, Any] | Whole; recursive types help nobody here


@dataclass(frozen=True)
class Whole:
    """The arguments of a program without a plate of the data: one datum, which is never cut.

    Arguments:
        batch: What model and guide take; an empty tuple where they hold their data themselves.
    """

    batch: Batch


@dataclass(frozen=True)
class Part:
    """Some rows of a data set with their numbers, for a guide that has a factor for each datum.

    Arguments:
        batch: B rows.
        rows: Their numbers, ``(B,)``.
    """

    batch: Batch
    rows: Tensor


@dataclass(frozen=True)
class Form:
    """How a user held the arguments of a flat batch: the last of them, a constant.

    Arguments:
        spec: The containers around them.
        words: Places of lists of words among them, numbers here, with the kind of each list.
    """

    spec: Any
    words: Mapping[int, type]

    @functools.cached_property
    def paths(self) -> tuple[tuple[Any, ...], ...]:
        """Where each argument stands: its place or name, and the keys inside its containers."""
        tree = pytree.tree_unflatten(range(self.spec.num_leaves), self.spec)
        paths: Any = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
        return tuple(
            (first.idx if isinstance(first, pytree.SequenceKey) else first.key, *map(str, rest))
            for first, *rest in paths
        )

    def __hash__(self) -> int:
        return hash((repr(self.spec), tuple(self.words.items())))


def named_arguments_of(batch: Batch) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, argument)`` for each argument; a lone one is called ``"batch"``."""
    if isinstance(batch, Whole | Part):
        yield from named_arguments_of(batch.batch)
        if isinstance(batch, Part):
            yield "row numbers", batch.rows
    elif isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        yield from ((f"batch[{i}]", leaf) for i, leaf in enumerate(batch))
    else:
        yield "batch", batch


def named_leaves(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` for each tensor of a batch; a lone tensor is called ``"batch"``."""
    if isinstance(batch, Tensor):
        return iter([("batch", batch)])
    return ((name, leaf) for name, leaf in named_arguments_of(batch) if isinstance(leaf, Tensor))


def named_arrays(batch: Batch) -> Iterator[tuple[str, Tensor | SparseRows]]:
    """Yield what ``named_leaves`` does, and sparse rows, which are no tensors until picked."""
    kinds = Tensor | SparseRows
    return ((name, leaf) for name, leaf in named_arguments_of(batch) if isinstance(leaf, kinds))


def device_of(batch: Batch) -> torch.device | None:
    """Return the device of the first array of a batch; None where it has none."""
    found = (leaf for _, leaf in named_arguments_of(batch))
    held = (leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in found)
    return next((leaf.device for leaf in held if isinstance(leaf, Tensor | SparseRows)), None)


def dense(batch: Batch) -> Batch:
    """Return a batch with all sparse rows made dense: for one that is no larger than a pass."""
    return map_arguments(lambda leaf: leaf[:] if isinstance(leaf, SparseRows) else leaf, batch)


def constants(batch: Batch) -> tuple[tuple[str, Any], ...]:
    """Return the arguments of a batch that are no tensors, by name."""
    return tuple((n, leaf) for n, leaf in named_arguments_of(batch) if not isinstance(leaf, Tensor))


def map_arguments(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Apply a function to each argument of a batch and keep the structure."""
    if isinstance(batch, Whole):
        return Whole(map_arguments(function, batch.batch))
    if isinstance(batch, Part):
        return Part(map_arguments(function, batch.batch), function(batch.rows))
    if isinstance(batch, Mapping):
        return {name: function(leaf) for name, leaf in batch.items()}
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return tuple(function(leaf) for leaf in batch)
    return function(batch)


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to each tensor of a batch; other arguments stay as they are."""
    if isinstance(batch, Tensor):
        return function(batch)
    return map_arguments(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def of_arguments(function: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """Return a user's transform as a function of batches, which may be one datum.

    Raises:
        ConfigError: At a call: what it returns is no batch.
    """

    def checked(batch: Batch) -> Batch:
        made = function(batch)
        if not isinstance(made, Tensor | Mapping | tuple | list):
            raise ConfigError(
                f"transform: it returned {shown(made)}, expected a batch like the one it is given"
            )
        return made

    @functools.wraps(function)
    def call(batch: Batch) -> Batch:
        if isinstance(batch, Part):
            return Part(function(batch.batch), batch.rows)
        if not isinstance(batch, Whole):
            return checked(batch)
        return Whole(checked(map_batch(torch.clone, batch.batch)))  # it may write in place

    return call


def map_rows(function: Callable[[Tensor], Tensor], batch: Batch, rows: int | None = None) -> Batch:
    """Apply a function that picks or repeats rows to what has the batch's rows.

    A packed sequence is one padded row per datum to the function, and is packed again: of as many
    steps as before where other arguments are padded to them, so that what a program says of a
    datum does not depend on the rows beside it. Sparse rows that are picked are dense. One datum
    without rows stays as it is.
    """
    if isinstance(batch, Tensor) and batch.shape and batch.shape[0] and rows is None:
        return function(batch)
    if isinstance(batch, Whole):
        return batch
    if isinstance(batch, Part):
        rows = len(batch.rows)
        return Part(map_rows(function, batch.batch, rows), function(batch.rows))
    rows = num_rows(batch) if rows is None else rows
    padded_to = {leaf.shape[1] for _, leaf in named_leaves(batch) if leaf.dim() > 1}

    def of(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence) and len(leaf.batch_sizes) and rows_of(leaf) == rows:
            steps = len(leaf.batch_sizes)
            padded, lengths = pad_packed_sequence(leaf, batch_first=True)
            kept = function(lengths)
            falling = bool((kept[1:] <= kept[:-1]).all())  # as it was packed, where that is so
            packed = pack_padded_sequence(
                function(padded), kept, batch_first=True, enforce_sorted=falling
            )
            return _of_steps(packed, steps) if steps in padded_to else packed
        return function(leaf) if rows_of(leaf) == rows else leaf

    return map_arguments(of, batch)


def _of_steps(packed: PackedSequence, steps: int) -> PackedSequence:
    """Return a packed sequence with empty steps at its end; cuDNN takes none."""
    lacking = steps - len(packed.batch_sizes)
    if lacking == 0 or packed.data.is_cuda:
        return packed
    sizes = torch.cat([packed.batch_sizes, packed.batch_sizes.new_zeros(lacking)])
    return packed._replace(batch_sizes=sizes)


def rows_of(leaf: Any) -> int | None:
    """Return how many rows an argument has; None for what has none."""
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    if isinstance(leaf, SparseRows):
        return len(leaf)
    return leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the ``(args, kwargs)`` with which a model and a guide take this batch.

    Raises:
        DataError: Sparse rows that no pass has picked some of.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    args, kwargs = given_arguments(batch)
    for name, leaf in [*enumerate(args), *kwargs.items()]:
        if isinstance(leaf, SparseRows):
            raise DataError(
                f"argument {name!r}: got a sparse array of shape {tuple(leaf.shape)}, expected a "
                "dense one: its rows are made dense a batch at a time, and here the program takes "
                "all of them at once (no plate holds them, the guide has one factor for each, or "
                "other arguments have other rows); pass x.toarray() (x.to_dense())"
            )
    return args, kwargs


def given_arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what ``arguments`` does, sparse or not."""
    if isinstance(batch, Whole | Part):
        return given_arguments(batch.batch)
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return tuple(batch), {}
    return (batch,), {}


def as_batch(batch: Batch, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
    """Return arguments in the structure of a batch: what ``arguments`` undoes."""
    if isinstance(batch, Whole):
        return Whole(as_batch(batch.batch, args, kwargs))
    if isinstance(batch, Part):
        return Part(as_batch(batch.batch, args, kwargs), batch.rows)
    if isinstance(batch, Mapping):
        return dict(kwargs)
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return args
    return args[0]


def named_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments by the names that a function's signature gives them.

    Raises:
        DataError: The function does not take these arguments.
    """
    if args and isinstance(args[-1], Form):  # in containers, of which the signature says nothing
        return {f"argument_{place}": value for place, value in enumerate(args[:-1])}
    try:
        bound = inspect.signature(under_handlers(function)).bind_partial(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise DataError(f"the model does not take this batch: {error}") from error
    found = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            found.update(found.pop(parameter.name, {}))
    return found


def takes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function can be called with these arguments."""
    if args and isinstance(args[-1], Form):
        return True
    try:
        inspect.signature(under_handlers(function)).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def under_handlers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that Pyro's handlers wrap, or a module runs: others have no signature.

    What it is bound to besides stays bound: the object of a method under ``@config_enumerate``.
    """
    while isinstance(function, functools.partial) and isinstance(
        next(iter(function.args), None), Messenger
    ):
        _, inner, *bound = function.args
        given = bound or function.keywords
        function = functools.partial(inner, *bound, **function.keywords) if given else inner
    inner = inspect.unwrap(function, stop=lambda each: hasattr(each, "__signature__"))
    return inner.forward if isinstance(inner, torch.nn.Module) else function


def num_rows(batch: Batch) -> int:
    """Return the number of data in a batch: the length that most of its tensors share.

    Raises:
        DataError: The batch is empty, holds no tensor, or its tensors disagree on the number of
            rows and none is the odd one out.
    """
    if isinstance(batch, Tensor) and batch.shape and batch.shape[0]:
        return batch.shape[0]  # len() is slower
    if isinstance(batch, Whole):
        return 1
    if isinstance(batch, Part):
        return len(batch.rows)
    found = {name: rows_of(leaf) for name, leaf in named_arguments_of(batch)}
    rows = {name: count for name, count in found.items() if count is not None}
    if not rows:
        kinds = {name: type(leaf).__name__ for name, leaf in named_arguments_of(batch)}
        scalar = any(isinstance(leaf, Tensor) for _, leaf in named_arguments_of(batch))
        got = "a scalar" if scalar and len(kinds) == 1 else f"no data ({kinds})"
        raise DataError(
            f"batch: got {got}, expected a tensor with one row per datum; convert it with "
            "torch.as_tensor"
        )
    (count, most), *others = Counter(rows.values()).most_common()
    if others and others[0][1] == most:
        few = dict(list(rows.items())[:_SHOWN])
        raise DataError(
            f"tensors of one batch need equal numbers of rows, got {few}"
            + (
                f" and {len(rows) - _SHOWN} more; of a list of sequences pv.data.pad(x) makes one "
                "tensor, and their lengths"
                if len(rows) > _SHOWN
                else "; what is no data of the rows belongs into the functions "
                "(functools.partial), not into the batch"
            )
        )
    if count == 0:
        raise DataError("got no data (0 rows), expected at least one row")
    return count


def datum_first(batch: Batch, dim: int) -> Batch:
    """Return a batch whose rows stand in the first dimension (a copy, where they did not)."""
    if dim == 0:
        return batch

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() <= dim:
            return leaf
        return leaf.movedim(dim, 0).contiguous()

    rows = num_rows(map_arguments(moved, batch))

    def of(leaf: Any) -> Any:
        return moved(leaf) if rows_of(moved(leaf)) == rows else leaf

    return map_arguments(of, batch)


def datum_moved(function: Callable[..., Any], dim: int) -> Callable[..., Any]:
    """Return a function that takes batches with the datum first, for one that does not."""
    if dim == 0:
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        rows = num_rows((*args, *kwargs.values()))
        return function(*datum_at(dim, args, rows), **datum_at(dim, kwargs, rows))

    return call


def datum_at(dim: int, batch: Batch, rows: int | None = None) -> Batch:
    """Return a batch whose rows stand in a dimension of choice: what ``datum_first`` undoes."""
    if dim == 0:
        return batch
    count = num_rows(batch) if rows is None else rows

    def back(leaf: Any) -> Any:
        row = isinstance(leaf, Tensor) and leaf.dim() > dim and rows_of(leaf) == count
        return leaf.movedim(0, dim) if row else leaf

    return map_arguments(back, batch)


def signature(batch: Batch) -> tuple[Any, ...]:
    """Return what must stay equal for a program that was read to be read no more.

    Shapes and dtypes of tensors; of other arguments what they are, and the values of those that may
    be flags: an int may choose which sites are observed, a float weighs; and the steps of a packed
    sequence.
    """
    if isinstance(batch, Tensor):
        return batch.shape, batch.dtype, batch.device.type
    arguments_ = (
        (name, leaf.shape, leaf.dtype, leaf.device.type)
        if isinstance(leaf, Tensor)
        else (name, type(leaf), _told(leaf))
        for name, leaf in named_arguments_of(batch)
    )
    return (isinstance(batch, Whole), isinstance(batch, Part), *arguments_)


def signs_of(batch: Batch) -> tuple[str, ...] | None:
    """Return whether none, some or all of a tensor of integers are below zero: lacking labels.

    And of flags whether they are false. None where values cannot be seen (a tracer, a meta tensor).
    """
    found = []
    try:
        for _, leaf in named_leaves(batch.batch if isinstance(batch, Whole | Part) else batch):
            if (leaf.dtype in _SIGNED or leaf.dtype == torch.bool) and leaf.numel():
                if leaf.is_meta or type(leaf) is not Tensor:
                    return None
                bound = 1 if leaf.dtype == torch.bool else 0
                lacking = int(leaf.min()) < bound
                found.append("none" if not lacking else "all" if leaf.max() < bound else "some")
    except RuntimeError:
        return None
    return tuple(found)


def told_by(batch: Batch) -> tuple[tuple[str, Any], ...]:
    """Return what the arguments without rows tell of which sites there are, by name."""
    kinds = Tensor | SparseRows | PackedSequence
    return tuple((n, _told(leaf)) for n, leaf in constants(batch) if not isinstance(leaf, kinds))


def _told(leaf: Any) -> Any:
    """Return what an argument without rows tells of which sites there are; None where nothing."""
    if isinstance(leaf, PackedSequence):
        return len(leaf.batch_sizes)
    return leaf if isinstance(leaf, bool | int | str | Form | None) else None


class Pieces(Sequence[Batch]):
    """A batch in pieces, each made when it is asked for: views, and sparse rows made dense.

    Arguments:
        batch: Any.
        size: Rows of a piece, at most.
    """

    def __init__(self, batch: Batch, size: int) -> None:
        self._batch, self._starts, self._size = batch, range(0, num_rows(batch), size), size

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Batch:
        start = self._starts[place]
        return map_rows(lambda leaf: leaf[start : start + self._size], self._batch)


def chunks(batch: Batch, size: int) -> Sequence[Batch]:
    """Cut a batch into pieces of at most ``size`` rows (views, no copies of dense data)."""
    return Pieces(batch, size)


def repeat_rows(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], times: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Stack ``times`` copies of arguments: ``(times * B)`` rows, copy-major (copies the data)."""
    rows = num_rows((*args, *kwargs.values()))

    def repeated(leaf: Tensor) -> Tensor:
        return leaf.repeat(times, *(1,) * (leaf.dim() - 1))

    return map_rows(repeated, args, rows), map_rows(repeated, kwargs, rows)


def cuda_devices(batch: Batch) -> list[torch.device]:
    """Return the CUDA devices of a batch, whose random states a fork must save."""
    return list({leaf.device for _, leaf in named_leaves(batch) if leaf.is_cuda})


_TAKE_HOLES = (
    "for pv.impute to fill them in, let the program take holes: pv.models.VAE(..., missing='nan'), "
    "or x.nan_to_num() in guide and obs=, and .mask(~x.isnan()) before .to_event in the model"
)


def is_infinite(batch: Batch) -> bool:
    """Return whether data have an infinite number (one device sync per tensor)."""
    return any(bool(leaf.isinf().any()) for _, leaf in named_leaves(batch))


def check_finite(batch: Batch, first_row: int = 0) -> None:
    """Refuse NaN and infinity in floating-point data (one device sync per tensor).

    Arguments:
        batch: The data.
        first_row: The number of its first row, for the message.

    Raises:
        DataError: Names the tensor, the first bad row and its value.
    """
    for name, leaf in named_arrays(batch):
        if not leaf.is_floating_point() or leaf.device.type == "meta":
            continue
        if isinstance(leaf, SparseRows):
            row = leaf.first_infinite()
            if row is not None:
                check_finite({name: leaf[row : row + 1]}, first_row + row)
            continue
        if math.isfinite(float(leaf.detach().sum())):
            continue  # one pass over the rows; of a sum that overflows each number is looked at
        infinite = leaf.isinf()
        held = bool(infinite.any())
        for where in (infinite if held else leaf.isnan()).nonzero()[:1].tolist():
            raise DataError(
                f"{name}: value {leaf[tuple(where)].item()} in row {first_row + where[0]} "
                f"(position {where[1:]}), expected finite numbers; drop such rows "
                "(x[x.isfinite().flatten(1).all(1)]), or, "
                + ("where such a cell is missing, put NaN in it" if held else _TAKE_HOLES)
            )


def as_argument(leaf: Any) -> Any:
    """Return an argument as a program takes it: arrays as tensors, everything else as it is.

    Raises:
        DataError: An array that is no numeric one.
    """
    array = isinstance(leaf, Tensor | list | tuple) or hasattr(leaf, "__array__")
    if (
        isinstance(leaf, PackedSequence)
        or is_words(leaf)
        or not (array or hasattr(leaf, "toarray"))
    ):
        return leaf
    return as_rows(leaf)


def is_words(leaf: Any) -> bool:
    """Return whether an argument is a list of words: a constant, where it is not one a row."""
    return isinstance(leaf, list | tuple) and bool(leaf) and all(isinstance(w, str) for w in leaf)


def as_rows(leaf: Any) -> Tensor | SparseRows:
    """Return data as a tensor, or as rows that become one a batch at a time where it is sparse.

    Raises:
        DataError: No numeric array.
    """
    if isinstance(leaf, SparseRows):
        return leaf
    return sparse_rows(leaf, as_tensor) if is_sparse(leaf) else as_tensor(leaf)


def as_tensor(leaf: Any) -> Tensor:
    """Return a dense tensor for a tensor or a numeric array (shared memory where possible).

    Raises:
        DataError: Objects, strings, ragged lists, sparse or masked arrays, complex numbers.
    """
    if hasattr(leaf, "toarray"):  # scipy's sparse matrices
        raise DataError(f"got {type(leaf).__name__}, expected a dense array; pass x.toarray()")
    if isinstance(leaf, np.ma.MaskedArray):
        if np.ma.is_masked(leaf):
            raise DataError(
                "got a masked array with masked values, expected numbers; pass x.filled(...), and "
                "the mask as an argument of the program"
            )
        leaf = leaf.data
    if isinstance(leaf, Tensor):
        tensor = leaf.detach()
    else:
        try:
            tensor = torch.as_tensor(_numeric(leaf))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"got {type(leaf).__name__}, expected a tensor or a numeric array; "
                f"{_made_numeric(leaf, error)}"
            ) from error
    if tensor.is_nested or tensor.layout != torch.strided:
        raise DataError(
            f"got a tensor of layout {tensor.layout}{', nested' if tensor.is_nested else ''}, "
            "expected dense rows; pass x.to_dense() (x.to_padded_tensor(0.0) and the lengths)"
        )
    if tensor.is_complex():
        raise DataError(
            "got complex numbers, expected real ones; pass real and imaginary part as columns"
        )
    return tensor


def _made_numeric(leaf: Any, error: Exception) -> str:
    """Return what makes numbers of a leaf that holds none."""
    if leaf is None:
        return "a program without arguments takes (), as pv.fit(program, ())"
    if isinstance(leaf, str | bytes | os.PathLike):
        return f"read the file first, as in np.load({leaf!r})"
    kinds = leaf.dtypes.items() if hasattr(leaf, "columns") and hasattr(leaf, "dtypes") else ()
    text = [name for name, kind in kinds if kind.kind not in _NUMBERS]
    if text:
        return (
            f"columns {', '.join(map(repr, text[:3]))} have no numbers; leave them out, number them"
            f" by pd.factorize(x[{text[0]!r}])[0], or train a models.TableVAE, which reads a frame"
        )
    cells = np.asarray(leaf if hasattr(leaf, "__array__") else ())  # of a ragged list there is none
    if cells.size and isinstance(cells.flat[0], str):
        return "names have numbers by np.unique(x, return_inverse=True)[1]"
    if hasattr(leaf, "astype"):
        return "convert it: x.astype('float32')"
    if all(hasattr(leaf, split) for split in ("train", "valid", "test")):
        return "give one of its parts: data.train, and valid=data.valid"
    return f"convert it with torch.as_tensor ({str(error).partition('. The only')[0]})"


def _numeric(leaf: Any) -> Any:
    array = np.asarray(leaf)
    if not array.dtype.isnative:  # as some file formats have it; torch takes the machine's alone
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype in (np.uint16, np.uint32, np.uint64):  # torch stores them and computes nothing
        array = array.astype(np.int64)
    # torch takes no negative strides; it warns of read-only memory, and must not write to it
    backwards = any(stride < 0 for stride in array.strides)
    return array.copy() if backwards or not array.flags.writeable else array
