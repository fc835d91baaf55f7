"""One program measured: every competitor started, checked, timed in rounds, and written down."""

import math
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.paired import Times, Work, interleaved, ratios, timed
from benchmarks.results import Result
from benchmarks.speed import floor, peers
from benchmarks.speed.cases import BATCHES, Case
from benchmarks.speed.checks import DRAWS, PEER_DRAWS, agreement, compared, losses, reference
from benchmarks.speed.cuda_graph import facts, named
from benchmarks.speed.epochs import epochs
from benchmarks.speed.first import first_steps
from benchmarks.speed.syncs import per_step
from benchmarks.speed.variants import (
    BASE,
    BF16,
    LR,
    OURS,
    TRACE,
    ByHand,
    Ours,
    Variant,
    block_of,
    needs_compiler,
    synchronise,
    variants,
)

# Batches of an epoch: what comes once an epoch is to have its usual share of it. As many as MNIST
# has, but no more than so many blocks, and no less than this.
MNIST = 50_000
BLOCKS, LEAST = 12, 48
COMPILE_LIMIT = 300  # seconds after which a compiler is given up
NOTES = [
    "By hand, constants and the log densities of the noise are simplified as on paper; the Pyro "
    "and NumPyro programs compute them in full.",
    "Stock Pyro runs the program that pyro_vae runs, without validation, with one fused Adam per "
    "parameter, as its wrapper makes them.",
    "Batches are ready beforehand: no step fetches data. pyro_vae's step checks loss and gradient "
    "for finiteness, the others do not.",
    "NumPyro and pythae run in processes of their own, measure themselves, and take turns with "
    "the rest. pythae's epoch is its trainer's train_step, its loader and .item() included, its "
    "checkpoints and logs left out; its KL is the closed form.",
    "An epoch of pv.fit ends with a callback, after which the graph is compared with the program "
    "once: a forward pass of each, neither compiled.",
    "First steps are those of fresh processes, from an empty and from a full Inductor cache; "
    "imports are counted apart. Peak memory is of the whole process, 24 steps later.",
]
NOTES_ON_CUDA = [
    "On a GPU a block ends in a wait for the device, and ratios are of wall clock: CPU time is "
    "what the host spends on launching, and no measure of the step.",
    "Matrix products are those of float32 everywhere, JAX included, whose default would be TF32; "
    "JAX takes memory as it needs it, not three quarters of the card at its start.",
    "The products alone, and the hand-written loop named after it, run as one CUDA graph each.",
]


@dataclass(frozen=True)
class Settings:
    """How a program is measured.

    Arguments:
        blocks: Rounds.
        seconds: Length of a hand-written block.
        threads: CPU threads.
        device: ``cpu`` or ``cuda``.
        peers: The interpreter of the peers' virtual environment, or None.
        parts: Which of ``first`` (first steps) and ``epochs`` to measure besides the steps.
        command: As it was typed.
    """

    blocks: int = 11
    seconds: float = 0.3
    threads: int = 1
    device: str = "cpu"
    peers: str | None = None
    parts: tuple[str, ...] = ("first", "epochs")
    command: str = "python -m benchmarks.speed"

    def record(self) -> dict[str, Any]:
        """Return what two runs must share to be comparable; the interpreter's path is private."""
        return {
            **{k: v for k, v in asdict(self).items() if k != "command"},
            "peers": self.peers is not None,
            "parts": list(self.parts),
        }

    @property
    def suffix(self) -> str:
        """End of the result's name: one CPU thread is the main row."""
        threads = "" if self.threads == 1 else f"_{self.threads}_threads"
        return threads + ("" if self.device == "cpu" else f"_{self.device}")


