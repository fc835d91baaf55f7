"""Handlers run once, tensors run many times: a loss and its gradients as one tensor graph."""

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.arguments import integer, typed
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError
from pyro_vae.inference.graphs.background import Background
from pyro_vae.inference.graphs.bindings import direct
from pyro_vae.inference.graphs.comparison import (
    Call,
    Homes,
    Outcome,
    reason_of,
    refuse_constants,
    same_graph,
)
from pyro_vae.inference.graphs.course import Course
from pyro_vae.inference.graphs.flat_inputs import (
    GraphLoss,
    as_tensors,
    dense_rows,
    fixed_arguments,
    flat_weights,
    kind,
    leaves_of,
    normed,
)
from pyro_vae.inference.graphs.graph_step import Prepared, Traced, held, hooked
from pyro_vae.inference.graphs.inductor import compile_graph
from pyro_vae.inference.graphs.kept_graphs import Kept, KeptGraphs
from pyro_vae.inference.graphs.program_step import Loss, ProgramStep
from pyro_vae.inference.graphs.python_state import Place, PythonState
from pyro_vae.inference.graphs.simplify import written_inputs
from pyro_vae.program.batches.batch import Batch, map_batch, named_leaves
from pyro_vae.program.handlers import Beta
from pyro_vae.program.program import Program

Mode = Literal[False, "trace", "auto"] | bool

# Calls between two comparisons: the first gap, and how many times the gap before each is. One
# comparison takes as long as two to five steps: a hundredth of the first gap, less later on.
_FIRST_GAP = 400.0
_WIDER = 8.0
_RECOMPILED = 2  # graphs of a program that changes again and again are not compiled any more
# That came once each: tracing them costs more than it saves.
_MANY_SHAPES, _MANY_VALUES = 16, 4
# Steps between two changes of a program by other code, below which it runs eagerly: a trace costs
# what it saves in some hundred steps.
_WORTH_ANEW, _CHANGES = 100, 4
# A program of so many sites (one for each step of a sequence) takes a hundred of its own steps to
# trace, which so many steps of one shape save; a shape has to be met so often before it counts.
_MANY_SITES, _WORTH_MANY, _MET = 20, 250, 8
_HARMLESS = 4  # changes of one value that changed no graph: then it is left to the longer looks


class _Again(NamedTuple):
    """What a step has taken, and the next one takes too where its rows are like these.

    Arguments:
        traced: The graph.
        held: Parameters and buffers.
        structure: Of the batch, which is tensors alone.
        rows: Their names, shapes, strides, types and devices.
        weights: Of what kind the KL weights are.
        size: N.
    """

    traced: Traced
    held: list[Tensor]
    structure: type
    rows: Any
    weights: Any
    size: int | None

    def takes(self, batch: Batch, weights: Any, size: int | None) -> bool:
        """Return whether this is what a step on these rows needs."""
        alike = type(batch) is self.structure and self.rows == _described(batch)
        alone = isinstance(batch, Tensor) or not fixed_arguments(batch)
        return alike and alone and size == self.size and kind(weights) == self.weights


