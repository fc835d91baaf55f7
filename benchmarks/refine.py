"""10,000 independent posteriors by HMC: ``python benchmarks/refine.py [--peers PYTHON]``.

The program is a VAE (8 latents, one hidden layer of 64 units) trained for a minute on the 8 x 8
digits; the data are 10,000 of its own dreams. Samplers take turns on blocks of 1,000 data, from the
same draws of the guide, with equal numbers of chains, warm-up transitions, draws and leapfrog
steps: ``pv.refine``'s loop (warm-up and diagnostics in its time) and NumPyro's HMC kernel under
vmap (compiled beforehand, diagnostics not in its time). Stock ``pyro.infer.HMC`` makes one accept
for all rows of a plate, so it gets all 10,000 at once, for as many transitions as a minute or so
affords. The figure is the ratio of effective draws per CPU second; three results are written.

``--peers`` names the Python of a second environment (``pip install jax numpyro``); without it the
NumPyro row is left out. ``--quick`` is for tests: few data, nothing written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from paired import Ratio
from results import FOLDER, Result
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.posterior.refine import HMC, refine, refine_batch
from pyro_vae.inference.sampling.diagnostics import bulk_ess
from pyro_vae.program.batches.batch import chunks
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.program import Program

LATENT_DIM, HIDDEN = 8, 64
DESCRIPTION = f"dreams of a VAE on digits, 64-{HIDDEN}-{LATENT_DIM}, Bernoulli"
SETTINGS = HMC(num_draws=200, warmup=150, chains=4)
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
Rate = dict[str, float]  # effective draws per second, by clock


def trained(epochs: int) -> Any:
    """Return a VAE trained on the binarised digits."""
    train = pv.data.load("digits", binarization="threshold").train
    torch.manual_seed(0)
    vae = pv.models.VAE(64, LATENT_DIM, (HIDDEN,))
    pv.fit(vae, train.reshape(len(train), -1).float(), epochs=epochs, progress=False, device="cpu")
    return vae


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call returns, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def total_ess(draws: Tensor) -> float:
    """Return the effective draws of all data, each by its slowest coordinate; (C, S, N, Z)."""
    columns = [bulk_ess(column) for column in draws.unbind(-1)]
    return torch.stack(columns).min(0).values.double().sum().item()


class Ours:
    """``pv.refine``'s loop, block by block, with one graph and one trajectory length for all."""

    def __init__(self, vae: Any, first: Tensor, settings: HMC, mode: Any) -> None:
        self.program = Program.of(vae)
        self.program.check(first)
        self.settings, self.graphs = settings, DensityGraphs(mode)
        self.settings = replace(settings, num_leapfrog=self(first).num_leapfrog)

    def __call__(self, x: Tensor) -> Any:
        with scoring(self.program):
            joint = LogJoint(self.program, x)
            return refine_batch(joint, x, self.settings, self.settings.num_draws, self.graphs)

    def rate(self, x: Tensor) -> tuple[Rate, Any]:
        refined, wall, cpu = timed(lambda: self(x))
        ess = refined.ess.double().sum().item()
        return {"wall": ess / wall, "cpu": ess / cpu}, refined


