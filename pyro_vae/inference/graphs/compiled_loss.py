"""Handlers run once, tensors run many times: a loss and its gradients as one tensor graph."""

import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module

from pyro_vae.errors import ConfigError
from pyro_vae.inference.graphs.background import Background
from pyro_vae.inference.graphs.bindings import direct
from pyro_vae.inference.graphs.comparison import agree, reason_of, refuse_state
from pyro_vae.inference.graphs.flat_inputs import (
    GraphLoss,
    as_tensors,
    dense_rows,
    flat_weights,
    kind,
    normed,
    unflat,
)
from pyro_vae.inference.graphs.graph_step import Prepared, Traced, hooked
from pyro_vae.inference.graphs.inductor import Run, compile_graph
from pyro_vae.inference.graphs.simplify import (
    loss_alone,
    refuse_moving_shapes,
    simplify,
    written_inputs,
)
from pyro_vae.program.batch import Batch, cuda_devices, map_batch, named_leaves
from pyro_vae.program.handlers import Beta, validation
from pyro_vae.program.joint import Joint
from pyro_vae.program.program import Program

Mode = Literal[False, "trace", "auto"] | bool
Loss = Callable[[Joint], Tensor]


class CompiledLoss:
    """A loss of a program as a graph of tensor operations, its gradients included.

    Model, guide and their handlers run once per batch signature, under a tracer; after that a step
    is the graph alone. Parameters, buffers, the batch and β are inputs, so a schedule needs no new
    graph, buffers that the forward pass updates are updated, and noise is drawn anew each time
    from torch's global generator. Gradients reach the real parameters by autograd.

    A program that cannot be traced (control flow on values, ``.item()``) runs eagerly; one warning
    says what stopped the tracer (in ``"auto"``, which nobody asked for, the attribute ``reason``).

    Arguments:
        loss: Maps model and guide on one batch to a scalar (``Update.loss``).
        program: Whose parameters and buffers are inputs.
        objective: A module with parameters or state of its own, if the objective is one.
        parameters: What the loss trains; None: all that require a gradient.
        mode: ``"trace"``; True: the graph goes through Inductor besides (needs a C++ compiler on
            the CPU; the first step of each signature waits for it; CUDA graphs on CUDA);
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
        self.loss = loss
        self.program = program
        self.mode = mode
        self.reason: str | None = None
        self.owner = nn.ModuleDict({"program": program})
        if isinstance(objective, nn.Module):
            self.owner["objective"] = objective
        chosen = self.owner.parameters() if parameters is None else parameters
        self.trained = [parameter for parameter in chosen if parameter.requires_grad]
        self._doubtful: set[Any] = set()
        self._graphs: dict[Any, Traced] = {}
        self._background = Background(steps) if mode == "auto" else None

    @property
    def num_graphs(self) -> int:
        """Graphs made so far: one per batch signature and training mode, none per β."""
        return len(self._graphs)

    def doubt(self) -> None:
        """Compare each graph with its program again before its next step.

        For when other code had a chance to change what is no tensor: a rate of dropout, a flag,
        a parameter's hooks.
        """
        self._doubtful = set(self._graphs)

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
        if prepared is None:
            return self.loss(self.program.joint(batch, beta=beta, size=size))
        traced, inputs = prepared
        return GraphLoss.apply(traced.run, inputs, *traced.trained)

    def prepare(
        self, batch: Batch, *, beta: Beta | None = None, size: int | None = None
    ) -> Prepared | None:
        """Return the step on a batch, ready to be taken; None where it has to run eagerly.

        Arguments: as for a call.
        """
        if self.reason is not None:
            return None
        weights = None if beta is None else as_tensors(beta, self.program.device)
        batch = map_batch(dense_rows, batch)
        named = list(named_leaves(batch))
        # Lists, not generators, on the way of each step: half the price.
        rows = tuple([(name, x.shape, x.stride(), x.dtype, x.device) for name, x in named])
        free = tuple([parameter.requires_grad for parameter in self.trained])
        key = (rows, kind(weights), size, self.program.training, free)
        traced = self._graphs.get(key)
        if traced is not None and key in self._doubtful:
            self._doubtful.discard(key)
            traced = traced if traced.agrees() else None
            if traced is not None:
                traced.hooked = hooked(traced.trained)
        if traced is None:
            try:
                traced = self._graphs[key] = self._trace(batch, weights, size)
            except Exception as error:  # whatever a user's program does to a tracer
                self._give_up(error)
                return None
        inputs = [*self._tensors(), *[x for _, x in named], *flat_weights(weights)]
        if self._background is not None:
            traced.run = self._background.choose(traced.graph, traced.run, inputs)
        return Prepared(traced, inputs)

    def _tensors(self) -> list[Tensor]:
        """Return parameters and buffers as they are now: one may have been replaced by its owner.

        Read from the modules' own dictionaries: walking the tree costs more than a small step.
        """
        return [home[name] for home, name in self._homes]

    @cached_property
    def _homes(self) -> list[tuple[dict[str, Any], str]]:
        seen: set[int] = set()
        homes: list[tuple[dict[str, Any], str]] = []
        for group in ("_parameters", "_buffers"):
            for part in self.owner.modules():
                home = getattr(part, group)
                for name, value in home.items():
                    if value is not None and id(value) not in seen:
                        seen.add(id(value))
                        homes.append((home, name))
        return homes

    def _trace(self, batch: Batch, weights: Any, size: int | None) -> Traced:
        """Run the program once under the tracer and return the graph and what it trains."""
        self.program.joint(batch, beta=weights, size=size)  # looks at the batch, outside the graph
        self.__dict__.pop("_homes", None)  # that look may have met new parameters
        real = {**dict(self.owner.named_parameters()), **dict(self.owner.named_buffers())}
        ids = {id(parameter): name for name, parameter in real.items()}
        names = [ids[id(value)] for value in self._tensors()]
        wanted_ids = {id(p) for p in self.trained if p.requires_grad}
        wanted = [name for name in names if id(real[name]) in wanted_ids]
        used: list[str] = []

        def loss_at(*flat: Tensor) -> Tensor:
            values = dict(zip(names, flat, strict=False))
            rest = iter(flat[len(names) :])
            inputs = map_batch(lambda _: next(rest), batch)
            scaled = unflat(weights, rest)
            with _reparametrize_module(self.owner, values):
                loss = self.loss(self.program.joint(inputs, beta=scaled, size=size))
                for (home, key), name, value in zip(self._homes, names, flat, strict=False):
                    if home[key] is not value:
                        raise RuntimeError(
                            f"{name!r} is replaced; write into it: .copy_(), .add_()"
                        )
            return loss

        def whole(*flat: Tensor) -> tuple[Tensor, ...]:
            loss = loss_at(*flat)
            values = dict(zip(names, flat, strict=False))
            parameters = [values[name] for name in wanted]
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            found = {n: g for n, g in zip(wanted, grads, strict=True) if g is not None}
            used[:] = found
            return (loss.detach(), *found.values())

        rows = map_batch(torch.clone, batch)

        def example() -> list[Tensor]:  # copies: a trial must move neither buffers nor batch
            leaves = [leaf for _, leaf in named_leaves(rows)] + flat_weights(weights)
            mine = [real[n].detach().clone().requires_grad_(real[n].requires_grad) for n in names]
            return [*mine, *(leaf.clone() for leaf in leaves)]

        def traced() -> GraphModule:
            with torch.random.fork_rng(cuda_devices(batch)):
                graph = make_fx(whole)(*example())
            refuse_moving_shapes(graph)
            return simplify(graph, [leaf.detach() for leaf in example()])

        def agrees() -> bool:
            with self.program.running(), validation(False):
                return agree(loss, loss_at, example)

        with self.program.running(), validation(False):
            graph = traced()
            refuse_state(graph, traced())
        loss = loss_alone(graph)
        if not agrees():
            raise RuntimeError("the program and its trace give different losses at equal noise")
        flat = [leaf.detach() for leaf in example()]
        moving = [index for index in written_inputs(graph) if index < len(names)]
        moved = {id(real[name]) for name in used}
        still = [parameter for parameter in self.trained if id(parameter) not in moved]
        run = self._runner(graph, flat, moving)
        trained = [real[name] for name in used]
        return Traced(graph, run, trained, still, moving, agrees, hooked(trained))  # type: ignore[arg-type]

    def _runner(self, graph: GraphModule, flat: list[Tensor], moving: list[int]) -> Run:
        # Inductor loses what is written to a double of no dimension (PyTorch 2.13).
        if any(flat[i].dim() == 0 and flat[i].dtype == torch.float64 for i in moving):
            self._background = None
        elif self.mode is True:
            try:
                return compile_graph(graph, flat)
            except Exception as error:  # no C++ compiler, say
                warnings.warn(
                    f"compile: the compiler failed, and the traced graph runs: {reason_of(error)}",
                    UserWarning,
                    stacklevel=4,
                )
        return normed(direct(graph, flat))

    def _give_up(self, error: Exception) -> None:
        self.reason = reason_of(error)
        if self.mode != "auto":
            warnings.warn(
                f"compile: the program cannot be traced and runs eagerly: {self.reason}",
                UserWarning,
                stacklevel=3,
            )


def check_mode(mode: Any) -> Mode:
    """Return a mode that is one.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(mode, bool) and mode not in ("trace", "auto"):
        raise ConfigError(f"compile: got {mode!r}, expected False, 'trace', 'auto' or True")
    return mode
