"""Figures of papers, measured again: ``python benchmarks/reproduce.py NAME``.

Each experiment trains with checkpoints in ``runs/NAME`` (started again, it goes on from there),
evaluates, and writes ``benchmarks/results/NAME.json``. Data: ``$PYRO_VAE_DATA`` or downloaded.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recipes_adversarial
import recipes_def
import recipes_labels
import recipes_ladder
import recipes_lda
import recipes_priors
import recipes_sbn
import recipes_sentences
import recipes_sequences
import recipes_tables
import recipes_topics
import recipes_vq
import torch
from arms import adam, gain, score, train
from results import Result

import pyro_vae as pv

BURDA = "Burda et al. (2016), arXiv:1509.00519: IWAE App. D, one stochastic layer, 3280 epochs"


def static_mnist_vae(name: str, args: argparse.Namespace, objective: Any, **texts: str) -> Result:
    """Train Burda's one-layer net (784-200-200-50, tanh) on static MNIST and score its test set."""
    data = pv.data.load("mnist_static")
    torch.manual_seed(args.seed)
    vae = pv.models.VAE(784, 50, hidden=(200, 200), activation="tanh", data_mean=data.train.mean(0))
    run = train(
        name,
        args,
        vae,
        data.train,
        valid=data.valid,
        objective=objective,
        epochs=200,
        batch_size=100,
        optimizer=adam(1e-3, eps=1e-4),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        patience=50,
        checkpoint_every=5,
    )
    return score(
        name,
        args,
        vae,
        run,
        data.test[: args.rows],
        proposal="encoder",
        details=lambda diagnosis: {
            "kl": diagnosis.kl["z"],
            "active_units": diagnosis.active_units["z"],
        },
        **texts,
    )


def vae_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """VAE (IWAE with K = 1)."""
    return static_mnist_vae(
        name,
        args,
        pv.ELBO(),
        published=f"88.71 ({BURDA}); 89.9 (Rezende & Mohamed, 2015)",
        target="<= 91, aiming at 90",
    )


def iwae5_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """IWAE with K = 5, same net, same number of epochs."""
    return static_mnist_vae(
        name,
        args,
        pv.IWAE(5),
        published=f"87.63 ({BURDA})",
        target=">= 0.5 nats below vae_mnist_static",
    )


def iwae5_gain_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """What K = 5 buys over K = 1 in training, image by image, on the weights of the two arms."""
    test = pv.data.load("mnist_static").test[: args.rows or 2000]
    return gain(
        name,
        args,
        ("vae_mnist_static", "iwae5_mnist_static"),
        test,
        what="IWAE (K = 5) gains over K = 1 at equal epochs",
        published=f"1.08 ({BURDA})",
        target=">= 0.5",
    )


def ais_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """AIS against the IWAE-5000 bound, on 1000 test digits and the weights of vae_mnist_static."""
    vae = pv.load(args.out / "vae_mnist_static", device=args.device)
    test = pv.data.load("mnist_static").test[: args.rows or 1000]
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    bound = pv.log_likelihood(vae, test, num_particles=args.samples, progress=args.progress)
    settings = pv.AIS(num_temperatures=200, chains=4, num_leapfrog=5, start="guide")
    annealed = pv.ais(vae, test, settings, progress=args.progress)
    difference = annealed.log_prob - bound.log_prob
    sandwich = pv.bdmc(vae, 100, settings, progress=args.progress)
    return Result(
        name=name,
        value=float(difference.mean()),
        stderr=float(difference.std() / len(test) ** 0.5),
        unit="nats per image, AIS minus the importance-sampling bound",
        estimator=f"AIS from the encoder, T = 200, 4 chains, 5 leapfrog steps, against "
        f"K = {args.samples}, {len(test)} test images",
        published="Wu et al. (2017), arXiv:1611.04273: AIS -85.62 against IWAE-10k -86.90",
        target=">= 0",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=args.seed,
        seconds=time.perf_counter() - start,
        details={
            "ais": annealed.mean,
            "ais_stderr": annealed.stderr,
            "importance_sampling": bound.mean,
            "acceptance": float(annealed.acceptance.mean()),
            "bdmc_lower": float(sandwich.lower.mean()),
            "bdmc_upper": float(sandwich.upper.mean()),
            "bdmc_gap": sandwich.gap,
            "bdmc_gap_stderr": float((sandwich.upper - sandwich.lower).std() / 10),
            "cpu_seconds": time.process_time(),
        },
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    "vae_mnist_static": vae_mnist_static,
    "iwae5_mnist_static": iwae5_mnist_static,
    "iwae5_gain_mnist_static": iwae5_gain_mnist_static,
    "ais_mnist_static": ais_mnist_static,
    **recipes_adversarial.EXPERIMENTS,
    **recipes_priors.EXPERIMENTS,
    **recipes_sbn.EXPERIMENTS,
    **recipes_def.EXPERIMENTS,
    **recipes_ladder.EXPERIMENTS,
    **recipes_labels.EXPERIMENTS,
    **recipes_tables.EXPERIMENTS,
    **recipes_vq.EXPERIMENTS,
    **recipes_sequences.EXPERIMENTS,
    **recipes_sentences.EXPERIMENTS,
    **recipes_topics.EXPERIMENTS,
    **recipes_lda.EXPERIMENTS,
}


def main() -> None:
    """Run one experiment and write its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--epochs", type=int, default=None, help="default: the experiment's own")
    parser.add_argument("--samples", type=int, default=5000, help="importance samples per datum")
    parser.add_argument("--rows", type=int, default=None, help="test rows; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    result = EXPERIMENTS[args.name](args.name, args)
    print(result.write())
    error = "" if result.stderr is None else f" ± {result.stderr:.3f}"
    print(f"{result.value:.3f}{error} {result.unit} (published {result.published})")


if __name__ == "__main__":
    main()
