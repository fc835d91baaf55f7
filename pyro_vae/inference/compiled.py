"""Handlers run once, tensors run many times: a loss and its gradients as one tensor graph."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module

from pyro_vae.errors import ConfigError
from pyro_vae.inference.batch import Batch, cuda_devices, map_batch, signature
from pyro_vae.inference.handlers import Beta, validation
from pyro_vae.inference.joint import Joint
from pyro_vae.inference.program import Program

Mode = Literal[False, "trace"] | bool
Loss = Callable[[Joint], Tensor]


class CompiledLoss:
    """A loss of a program as a graph of tensor operations, its gradients included.

    Model, guide and their handlers run once per batch signature, under a tracer; after that a step
    is the graph alone. Parameters, buffers, the batch and β are inputs, so a schedule needs no new
    graph, buffers that the forward pass updates are updated, and noise is drawn anew each time
    from torch's global generator. Gradients reach the real parameters by autograd.

    A program that cannot be traced (control flow on values, ``.item()``) runs eagerly; one warning
    says what stopped the tracer.

    Arguments:
        loss: Maps model and guide on one batch to a scalar (``Update.loss``).
        program: Whose parameters and buffers are inputs.
        objective: A module with parameters or state of its own, if the objective is one.
        parameters: What the loss trains; None: all that require a gradient.
        mode: ``"trace"``, or True: the graph goes through Inductor besides (needs a C++ compiler
            on the CPU; the first step of each signature pays for it).

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
    ) -> None:
        if mode not in ("trace", True):
            raise ConfigError(f"compile: got {mode!r}, expected False, 'trace' or True")
        self.loss = loss
        self.program = program
        self.mode = mode
        self.owner = nn.ModuleDict({"program": program})
        if isinstance(objective, nn.Module):
            self.owner["objective"] = objective
        chosen = self.owner.parameters() if parameters is None else parameters
        self.trained = [parameter for parameter in chosen if parameter.requires_grad]
        self._graphs: dict[Any, tuple[Any, list[nn.Parameter]]] = {}
        self._eager = False

    @property
    def num_graphs(self) -> int:
        """Graphs made so far: one per batch signature and training mode, none per β."""
        return len(self._graphs)

    def __call__(
        self, batch: Batch, *, beta: Beta | None = None, size: int | None = None
    ) -> Tensor:
        """Return the loss of one batch, differentiable in the parameters.

        Arguments:
            batch: One row per datum.
            beta: KL weight, as for ``Program.joint``.
            size: N, as for ``Program.joint``.
        """
        graph = self._graph_for(batch, beta, size)
        if graph is None:
            return self.loss(self.program.joint(batch, beta=beta, size=size))
        run, inputs, trained = graph
        return _Graph.apply(run, inputs, *trained)

    def backward(
        self, batch: Batch, *, beta: Beta | None = None, size: int | None = None
    ) -> Tensor:
        """Set the parameters' gradients and return the loss, detached: ``loss.backward()`` in one.

        Cheaper than the way through autograd, which copies every gradient once; previous gradients
        are replaced, not added to.
        """
        graph = self._graph_for(batch, beta, size)
        if graph is None:
            loss = self.loss(self.program.joint(batch, beta=beta, size=size))
            for parameter in self.trained:
                parameter.grad = None
            loss.backward(inputs=self.trained)
            return loss.detach()
        run, inputs, trained = graph
        with torch.no_grad():
            loss, *grads = run(*inputs)
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = grad
        return loss

    def _graph_for(
        self, batch: Batch, beta: Beta | None, size: int | None
    ) -> tuple[Any, tuple[Any, ...], list[nn.Parameter]] | None:
        """Return the graph of a batch's signature with its inputs, or None: run eagerly."""
        if self._eager:
            return None
        weights = _as_tensors(beta, self.program.device)
        key = (signature(batch), _kind(weights), size, self.owner["program"].training)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._trace(batch, weights, size)
            except Exception as error:  # whatever a user's program does to a tracer
                self._eager = True
                warnings.warn(
                    f"compile: the program cannot be traced and runs eagerly: {_reason(error)}",
                    UserWarning,
                    stacklevel=2,
                )
                return None
        graph, trained = self._graphs[key]
        return graph, (self._parameters(), self._buffers(), batch, weights), trained

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self.owner.named_parameters())

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.owner.named_buffers())

    def _trace(
        self, batch: Batch, weights: Any, size: int | None
    ) -> tuple[Any, list[nn.Parameter]]:
        """Run the program once under the tracer and return the graph and what it trains."""
        self.program.joint(batch, beta=weights, size=size)  # looks at the batch, outside the graph
        real = dict(self.owner.named_parameters())
        ids = {id(parameter) for parameter in self.trained}
        names = [name for name, parameter in real.items() if id(parameter) in ids]
        used: list[str] = []

        def whole(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, weights: Any
        ) -> tuple[Tensor, ...]:
            with _reparametrize_module(self.owner, {**parameters, **buffers}):
                loss = self.loss(self.program.joint(batch, beta=weights, size=size))
            wanted = [parameters[name] for name in names]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
            found = {n: g for n, g in zip(names, grads, strict=True) if g is not None}
            used[:] = found
            return (loss.detach(), *(_dense(g, real[n]) for n, g in found.items()))

        example = (
            {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in real.items()},
            {n: b.clone() for n, b in self._buffers().items()},  # tracing must not move them
            map_batch(lambda leaf: leaf, batch),
            weights,
        )
        with (
            self.program.running(),
            validation(False),
            torch.random.fork_rng(cuda_devices(batch)),
        ):
            graph = make_fx(whole)(*example)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return self._finish(graph), [real[name] for name in used]

    def _finish(self, graph: GraphModule) -> Any:
        if self.mode is True:
            return torch.compile(graph, fullgraph=True, dynamic=False)
        return graph


def _dense(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient laid out as its parameter, in memory of its own, as autograd would."""
    return grad if grad.stride() == parameter.stride() else torch.zeros_like(parameter) + grad


class _Graph(torch.autograd.Function):
    """Run a graph that returns a loss and its gradients; hand the gradients out in backward."""

    @staticmethod
    def forward(ctx: Any, graph: Any, inputs: Any, *trained: Tensor) -> Tensor:
        loss, *grads = graph(*inputs)
        ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (None, None, *(upstream * grad for grad in ctx.grads))


def _as_tensors(beta: Beta | None, device: torch.device) -> Any:
    """Return KL weights as tensors on the device: inputs of the graph, not constants in it."""
    if beta is None:
        return None
    if isinstance(beta, Mapping):
        return {site: _as_tensors(value, device) for site, value in beta.items()}
    if isinstance(beta, Tensor):
        return beta
    # Filled on the device: no copy, no sync. In double precision, which a scalar does not pass on.
    return torch.full((), float(beta), dtype=torch.float64, device=device)


def _kind(weights: Any) -> Any:
    if isinstance(weights, Mapping):
        return tuple(weights)
    return weights is None


def _reason(error: Exception) -> str:
    """Return the first line of an error, and the user's line that raised it."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    frame, where = error.__traceback__, ""
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if not any(part in name for part in ("/torch/", "/pyro/", "/pyro_vae/")):
            where = f" ({name}:{frame.tb_lineno})"
        frame = frame.tb_next
    return f"{type(error).__name__}: {message}{where}"
