"""The VQ-VAE on Fashion-MNIST: ``python benchmarks/reproduce.py vqvae_fashion_mnist``."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from results import Result
from torch import Tensor

import pyro_vae as pv

NUM_CODES = 128
PAPER = "van den Oord et al. (2017), arXiv:1711.00937, §4.1"


def vqvae_fashion_mnist(name: str, args: argparse.Namespace) -> Result:
    """Train a small VQ-VAE, 7 x 7 codes, on the grey levels of Fashion-MNIST."""
    data = pv.data.load("fashion_mnist")
    train, valid, test = (
        x.reshape(-1, *data.shape) for x in (data.train, data.valid, data.test[: args.rows])
    )
    torch.manual_seed(args.seed)
    vq = pv.models.VQVAE(
        data.shape,
        NUM_CODES,
        16,
        (32, 64),
        observation=pv.conditionals.DiscretisedLogistic,
        data_mean=train.mean(0),
    )
    run = train(
        name,
        args,
        vq,
        train,
        valid=valid,
        objective=pv.VQ(commitment=1.0),
        epochs=12,
        batch_size=128,
        lr=2e-3,
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        patience=5,
        clip_norm=500.0,
        compile="trace",
        checkpoint_every=1,
    )
    return _judged(name, args, vq, run, test)


def _judged(name: str, args: argparse.Namespace, vq: Any, run: Any, test: Tensor) -> Result:
    start = time.perf_counter()
    usage = pv.code_usage(vq, test)
    bound = -pv.elbo(vq, test).double()
    again: Any = pv.reconstruct(vq, test)
    errors = (again - test).square().double()
    diagnosis = pv.diagnose(vq, test)
    _draw(args.out / name, vq, test, args.seed)
    seconds = time.perf_counter() - start
    training = float(run.history["seconds"].sum())
    return Result(
        name=name,
        value=usage.perplexity / usage.num_codes,
        stderr=_perplexity_error(vq, test),
        unit=f"perplexity of the codes over K = {usage.num_codes}",
        estimator=f"frequencies over {len(test)} test images of 7 x 7 codes; the standard error "
        "is a bootstrap over images",
        published=f"no figure for Fashion-MNIST ({PAPER})",
        target=">= 0.6",
        data="fashion_mnist",
        binarization="none: 256 grey levels, discretised logistic likelihood",
        seed=args.seed,
        seconds=training + seconds,
        details={
            "epochs": len(run.history["epoch"]),
            "best_epoch": run.best_epoch,
            "training_seconds": training,
            "cpu_seconds_of_this_process": time.process_time(),
            "perplexity": usage.perplexity,
            "codes_used": usage.used,
            "negative_elbo": float(bound.mean()),
            "negative_elbo_stderr": float(bound.std() / len(test) ** 0.5),
            "bits_per_dim": float(bound.mean()) / (784 * 0.6931471805599453),
            "reconstruction_nats": -diagnosis.reconstruction,
            "nats_of_the_codes": diagnosis.kl["z"],
            "nats_of_uniform_codes": float(49 * torch.tensor(usage.num_codes).log()),
            "mean_squared_error_per_pixel": float(errors.mean()),
            "mean_squared_error_stderr": float(errors.flatten(1).mean(1).std() / len(test) ** 0.5),
        },
    )


def _perplexity_error(vq: Any, test: Tensor, draws: int = 200) -> float:
    """Return the standard error of perplexity over K, over images drawn with replacement."""
    numbers = torch.cat([vq.eval().codes(piece) for piece in test.split(1024)])
    hot = torch.nn.functional.one_hot(numbers, len(vq.codebook.vectors)).sum(1).double()
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(draws):
        rows = torch.randint(len(hot), (len(hot),), generator=generator)
        weight = torch.bincount(rows, minlength=len(hot)).double()
        share = weight @ hot / hot.sum()
        values.append(torch.special.entr(share).sum().exp() / len(share))
    return float(torch.stack(values).std())


def _draw(folder: Path, vq: Any, test: Tensor, seed: int) -> None:
    """Write pictures of reconstructions and of samples from the prior into the run folder."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made: Any = pv.generate(vq, 64, mean=True)
    again: Any = pv.reconstruct(vq, test[:24])
    pv.plots.save(pv.plots.samples(made), folder / "samples.png")
    figure = pv.plots.reconstructions(test[:24], again)
    pv.plots.save(figure, folder / "reconstructions.png")


EXPERIMENTS = {"vqvae_fashion_mnist": vqvae_fashion_mnist}