@typed
class CompiledLoss:
    """A loss of a program as a graph of tensor operations, its gradients included.

    Model, guide and their handlers run under a tracer once per batch signature; after that a step
    is the graph alone. Parameters, buffers, the batch and β are inputs, so a schedule needs no new
    graph, buffers that the forward pass updates are updated, and noise is drawn anew each time
    from torch's global generator. Gradients reach the real parameters by autograd.

    A graph replaces its program only where the loss, every gradient and every written buffer agree
    at equal noise: on other rows before the first call, at the second call, and at calls ever
    further apart. Otherwise, and where a program cannot be traced (control flow on values,
    ``.item()``, a count kept in Python) or its graph raises an error, the program runs eagerly from
    then on; the attribute ``reason`` says why, and so does one warning (in ``"auto"``, which nobody
    asked for, only where steps may have been wrong before).

    Arguments:
        loss: Maps model and guide on one batch to a scalar (``Update.loss``).
        program: Whose parameters and buffers are inputs.
        objective: A module with parameters or state of its own, if the objective is one.
        parameters: What the loss trains; None: all that require a gradient.
        mode: ``"trace"``; True: the graph goes through Inductor besides (needs a C++ compiler on
            the CPU; the first step of each signature waits for it);
            ``"auto"``: traced, and compiled by another process where the run is long enough.
        steps: Calls to come, as far as is known (``"auto"`` decides by it).

    Raises:
        ConfigError: An unknown mode.

    References:
        | torch.fx: Practical Program Capture and Transformation for Deep Learning in Python
          (Reed et al., 2022), arXiv:2112.08429
    """

    def __init__(
        self,
        loss: Loss,
        program: Program,
        *,
        objective: Any = None,
        parameters: Iterable[nn.Parameter] | None = None,
        mode: Mode = "trace",
        steps: int = 0,
    ) -> None:
        if check_mode(mode) is False:
            raise ConfigError("compile: got False, expected 'trace', 'auto' or True")
        integer("steps", steps, 0)
        self.mode = mode
        self.reason: str | None = None
        self.spared: str | None = None  # why there is no graph, where one could be
        self.program = program
        self.step = ProgramStep(loss, program, objective, parameters)
        self._graphs: dict[Any, Traced] = {}
        self._in_a_row = False
        self._again: _Again | None = None  # what the next step takes, should its rows be alike
        self._kept = KeptGraphs.of(program)
        self._background = Background(steps) if mode == "auto" else None
        self._steps = steps
        self._met: Counter[Any] = Counter()  # signatures that ran eagerly so far
        self._jitter = random.Random(0)  # of its own: no comparison at the end of every epoch
        self._looking = False
        self._watching = False
        self._moved: list[Place] = []
        self._harmless: Counter[Place] = Counter()  # changes that changed no graph
        self._retraced = 0
        self._calls = 0

    @property
    def num_graphs(self) -> int:
        """Graphs made so far: one per batch signature and training mode, none per β."""
        return len(self._graphs)

    def doubt(self) -> None:
        """Compare each graph with its program again before its next step.

        For when other code had a chance to change what is no tensor: a rate of dropout, a flag,
        a parameter's hooks, a part. A program that did change is traced anew.
        """
        self.step.forget_parts()
        for traced in self._graphs.values():
            traced.doubt()

    @contextmanager
    def in_a_row(self) -> Iterator[None]:
        """Take steps inside of which no other code runs between two: no Python of the program's.

        Then nothing but the rows is looked at before each: a tenth of a small step.
        """
        self._in_a_row = True
        try:
            yield
        finally:
            self._in_a_row, self._again = False, None

    def look(self) -> None:
        """Look, before the next step, whether what the program keeps in Python has changed.

        For when code ran that has no business with the program: a transform, a loader.
        """
        self._looking, self._again = True, None

    def watch(self) -> None:
        """Look before each step, in short, for numbers and flags that others have changed.

        For runs in which other code runs between the steps: a transform, a loader.
        """
        self._watching, self._again = True, None

    def give_up(self, error: Exception, *, aloud: bool | None = None) -> None:
        """Run eagerly from now on.

        Arguments:
            error: Why.
            aloud: Whether a warning says so; None: in the modes that were asked for.
        """
        self.reason = reason_of(error)
        self._graphs.clear()
        self._again = None
        if self.mode != "auto" if aloud is None else aloud:
            warnings.warn(
                f"compile: the program cannot be traced and runs eagerly: {self.reason}",
                UserWarning,
                stacklevel=of_user(),
            )

    def __call__(
        self, batch: Batch, *, beta: Beta | None = None, size: int | None = None
    ) -> Tensor:
        """Return the loss of one batch, differentiable in the parameters.

        Arguments:
            batch: One row per datum.
            beta: KL weight, as for ``Program.joint``.
            size: N, as for ``Program.joint``.
        """
        prepared = self.prepare(batch, beta=beta, size=size)
        if prepared is not None:
            traced, inputs = prepared
            before = [(leaf, leaf.detach().clone()) for leaf in prepared.moving]
            try:
                return GraphLoss.apply(traced.run, inputs, *traced.trained)
            except Exception as error:
                with torch.no_grad():
                    for leaf, copy in before:
                        leaf.copy_(copy)
                self.give_up(error)
        return self.step.loss_on(batch, beta, size)

    def prepare(
        self, batch: Batch, *, beta: Beta | None = None, size: int | None = None
    ) -> Prepared | None:
        """Return the step on a batch, ready to be taken; None where it has to run eagerly.

        Arguments: as for a call.
        """
        if self.reason is not None:
            return None
        step = another(self, batch, beta, size)
        if step is not None:
            return step
        self._again = None
        weights = None if beta is None else as_tensors(beta, self.program.device)
        try:
            fixed = fixed_arguments(batch)
            hash(fixed)
        except (RuntimeError, TypeError) as error:
            self.give_up(error)
            return None
        batch = map_batch(dense_rows, batch)
        rows = _described(batch)
        free = tuple([parameter.requires_grad for parameter in self.step.trained])
        if self._looking:
            self._look()
        modes = self.program.training, self.step.flags(), free, torch.get_default_dtype()
        key = (rows, fixed, kind(weights), size, modes)
        traced = self._graphs.get(key)
        if traced is None:
            if not self._is_worth(key):
                return None
            try:
                self._refuse_many(key)
                traced = self._graphs[key] = self._trace(Call(batch, weights, size))
            except Exception as error:  # whatever a user's program does to a tracer
                self.give_up(error)
                return None
        if self._watching:
            self._moved = [p for p in traced.state.moved() if self._harmless[p] < _HARMLESS]
            if self._moved:
                traced.doubt()
        self._calls += 1
        traced.left -= 1
        if traced.left == 0 and not self._still_right(key, traced, Call(batch, weights, size)):
            return self.prepare(batch, beta=beta, size=size)
        now = [home[name] for home, name in traced.homes]  # a buffer may be another one
        if self._in_a_row and not self._watching and not fixed:
            self._again = _Again(traced, now, type(batch), rows, kind(weights), size)
        return self._prepared(traced, now, batch, weights)

    def _prepared(self, traced: Traced, held: list[Tensor], batch: Batch, weights: Any) -> Prepared:
        inputs = [*held, *leaves_of(batch), *flat_weights(weights)]
        if self._background is not None:
            traced.runs_by(self._background.choose(traced.graph, traced.run, inputs))
        return Prepared(traced, inputs)

    def _is_worth(self, key: Any) -> bool:
        """Return whether the steps to come on a signature pay for its trace: asked in "auto" alone.

        How many they will be is told by its share of the steps so far.
        """
        sites = self.program.reader.last
        count = 0 if sites is None else len(sites.observed) + len(sites.local)
        if count < _MANY_SITES or self.mode != "auto":
            return True
        self._met[key] += 1
        done = self._calls + self._met.total()
        to_come = self._met[key] / done * (self._steps - done)
        self.spared = (
            f"a trace of {count} sites pays where one shape has {_WORTH_MANY} steps to come, and "
            "none had (compile='trace' traces all the same)"
        )
        return self._met[key] >= _MET and to_come >= _WORTH_MANY

    def _refuse_many(self, key: Any) -> None:
        """Refuse one more graph where those before were hardly used."""
        once = [other for other, traced in self._graphs.items() if traced.gap == 1.0]
        if sum(other[0] == key[0] for other in once) >= _MANY_VALUES:
            raise RuntimeError(
                "arguments that are no tensors are others at each batch; pass a number that "
                "changes as a tensor"
            )
        if len(once) >= _MANY_SHAPES:
            raise RuntimeError(
                f"{len(once)} batches had a shape of their own; pad them to a few lengths"
            )

    def _look(self) -> None:
        """Doubt the graphs of a program that keeps something else in Python than it did."""
        self._looking = False
        if self._graphs:
            try:
                state = self.step.python_state()
            except RuntimeError as error:
                self.give_up(error)
                return
            if any(state.change_since(traced.state) for traced in self._graphs.values()):
                self.doubt()

    def _trace(self, call: Call) -> Traced:
        """Return the graph of a call's signature, once it has proved right on other rows.

        Where it does not, what the program keeps in Python is as before.
        """
        self.program.joint(call.batch, beta=call.weights, size=call.size)  # looks, outside a graph
        before = self.step.moment()
        try:
            return self._trusted(call)
        except BaseException as error:
            before.put_back(trained=True)
            if isinstance(error, Exception):
                self._tell_of_moving(self.step.moving(call, before))
            raise
        finally:
            before.let_go()

    def _tell_of_moving(self, gap: str | None) -> None:
        if gap is not None:
            warnings.warn(
                f"compile: the program, run twice on a batch from one state, has two numbers in "
                f"{gap}: it draws on what no look puts back (os.read, say, or a generator without "
                "a seed), and the runs that were to trace it have moved that on; keep it as a "
                "number, or train with compile=False",
                stacklevel=of_user(),
            )

    def _trusted(self, call: Call) -> Traced:
        step = self.step
        homes = step.homes()  # the look at the batch may have met new parameters
        course = Course()
        exact = step.eager(call, homes, course)  # what it keeps from its first run, it has now
        if any(grad is not None and grad.is_sparse for grad in exact.grads):
            raise RuntimeError(
                "a layer has sparse gradients (nn.Embedding(sparse=True)), which no graph has; "
                "leave sparse out for one"
            )
        state = step.python_state()
        layout = step.layout(call, homes)
        known = self._kept.find(layout, course, state)
        if known is not None:
            try:
                return self._proved(known, call, homes, exact, state)
            except RuntimeError:  # the courses are equal, and the graphs are not
                self._kept.forget(known.graph)
        graph, reached = step.graph(call, homes)
        plain = normed(direct(graph, [leaf.detach() for leaf in step.inputs(call, homes)]))
        kept = Kept(layout, course, state, graph, reached, plain)
        traced = self._proved(kept, call, homes, exact, state)
        self._kept.add(kept)
        return traced

    def _proved(
        self, kept: Kept, call: Call, homes: Homes, exact: Outcome, state: PythonState
    ) -> Traced:
        """Return a graph with its inputs, compared with the program here and on other rows.

        Raises:
            RuntimeError: They differ, or a tensor of the graph is no input and has to be one.
        """
        step, graph = self.step, kept.graph
        refuse_constants(graph, step.inputs(call, homes))
        written = written_inputs(graph)
        wanted = step.wanted()
        trained = [wanted[index] for index in kept.reached]
        chosen = {id(parameter) for parameter in trained}
        traced = Traced(
            graph=graph,
            run=kept.plain,
            plain=kept.plain,
            homes=homes,
            trained=trained,
            places=kept.reached,
            still=[parameter for parameter in step.trained if id(parameter) not in chosen],
            written=written,
            moving=[index for index in written if index < len(homes)],
            hooked=hooked(trained),
            held=held(homes),
            state=state,
            compared=[kept.plain],
        )
        step.require_equal_elsewhere(traced, call, kept.course)
        step.require_equal(traced, call, exact)
        step.refuse_changes(state)
        self._compile(traced, kept, call, exact)
        return traced

    def _compile(self, traced: Traced, kept: Kept, call: Call, exact: Outcome) -> None:
        """Let a graph run through the compiler, where that was asked for and gives its numbers."""
        flat = [leaf.detach() for leaf in self.step.inputs(call, traced.homes)]
        # Inductor loses what is written to a double of no dimension (PyTorch 2.13).
        if any(flat[i].dim() == 0 and flat[i].dtype == torch.float64 for i in traced.moving):
            self._background = None
        elif self.mode is True and self._retraced <= _RECOMPILED:
            try:
                traced.run = kept.compiled or compile_graph(traced.graph, flat)
                self.step.require_equal(traced, call, exact)
                kept.compiled = traced.run
            except Exception as error:  # no C++ compiler, say
                traced.run = traced.plain
                warnings.warn(
                    f"compile: the compiler failed, and the traced graph runs: {reason_of(error)}",
                    UserWarning,
                    stacklevel=of_user(),
                )

    def _still_right(self, key: Any, traced: Traced, call: Call) -> bool:
        """Compare a graph with its program; False: it is to be traced anew, or was given up."""
        early, changed = traced.gap == 1.0, traced.doubted
        before = self.step.moment()
        try:
            state = self.step.python_state()
            changed = changed or state.change_since(traced.state) is not None  # by a transform, say
            if changed:
                self._require_unchanged(traced, state, call)
            self.step.require_equal(traced, call, self.step.eager(call, traced.homes))
        except Exception as error:  # the program itself may fail on this batch: let it say so
            if changed:
                del self._graphs[key]
                self._retraced += 1
                if self._retraced > _RECOMPILED:
                    self._background = None
                if self._retraced > max(_CHANGES, self._calls / _WORTH_ANEW):
                    why = f"other code changed the program {self._retraced} times in {self._calls}"
                    self.give_up(RuntimeError(f"{why} steps; pass what changes as a tensor"))
            else:
                self._kept.forget(traced.graph)
                self.give_up(error, aloud=None if early else True)
            return False
        finally:
            before.put_back(trained=True)  # the graph's step is the one that counts
            before.let_go()
        self._harmless.update(self._moved)
        traced.hooked = hooked(traced.trained)
        if not traced.doubted:
            traced.gap = _FIRST_GAP if early else traced.gap * _WIDER
        traced.doubted = False
        traced.left = max(1, round(traced.gap * self._jitter.uniform(0.5, 1.5)))
        return True

    def _require_unchanged(self, traced: Traced, state: PythonState, call: Call) -> None:
        """Refuse a graph whose program has other parameters or another graph by now.

        What has changed may show in rows to come and not in those at hand.
        """
        now = held(self.step.homes())
        pairs = zip(now, traced.held, strict=False)
        if len(now) != len(traced.held) or any(one is not other for one, other in pairs):
            raise RuntimeError("a parameter or a part of the program is another one")
        if state.change_since(traced.state) is not None:
            if not same_graph(self.step.graph(call, traced.homes)[0], traced.graph):
                raise RuntimeError("what the program keeps in Python has changed")
            traced.state = state


def another(
    compiled: CompiledLoss, batch: Batch, beta: Beta | None, size: int | None
) -> Prepared | None:
    """Return a step like the one before, ready to be taken, inside ``compiled.in_a_row()``.

    None where its rows are others, or its graph is to be compared with the program.

    Arguments:
        compiled: What has taken the step before.
        batch, beta, size: As for a call of it.
    """
    again = compiled._again
    if again is None or again.traced.left <= 1:
        return None
    weights = None if beta is None else as_tensors(beta, compiled.program.device)
    if not again.takes(batch, weights, size):
        return None
    compiled._calls += 1
    again.traced.left -= 1
    return compiled._prepared(again.traced, again.held, batch, weights)


def _described(batch: Batch) -> tuple[Any, ...]:
    # Lists, not generators, on the way of each step: half the price.
    leaves = list(named_leaves(batch))
    return tuple([(name, x.shape, x.stride(), x.dtype, x.device) for name, x in leaves])


def check_mode(mode: Any) -> Mode:
    """Return a mode that is one.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(mode, bool) and mode not in ("trace", "auto"):
        raise ConfigError(f"compile: got {mode!r}, expected False, 'trace', 'auto' or True")
    return mode
