"""A training step of every model of the library, compiled, beside stock Pyro and its own products.

``OMP_NUM_THREADS=1 python -m benchmarks.zoo_steps [MODEL ...]`` writes ``results/zoo_steps.json``;
named models are measured anew, the others keep their rows. Sizes and batches are those of the
recipes. Stock Pyro is ``SVI(Trace_ELBO)`` with a fused Adam; it has no row where the objective is
not its own. The products are the step's matrix products and convolutions alone.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro.infer
import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.paired import Times, interleaved, ratios
from benchmarks.results import FOLDER, Result, by_threads
from benchmarks.speed.floor import FLOOR, flops, recorded, replay
from benchmarks.speed.variants import EAGER, OURS, TRACE, Ours, Stock, block_of
from pyro_vae.conditionals import InverseAutoregressiveFlow, SplineFlow, VampPrior

STOCK = "Pyro SVI(Trace_ELBO)"
BATCHES = 4
SECONDS = 0.4  # of a block of the traced step


@dataclass(frozen=True)
class Row:
    """One model as its recipe trains it.

    Arguments:
        build: Makes the program.
        batch: B.
        shape: One datum.
        objective: Makes the objective.
        stock: Pyro's loss, None where Pyro has no such estimator.
    """

    build: Callable[[], Any]
    batch: int = 100
    shape: tuple[int, ...] = (784,)
    objective: Callable[[], Any] = pv.ELBO
    stock: dict[str, Callable[[], pyro.infer.ELBO]] = field(
        default_factory=lambda: {STOCK: pyro.infer.Trace_ELBO}
    )

    def data(self, batches: int = BATCHES, device: str = "cpu") -> list[Tensor]:
        """Return made-up binary batches: the cost of a step does not depend on the values."""
        torch.manual_seed(0)
        drawn = torch.bernoulli(torch.full((batches, self.batch, *self.shape), 0.3))
        return list(drawn.to(device))

    def twins(self, device: str = "cpu") -> tuple[None, Any]:
        """Return no hand-written module, and the program."""
        torch.manual_seed(1)
        return None, self.build().to(device)


def gated(**parts: Any) -> Callable[[], Any]:
    """Return how to build the VAE of the priors' recipe."""
    return lambda: pv.models.VAE(784, 40, (300, 300), activation="glu", **parts)


LAYERS = (784, (64, 32, 16), (512, 256, 128))
ZOO = {
    "hierarchical": Row(lambda: pv.models.HierarchicalVAE(*LAYERS), 125),
    "ladder": Row(lambda: pv.models.LadderVAE(*LAYERS), 125),
    "ladder, analytic KL": Row(
        lambda: pv.models.LadderVAE(*LAYERS), 125, objective=pv.AnalyticELBO, stock={}
    ),
    "top-down": Row(lambda: pv.models.TopDownVAE(784, (16,) * 5, 256), 125),
    "sigmoid belief net": Row(lambda: pv.models.SBN(784, (200,))),
    "sigmoid belief net, VIMCO": Row(
        lambda: pv.models.SBN(784, (200,)), objective=lambda: pv.VIMCO(5), stock={}
    ),
    "DEF": Row(lambda: pv.models.DEF(4096, (100, 40, 15), hidden=(100,)), 80, (4096,)),
    "Bayesian VAE": Row(lambda: pv.models.BayesianVAE(784, 20, (200,))),
    "VQ-VAE": Row(
        lambda: pv.models.VQVAE((1, 28, 28), 64, 16, (32, 64)), 128, (1, 28, 28), pv.VQ, {}
    ),
    "gated VAE": Row(gated()),
    "VampPrior": Row(gated(prior=partial(VampPrior, num_components=500))),
    "IAF posterior": Row(
        gated(
            posterior=partial(InverseAutoregressiveFlow, num_flows=2, hidden=(320,), context_dim=64)
        )
    ),
    "spline posterior": Row(gated(posterior=partial(SplineFlow, hidden=(64,)))),
}


def measured(row: Row, blocks: int) -> dict[str, Any]:
    """Return the ratios of the compiled step to the others, and what a step takes."""
    racers: dict[str, Any] = {EAGER: Ours(row, False), TRACE: Ours(row, "trace")}  # type: ignore[arg-type]
    racers[OURS] = Ours(row, True)  # type: ignore[arg-type]
    for name, loss in row.stock.items():
        racers[name] = Stock(row, loss)  # type: ignore[arg-type]
    data = row.data()
    for racer in racers.values():
        block_of(racer, data, 3)()
    with racers[TRACE].running():
        calls = recorded(lambda: racers[TRACE].step(data[0]))
        start = time.perf_counter()
        for _ in range(5):
            racers[TRACE].step(data[0])
    steps = max(2, round(5 * SECONDS / (time.perf_counter() - start)))
    works: dict[str, Any] = {n: block_of(r, data, steps) for n, r in racers.items()}
    products = replay(calls)
    works[FLOOR] = lambda: [products() for _ in range(steps)] and None
    times = interleaved(works, blocks)
    return {
        "ours_over": {name: _clocks(times[OURS], t) for name, t in times.items()},
        "step_seconds": {n: statistics.median(w for w, _ in t) / steps for n, t in times.items()},
        "products_gflop": flops(calls) / 1e9,
        "parameters": sum(p.numel() for p in row.build().parameters()),
    }


def _clocks(times: Times, base: Times) -> dict[str, dict[str, float]]:
    return {clock: vars(value) for clock, value in ratios(times, base).items()}


def result_of(rows: dict[str, Any], blocks: int, seconds: float) -> Result:
    """Return all rows as one figure: the geometric mean over what stock Pyro can train."""
    values = [r["ours_over"][STOCK]["wall"]["median"] for r in rows.values() if _has_stock(r)]
    return Result(
        name=by_threads("zoo_steps"),
        value=math.exp(statistics.fmean(map(math.log, values))) if values else math.nan,
        stderr=None,
        unit="time of a compiled step over stock SVI(Trace_ELBO), geometric mean over the models",
        estimator=f"medians of {blocks} interleaved ratios, wall clock",
        published="",
        target="<= 0.5 where handlers dominate, else <= 1.15 of the matrix products",
        data="made-up binary data at the sizes of the recipes",
        binarization="",
        seed=0,
        seconds=seconds,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={"rows": rows},
        command=f"python -m benchmarks.zoo_steps {shlex.join(sys.argv[1:])}".strip(),
    )


def _has_stock(row: dict[str, Any]) -> bool:
    return STOCK in row["ours_over"]


def main() -> None:
    """Measure the models named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[], metavar="MODEL", help=", ".join(ZOO))
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    if unknown := set(args.models) - set(ZOO):
        parser.error(f"no model {sorted(unknown)}; expected some of {list(ZOO)}")
    path = args.out / f"{by_threads('zoo_steps')}.json"
    rows = json.loads(path.read_text())["details"]["rows"] if args.models and path.exists() else {}
    start = time.perf_counter()
    for name in args.models or ZOO:
        rows[name] = measured(ZOO[name], args.blocks)
        shown = {k: round(v["wall"]["median"], 3) for k, v in rows[name]["ours_over"].items()}
        print(f"{name}: compiled over {shown}", flush=True)
        ordered = {key: rows[key] for key in ZOO if key in rows}
        result_of(ordered, args.blocks, time.perf_counter() - start).write(args.out)


if __name__ == "__main__":
    main()