class NumPyro:
    """The worker process."""

    def __init__(self, python: str, vae: Any, settings: HMC, folder: str) -> None:
        first, last = (m for m in vae.decoder.modules() if isinstance(m, torch.nn.Linear))
        tensors = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias}
        self.request = {name: t.detach().numpy() for name, t in tensors.items()}
        self.request |= {k: getattr(settings, k) for k in ("warmup", "num_draws", "num_leapfrog")}
        self.chains = settings.chains
        self.path = str(Path(folder) / "request.npz")
        self.process = subprocess.Popen(
            [python, str(Path(__file__).parent / "refine_numpyro.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )

    def __call__(self, vae: Any, x: Tensor, seed: int) -> tuple[Rate, dict[str, float]]:
        program = Program.of(vae)
        with scoring(program):
            joint = LogJoint(program, x)
            z = joint.draw_guide(self.chains)
            exact = joint.log_joint(z)[0]
        request: dict[str, Any] = {**self.request, "z": z.numpy(), "x": x.numpy(), "seed": seed}
        np.savez(self.path, **request)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(self.path + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        with np.load(self.path) as file:
            torch.testing.assert_close(
                torch.from_numpy(file["density"]), exact, rtol=1e-4, atol=1e-3
            )
            ess = total_ess(torch.from_numpy(file["draws"]).permute(0, 2, 1, 3))
        return {clock: ess / answer[clock] for clock in ("wall", "cpu")}, answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def stock(vae: Any, x: Tensor, warmup: int, steps: int) -> tuple[Rate, dict[str, float]]:
    """Run ``pyro.infer.HMC`` on the same program, all rows in its one plate, from the guide."""
    vae.eval()
    start = pv.encode(vae, x, sample=True)
    with pyro.validation_enabled(False):
        kernel = pyro.infer.HMC(vae.model, step_size=0.1, trajectory_length=1.5)
        mcmc = pyro.infer.MCMC(
            kernel,
            num_samples=steps,
            warmup_steps=warmup,
            initial_params={"z": start},
            disable_progbar=True,
        )
        _, wall, cpu = timed(lambda: mcmc.run(x))
    pyro.clear_param_store()
    draws = mcmc.get_samples(group_by_chain=True)["z"]
    ess = total_ess(draws)
    facts = {"step_size": float(kernel.step_size), "wall": wall, "cpu": cpu, "ess": ess}
    return {"wall": ess / wall, "cpu": ess / cpu}, facts


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Return the median of paired ratios."""
    quotients = np.array(ours) / np.array(theirs)
    lower, median, upper = np.quantile(quotients, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(lower), float(upper), len(quotients))


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of log seconds in log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(vae: Any, x: Tensor) -> dict[str, Any]:
    """Return CPU seconds against data (in batches) and against chains, and their slopes."""
    short = replace(SETTINGS, num_draws=50, warmup=20, num_leapfrog=2)
    rows = [2000, 4000, 8000] if len(x) >= 8000 else [20, 40]
    chains = [2, 4, 8, 16]

    def seconds(data: Tensor, settings: HMC) -> float:
        return min(timed(lambda: refine(vae, data, settings, keep=1))[2] for _ in range(2))

    by_rows = [seconds(x[:n], short) for n in rows]
    by_chains = [seconds(x[: rows[0]], replace(short, chains=c)) for c in chains]
    return {
        "rows": dict(zip(rows, by_rows, strict=True)),
        "chains": dict(zip(chains, by_chains, strict=True)),
        "slope_rows": slope(rows, by_rows),
        "slope_chains": slope(chains, by_chains),
    }


def peak_memory(rows: int) -> float:
    """Return the peak memory of this process after refining so many data, in MB."""
    torch.manual_seed(0)
    vae = pv.models.VAE(64, LATENT_DIM, (HIDDEN,))
    x = torch.bernoulli(torch.full((rows, 64), 0.5))
    refine(vae, x, HMC(num_draws=50, warmup=10, num_leapfrog=2), keep=1)
    # Not ru_maxrss: Linux hands a child its parent's peak, through fork and exec.
    status = Path("/", "proc", "self", "status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(rows: list[int]) -> dict[int, float]:
    """Return the peak memory of a process of its own per number of data, in MB."""
    found = {}
    for count in rows:
        command = [sys.executable, __file__, "--memory", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[count] = float(done.stdout)
    return found


def blocks(vae: Any, x: Tensor, rows: int, peers: str | None, mode: Any) -> dict[str, Any]:
    """Let the samplers take turns on blocks of data; return rates by block and facts."""
    pieces = list(chunks(x, rows))
    torch.manual_seed(1)
    ours = Ours(vae, pieces[0], SETTINGS, mode)
    found: dict[str, Any] = {"ours": [], "numpyro": [], "num_leapfrog": ours.settings.num_leapfrog}
    acceptance, rhat = [], []
    with tempfile.TemporaryDirectory() as folder:
        peer = NumPyro(peers, vae, ours.settings, folder) if peers else None
        if peer:
            peer(vae, pieces[0], 0)  # compiles
        for seed, piece in enumerate(pieces):
            rate, refined = ours.rate(piece)
            found["ours"].append(rate)
            acceptance.append(refined.acceptance.mean().item())
            rhat.append((~refined.mixed).sum().item())
            if peer:
                rate, found["numpyro_last"] = peer(vae, piece, seed)
                found["numpyro"].append(rate)
            print(found["ours"][-1], found["numpyro"][-1:], flush=True)
        if peer:
            peer.close()
    found |= {"acceptance": float(np.mean(acceptance)), "not_mixed": int(np.sum(rhat))}
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="Python of an environment with jax and numpyro")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few data, nothing written")
    parser.add_argument("--compile", choices=["trace", "inductor"], default="inductor")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="refine:")  # short chains: counted, not warned of
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory))
        return
    start = time.perf_counter()
    count = 200 if options.quick else 10_000
    vae = trained(2 if options.quick else 60)
    torch.manual_seed(0)
    x: Any = pv.generate(vae, count)
    mode = True if options.compile == "inductor" else "trace"
    measured = blocks(vae, x, count // 10, options.peers, mode)
    stock_rate, stock_facts = stock(vae, x, *((5, 10) if options.quick else (60, 60)))
    print("stock", stock_rate, stock_facts, flush=True)
    grown = growth(vae, x)
    print(grown, flush=True)
    peak = memory([200, 400] if options.quick else [2_000, 8_000])
    print(peak, flush=True)
    if options.quick:
        return
    for result in results(measured, stock_rate, stock_facts, grown, peak):
        result.seconds = time.perf_counter() - start
        print(result.name, result.value, result.write(FOLDER))


def results(
    measured: dict[str, Any],
    stock_rate: Rate,
    stock_facts: dict[str, float],
    grown: dict[str, Any],
    peak: dict[int, float],
) -> list[Result]:
    """Return the figures to be kept."""
    command = "python benchmarks/refine.py --peers PEERS_PYTHON"
    common: dict[str, Any] = {
        "published": "",
        "data": DESCRIPTION,
        "binarization": "threshold",
        "seed": 0,
        "seconds": 0.0,
        "command": command,
    }
    facts = {k: measured[k] for k in ("num_leapfrog", "acceptance", "not_mixed")}
    rates = {
        clock: {
            "pyro_vae": float(np.median([r[clock] for r in measured["ours"]])),
            "pyro.infer.HMC": stock_rate[clock],
        }
        for clock in ("cpu", "wall")
    }
    kept = [
        Result(
            name="refine_over_pyro_hmc",
            value=rates["cpu"]["pyro_vae"] / rates["cpu"]["pyro.infer.HMC"],
            stderr=None,
            unit="ratio of effective draws per CPU second, 10,000 posteriors",
            estimator="bulk ESS of the slowest coordinate, summed over data, over all seconds",
            target=">= 20",
            details={"ess_per_second": rates, "stock": stock_facts, **facts},
            **common,
        ),
        Result(
            name="refine_growth",
            value=grown["slope_rows"],
            stderr=None,
            unit="slope of log seconds in log data",
            estimator="least squares over three sizes, CPU time, keep=1",
            target="<= 1.1; memory does not grow",
            details={**grown, "peak_memory_mb": peak},
            **common,
        ),
    ]
    if measured["numpyro"]:
        by_clock = {
            clock: ratio(
                [r[clock] for r in measured["ours"]], [r[clock] for r in measured["numpyro"]]
            )
            for clock in ("cpu", "wall")
        }
        numpyro = {
            c: float(np.median([r[c] for r in measured["numpyro"]])) for c in ("cpu", "wall")
        }
        kept.append(
            Result(
                name="refine_over_numpyro",
                value=by_clock["cpu"].median,
                stderr=by_clock["cpu"].stderr,
                unit="ratio of effective draws per CPU second, 10,000 posteriors",
                estimator="median of 10 interleaved blocks of 1,000 data, compiled beforehand",
                target=">= 1",
                details={
                    "ess_per_second": {c: {**rates[c], "numpyro": numpyro[c]} for c in rates},
                    "cpu": vars(by_clock["cpu"]),
                    "wall": vars(by_clock["wall"]),
                    "numpyro_last": measured["numpyro_last"],
                    **facts,
                },
                **common,
            )
        )
    return kept


if __name__ == "__main__":
    main()
