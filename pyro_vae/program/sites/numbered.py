"""Guides with a factor for each datum, on some of the data: plates of full size, by row numbers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_vae.program.batches.batch import num_rows
from pyro_vae.program.handlers import Message
from pyro_vae.torch_private import pytree

_subsample = SubsampleMessenger._subsample  # what Pyro asks for the rows of a plate


class Numbered(Messenger):
    """Give the plate of the data its full size inside, and the rows of a batch as its subsample.

    What the plate indexes (``pyro.param(..., event_dim=)``, weights of autoguides, ``loc[i]`` of
    ``with pyro.plate(...) as i``) is then cut to the rows. Around sites the plate looks as one of
    the batch alone: the factor N/B is left to ``DatasetSize``.

    Arguments:
        name: The plate's.
        total: N.
        rows: Their numbers, ``(B,)``.
        any_size: Whether plates of B rows are such too, as in a guide: in a model the numbers that
            they give index the batch.
    """

    def __init__(self, name: str, total: int, rows: Tensor, any_size: bool) -> None:
        super().__init__()
        self.name, self.total, self.rows, self.any_size = name, total, rows, any_size
        self._before: Any = None

    def __enter__(self) -> "Numbered":
        self._before = vars(SubsampleMessenger)["_subsample"]
        SubsampleMessenger._subsample = staticmethod(self._rows_of)  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        SubsampleMessenger._subsample = self._before  # type: ignore[method-assign]
        return super().__exit__(*error)

    def _rows_of(
        self,
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Any = None,
        *more: Any,
    ) -> Any:
        asked = name == self.name and size is not None and (self.any_size or size == self.total)
        if asked and subsample is None:  # numbers that the program gives are its own
            return self.total, len(self.rows), self.rows
        return _subsample(name, size, subsample_size, subsample, *more)

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            return
        stack = msg["cond_indep_stack"]
        if any(self._is_cut(frame) for frame in stack):
            msg["cond_indep_stack"] = tuple(
                frame._replace(full_size=frame.size) if self._is_cut(frame) else frame
                for frame in stack
            )
            weight = 1.0 * self.total / len(self.rows)  # as Pyro computes it
            scale = msg["scale"]
            alone = not isinstance(scale, Tensor) and scale == weight
            msg["scale"] = 1.0 if alone else scale / weight

    def _pyro_post_param(self, msg: Message) -> None:
        """Cut a parameter to the rows where they are so many that Pyro sees no subsample in them.

        As of several copies of the batch.
        """
        event_dim = msg["kwargs"].get("event_dim")
        frames = [frame for frame in msg["cond_indep_stack"] if frame.name == self.name]
        if event_dim is None or not frames or len(self.rows) < self.total:
            return
        value, dim = msg["value"], frames[0].dim - event_dim
        if value.dim() >= -dim and value.shape[dim] == self.total:
            msg["value"] = value.index_select(dim, self.rows.to(value.device))

    _pyro_post_subsample = _pyro_post_param

    def _is_cut(self, frame: Any) -> bool:
        return bool(frame.name == self.name and frame.full_size != frame.size)


def numbered(
    function: Callable[..., Any], name: str, total: int, rows: Tensor, *, any_size: bool
) -> Callable[..., Any]:
    """Return a function whose plate of the data has the given rows (see ``Numbered``).

    The arguments may be several copies of the batch, one after the other.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        copies = num_rows((*args, *kwargs.values())) // len(rows)
        own = rows if copies == 1 else rows.repeat(copies)
        with Numbered(name, total, own, any_size):
            return function(*args, **kwargs)

    return call


