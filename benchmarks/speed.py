"""A training step side by side: hand-written PyTorch, stock Pyro, and what ``pv.fit`` runs.

``OMP_NUM_THREADS=1 python benchmarks/speed.py`` prints the table and writes one
``results/speed_<program>.json`` per program. Every variant trains the same networks, from the same
weights, on the same batches, with fused Adam and the same estimator of the same loss (checked
before the clock starts). Blocks of steps are interleaved, and each is divided by the hand-written
block of its round: on a shared machine single times mean nothing.
"""

import argparse
import itertools
import math
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from paired import Ratio
from results import FOLDER, Result, by_threads
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vae as pv
from pyro_vae.inference.compiled import Mode
from pyro_vae.inference.handlers import validation
from pyro_vae.training.fit import adam
from pyro_vae.training.step import Stepper

LR = 1e-3
BATCHES = 8
BLOCK_SECONDS = 0.3
Times = list[tuple[float, float]]
COMPILE_LIMIT = 150  # seconds after which a compiler is given up
BASE = "hand-written"
OURS = "pyro_vae, compile=True"
NOT_MEASURED = [
    "NumPyro (jit, lax.scan)",
    "pythae's trainer",
    "Pyro's JitTrace_ELBO",
    "CUDA (no device was at hand)",
    "cached compile seconds, peak memory, fit's own overhead per step, growth with size",
]
NOTES = [
    "By hand, constants and the log densities of the noise are simplified as on paper; the Pyro "
    "programs compute them in full.",
    "Stock Pyro runs the program that pyro_vae runs, without validation, with one fused Adam per "
    "parameter, as its wrapper makes them; the others have one fused Adam.",
    "Batches are ready beforehand: no variant fetches data. pyro_vae's step checks loss and "
    "gradient for finiteness, the others do not.",
    "First steps (trace and compile seconds) start from empty caches, Inductor imported before, "
    "and include one step.",
]


# -- the programs by hand --------------------------------------------------------------------------


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a multi-layer perceptron of the given widths."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class VAEByHand(nn.Module):
    """A Gaussian-Bernoulli VAE in plain PyTorch; constants of the two Gaussians cancel."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative ELBO per datum, one draw of z."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum()
        cost = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return (cost + kl) / len(x)


class IWAEByHand(VAEByHand):
    """The importance-weighted bound: encoder once, K particles in one pass."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, num_particles: int) -> None:
        super().__init__(encoder, decoder)
        self.num_particles = num_particles

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound per datum."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(self.num_particles, *loc.shape, dtype=loc.dtype)
        z = loc + log_scale.exp() * noise
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum(-1)
        target = x.expand(self.num_particles, *x.shape)
        cost = binary_cross_entropy_with_logits(self.decoder(z), target, reduction="none").sum(-1)
        return math.log(self.num_particles) - (-cost - kl).logsumexp(0).mean()


