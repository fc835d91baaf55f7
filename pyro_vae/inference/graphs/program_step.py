"""A program's own step: what a graph is traced from, is fed from and must agree with."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae.device import seeded
from pyro_vae.inference.graphs.comparison import (
    Call,
    Homes,
    Outcome,
    but_for_kinks,
    compiler_slack,
    difference,
    eager_outcome,
    graph_outcome,
    move,
    other_rows,
    refuse_second_trace,
    round_otherwise,
    same_numbers,
    undone,
)
from pyro_vae.inference.graphs.course import Course, memory_of
from pyro_vae.inference.graphs.flat_inputs import FlatStep, flat_weights, leaves_of
from pyro_vae.inference.graphs.graph_step import Traced
from pyro_vae.inference.graphs.python_state import PythonState
from pyro_vae.inference.graphs.tracing import trace_step
from pyro_vae.program.batches.batch import Batch, named_leaves
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import validation
from pyro_vae.program.memory.own_state import Moment, OwnState
from pyro_vae.program.program import Program

Loss = Callable[[Joint], Tensor]

_DRAWS = 4  # of noise, at which compiled code that parts at one is compared once more


class ProgramStep:
    """A loss of a program with the tensors that it depends on.

    Arguments:
        loss: Maps model and guide on one batch to a scalar.
        program: Whose parameters and buffers it depends on.
        objective: A module with parameters or state of its own, if the objective is one.
        parameters: What the loss trains; None: all. A callback may freeze and thaw them.
    """

    def __init__(
        self,
        loss: Loss,
        program: Program,
        objective: Any,
        parameters: Iterable[nn.Parameter] | None,
    ) -> None:
        self.loss = loss
        self.program = program
        self.owner = nn.ModuleDict({"program": program})
        if isinstance(objective, nn.Module):
            self.owner["objective"] = objective
        chosen = self.owner.parameters() if parameters is None else parameters
        hidden = program.own.frozen
        self.trained = [parameter for parameter in chosen if parameter not in hidden]
        self._parts: list[nn.Module] = []

    def wanted(self) -> list[nn.Parameter]:
        """Return the parameters that are trained at present."""
        return [parameter for parameter in self.trained if parameter.requires_grad]

    def flags(self) -> tuple[bool, ...]:
        """Return which parts are in train mode: a transform may change it before any step."""
        if not self._parts:
            self._parts = list(self.owner.modules())
        return tuple([part.training for part in self._parts])

    def forget_parts(self) -> None:
        """Look for the parts again: to walk through them at each step is too slow."""
        self._parts = []

    def homes(self) -> Homes:
        """Return where each parameter and buffer is held, each tensor once.

        The dictionaries of the modules: walking the tree costs more than a small step.
        """
        seen: set[int] = set()
        homes: list[tuple[dict[str, Any], str]] = []
        parts = list(self.owner.modules())
        outside: dict[str, Any] = {str(index): p for index, p in enumerate(self.trained)}
        held: list[dict[str, Any]] = [part._parameters for part in parts]
        buffers: list[dict[str, Any]] = [part._buffers for part in parts]
        for home in (*held, outside, *buffers):
            for name, value in home.items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    homes.append((home, name))
        return homes

    def loss_on(self, batch: Batch, weights: Any, size: int | None) -> Tensor:
        """Return the loss of a batch, under KL weights and for N data."""
        return self.loss(self.program.joint(batch, beta=weights, size=size))

    def inputs(self, call: Call, homes: Homes) -> list[Tensor]:
        """Return the inputs of a graph: tensors that are held, the batch's, the KL weights."""
        held = [home[name] for home, name in homes]
        return [*held, *leaves_of(call.batch), *flat_weights(call.weights)]

    def layout(self, call: Call, homes: Homes) -> Any:
        """Return how the inputs of a graph lie in memory, and by which of them it differentiates.

        Together with the operations of a step (`Course`) that makes up its graph.
        """
        inputs = self.inputs(call, homes)
        places = {id(leaf): place for place, leaf in enumerate(inputs)}
        shapes = [(t.shape, t.stride(), t.storage_offset(), t.dtype, t.device) for t in inputs]
        homes_of: dict[Any, int] = {}  # inputs that share memory are told by the first of them
        lie = [
            (*described, homes_of.setdefault(memory_of(leaf), place))
            for place, (leaf, described) in enumerate(zip(inputs, shapes, strict=True))
        ]
        wanted = [places[id(parameter)] for parameter in self.wanted()]
        compiled_for = (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )
        return lie, wanted, torch.get_default_dtype(), compiled_for

    def eager(self, call: Call, homes: Homes, course: Course | None = None) -> Outcome:
        """Take the step by the program itself, and undo it; a course writes it down."""
        with self.program.answering(), validation(False):
            return eager_outcome(self.loss_on, call, homes, self.wanted(), course)

    def graph(self, call: Call, homes: Homes) -> tuple[GraphModule, list[int]]:
        """Return the step's graph, and the places of the parameters that it has gradients for."""
        with self.program.answering(), validation(False):
            return trace_step(self.loss_on, call, homes, self.wanted())

    def require_equal(self, traced: Traced, call: Call, exact: Outcome) -> None:
        """Compare a graph with what its program gave at equal noise; nothing moves.

        Raises:
            RuntimeError: Says what they differ in.
        """
        _refuse(self._gap(traced, call, exact))

    def _gap(self, traced: Traced, call: Call, exact: Outcome) -> str | None:
        # Compiled for CUDA a graph draws noise of its own: there the traced one is compared.
        run = traced.plain if exact.loss.is_cuda else traced.run
        names = self._names(call.batch, traced.homes)
        slack = 1.0 if run is traced.plain else compiler_slack(traced.graph)
        found = self._found(traced, run, call)
        gap = difference(exact, found, names, slack)
        if gap is None or not self._repeats(traced, call, exact):
            return gap
        gap = difference(exact, found, names, slack, self._rounded(traced, call))
        if gap is None or run is traced.plain:
            return gap
        # Beside gradients that are somewhat off, all has to agree, and with the traced graph too.
        kinked = found._replace(grads=but_for_kinks(found.grads, exact.grads))
        plain = self._found(traced, traced.plain, call)
        gaps = difference(exact, kinked, names, slack), difference(exact, plain, names, 1.0)
        rare = gaps == (None, None) and self._is_rare(traced, call, names, slack)
        return None if rare else gap

    def _found(self, traced: Traced, run: FlatStep, call: Call) -> Outcome:
        """Take the step of a graph, and undo it."""
        inputs = self.inputs(call, traced.homes)
        return graph_outcome(run, inputs, traced.written, traced.places, len(self.wanted()))

    def _is_rare(self, traced: Traced, call: Call, names: Sequence[str], slack: float) -> bool:
        """Return whether compiled code gives the program's numbers at other noise.

        Next to the kink of a ReLU the last digit of an activation decides whether a row has a
        gradient. Code that is wrong is so at any noise.
        """
        agree = 0
        for draw in range(_DRAWS):
            with seeded(torch.device("cpu"), draw):
                exact = self.eager(call, traced.homes)
                found = self._found(traced, traced.run, call)
            agree += difference(exact, found, names, slack) is None
        return agree >= _DRAWS - 1

    def _repeats(self, traced: Traced, call: Call, exact: Outcome) -> bool:
        """Return whether the program gives the same numbers twice more: it keeps no count."""
        again = (self.eager(call, traced.homes) for _ in range(2))
        return all(same_numbers(each, exact) for each in again)

    def _rounded(self, traced: Traced, call: Call) -> Outcome:
        """Take the program's step at weights that are rounded otherwise, and undo it.

        Where terms cancel (gradients of a collapsed layer) a graph that adds in another order gives
        other numbers, all right as far as they go.
        """
        with undone(traced.homes, self.wanted()):
            round_otherwise(self.wanted())
            return self.eager(call, traced.homes)

    def require_equal_elsewhere(self, traced: Traced, call: Call, course: Course) -> None:
        """Compare a graph with its program on other rows and at other weights.

        Where the program takes another course there, a second trace says whether its graph stands;
        it would each time, and is the dearest of the checks. Two runs: what the program does may
        be another thing every other time.

        Arguments:
            traced: The graph.
            call: What it was traced on.
            course: That of the program's own step on it.

        Raises:
            RuntimeError: Says what they differ in; or a second trace is another one.
        """
        for again in (Course(), Course()):
            gap = self._gap_elsewhere(traced, call, again)
            if gap is not None or not course.same_as(again):
                self.require_second_trace(traced, call)
                return _refuse(gap)

    def _gap_elsewhere(self, traced: Traced, call: Call, course: Course) -> str | None:
        rows = other_rows(call.batch)
        other = call._replace(batch=rows)
        with undone(traced.homes, self.wanted()):
            move(self.wanted())
            try:
                exact = None if rows is None else self.eager(other, traced.homes, course)
            except Exception:  # rows that come twice, say: the second call brings real ones
                exact = None
            return None if exact is None else self._gap(traced, other, exact)

    def require_second_trace(self, traced: Traced, call: Call) -> None:
        """Require that a second trace gives the same graph.

        Raises:
            RuntimeError: It gives another one.
        """
        refuse_second_trace(traced.graph, self.graph(call, traced.homes)[0])

    def python_state(self) -> PythonState:
        """Return what the program keeps in Python.

        Raises:
            RuntimeError: It holds an iterator, which no one can look at without moving it.
        """
        state = PythonState(self.owner, (*self.program.functions, self.loss))
        if state.iterators:
            raise RuntimeError(
                f"what {state.iterators[0]!r}, an iterator, gives changes at each run; keep no "
                "state in Python (a buffer counts)"
            )
        return state

    def moment(self) -> Moment:
        """Return what the program and the loss keep now, with a way back to it."""
        noise = self.program.reader.runs.noise
        return OwnState(*self.program.functions, self.loss, noise=noise).moment()

    def moving(self, call: Call, before: Moment) -> str | None:
        """Return what differs in two steps from one moment, which are undone; None: nothing."""
        homes = self.homes()
        with suppress(Exception):  # the program itself may fail on this batch: let it say so
            one = self.eager(call, homes)
            before.put_back(trained=True)
            two = self.eager(call, homes)
            before.put_back(trained=True)
            return difference(one, two, self._names(call.batch, homes), 1.0)
        return None

    def refuse_changes(self, before: PythonState) -> None:
        """Refuse a program that keeps something in Python from run to run.

        Raises:
            RuntimeError: Names the place.
        """
        place = self.python_state().change_since(before)
        if place is not None:
            raise RuntimeError(
                f"{place!r} changes at each run and is no tensor of the program; keep no state in "
                "Python (a buffer counts)"
            )

    def _names(self, batch: Batch, homes: Homes) -> list[str]:
        """Return names of the parameters to train, then of all tensors and the batch's."""
        known = {id(p): name for name, p in self.owner.named_parameters()}
        known |= {id(b): name for name, b in self.owner.named_buffers()}
        tensors = [*self.wanted(), *(home[key] for home, key in homes)]
        names = [known.get(id(tensor), "a parameter of the objective") for tensor in tensors]
        leaves = [name for name, _ in named_leaves(batch)]
        return [*(name.removeprefix("program.") for name in names), *leaves]


def _refuse(gap: str | None) -> None:
    if gap is not None:
        raise RuntimeError(
            f"the program and its graph differ at equal noise in {gap}; keep what depends on "
            "data and weights in torch operations (no .numpy(), .item())"
        )