def numbered_pair(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    names: tuple[str, str],
    total: int,
    rows: Tensor,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return model and guide on the given rows (see ``Numbered``).

    Arguments:
        functions: Both.
        names: Of the plate of the data in each.
        total: N.
        rows: Their numbers.
    """
    model, guide = functions
    return (
        numbered(model, names[0], total, rows, any_size=False),
        numbered(guide, names[1], total, rows, any_size=True),
    )


def last_of(total: int, count: int, device: Any) -> Tensor:
    """Return the numbers of the last rows of N, which no few rows have, the very last one first."""
    return torch.arange(total - 1, total - 1 - count, -1, device=device)


class LookUps(TorchFunctionMode):
    """Notice whether a tensor of N rows, in any dimension, is indexed by the numbers of some rows.

    Arguments:
        numbers: Theirs, as a plate gives them; what is computed of them alone comes in.
        total: N.
        count: How many rows a plate gives.
    """

    def __init__(self, numbers: list[Any], total: int, count: int) -> None:
        super().__init__()
        self.total, self.found = total, False
        self.numbers, self._count = numbers, count
        self._few: list[Tensor] = []  # the batch's own, with N in another dimension

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and look at its arguments: what fails has looked nothing up."""
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=self._is_of_numbers)
        others = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in others if not self._is_of_numbers(leaf)]
        if not any(map(self._is_of_numbers, leaves)):
            return func(*args, **kwargs)
        looked_up = [leaf for leaf in others if self._may_have_all(leaf)]
        if looked_up and _fails(func, args, kwargs):
            self._few += looked_up
            looked_up = []
        if others and not looked_up:
            # The batch has its own few rows alone: others of them do, so that the run goes on.
            args, kwargs = pytree.tree_map(
                self._within, (args, kwargs), is_leaf=self._is_of_numbers
            )
        result = func(*args, **kwargs)
        self.found |= bool(looked_up)
        if not others and self._tells_rows(result):
            self.numbers += [*result] if isinstance(result, tuple) else [result]
        return result

    def _is_of_numbers(self, value: Any) -> bool:
        return any(value is each for each in self.numbers)

    def _may_have_all(self, value: Tensor) -> bool:
        return self.total in value.shape and not any(value is each for each in self._few)

    def _within(self, value: Any) -> Any:
        """Return numbers of rows as some that the batch has; all else as it is."""
        if not self._is_of_numbers(value):
            return value
        if isinstance(value, list):
            return [number % self._count for number in value]
        return value % self._count if value.dtype == self.numbers[0].dtype else value

    def _tells_rows(self, result: Any) -> bool:
        """Return whether each row has another value: ones, as many as there are rows, tell none."""
        parts = isinstance(result, tuple) and all(isinstance(each, Tensor) for each in result)
        if parts or isinstance(result, list):  # a loop over the numbers, or ``tolist``
            return len({*map(str, result)}) == self._count == len(result)
        if not isinstance(result, Tensor) or self._count not in result.shape:
            return False
        return len(result.unique(dim=result.shape.index(self._count))) == self._count


def _fails(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a function of torch fails, on the CPU: a GPU is lost by a wrong index."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    try:
        func(*args, **kwargs)
    except Exception:
        return True
    return False


class DrawLast(Messenger):
    """Have plates that draw some of their rows draw the last of N, and follow their numbers."""

    def __init__(self, seen: LookUps) -> None:
        super().__init__()
        self._seen = seen

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        drawn = msg["fn"].subsample_size
        if drawn is not None and drawn < msg["fn"].size:
            msg["value"] = last_of(self._seen.total, drawn, msg["fn"].device)
            self._seen.numbers.append(msg["value"])


def guides_remembered(module: nn.Module) -> Callable[[], None]:
    """Return a function that makes Pyro's automatic guides as they are: they keep their first rows.

    Arguments:
        module: Holds them.
    """
    guides: list[nn.Module] = [
        part for part in module.modules() if isinstance(part, AutoGuide | EasyGuide)
    ]
    # A messenger makes its parameters in parts of its own, at its first run.
    makers = [part for part in module.modules() if isinstance(part, AutoMessenger)]
    guides += [part for maker in makers for part in maker.modules()]
    before = [{key: _copied(value) for key, value in vars(part).items()} for part in guides]

    def put_back() -> None:
        for part, state in zip(guides, before, strict=True):
            vars(part).clear()
            vars(part).update(state)

    return put_back


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def forget_plates(module: nn.Module) -> None:
    """Drop the plates that an ``EasyGuide`` keeps when its run ends with an error."""
    for part in module.modules():
        if isinstance(part, EasyGuide):
            part.plates.clear()
