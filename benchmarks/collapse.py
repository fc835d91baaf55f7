"""Cures of posterior collapse side by side: ``python benchmarks/collapse.py [PROGRAM] [CURE]``.

Four programs on static MNIST (a VAE of 50 units, one whose decoder is autoregressive, a ladder of
five layers, the same layers under a guide from the data up), each as it is and under every cure
that it admits. Without names all arms are run, those measured with these settings left out; an arm
that was stopped goes on from its checkpoint in ``runs``. Each arm is written to
``benchmarks/results/collapse_PROGRAM_CURE.json``; ``--table`` prints them, ``--figure FILE`` draws
them, ``--cost`` measures what a diagnosis costs beside an epoch.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import FOLDER, Result
from tables import collapse_table

import pyro_vae as pv
from pyro_vae.conditionals import (
    MADE,
    BatchNormGaussian,
    DeltaGaussian,
    FixedScaleGaussian,
    Gaussian,
    InverseAutoregressiveFlow,
)
from pyro_vae.inference.objectives.kl_control import TargetKL
from pyro_vae.inference.objectives.lagging import Lagging

UNITS = 50
LAYERS = ((64, 32, 16, 8, 4), (512, 256, 128, 64, 32))


@dataclass(frozen=True)
class Cure:
    """What differs from the plain arm.

    Arguments:
        program: Arguments of the program.
        fit: Arguments of ``pv.fit``.
        objective: Makes the objective, given the validation data.
        dropout: Share of the pixels hidden from an autoregressive decoder while training.
        on: The programs that admit it.
    """

    program: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None
    objective: Callable[[Any], Any] | None = None
    dropout: float = 0.0
    on: tuple[str, ...] = ("vae", "made", "ladder", "layers")


FLAT = ("vae", "made")
CURES = {
    "plain": Cure(),
    "analytic_kl": Cure(objective=lambda x: pv.AnalyticELBO()),
    "beta": Cure(fit={"beta": 0.5}),
    "warm_up": Cure(fit={"beta": pv.schedules.linear(0.0, 1.0, over=0.4)}),
    "cyclical": Cure(fit={"beta": pv.schedules.cyclical(cycles=4, ramp=0.5)}),
    "free_bits": Cure(objective=lambda x: pv.FreeBits(0.2)),
    "target_kl": Cure(objective=lambda x: TargetKL(12.0)),
    "fixed_scale": Cure({"posterior": partial(FixedScaleGaussian, scale=0.6)}, on=FLAT),
    "delta": Cure({"posterior": partial(DeltaGaussian, delta=0.15)}, on=FLAT),
    "batch_norm": Cure({"posterior": partial(BatchNormGaussian, gain=0.6)}, on=FLAT),
    "skip": Cure({"network": "skip"}, on=FLAT),
    "lagging": Cure(objective=lambda x: Lagging(x[:1000], inner=10)),
    "iwae": Cure(objective=lambda x: pv.IWAE(5)),
    "flow": Cure({"posterior": partial(InverseAutoregressiveFlow, num_flows=2)}, on=FLAT),
    "input_dropout": Cure(dropout=0.5, on=("made",)),
}
DEEP = {"ladder": pv.models.LadderVAE, "layers": pv.models.HierarchicalVAE}


def build(program: str, name: str, mean: Any) -> Any:
    """Return the program of one arm."""
    cure = CURES[name]
    options = {"data_mean": mean, **(cure.program or {})}
    if program in DEEP:
        return DEEP[program](784, *LAYERS, depth=1, **options)
    if program == "made":
        options["observation"] = partial(MADE, hidden=512, input_dropout=cure.dropout)
    return pv.models.VAE(784, UNITS, (200, 200), **{"posterior": Gaussian, **options})


def arm(program: str, name: str, args: argparse.Namespace) -> Result:
    """Train one arm, or go on with it, and judge it."""
    data, cure = pv.data.load("mnist_static"), CURES[name]
    label = f"collapse_{program}_{name}"
    torch.manual_seed(args.seed)
    trained = build(program, name, data.train.mean(0))
    valid = data.valid[:2000]
    start = time.process_time()
    run = pv.fit(
        trained,
        data.train[: args.train_rows],
        valid=valid,
        objective=cure.objective(data.valid) if cure.objective else None,
        epochs=args.epochs,
        batch_size=128,
        lr=1e-3,
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        seed=args.seed,
        compile=args.compile if args.compile == "trace" else True,
        out=args.out / f"{label}_{args.epochs}_epochs_seed_{args.seed}",
        checkpoint_every=2,
        resume=True,
        progress=args.progress,
        **(cure.fit or {}),
    )
    cpu = time.process_time() - start
    torch.manual_seed(args.seed)
    test = data.test[: args.rows]
    diagnosis = pv.diagnose(trained, test)
    scored = pv.log_likelihood(trained, test, num_particles=args.samples, progress=args.progress)
    told = diagnosis.information
    return Result(
        name=label,
        value=-scored.mean,
        stderr=scored.stderr,
        unit="nats per image, negative log-likelihood",
        estimator=f"importance sampling from the guide, K = {args.samples}, {len(test)} images",
        published="He et al. (2019), Razavi et al. (2019), Zhu et al. (2020): on other data",
        target="made: plain collapses (KL < 0.1); at least five cures bring KL >= 5 and 5 active "
        "units at an NLL at most 0.5 above it",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()),
        details={
            "program": program,
            "cure": name,
            "epochs": len(run.history["epoch"]),
            "best_epoch": run.best_epoch,
            "cpu_seconds_of_this_process": cpu,
            "kl": diagnosis.total_kl,
            "kl_by_site": diagnosis.kl,
            "active_units": sum(diagnosis.active_units.values()),
            "active_units_by_site": diagnosis.active_units,
            "units": sum(value.numel() for value in diagnosis.variance.values()),
            "information": told.lower if told else None,
            "information_stderr": told.stderr if told else None,
            # Between these; where N data cannot tell the codes apart, nothing is known.
            "marginal_kl": told.marginal_kl if told and not told.saturated else None,
            "marginal_kl_lower": told.marginal_kl_lower if told and not told.saturated else None,
            "reconstruction": diagnosis.reconstruction,
            "prior_reconstruction": diagnosis.prior_reconstruction,
            "verdict": diagnosis.verdict,
        },
    )


def cost(args: argparse.Namespace) -> Result:
    """Measure the CPU time of a diagnosis of 10,000 digits beside one epoch of training."""
    data = pv.data.load("mnist_static")
    trained = build("vae", "plain", data.train.mean(0))
    epochs = []
    mark = time.process_time()

    def tick(run: Any) -> None:
        nonlocal mark
        epochs.append(time.process_time() - mark)
        mark = time.process_time()

    pv.fit(trained, data.train, epochs=3, compile="trace", progress=False, callbacks=[tick])
    times = []
    for _ in range(5):
        mark = time.process_time()
        pv.diagnose(trained, data.test)
        times.append(time.process_time() - mark)
    epoch, diagnosis = min(epochs), sorted(times)[len(times) // 2]
    return Result(
        name="collapse_diagnosis_cost",
        value=diagnosis / epoch,
        stderr=None,
        unit="training epochs of 50,000 digits (traced), CPU time",
        estimator="median of 5 diagnoses of 10,000 digits over the fastest of 3 epochs",
        published="none",
        target="< 1",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=0,
        seconds=diagnosis,
        details={"diagnosis_seconds": times, "epoch_seconds": epochs},
    )


def measured(path: Path, args: argparse.Namespace) -> bool:
    """Return whether an arm has a result with these settings."""
    if args.again or not path.exists():
        return False
    found = json.loads(path.read_text())
    return bool(found["seed"] == args.seed and found["details"]["epochs"] == args.epochs)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the arms measured so far, in the order of the matrix."""
    names = [f"collapse_{p}_{c}" for p in CURES["plain"].on for c in CURES]
    files = [folder / f"{name}.json" for name in names]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def figure(arms: list[dict[str, Any]], path: Path) -> None:
    """Draw negative log-likelihoods with their KL, a panel per program."""
    points = {
        program: {
            each["details"]["cure"]: (each["details"]["kl"], each["value"])
            for each in arms
            if each["details"]["program"] == program
        }
        for program in CURES["plain"].on
    }
    pv.plots.save(pv.plots.cures({k: v for k, v in points.items() if v}), path)


def main() -> None:
    """Run the arms that are missing, or one; or print, draw, or measure the cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", choices=CURES["plain"].on)
    parser.add_argument("cure", nargs="?", choices=CURES)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--train-rows", type=int, default=None)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("trace", "inductor"), default="trace")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON files")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--again", action="store_true", help="also arms that have a result file")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--cost", action="store_true")
    args = parser.parse_args()
    if args.cost:
        print(cost(args).write(args.results))
        return
    if not args.table and args.figure is None:
        for program in [args.program] if args.program else CURES["plain"].on:
            for name in [args.cure] if args.cure else CURES:
                path = args.results / f"collapse_{program}_{name}.json"
                if program in CURES[name].on and not measured(path, args):
                    print(arm(program, name, args).write(args.results), flush=True)
    print(collapse_table(read(args.results)))
    if args.figure is not None:
        figure(read(args.results), args.figure)


if __name__ == "__main__":
    main()
