"""Graphs kept with their program: a later training of the same shapes need not trace again."""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from pyro_vae.inference.graphs.comparison import constants
from pyro_vae.inference.graphs.course import Course
from pyro_vae.inference.graphs.flat_inputs import FlatStep
from pyro_vae.inference.graphs.python_state import PythonState
from pyro_vae.program.program import Program

_MANY = 8  # graphs per program
_BYTES = 1 << 20  # of the constants beside one graph: larger ones may be data, which must not stay
_NAME = "_kept_graphs"


@dataclass(eq=False)
class Kept:
    """A graph with all that says whether a new trace would give the same one.

    Arguments:
        layout: Shapes, strides and types of its inputs, and what it is differentiated by.
        course: The operations of the program's own step, on the batch of the trace.
        state: What the program kept in Python when the graph was made.
        graph: As traced and simplified.
        reached: The places of the parameters that it has gradients for.
        plain: What runs it without the compiler.
        compiled: What runs it through the compiler, where that was asked for.
    """

    layout: Any
    course: Course
    state: PythonState
    graph: GraphModule
    reached: list[int]
    plain: FlatStep
    compiled: FlatStep | None = None

    @property
    def size(self) -> int:
        """Bytes of the tensors and arrays that stay with the graph."""
        tensors = [*constants(self.graph).values(), *self.course.constants()]
        return self.state.size + sum(t.numel() * t.element_size() for t in tensors)


class KeptGraphs:
    """The graphs of one program, the oldest first; a copy of the program begins with none."""

    def __init__(self) -> None:
        self._all: list[Kept] = []

    @staticmethod
    def of(program: Program) -> "KeptGraphs":
        """Return those of a program, which lives as long as they do."""
        return program.__dict__.setdefault(_NAME, KeptGraphs())

    def find(self, layout: Any, course: Course, state: PythonState) -> Kept | None:
        """Return the graph that a trace would give now, if it is there.

        Operations, their order, numbers and constants are equal, and so is what the program keeps
        in Python: a mode, a part, a rate or a frozen weight that other code has changed in between
        shows in one of these.
        """
        for kept in self._all:
            same = kept.layout == layout and kept.course.same_as(course)
            if same and state.change_since(kept.state) is None:
                return kept
        return None

    def add(self, kept: Kept) -> None:
        """Keep a graph that has proved right, in place of the oldest where there are many."""
        if kept.size <= _BYTES:
            self._all = [*self._all, kept][-_MANY:]

    def forget(self, graph: GraphModule) -> None:
        """Forget a graph that has proved wrong."""
        self._all = [kept for kept in self._all if kept.graph is not graph]

    def __reduce__(self) -> Any:
        return KeptGraphs, ()