class Layered(nn.Module):
    """Networks of a ladder of Gaussians, z_1 nearest to the data; inference goes bottom-up."""

    def __init__(self, data_dim: int, latents: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        widths = (data_dim, *latents)
        pairs = list(zip(widths, latents, strict=False))
        self.latents = latents
        self.up = nn.ModuleList(mlp(a, hidden, 2 * b, activation=nn.Tanh) for a, b in pairs)
        self.down = nn.ModuleList(
            mlp(b, hidden, a if level == 0 else 2 * a, activation=nn.Tanh)
            for level, (a, b) in enumerate(pairs)
        )


class LayeredByHand(Layered):
    """The ladder in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative ELBO per datum, one draw of each latent."""
        values, kl, below = [], torch.zeros((), dtype=x.dtype), x
        for net in self.up:
            loc, log_scale = net(below).chunk(2, -1)
            noise = torch.randn_like(loc)
            below = loc + log_scale.exp() * noise
            values.append(below)
            kl = kl - (0.5 * noise.square() + log_scale).sum()
        kl = kl + 0.5 * values[-1].square().sum()
        for net, above, value in zip(self.down[1:], values[1:], values, strict=False):
            loc, log_scale = net(above).chunk(2, -1)
            kl = kl + (0.5 * ((value - loc) / log_scale.exp()).square() + log_scale).sum()
        cost = binary_cross_entropy_with_logits(self.down[0](values[0]), x, reduction="sum")
        return (cost + kl) / len(x)


class LayeredProgram(Layered):
    """The ladder as a plain Pyro program."""

    def model(self, x: Tensor) -> None:
        """Draw the latents from the top down and observe x."""
        pyro.module("layered", self)
        top = x.new_zeros(self.latents[-1])
        with pyro.plate("data", len(x)):
            prior = dist.Normal(top, torch.ones_like(top)).to_event(1)
            z = pyro.sample(f"z{len(self.latents)}", prior)
            for level in range(len(self.latents) - 1, 0, -1):
                z = pyro.sample(f"z{level}", gaussian(self.down[level](z)))
            pyro.sample("x", dist.Bernoulli(logits=self.down[0](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw the latents from the bottom up."""
        pyro.module("layered", self)
        z = x
        with pyro.plate("data", len(x)):
            for level, net in enumerate(self.up, start=1):
                z = pyro.sample(f"z{level}", gaussian(net(z)))


def gaussian(outputs: Tensor) -> Any:
    """Return a diagonal Gaussian from loc and log-scale."""
    loc, log_scale = outputs.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


# -- the cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One program, written three times over: by hand, for Pyro, and the same for this library."""

    about: str
    batch: int
    shape: tuple[int, ...]
    by_hand: Callable[[], nn.Module]
    program: Callable[[], Any]
    objective: Callable[[], Any]
    stock: Callable[[], pyro.infer.ELBO]
    stock_name: str = "Pyro SVI(Trace_ELBO)"

    def data(self) -> list[Tensor]:
        """Return made-up binary batches: the cost of a step does not depend on the pixels."""
        torch.manual_seed(0)
        return list(torch.bernoulli(torch.full((BATCHES, self.batch, *self.shape), 0.3)))

    def twins(self) -> tuple[nn.Module, Any]:
        """Return the hand-written module and the program, of equal weights."""
        torch.manual_seed(1)
        by_hand, program = self.by_hand(), self.program()
        with torch.no_grad():
            for mine, its in zip(by_hand.parameters(), program.parameters(), strict=True):
                assert mine.shape == its.shape
                mine.copy_(its)
        return by_hand, program


def vae(data: int, hidden: int, latent: int, batch: int) -> Case:
    """Return a VAE with one hidden layer on either side."""
    return Case(
        about=f"VAE {data}-{hidden}-{latent}, batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=lambda: VAEByHand(mlp(data, hidden, 2 * latent), mlp(latent, hidden, data)),
        program=lambda: pv.models.VAE(data, latent, hidden=(hidden,)),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
    )


def conv(side: int, channels: tuple[int, int], latent: int, batch: int) -> Case:
    """Return a convolutional VAE on images whose side is a multiple of four."""
    a, b = channels
    small = side // 4

    def by_hand() -> nn.Module:
        encoder = nn.Sequential(
            nn.Conv2d(1, a, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(b * small**2, 2 * latent),
        )
        decoder = nn.Sequential(
            nn.Linear(latent, b * small**2),
            nn.Unflatten(1, (b, small, small)),
            nn.ReLU(),
            nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(a, 1, 3, 2, 1, output_padding=1),
        )
        return VAEByHand(encoder, decoder)

    return Case(
        about=f"convolutional VAE on 1x{side}x{side}, channels {a}-{b}, Z = {latent}, "
        f"batch {batch}",
        batch=batch,
        shape=(1, side, side),
        by_hand=by_hand,
        program=lambda: pv.models.VAE((1, side, side), latent, hidden=channels, network="conv"),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
    )


def layered(data: int, latents: tuple[int, ...], hidden: int, batch: int) -> Case:
    """Return a ladder of Gaussians."""
    sizes = (data, latents, hidden)
    return Case(
        about=f"{len(latents)}-level Gaussian ladder {data}-{latents}, hidden {hidden}, "
        f"batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=lambda: LayeredByHand(*sizes),
        program=lambda: LayeredProgram(*sizes),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
    )


def iwae(data: int, hidden: int, latent: int, num_particles: int, batch: int) -> Case:
    """Return an IWAE with two hidden layers on either side."""

    def by_hand() -> nn.Module:
        encoder = mlp(data, hidden, hidden, 2 * latent, activation=nn.Tanh)
        decoder = mlp(latent, hidden, hidden, data, activation=nn.Tanh)
        return IWAEByHand(encoder, decoder, num_particles)

    return Case(
        about=f"IWAE K = {num_particles}, {data}-{hidden}-{hidden}-{latent}, batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=by_hand,
        program=lambda: pv.models.VAE(data, latent, hidden=(hidden, hidden), activation="tanh"),
        objective=lambda: pv.IWAE(num_particles),
        stock=lambda: pyro.infer.RenyiELBO(
            alpha=0, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1
        ),
        stock_name="Pyro SVI(RenyiELBO, vectorised)",
    )


CASES = {
    "vae_64_32_8": vae(64, 32, 8, batch=128),
    "vae_784_400_20": vae(784, 400, 20, batch=128),
    "vae_784_400_20_b1024": vae(784, 400, 20, batch=1024),
    "layered_5": layered(64, (32, 16, 16, 8, 8), hidden=64, batch=64),
    "iwae_k50": iwae(784, 200, 50, num_particles=50, batch=20),
    "conv_28": conv(28, (32, 64), 20, batch=64),
}


# -- the variants ----------------------------------------------------------------------------------


class Variant(Protocol):
    """One way to train: steps are taken inside ``running``."""

    def running(self) -> Any:
        """Return the context that steps need."""

    def step(self, x: Tensor) -> Any:
        """Take one optimiser step and return the loss before it, per datum."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate (0: the weights stay)."""


class ByHand:
    """The loop that everybody writes: zero_grad, loss, backward, step."""

    def __init__(self, case: Case, compiled: bool) -> None:
        module, _ = case.twins()
        self.optimiser = torch.optim.Adam(module.parameters(), lr=LR, fused=True)
        self.loss = torch.compile(module, fullgraph=True, dynamic=False) if compiled else module

    def running(self) -> Any:
        return ExitStack()

    def step(self, x: Tensor) -> Tensor:
        self.optimiser.zero_grad()
        loss = self.loss(x)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def set_lr(self, lr: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = lr


class Stock:
    """Pyro's own SVI with its own optimiser wrapper; validation off, which is the faster."""

    def __init__(self, case: Case) -> None:
        _, program = case.twins()
        self.optimiser = pyro.optim.Adam({"lr": LR, "fused": True})
        self.svi = pyro.infer.SVI(program.model, program.guide, self.optimiser, case.stock())
        self.store: dict[str, Any] = {"params": {}, "constraints": {}}
        self.lr = LR

    @contextmanager
    def running(self) -> Iterator[None]:
        with pyro.get_param_store().scope(self.store), validation(False):
            yield

    def step(self, x: Tensor) -> float:
        return self.svi.step(x) / len(x)

    def set_lr(self, lr: float) -> None:
        self.optimiser.pt_optim_args["lr"] = lr  # of the optimisers that it makes at first sight
        for optimiser in self.optimiser.optim_objs.values():
            for group in optimiser.param_groups:
                group["lr"] = lr


class Ours:
    """The step of ``pv.fit``: its checks included, its feed and history left out."""

    def __init__(self, case: Case, mode: Mode) -> None:
        _, program = case.twins()
        self.program = pv.Program.of(program)
        self.program.read(case.data()[0])
        self.size = BATCHES * case.batch
        self.stepper = Stepper(
            self.program, case.objective(), adam(LR), clip_norm=None, size=self.size, compile=mode
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        self.program.train()
        with self.program.running(), validation(False):
            yield

    def step(self, x: Tensor) -> Tensor:
        return self.stepper.step(x, None)[0]

    def set_lr(self, lr: float) -> None:
        self.stepper.set_lr(lr / LR)


def variants(case: Case) -> dict[str, Callable[[], Variant]]:
    """Return how to build each variant, the base first."""
    return {
        BASE: lambda: ByHand(case, compiled=False),
        "hand-written, torch.compile": lambda: ByHand(case, compiled=True),
        case.stock_name: lambda: Stock(case),
        "pyro_vae, compile=False": lambda: Ours(case, False),
        'pyro_vae, compile="trace"': lambda: Ours(case, "trace"),
        OURS: lambda: Ours(case, True),
    }


# -- measuring -------------------------------------------------------------------------------------


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Give up on what runs inside after a while."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def start(build: Callable[[], Variant], x: Tensor) -> tuple[Variant, float]:
    """Build a variant and return it with the seconds of its first step, from empty caches."""
    with fresh_cache(), at_most(COMPILE_LIMIT):
        variant = build()
        variant.set_lr(0.0)  # the weights stay until the losses have been compared
        with variant.running():
            before = time.perf_counter()
            variant.step(x)
            return variant, time.perf_counter() - before


def started(case: Case, x: Tensor) -> tuple[dict[str, Variant], dict[str, float], dict[str, str]]:
    """Start all variants; return them, their first steps' seconds, and why others failed."""
    running: dict[str, Variant] = {}
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, build in variants(case).items():
        try:
            running[name], first[name] = start(build, x)
        except Exception as error:  # a compiler may fail in any way; the table says so
            failed[name] = reason(error)
    return running, first, failed


def reason(error: Exception) -> str:
    """Return the first line of an error, without the folders of this machine."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: " + re.sub(r"/\S*/", "", line)


def losses(variant: Variant, x: Tensor, draws: int) -> list[float]:
    """Return losses of one batch at fixed weights, a new draw of the noise each."""
    variant.set_lr(0.0)
    torch.manual_seed(2)
    with variant.running():
        return [float(variant.step(x)) for _ in range(draws)]


def agreement(running: dict[str, Variant], x: Tensor, draws: int = 40) -> dict[str, dict[str, Any]]:
    """Compare the losses of each variant with the base's, at equal weights and seed.

    Variants that draw the same numbers from one seed agree draw by draw; Inductor may draw others,
    or in another order, and then the means are compared.
    """
    base = losses(running[BASE], x, draws)
    found: dict[str, dict[str, Any]] = {}
    for name, variant in running.items():
        values = losses(variant, x, draws)
        difference = statistics.fmean(values) - statistics.fmean(base)
        spread = math.sqrt((statistics.variance(values) + statistics.variance(base)) / draws)
        largest = max(abs(v - b) / abs(b) for v, b in zip(values, base, strict=True))
        found[name] = {
            "mean_loss": statistics.fmean(values),
            "z": difference / spread,
            "largest_relative_difference": largest,
            "same_noise": largest < 1e-4,
        }
    return found


def interleaved(works: dict[str, Callable[[], object]], blocks: int) -> dict[str, Times]:
    """Run blocks A B C D, D C B A, ... and return the (wall, CPU) seconds of each."""
    times: dict[str, Times] = {name: [] for name in works}
    for block in range(blocks):
        for name in list(works) if block % 2 == 0 else list(works)[::-1]:
            times[name].append(_timed(works[name]))
    return times


def ratio(times: Times, base: Times) -> dict[str, Ratio]:
    """Return the median ratio to the base of the same round, by wall clock and CPU time."""
    found = {}
    for index, clock in enumerate(("wall", "cpu")):
        values = [mine[index] / its[index] for mine, its in zip(times, base, strict=True)]
        lower, median, upper = statistics.quantiles(values, n=4)
        found[clock] = Ratio(median, lower, upper, len(values))
    return found


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def block_of(variant: Variant, data: list[Tensor], steps: int) -> Callable[[], None]:
    """Return the work of one block: some training steps."""

    def work() -> None:
        with variant.running():
            for index in range(steps):
                variant.step(data[index % len(data)])

    return work


def steps_per_block(variant: Variant, data: list[Tensor], seconds: float) -> int:
    """Return the steps that take about so long (the least of a few tries)."""
    pilot = block_of(variant, data, len(data))
    least = min(_timed(pilot)[0] for _ in range(3)) / len(data)
    return max(2, round(seconds / least))


def measure(name: str, case: Case, blocks: int, seconds: float = BLOCK_SECONDS) -> Result:
    """Time all variants of one program."""
    began = time.perf_counter()
    data = case.data()
    running, first, failed = started(case, data[0])
    agree = agreement(running, data[0])
    for key in [key for key, row in agree.items() if abs(row["z"]) >= 5]:
        failed[key] = f"computes another loss, z = {agree[key]['z']:.1f}"
        del running[key]
    for variant in running.values():
        variant.set_lr(LR)
    steps = steps_per_block(running[BASE], data, seconds)
    works = {key: block_of(variant, data, steps) for key, variant in running.items()}
    for work in works.values():
        work()  # first runs pay for lazy imports
    times = interleaved(works, blocks)
    ratios = {key: ratio(taken, times[BASE]) for key, taken in times.items()}
    ours, stock = ratios.get(OURS), times.get(case.stock_name)
    return Result(
        name=by_threads(f"speed_{name}"),
        value=ours["wall"].median if ours else math.nan,
        stderr=ours["wall"].stderr if ours else None,
        unit="time of a step of pv.fit(compile=True) over hand-written eager PyTorch",
        estimator=f"median of {blocks} interleaved ratios of blocks of {steps} steps, wall clock",
        published="",
        target="<= 1.0",
        data=f"made-up binary data, {case.about}",
        binarisation="",
        seed=0,
        seconds=time.perf_counter() - began,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={
            "ratios": {key: _clocks(clocks) for key, clocks in ratios.items()},
            "ours_over_stock": _clocks(ratio(times[OURS], stock)) if ours and stock else None,
            "base_step_seconds": statistics.median(wall for wall, _ in times[BASE]) / steps,
            "trace_seconds": first.get('pyro_vae, compile="trace"'),
            "cold_compile_seconds": first.get(OURS),
            "first_step_seconds": first,
            "losses_at_equal_weights": agree,
            "failed": failed,
            "notes": NOTES,
            "not_measured": NOT_MEASURED,
        },
    )


def _clocks(ratios: dict[str, Ratio]) -> dict[str, dict[str, float]]:
    return {clock: vars(value) for clock, value in ratios.items()}


# -- the table -------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """Return one program's rows: ratios to the hand-written base, with quartiles."""
    lines = [f"{result.name}: {result.data} ({result.device})"]
    lines.append(f"  {'':32} {'wall':>20}   {'CPU':>20}   {'1st step s':>10}   {'z':>5}")
    for name, clocks in result.details["ratios"].items():
        wall, cpu = (_cell(clocks[clock]) for clock in ("wall", "cpu"))
        first = result.details["first_step_seconds"][name]
        z = result.details["losses_at_equal_weights"][name]["z"]
        lines.append(f"  {name:32} {wall:>20}   {cpu:>20}   {first:10.2f}   {z:5.1f}")
    lines += [f"  {name:32} failed: {why}" for name, why in result.details["failed"].items()]
    over = result.details["ours_over_stock"]
    if over:
        lines.append(f"  compile=True over stock Pyro: {_cell(over['wall'])}")
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """Return the geometric mean, over the programs, of each variant's ratio."""
    lines = [f"geometric mean of the medians, wall clock, {len(results)} programs"]
    names = ["hand-written, torch.compile", 'pyro_vae, compile="trace"', OURS]
    for name in names:
        found = [r.details["ratios"].get(name) for r in results]
        if all(found):
            mean = statistics.geometric_mean(row["wall"]["median"] for row in found)
            lines.append(f"  {name:32} {mean:.2f}")
    return "\n".join(lines)


def _cell(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['lower']:.2f}, {ratio['upper']:.2f}]"


def start_inductor() -> float:
    """Compile something small, so that no variant pays for the imports; return the seconds."""
    before = time.perf_counter()
    with fresh_cache():
        torch.compile(lambda x: (x + 1).sin())(torch.zeros(32))
    return time.perf_counter() - before


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.blocks < 2:
        parser.error("--blocks: quartiles need at least 2")
    torch.set_num_threads(args.threads)
    seconds = start_inductor()
    print(f"Inductor's imports and first compile: {seconds:.1f} s\n", flush=True)
    results = []
    for name in args.programs:
        result = measure(name, CASES[name], args.blocks)
        result.details["inductor_start_seconds"] = seconds
        print(table(result))
        print(f"  {result.write(FOLDER).name}, {result.seconds:.0f} s\n", flush=True)
        results.append(result)
    print(summary(results))
    print("Not measured: " + "; ".join(NOT_MEASURED))


if __name__ == "__main__":
    main()
