"""The memory of a row: that of its data, and that of the widest tensor which a program makes of it.

A sentence of 30 words is 240 bytes, and the logits of its words over 10,000 are 1.2 MB.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_vae.program import checks
from pyro_vae.program.batches.batch import Batch, Whole, device_of, map_rows, num_rows, signature
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.looks.quiet_runs import Runs
from pyro_vae.torch_private import TorchDispatchMode

_ROWS = 13  # of a look: a number that seldom divides the widths of a network


class RowBytes:
    """What a row takes, by the shapes of its arguments; each is looked at once.

    Arguments:
        runs: Runs the program, and leaves nothing behind.
        allowed: Whether the program may be run on any number of rows.
    """

    def __init__(self, runs: Runs, allowed: Callable[[Batch], bool]) -> None:
        self._runs, self._allowed = runs, allowed
        self._known: dict[Any, int] = {}

    def forget(self) -> None:
        """Look anew: model or guide has been replaced."""
        self._known = {}

    def of(self, batch: Batch) -> int:
        """Return the bytes of the widest tensor that one row leads to; 0 where it is not known."""
        if isinstance(batch, Whole) or checks.is_meta(batch) or not self._allowed(batch):
            return 0
        few = map_rows(lambda leaf: leaf[_places(batch)], batch)
        key = signature(few)
        if key not in self._known:
            self._known[key] = self._look(few)
        return self._known[key]

    def _look(self, few: Batch) -> int:
        widest = _Widest(_ROWS)
        with suppress(Exception), self._runs.running(few) as run, widest:  # a look, and no verdict
            for trace in run(few, _ROWS, {}):
                for _, site in sample_sites(trace):
                    if checks.has_density(site["fn"]):
                        site["fn"].log_prob(site["value"])
        return widest.bytes // _ROWS


def _places(batch: Batch) -> Tensor:
    return torch.arange(_ROWS, device=device_of(batch)) % num_rows(batch)


class _Widest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made inside and has as many rows, or a multiple.

    Arguments:
        rows: How many.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows, self.bytes = rows, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if not function.is_view:  # weights, transposed
            for each in made if isinstance(made, tuple | list) else (made,):
                if isinstance(each, Tensor) and any(n and n % self._rows == 0 for n in each.shape):
                    self.bytes = max(self.bytes, each.numel() * each.element_size())
        return made
