"""The log joint and its gradient as one tensor graph: Pyro's handlers run once, not per step."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.graphs.comparison import reason_of
from pyro_vae.inference.graphs.compiled_loss import Mode
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.inference.sampling.ais import Mixture, OnPath
from pyro_vae.inference.sampling.hmc import (
    HMCInfo,
    HMCState,
    LogDensity,
    Transitions,
    log_prob_and_grad,
)
from pyro_vae.program.batches.batch import Batch, map_batch, signature
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.recording import Recording, waits

_Function = Callable[..., Sequence[Tensor]]  # of positions, and of what else it is told


class TracedDensity:
    """A log density that answers with its gradient, from a graph of the position and the rows.

    Arguments:
        graph: Maps a position ``(C, B | Z)`` to log p ``(C, B)`` and its gradient.
    """

    def __init__(self, graph: _Function) -> None:
        self._graph = graph

    def __call__(self, position: Tensor) -> Tensor:
        """Return log p(z), ``(C, B)``, without a graph of its own."""
        return self.value_and_grad(position)[0]

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z) ``(C, B)`` and its gradient ``(C, B | Z)``."""
        log_prob, grad = self._graph(position)
        return log_prob, grad


class RecordedDensity(TracedDensity):
    """The same; on a GPU an evaluation is launched at once, and so is a transition of HMC."""

    def __init__(self, graph: _Function) -> None:
        super().__init__(Recording(graph))
        self._transitions = Transitions(lambda: TracedDensity(graph))

    def transition(self, state: HMCState, *settings: Any) -> tuple[HMCState, HMCInfo]:
        """Make a transition of HMC, as ``hmc_step`` does."""
        return self._transitions.take(state, (), *settings)


class RecordedMixture:
    """Traced densities on a path; on a GPU an evaluation and a transition are launched at once.

    Arguments:
        graph: Maps a position and a temperature to what a ``Mixture`` returns.
    """

    def __init__(self, graph: _Function) -> None:
        self._graph = Recording(graph)
        self.transitions = Transitions(lambda temperature: OnPath(graph, temperature))

    def __call__(self, position: Tensor, temperature: Tensor) -> Sequence[Tensor]:
        """Return log p_t, its gradient, and log f - log p_0."""
        return self._graph(position, temperature)


class DensityGraphs:
    """Traced log joints of one program: one graph per shape of the rows, weights held in it.

    Noise is none of the graph's business, so a traced chain equals the eager one bit for bit. Where
    a support depends on the data, the rows are held in a graph of their own. A program that cannot
    be traced (control flow on values, ``one_hot`` inside the model) runs eagerly; one warning says
    what stopped the tracer. A graph is first held against the eager density, at other latents than
    those of its trace, and again at the start of other rows: what left torch (``x.numpy()``) is a
    constant of the first ones in it.

    Arguments:
        mode: False: run eagerly. ``"trace"``: the tensor graph. True: that graph through Inductor
            (needs a C++ compiler on the CPU; seconds to a minute for the first rows; a last batch
            of fewer rows is traced only).

    Raises:
        ConfigError: An unknown mode.
    """

    def __init__(self, mode: Mode) -> None:
        if mode not in (False, "trace", True):
            raise ConfigError(f"compile: got {mode!r}, expected False, 'trace' or True")
        self.mode = mode
        self._graphs: dict[Any, Any] = {}
        self._held: LogJoint | None = None  # whose rows are constants of a graph

    def density(self, log_joint: LogJoint, batch: Batch, position: Tensor) -> LogDensity:
        """Return the density of a batch, traced if it can be, as it is if not."""

        def both_of(joint: LogJoint) -> _Function:
            return partial(log_prob_and_grad, joint.log_joint)

        traced = self._traced(log_joint, batch, both_of, position)
        if traced is None:
            return log_joint.log_joint
        return TracedDensity(traced) if waits(traced.args[0]) else RecordedDensity(traced)

    def mixture(
        self,
        log_joint: LogJoint,
        batch: Batch,
        mixture_of: Callable[[LogJoint], Mixture],
        position: Tensor,
        temperature: Tensor,
    ) -> Mixture:
        """Return the densities on a path to the log joint, traced if they can be.

        Arguments:
            log_joint: Of the batch.
            batch: One row per datum.
            mixture_of: Returns them of a log joint.
            position: Where the chains start.
            temperature: One on the path.
        """
        traced = self._traced(log_joint, batch, mixture_of, position, temperature)
        if traced is None:
            return mixture_of(log_joint)
        return traced if waits(traced.args[0]) else RecordedMixture(traced)

    def _traced(
        self,
        log_joint: LogJoint,
        batch: Batch,
        function_of: Callable[[LogJoint], _Function],
        position: Tensor,
        *others: Tensor,
    ) -> "partial[Any] | None":
        """Return a function of positions as a graph on a batch; None where it runs eagerly."""
        if not self.mode or position.is_meta:
            return None
        rows = batch if log_joint.serves_other_rows else None
        key = (signature(batch), position.shape)
        stale = rows is None and self._held is not log_joint
        try:
            start = position.detach()
            if stale or key not in self._graphs:
                self._held = log_joint if rows is None else self._held
                self._graphs[key] = self._finish(
                    _trace(log_joint, rows, function_of, start, others)
                )
                wave = torch.linspace(-0.01, 0.01, start.numel(), device=start.device)
                start = start + wave.to(start.dtype).reshape(start.shape)
            traced = partial(_run, self._graphs[key], rows)
            _require_equal(traced(start, *others), function_of(log_joint)(start, *others))
        except Exception as error:  # whatever a user's program does to a tracer
            self.mode = False
            warnings.warn(
                f"compile: the log joint cannot be traced and runs eagerly: {reason_of(error)}",
                UserWarning,
                stacklevel=of_user(),
            )
            return None
        return traced

    def _finish(self, graph: GraphModule) -> Any:
        if self.mode is True and not self._graphs:
            return torch.compile(graph, fullgraph=True, dynamic=False)
        return graph


def _run(graph: Any, rows: Batch | None, position: Tensor, *others: Tensor) -> Any:
    with torch.no_grad():
        return graph(position.detach(), others, rows)


def _require_equal(traced: Sequence[Tensor], eager: Sequence[Tensor]) -> None:
    """Refuse a graph that is not the density of these rows at these latents."""
    for found, exact in zip(traced, eager, strict=True):
        # Inductor rounds otherwise than the eager kernels: half of the digits must agree.
        rtol = torch.finfo(exact.dtype).eps ** 0.5
        finite = exact.nan_to_num(0.0, 0.0, 0.0).abs()
        atol = rtol * float(finite.max()) if exact.numel() else 0.0
        if not torch.allclose(found, exact, rtol=rtol, atol=atol, equal_nan=True):
            raise ProgramError(
                "the graph gives other values than the program on other rows or latents; keep "
                "what depends on them in torch operations (no .numpy(), .item(), .tolist())"
            )


def _trace(
    log_joint: LogJoint,
    batch: Batch | None,
    function_of: Callable[[LogJoint], _Function],
    position: Tensor,
    others: tuple[Tensor, ...],
) -> GraphModule:
    """Return the graph of positions and batch; None: of positions alone, the rows held in it."""

    def whole(position: Tensor, others: tuple[Tensor, ...], batch: Batch | None) -> Any:
        target = log_joint if batch is None else log_joint.on(batch)
        return function_of(target)(position, *others)

    rows = None if batch is None else map_batch(lambda leaf: leaf, batch)
    graph = make_graph(whole, position, others, rows)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
