"""The log joint and its gradient as one tensor graph: Pyro's handlers run once, not per step."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.graphs.compiled_loss import Mode
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.inference.sampling.hmc import LogDensity, log_prob_and_grad
from pyro_vae.program.batches.batch import Batch, map_batch, signature
from pyro_vae.program.densities.log_joint import LogJoint


class TracedDensity:
    """A log density that answers with its gradient, from a graph of the position and the rows.

    Arguments:
        graph: Maps a position ``(C, B | Z)`` and a batch to log p ``(C, B)`` and its gradient.
        batch: The rows; None where the graph holds them.
    """

    def __init__(self, graph: Callable[..., tuple[Tensor, Tensor]], batch: Batch | None) -> None:
        self._graph = graph
        self._batch = batch

    def __call__(self, position: Tensor) -> Tensor:
        """Return log p(z), ``(C, B)``, without a graph of its own."""
        return self.value_and_grad(position)[0]

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z) ``(C, B)`` and its gradient ``(C, B | Z)``."""
        with torch.no_grad():
            log_prob, grad = self._graph(position.detach(), self._batch)
        return log_prob, grad


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
        if not self.mode or position.is_meta:
            return log_joint.log_joint
        rows = batch if log_joint.constant_supports else None
        key = (signature(batch), position.shape)
        stale = rows is None and self._held is not log_joint
        try:
            start = position.detach()
            if stale or key not in self._graphs:
                self._held = log_joint if rows is None else self._held
                self._graphs[key] = self._finish(_trace(log_joint, rows, position))
                wave = torch.linspace(-0.01, 0.01, start.numel(), device=start.device)
                start = start + wave.to(start.dtype).reshape(start.shape)
            _require_equal(TracedDensity(self._graphs[key], rows), log_joint, start)
        except Exception as error:  # whatever a user's program does to a tracer
            self.mode = False
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                "compile: the log joint cannot be traced and runs eagerly: "
                f"{type(error).__name__}: {reason}",
                UserWarning,
                stacklevel=2,
            )
            return log_joint.log_joint
        return TracedDensity(self._graphs[key], rows)

    def _finish(self, graph: GraphModule) -> Any:
        if self.mode is True and not self._graphs:
            return torch.compile(graph, fullgraph=True, dynamic=False)
        return graph


def _require_equal(traced: TracedDensity, log_joint: LogJoint, position: Tensor) -> None:
    """Refuse a graph that is not the density of these rows at these latents."""
    eager = log_prob_and_grad(log_joint.log_joint, position)
    for found, exact in zip(traced.value_and_grad(position), eager, strict=True):
        # Inductor rounds otherwise than the eager kernels: half of the digits must agree.
        rtol = torch.finfo(exact.dtype).eps ** 0.5
        finite = exact.nan_to_num(0.0, 0.0, 0.0).abs()
        atol = rtol * float(finite.max()) if exact.numel() else 0.0
        if not torch.allclose(found, exact, rtol=rtol, atol=atol, equal_nan=True):
            raise ProgramError(
                "the graph gives other values than the program on other rows or latents; keep "
                "what depends on them in torch operations (no .numpy(), .item(), .tolist())"
            )


def _trace(log_joint: LogJoint, batch: Batch | None, position: Tensor) -> GraphModule:
    """Return the graph of position and batch; None: of the position alone, the rows held in it."""

    def whole(position: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        target = log_joint if batch is None else log_joint.on(batch)
        return log_prob_and_grad(target.log_joint, position)

    rows = None if batch is None else map_batch(lambda leaf: leaf, batch)
    graph = make_graph(whole, position.detach(), rows)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
