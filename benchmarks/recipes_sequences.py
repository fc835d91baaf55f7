"""Deep Markov models on JSB chorales: ``python benchmarks/reproduce.py dmm_smoothing_jsb``."""

import argparse
import time
from functools import partial

import torch
from arms import train
from results import Result

import pyro_vae as pv

KRISHNAN = "Krishnan et al. (2017), arXiv:1609.09869, Table 3"
EPOCHS, WARM_UP, PARTICLES = 800, 0.15, 20


def dmm_jsb(name: str, args: argparse.Namespace, guide: str, published: str, target: str) -> Result:
    """Train a small deep Markov model with one guide, and give all three normalisers."""
    data = pv.data.load("jsb")
    torch.manual_seed(args.seed)
    mean = data.train["x"].sum((0, 1)) / data.train["lengths"].sum()
    program = pv.models.DMM(
        88, 24, (64, 64), transition=64, recurrent=96, guide=guide, data_mean=mean
    )
    run = train(
        name,
        args,
        program,
        pv.data.bucketed(data.train, 20),
        epochs=EPOCHS,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        beta=pv.schedules.linear(0.2, 1.0, over=WARM_UP),
        clip_norm=5.0,
        checkpoint_every=20,
    )
    torch.manual_seed(args.seed)
    found = pv.per_step(program, data.test, likelihood_particles=args.samples)
    valid = pv.per_step(program, data.valid)
    return Result(
        name=name,
        value=found.bound,
        stderr=found.bound_stderr,
        unit="nats per step, negative bound: sum of bounds / sum of steps, (b) of the paper",
        estimator=f"-ELBO at one draw; importance sampling with K = {args.samples}; 77 sequences",
        data="jsb",
        binarization="none: piano rolls",
        published=published,
        target=target,
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()),
        details={
            "mean_of_sequences": found.mean_of_sequences,
            "importance_sampling": found.likelihood,
            "importance_sampling_stderr": found.likelihood_stderr,
            "valid_bound": valid.bound,
            "epochs": len(run.history["epoch"]),
            "compiled": str(run.compiled),
            "cpu_seconds_of_this_process": time.process_time(),
        },
    )


def smoothing(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads the future."""
    return dmm_jsb(
        name, args, "smoothing", f"b 7.033, a 6.605 (DKS, fixed transition) ({KRISHNAN})", "<= 7.6"
    )


def filtering(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads the past."""
    return dmm_jsb(
        name, args, "filtering", f"b 7.519, a 7.020 (ST-L) ({KRISHNAN})", "above smoothing's"
    )


def mean_field(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads both ways and forgets the state before."""
    return dmm_jsb(
        name, args, "mean_field", f"b 7.101, a 6.701 (MF-LR) ({KRISHNAN})", "above smoothing's"
    )


def filtering_mean_field(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads the past and forgets the state before."""
    return dmm_jsb(name, args, "filtering_mean_field", "none", "above filtering's")


def gain(better: str, worse: str, published: str, name: str, args: argparse.Namespace) -> Result:
    """Return what one guide gains over another, sequence by sequence, on two trained arms."""
    start = time.perf_counter()
    test = pv.data.load("jsb").test
    bounds = []
    for arm in (better, worse):
        torch.manual_seed(args.seed)
        program = pv.load(args.out / f"dmm_{arm}_jsb", device=args.device)
        bounds.append(pv.elbo(program, test, num_particles=PARTICLES).double())
    difference, lengths = bounds[0] - bounds[1], test["lengths"].double()
    value = difference.sum() / lengths.sum()
    rest = difference - value * lengths
    return Result(
        name=name,
        value=float(value),
        stderr=float(rest.std() / len(rest) ** 0.5 / lengths.mean()),
        unit=f"nats per step that the {better} guide gains over {worse}",
        estimator=f"paired difference of bounds at {PARTICLES} draws, {len(rest)} test sequences",
        data="jsb",
        binarization="none: piano rolls",
        published=published,
        target="> 0",
        seed=args.seed,
        seconds=time.perf_counter() - start,
    )


EXPERIMENTS = {
    "dmm_smoothing_gain_jsb": partial(
        gain, "smoothing", "filtering", f"0.49 (DKS over ST-L) ({KRISHNAN})"
    ),
    "dmm_mean_field_gain_jsb": partial(
        gain,
        "smoothing",
        "mean_field",
        f"0.07 (DKS over MF-LR, which reads both ways) ({KRISHNAN})",
    ),
    "dmm_filtering_gain_jsb": partial(
        gain,
        "filtering",
        "mean_field",
        f"-0.42 (ST-L over MF-LR, which reads both ways) ({KRISHNAN})",
    ),
    "dmm_filtering_like_for_like_gain_jsb": partial(
        gain, "filtering", "filtering_mean_field", "none"
    ),
    "dmm_smoothing_jsb": smoothing,
    "dmm_filtering_jsb": filtering,
    "dmm_mean_field_jsb": mean_field,
    "dmm_filtering_mean_field_jsb": filtering_mean_field,
}
