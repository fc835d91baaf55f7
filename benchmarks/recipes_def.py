"""Recipe of the sparse-gamma deep exponential family on the Olivetti faces, for ``reproduce.py``.

The model of Naesseth et al. (2017): layers of 100-40-15 gamma units, Poisson pixels 0..255, a
variational parameter of its own for each weight and each unit of each face. Theirs is full-batch;
here a step sees 80 of the 320 faces.
"""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from arms import adam, train
from results import Result
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data.sources import locate

LATENT_DIMS = (100, 40, 15)
FACES, BATCH, STEPS = 320, 80, 10_000
LR = 0.1
DRAWS = 20  # of all latents, behind the bound
RSVI = "RSVI, Naesseth et al. (2017), arXiv:1610.05683, at 10,000 iterations"


def faces() -> Tensor:
    """Return 320 faces, drawn at random with a fixed seed, as counts (320, 4096)."""
    with np.load(locate("olivetti", None), allow_pickle=False) as file:
        x = torch.from_numpy(file["x"]).flatten(1).float()
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:FACES]]


def def_olivetti(name: str, args: argparse.Namespace) -> Result:
    """Sparse-gamma DEF, layers 100-40-15, 10,000 steps."""
    x = faces()
    torch.manual_seed(args.seed)
    model = pv.models.DEF(x.shape[1], LATENT_DIMS, num_data=len(x), data_mean=x.mean(0))
    batch = model.rows(x)
    epochs = args.epochs or STEPS * BATCH // FACES
    run = train(
        name,
        args,
        model,
        batch,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=adam(LR),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        compile="trace",
        checkpoint_every=max(1, epochs // 25),
    )
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    bounds = torch.stack([pv.elbo(model, batch).double().sum() for _ in range(DRAWS)])
    seconds = float(run.history["seconds"].sum())
    course = run.history["loss"] * -len(x)
    return Result(
        name=name,
        value=float(bounds.mean()),
        stderr=float(bounds.std() / math.sqrt(DRAWS)),
        unit=f"nats, ELBO of all {len(x)} faces, weights included",
        estimator=f"Monte Carlo, {DRAWS} draws of all latents",
        published=f"-6.74e6 ({RSVI})",
        target=">= -7.0e6 within 10,000 steps",
        data="olivetti",
        binarization="none: grey levels 0..255 as counts",
        seed=args.seed,
        seconds=seconds + time.perf_counter() - start,
        details={
            "steps": run.steps,
            "batch_size": BATCH,
            "cpu_seconds_of_this_process": time.process_time(),
            "training_seconds": seconds,
            "elbo_at_tenths_of_the_run": [float(v) for v in course[:: max(1, len(course) // 10)]],
        },
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    "def_olivetti": def_olivetti,
}
