"""Which arguments have been met with rows that differ: equal rows hide what depends on which."""

from torch import Tensor

from pyro_vae.program.batches.batch import Batch, named_arguments_of

_FEW = 64  # rows of a large argument to look at


class Contrasts:
    """Keeps which arguments together have had rows that differ, or a number that was not zero.

    What a program makes of rows that are all equal, or times zero, does not show whether it reads
    the rows beside a datum; what was found on such a batch holds until one tells more.
    """

    def __init__(self) -> None:
        self._met: list[frozenset[str]] = []

    def more_in(self, batch: Batch) -> bool:
        """Return whether a batch tells what none before it did."""
        arguments = _arguments(batch)
        if any(met.issuperset(arguments) for met in self._met):
            return False
        told = _told(arguments)
        return bool(told) and not any(told <= met for met in self._met)

    def meet(self, batch: Batch) -> None:
        """Note what a batch tells."""
        told = _told(_arguments(batch))
        self._met = [*(met for met in self._met if not met <= told), told]


def _told(arguments: dict[str, object]) -> frozenset[str]:
    return frozenset(name for name, leaf in arguments.items() if tells(leaf))


def tells(leaf: object) -> bool:
    """Return whether rows of an argument differ, or a number is not zero; False where unseen."""
    if isinstance(leaf, Tensor):
        try:
            return not leaf.is_meta and _differs(leaf)
        except RuntimeError:  # a tracer hides the values
            return False
    return isinstance(leaf, int | float) and leaf != 0


def _differs(leaf: Tensor) -> bool:
    if leaf.dim() == 0:
        return bool(leaf != 0)
    step = max(1, len(leaf) // _FEW)
    return bool((leaf[::step] != leaf[:1]).any())


def _arguments(batch: Batch) -> dict[str, object]:
    kinds = Tensor | int | float
    return {name: leaf for name, leaf in named_arguments_of(batch) if isinstance(leaf, kinds)}
