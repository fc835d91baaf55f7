"""Deep Markov models on JSB chorales: ``python benchmarks/reproduce.py dmm_smoothing_jsb``."""

import argparse
import time
from functools import partial

import torch
from arms import train
from results import Result

import pyro_vae as pv

KRISHNAN = "Krishnan et al. (2017), arXiv:1609.09869, Table 3"
EPOCHS, WARM_UP = 800, 0.15


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
        optimiser=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        beta=pv.schedules.linear(0.2, 1.0, over=WARM_UP),
        clip_norm=5.0,
        checkpoint_every=20,
    )
    torch.manual_seed(args.seed)
    found = pv.per_step(program, data.test, samples=args.samples)
    valid = pv.per_step(program, data.valid)
    return Result(
        name=name,
        value=found.bound,
        stderr=found.bound_stderr,
        unit="nats per step, negative bound: sum of bounds / sum of steps, (b) of the paper",
        estimator=f"-ELBO at one draw; importance sampling with K = {args.samples}; 77 sequences",
        data="jsb",
        binarisation="none: piano rolls",
        published=f"{published} ({KRISHNAN})",
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
    return dmm_jsb(name, args, "smoothing", "b 7.033, a 6.605 (DKS, fixed transition)", "<= 7.6")


def filtering(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads the past."""
    return dmm_jsb(name, args, "filtering", "b 7.519, a 7.020 (ST-L)", "above smoothing's")


def mean_field(name: str, args: argparse.Namespace) -> Result:
    """The guide that reads both ways and forgets the state before."""
    return dmm_jsb(name, args, "mean_field", "b 7.101, a 6.701 (MF-LR)", "above smoothing's")


EXPERIMENTS = {
    "dmm_smoothing_jsb": smoothing,
    "dmm_filtering_jsb": filtering,
    "dmm_mean_field_jsb": mean_field,
}