@dataclass
class LineUp:
    """The competitors of one program, as far as they run."""

    variants: dict[str, Variant] = field(default_factory=dict)
    workers: dict[str, tuple[peers.Peer, str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    agree: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, why: str) -> None:
        """Take a competitor out of the race; the table says why."""
        self.failed[name] = why
        self.variants.pop(name, None)
        self.workers.pop(name, None)


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


def reason(error: Exception) -> str:
    """Return the first line of an error, without the folders of this machine."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: " + re.sub(r"/\S*/", "", line)


def start_variants(case: Case, settings: Settings, cache: Path, lineup: LineUp) -> None:
    """Build all variants and let each take a step that moves no weight."""
    x = case.data(1, settings.device)[0]
    for index, (name, build) in enumerate(variants(case, settings.device).items()):
        try:
            with using_cache(cache / str(index)), at_most(COMPILE_LIMIT):
                variant = build()
                variant.set_lr(0.0)  # the weights stay until the losses have been compared
                with variant.running():
                    variant.step(x)
            lineup.variants[name] = variant
        except Exception as error:  # a compiler may fail in any way; the table says so
            lineup.failed[name] = reason(error)


@contextmanager
def using_cache(folder: Path) -> Iterator[None]:
    """Let Inductor read and write its cache there."""
    folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder)):
        yield


def start_peers(
    case: Case, settings: Settings, folder: Path, lineup: LineUp, stack: ExitStack
) -> None:
    """Start NumPyro's worker and check its losses."""
    if settings.peers is None or not peers.numpyro_can(case):
        return
    how: dict[str, Any] = {"threads": settings.threads, "device": settings.device}
    try:
        worker = stack.enter_context(peers.Peer(settings.peers, "numpyro", case, folder, **how))
        row = compared(worker.losses(PEER_DRAWS), reference(case, "numpyro"))
    except Exception as error:
        lineup.failed[peers.JIT] = lineup.failed[peers.SCAN] = reason(error)
        return
    lineup.versions |= worker.versions
    for name, mode in ((peers.JIT, "jit"), (peers.SCAN, "scan")):
        lineup.agree[name] = row
        lineup.workers[name] = (worker, mode)


def check(case: Case, settings: Settings, lineup: LineUp) -> None:
    """Compare all losses and take out who computes another one."""
    lineup.agree |= agreement(lineup.variants, case.data(1, settings.device)[0])
    for name, row in list(lineup.agree.items()):
        if not same_loss(name, row, lineup.agree[BASE]):
            lineup.drop(name, f"computes another loss, z = {row['z']:.1f}")
    for variant in lineup.variants.values():
        variant.set_lr(LR)


def same_loss(name: str, row: dict[str, Any], base: dict[str, Any]) -> bool:
    """Return whether a mean loss is the base's: by z score, or to 0.1 % where it is rounded."""
    if name == BF16:
        return abs(row["mean_loss"] - base["mean_loss"]) < 1e-3 * abs(base["mean_loss"])
    return abs(row["z"]) < 5


def steps_per_block(case: Case, settings: Settings) -> int:
    """Return the steps that take about so long by hand, in whole rounds through the batches."""
    variant = ByHand(case, False, settings.device)  # one apart: all others take as many steps
    data = case.data(device=settings.device)
    pilot = block_of(variant, data, len(data), settings.device)
    least = min(timed(pilot)[0] for _ in range(3))
    return BATCHES * max(1, round(settings.seconds / least))


def floor_work(case: Case, settings: Settings, steps: int) -> Work:
    """Return the matrix products of a block of steps."""
    x = case.data(1, settings.device)[0]
    traced = Ours(case, "trace", settings.device)
    with traced.running():
        for _ in range(2):  # the first traces, the second compares; the next runs the graph alone
            traced.step(x)
        run = floor.replay(floor.recorded(lambda: traced.step(x)), settings.device)

    def work() -> None:
        for _ in range(steps):
            run()
        synchronise(settings.device)

    return work


def race(case: Case, settings: Settings, lineup: LineUp, steps: int) -> dict[str, Times]:
    """Return the seconds of all blocks, by competitor."""
    data = case.data(device=settings.device)
    works: dict[str, Work] = {
        name: block_of(variant, data, steps, settings.device)
        for name, variant in lineup.variants.items()
    }
    works |= {name: worker.block(mode, steps) for name, (worker, mode) in lineup.workers.items()}
    try:
        works[floor.FLOOR] = floor_work(case, settings, steps)
    except Exception as error:
        lineup.failed[floor.FLOOR] = reason(error)
    for work in works.values():
        work()  # first runs pay for lazy imports, NumPyro's for compiling
    return interleaved(works, settings.blocks)


def losses_after(case: Case, settings: Settings, lineup: LineUp) -> dict[str, float]:
    """Return the mean loss of the first batch after all blocks: everybody took as many steps."""
    x = case.data(1, settings.device)[0]
    found = {k: statistics.fmean(losses(v, x, DRAWS)) for k, v in lineup.variants.items()}
    for name, (worker, mode) in lineup.workers.items():
        answer = worker.ask("losses", draws=DRAWS, mode=mode)
        found[name] = statistics.fmean(answer["losses"])
    return found


def measure_epochs(
    case: Case, settings: Settings, folder: Path, steps: int, lineup: LineUp, stack: ExitStack
) -> dict[str, Any] | None:
    """Return what an epoch of ``pv.fit`` costs, and pythae's beside it."""
    others: dict[str, Work] = {}
    if settings.peers is not None and peers.pythae_can(case):
        how: dict[str, Any] = {"threads": settings.threads, "device": settings.device}
        try:
            worker = peers.Peer(settings.peers, "pythae", case, folder, batches=steps, **how)
            stack.enter_context(worker)
            row = compared(worker.losses(PEER_DRAWS), reference(case, "pythae"))
            lineup.agree[peers.PYTHAE] = row
            lineup.versions |= {"pythae": worker.versions["pythae"]}
            if abs(row["z"]) >= 5:
                raise ValueError(f"computes another loss, z = {row['z']:.1f}")
            others[peers.PYTHAE] = worker.block("epoch", steps)
        except Exception as error:
            lineup.failed[peers.PYTHAE] = reason(error)
    try:
        return epochs(case, True, steps, settings.blocks, others, settings.device)
    except Exception as error:  # as a rule: no compiler
        lineup.failed["pv.fit, compile=True"] = reason(error)
        return None


def not_measured(case: Case, settings: Settings) -> list[str]:
    """Return the rows that are absent by choice, and why."""
    found = []
    if settings.device == "cpu":
        found.append("CUDA-graph loop, syncs per step, bf16: not run on a GPU")
    if settings.peers is None:
        found.append("NumPyro, pythae: no --peers interpreter was given")
    if case.peer["kind"] == "layered":
        found.append("pythae: it has no ladder of Gaussians")
    if case.peer["kind"] == "iwae":
        found.append("JitTrace_ELBO: Pyro has no such version of its RenyiELBO")
    return found + [
        f"{part}: left out" for part in ("first", "epochs") if part not in settings.parts
    ]


def measure(name: str, case: Case, settings: Settings) -> Result:
    """Measure one program."""
    began, lineup = time.perf_counter(), LineUp()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "first" in settings.parts:
            names = {n: needs_compiler(n) for n in variants(case, settings.device)}
            found["first_steps"] = first_steps(
                name, names, folder, settings.threads, settings.device
            )
        start_variants(case, settings, folder, lineup)
        start_peers(case, settings, folder, lineup, stack)
        check(case, settings, lineup)
        steps = steps_per_block(case, settings)
        times = race(case, settings, lineup, steps)
        found["losses_after"] = losses_after(case, settings, lineup)
        if settings.device == "cuda":
            x = case.data(1, "cuda")[0]
            found["per_step"] = {n: per_step(v, x) for n, v in lineup.variants.items()}
        if "epochs" in settings.parts:
            with using_cache(folder / "epochs"):
                batches = max(LEAST, min(MNIST // case.batch, BLOCKS * steps))
                found["epoch"] = measure_epochs(case, settings, folder, batches, lineup, stack)
    return result_of(name, case, settings, lineup, steps, times, found, time.perf_counter() - began)


def result_of(
    name: str,
    case: Case,
    settings: Settings,
    lineup: LineUp,
    steps: int,
    times: dict[str, Times],
    found: dict[str, Any],
    seconds: float,
) -> Result:
    """Return the figures as a result."""
    to_base = {key: _clocks(taken, times[BASE]) for key, taken in times.items()}
    ours = (
        {key: _clocks(times[OURS], taken) for key, taken in times.items()} if OURS in times else {}
    )
    trace = (
        {key: _clocks(times[TRACE], taken) for key, taken in times.items()}
        if TRACE in times
        else {}
    )
    headline = ratios(times[OURS], times[BASE])["wall"] if OURS in times else None
    result = Result(
        name=f"speed_{name}{settings.suffix}",
        value=headline.median if headline else math.nan,
        stderr=headline.stderr if headline else None,
        unit="time of a step of pv.fit(compile=True) over hand-written eager PyTorch",
        estimator=f"median of {settings.blocks} interleaved ratios of blocks of {steps} steps, "
        "wall clock",
        published="",
        target="<= 1.0",
        data=f"made-up binary data, {case.about}",
        binarization="",
        seed=0,
        seconds=seconds,
        device=named(settings.device, settings.threads),
        details={
            "settings": settings.record(),
            "ratios": to_base,
            "ours_over": ours,
            "trace_over": trace,
            "step_seconds": {
                key: statistics.median(wall for wall, _ in taken) / steps
                for key, taken in times.items()
            },
            "losses_at_equal_weights": lineup.agree,
            **found,
            "failed": lineup.failed,
            "not_measured": not_measured(case, settings),
            "notes": NOTES if settings.device == "cpu" else NOTES + NOTES_ON_CUDA,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        command=settings.command,
    )
    result.versions |= lineup.versions | facts(settings.device)
    return result


def _clocks(times: Times, base: Times) -> dict[str, dict[str, float]]:
    return {clock: vars(value) for clock, value in ratios(times, base).items()}
