"""The competitors that share this process: each takes one training step at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.speed.cases import BATCHES, Case
from benchmarks.speed.cuda_graph import captured
from pyro_vae.program.handlers import validation
from pyro_vae.training.fit import adam
from pyro_vae.training.precision import Precision, contexts
from pyro_vae.training.step import Stepper

LR = 1e-3
BASE = "hand-written"
BY_HAND_COMPILED = "hand-written, torch.compile"
EAGER = "pyro_vae, compile=False"
TRACE = 'pyro_vae, compile="trace"'
OURS = "pyro_vae, compile=True"
CUDA_GRAPH = "hand-written, CUDA graph"
BF16 = "pyro_vae, compile=True, bf16"


class Variant(Protocol):
    """One way to train: steps are taken inside ``running``."""

    def running(self) -> Any:
        """Return the context that steps need."""

    def step(self, x: Tensor) -> Any:
        """Take one optimizer step and return the loss before it, per datum."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate (0: the weights stay)."""


class ByHand:
    """The loop that everybody writes: zero_grad, loss, backward, step."""

    def __init__(self, case: Case, compiled: bool, device: str = "cpu") -> None:
        module, _ = case.twins(device)
        self.optimizer = fastest_adam(module.parameters())
        self.loss = compiled_by_hand(module, device) if compiled else module

    def running(self) -> Any:
        return ExitStack()

    def step(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(x)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def compiled_by_hand(module: Any, device: str) -> Any:
    """Return a module through torch.compile; on CUDA with CUDA graphs, its fastest mode there."""
    mode = "reduce-overhead" if device == "cuda" else None
    return torch.compile(module, fullgraph=True, dynamic=False, mode=mode)


_FUSED: dict[tuple[int, ...], bool] = {}


def fastest_adam(parameters: Any) -> torch.optim.Optimizer:
    """Return Adam fused, or by tensor lists where that is the faster on these parameters."""
    chosen = list(parameters)
    key = tuple(p.numel() for p in chosen)
    if key not in _FUSED:
        _FUSED[key] = _adam_seconds(chosen, True) <= _adam_seconds(chosen, False)
    return torch.optim.Adam(chosen, lr=LR, fused=_FUSED[key], foreach=not _FUSED[key])


def _adam_seconds(parameters: list[Any], fused: bool) -> float:
    """Return the least seconds of a step on copies of the parameters."""
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    for copy in copies:
        copy.grad = torch.ones_like(copy)
    optimizer = torch.optim.Adam(copies, lr=LR, fused=fused, foreach=not fused)
    optimizer.step()
    taken = []
    for _ in range(10):
        before = time.perf_counter()
        optimizer.step()
        synchronise(copies[0].device.type)
        taken.append(time.perf_counter() - before)
    return min(taken)


class CUDAGraphByHand:
    """The floor on CUDA: forward, backward and Adam captured once, replayed for each batch."""

    def __init__(self, case: Case, device: str = "cuda") -> None:
        module, _ = case.twins(device)
        lr = torch.zeros((), device=device)  # captured by address: filled, it takes effect
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr, fused=True, capturable=True)
        self.x = case.data(1, device)[0]

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss = module(self.x)
            self.loss.backward()
            self.optimizer.step()

        self.replay = captured(step)  # at lr 0: no weight moves
        with torch.no_grad():
            for state in self.optimizer.state.values():  # nor does what Adam remembers
                for value in state.values():
                    value.zero_()

    def running(self) -> Any:
        return ExitStack()

    def step(self, x: Tensor) -> Tensor:
        self.x.copy_(x)
        self.replay()
        return self.loss.detach()

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)


class Stock:
    """Pyro's own SVI with its own optimizer wrapper; validation off, which is the faster."""

    def __init__(
        self, case: Case, loss: Callable[[], pyro.infer.ELBO], device: str = "cpu"
    ) -> None:
        _, program = case.twins(device)
        wrappers: Any = pyro.optim  # made at run time, one for each of torch.optim
        self.optimizer = wrappers.Adam({"lr": LR, "fused": True})
        self.svi = pyro.infer.SVI(program.model, program.guide, self.optimizer, loss())
        self.store: Any = {"params": {}, "constraints": {}}

    @contextmanager
    def running(self) -> Iterator[None]:
        with pyro.get_param_store().scope(self.store), validation(False):
            yield

    def step(self, x: Tensor) -> float:
        return self.svi.step(x) / len(x)

    def set_lr(self, lr: float) -> None:
        self.optimizer.pt_optim_args["lr"] = lr  # of the optimizers that it makes at first sight
        for optimizer in self.optimizer.optim_objs.values():
            for group in optimizer.param_groups:
                group["lr"] = lr


class Ours:
    """The step of ``pv.fit``, in a row as there: its checks included, no feed and no history."""

    def __init__(
        self, case: Case, mode: Any, device: str = "cpu", precision: Precision = None
    ) -> None:
        _, program = case.twins(device)
        self.program = pv.Program.of(program)
        x = case.data(1, device)[0]
        self.program.read(x)
        self.size = BATCHES * case.batch
        self.precision = contexts(self.program, precision, x)
        self.stepper = Stepper(
            self.program, case.objective(), adam(LR), clip_norm=None, size=self.size, compile=mode
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        self.program.train()
        with self.program.running(), validation(False), self.precision(), self.stepper.in_a_row():
            yield

    def step(self, x: Tensor) -> Tensor:
        return self.stepper.step(x, None)[0]

    def set_lr(self, lr: float) -> None:
        self.stepper.rates.set(lr / LR)


def variants(case: Case, device: str = "cpu") -> dict[str, Callable[[], Variant]]:
    """Return how to build each variant, the base first."""
    found: dict[str, Callable[[], Variant]] = {
        BASE: lambda: ByHand(case, False, device),
        BY_HAND_COMPILED: lambda: ByHand(case, True, device),
    }
    if device == "cuda":
        found[CUDA_GRAPH] = lambda: CUDAGraphByHand(case, device)
    for name, loss in case.stock.items():
        found[name] = lambda loss=loss: Stock(case, loss, device)  # type: ignore[misc]
    found[EAGER] = lambda: Ours(case, False, device)
    found[TRACE] = lambda: Ours(case, "trace", device)
    found[OURS] = lambda: Ours(case, True, device)
    if device == "cuda":
        found[BF16] = lambda: Ours(case, True, device, "bf16-mixed")
    return found


def needs_compiler(name: str) -> bool:
    """Return whether a variant goes through Inductor."""
    return name in (BY_HAND_COMPILED, OURS, BF16)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def block_of(
    variant: Variant, data: list[Tensor], steps: int, device: str = "cpu"
) -> Callable[[], None]:
    """Return the work of one block: some training steps."""

    def work() -> None:
        with variant.running():
            for index in range(steps):
                variant.step(data[index % len(data)])
            synchronise(device)

    return work
