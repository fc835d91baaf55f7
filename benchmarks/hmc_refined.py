"""What HMC in training buys: ``python benchmarks/hmc_refined.py ARM`` twice, then ``compare``.

Two arms with one recipe (thresholded Fashion-MNIST, z = 10, separate 200-200 ReLU networks for loc
and scale, decoder 200-200, batches of 100): the ELBO, and HMC-refined draws for the decoder. Each
trains with checkpoints in ``runs/hmc_refined_ARM`` (started again, it goes on from there);
``compare`` scores both on the same test images, by importance sampling with a proposal fitted to
HMC samples, and writes three figures. Data: ``$PYRO_VAE_DATA`` or downloaded.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from results import Result
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluation.fitted_likelihood import fitted_log_likelihood
from pyro_vae.inference.objectives.hmc_refined import HMCRefined

PUBLISHED = "Ruiz et al. (2019), arXiv:1905.04062, from the author's slides; 400,000 iterations"
ARMS = ("vae", "hmc")


class SeparateGaussian(nn.Module):
    """q(z | x) with one network for the loc and another for the scale (softplus), as published."""

    def __init__(self, data_dim: int, latent_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.loc = pv.nn.MLP(data_dim, latent_dim, hidden)
        self.scale = pv.nn.MLP(data_dim, latent_dim, hidden)

    def forward(self, x: Tensor) -> Any:
        scale = nn.functional.softplus(self.scale(x)) + 1e-6
        return dist.Normal(self.loc(x), scale).to_event(1)


def images() -> tuple[Tensor, Tensor]:
    """Return the 60,000 training and the 10,000 test images, grey > 0.5."""
    data = pv.data.load("fashion_mnist", binarization="threshold")
    return torch.cat([data.train, data.valid]), data.test


def build(train: Tensor, seed: int) -> pv.models.VAE:
    """Return the program of both arms, at the same first weights."""
    torch.manual_seed(seed)
    encoder = SeparateGaussian(784, 10, (200, 200))
    return pv.models.VAE(784, 10, (200, 200), encoder=encoder, data_mean=train.mean(0))


def objective(args: argparse.Namespace, arm: str) -> Any:
    """Return what an arm is trained by."""
    return pv.ELBO() if arm == "vae" else HMCRefined(args.steps, target_accept=args.target)


def train(args: argparse.Namespace, arm: str) -> tuple[pv.models.VAE, pv.Run]:
    """Train one arm, or take up its checkpoint, and return the program and its run."""
    data, _ = images()
    vae, chosen = build(data, args.seed), objective(args, arm)
    run = pv.fit(
        vae,
        data,
        objective=chosen,
        epochs=args.epochs,
        batch_size=100,
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        seed=args.seed,
        out=args.out / f"hmc_refined_{arm}",
        checkpoint_every=2,
        resume=True,
        compile=True,
        callbacks=[partial(report, chosen)],
        progress=False,
    )
    return vae, run


def report(chosen: Any, run: pv.Run) -> None:
    """Print where a run stands."""
    row = {name: float(column[-1]) for name, column in run.history.items()}
    row["cpu_seconds_of_this_process"] = time.process_time()
    if isinstance(chosen, HMCRefined):
        row["acceptance"] = float(chosen.acceptance)
        row["step_size"] = float(chosen.log_step_size.exp())
    print({name: round(value, 4) for name, value in row.items()}, flush=True)


def score(args: argparse.Namespace, arm: str) -> tuple[pv.LogLikelihood, dict[str, Any], float]:
    """Return one arm's likelihoods on the test images, what else is known of it, and seconds."""
    vae, run = train(args, arm)
    _, test = images()
    test = test[: args.rows]
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    scored = fitted_log_likelihood(
        vae, test, num_particles=args.samples, full=True, progress=args.progress
    )
    seconds = float(run.history["seconds"].sum()) + time.perf_counter() - start
    details = {
        "iterations": run.steps,
        "training_seconds": float(run.history["seconds"].sum()),
        "negative_elbo": -float(pv.elbo(vae, test, num_particles=10).mean()),
        "median_ess": float(scored.ess.median()),
        "share_k_above_0.7": scored.untrusted,
    }
    print(arm, scored, details, flush=True)
    return scored, details, seconds


def compare(args: argparse.Namespace) -> list[Result]:
    """Score both arms on the same images and return their figures and the difference."""
    torch.set_num_threads(1)
    scores = {arm: score(args, arm) for arm in ARMS}
    gain = scores["hmc"][0].log_prob - scores["vae"][0].log_prob
    estimator = (
        f"importance sampling, K = {args.samples}, from a Gaussian (full covariance) fitted to "
        f"300 HMC draws after 300 of burn-in, standard deviation x 1.2, {len(gain)} test images"
    )
    common = {
        "data": "fashion_mnist",
        "binarization": "threshold (grey > 0.5)",
        "seed": args.seed,
        "estimator": estimator,
    }
    likelihood = "nats per image, negative log-likelihood"
    chains = f"{args.steps} HMC transitions of 5 leapfrog steps per training step"
    found = [
        Result(
            name=f"{arm}_fashion_threshold",
            value=-scored.mean,
            stderr=scored.stderr,
            unit=likelihood if arm == "vae" else f"{likelihood}, decoder trained by {chains}",
            published=f"{figure} ({PUBLISHED})",
            target="<= 128" if arm == "vae" else ">= 3 below vae_fashion_threshold",
            seconds=seconds,
            details=details,
            **common,
        )
        for (arm, (scored, details, seconds)), figure in zip(
            scores.items(), ("124.63", "117.74"), strict=True
        )
    ]
    difference = Result(
        name="hmc_gain_fashion_threshold",
        value=float(gain.mean()),
        stderr=float(gain.std() / len(gain) ** 0.5),
        unit=f"nats per image that {chains} gain over the ELBO at equal iterations (paired)",
        published=f"6.89 ({PUBLISHED})",
        target=">= 3",
        seconds=sum(seconds for *_, seconds in scores.values()),
        details={"iterations": scores["hmc"][1]["iterations"]},
        **common,
    )
    return [*found, difference]


def main() -> None:
    """Train one arm, or score both and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*ARMS, "compare"])
    parser.add_argument("--epochs", type=int, default=67, help="600 iterations each")
    parser.add_argument("--steps", type=int, default=3, help="HMC transitions per training step")
    parser.add_argument("--target", type=float, default=0.8, help="acceptance adapted to")
    parser.add_argument("--samples", type=int, default=20_000, help="importance samples per image")
    parser.add_argument("--rows", type=int, default=2000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    if args.what in ARMS:
        print(train(args, args.what)[1])
        return
    for result in compare(args):
        print(result.write())
        print(f"{result.value:.3f} ± {result.stderr:.3f} {result.unit} ({result.published})")


if __name__ == "__main__":
    main()
