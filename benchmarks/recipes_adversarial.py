"""Objectives with a critic: posteriors by AVB, and VAE/GAN beside a VAE.

``python benchmarks/reproduce.py avb_torus`` (and ``avb_eight_schools``, ``avb_rosenbrock``,
``avb_toy``, ``vae_mnist_z8``, ``avb_mnist_z8``, ``avb_gain_mnist_z8``, ``vae_fashion_features``,
``vaegan_fashion_features``, ``vaegan_gain_fashion_features``).
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from arms import adam, train
from results import Result
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.conditionals import IsotropicGaussian, NoiseFed
from pyro_vae.evaluation.feature_space import frechet_distance

MESCHEDER = "Mescheder et al. (2017), arXiv:1701.04722"
GAMMA = 0.05  # of VAE/GAN: half the squared distance of 1,568 features weighs that much
MOMENTS = 8  # draws of the guide behind the moments of an adaptive contrast
ROWS = 1024  # copies of the one datum: draws of the guide in a step


class Posterior(nn.Module):
    """One posterior by an implicit guide: a log density, seen by as many rows as draws.

    Arguments:
        log_density: of ``(*, Z)``, unnormalised.
        latent_dim: Z.
        scale: of the contrast, a Gaussian at 0, which stands at the place of a prior.
    """

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], latent_dim: int, scale: float
    ) -> None:
        super().__init__()
        self.log_density, self.latent_dim, self.scale = log_density, latent_dim, scale
        self.encoder = NoiseFed(
            nn.Linear(1, 1), latent_dim, noise_dim=16, features=1, hidden=(64, 64)
        )

    def model(self, x: Tensor) -> None:
        """Draw z from the contrast, and weigh it to the density."""
        prior = dist.Normal(x.new_zeros(self.latent_dim), self.scale).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.factor("density", self.log_density(z) - prior.log_prob(z))
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x[:, 0])

    def guide(self, x: Tensor) -> None:
        """Draw z from the network that is fed with noise."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


def eight_schools(z: Tensor) -> Tensor:
    """Return the log density of the rescaled eight schools: mu, log tau, and eight effects."""
    y = z.new_tensor([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2])
    sigma = z.new_tensor([0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4])
    mu, log_tau, eta = z[..., :1], z[..., 1:2], z[..., 2:]
    misfit = ((y - mu - log_tau.exp() * eta) / sigma).square().sum(-1)
    return -0.5 * (misfit + z.square().sum(-1))


def torus(z: Tensor) -> Tensor:
    """Return the log density of a ring."""
    return -(z.square().sum(-1) - 2).square()


def rosenbrock(z: Tensor) -> Tensor:
    """Return the log density of a bent valley."""
    return -2 * (1 - z[..., 0]).square() - 2 * (z[..., 1] - z[..., 0].square()).square()


class LogDensity(nn.Module):
    """A critic that knows the contrast: what is left to its network is the guide's log density.

    Under the adaptive contrast it is that density, with the tails of the Gaussian at 0.
    """

    def __init__(self, latent_dim: int, scale: float, contrast: str = "prior") -> None:
        super().__init__()
        # Its slope moves the guide: a smooth one.
        self.net = pv.nn.Critic(latent_dim, hidden=(128, 128), activation="silu")
        self.curvature = (1 if contrast == "prior" else -1) / scale**2

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the log ratio to the contrast; of one datum there is no x to see."""
        return self.net(z) + 0.5 * self.curvature * z.square().sum(-1)


# Log density, Z, the scale of the contrast.
DENSITIES: dict[str, tuple[Callable[[Tensor], Tensor], int, float]] = {
    "torus": (torus, 2, 1.5),
    "rosenbrock": (rosenbrock, 2, 2.0),
    "eight_schools": (eight_schools, 10, 1.0),
}


def moments(draws: Tensor) -> Tensor:
    """Return mean and standard deviation of each coordinate and of the squared radius, (2, Z+1)."""
    seen = torch.cat([draws, draws.square().sum(-1, keepdim=True)], -1)
    return torch.stack([seen.mean(0), seen.std(0)])


def exact_moments(program: Posterior) -> Tensor:
    """Return the same by quadrature on a grid, or by long chains of HMC."""
    if program.latent_dim == 2:
        axes = [torch.linspace(low, high, 1601).double() for low, high in ((-6, 8), (-6, 40))]
        z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        weight = program.log_density(z).softmax(0).unsqueeze(-1)
        seen = torch.cat([z, z.square().sum(-1, keepdim=True)], -1)
        mean = (weight * seen).sum(0)
        return torch.stack([mean, (weight * (seen - mean).square()).sum(0).sqrt()])
    settings = pv.HMC(4000, 2000, chains=8, num_leapfrog=16, target_accept=0.95, start="prior")
    found = pv.refine(program, torch.zeros(2, 1), settings)
    assert float(found.rhat.max()) < 1.01, "the chains have not mixed"
    draws: Any = found.samples["z"]
    return moments(draws.flatten(0, 2).double())


def avb_fit(name: str, args: argparse.Namespace, density: str, contrast: Any) -> Any:
    """Fit an implicit guide to a density; return program and run."""
    torch.manual_seed(args.seed)
    program = Posterior(*DENSITIES[density])
    plane = program.latent_dim == 2
    objective = pv.AVB(
        LogDensity(program.latent_dim, program.scale, contrast),
        contrast=contrast,
        moments=MOMENTS,
        critic_steps=2 if plane else 4,
        critic_optimizer=adam(1e-3, betas=(0.5, 0.999)),
    )
    run = train(
        name,
        args,
        program,
        torch.zeros(50 * ROWS, 1),
        objective=objective,
        epochs=120 if plane else 500,
        batch_size=ROWS,
        optimizer=adam(5e-4, betas=(0.5, 0.999)),
        lr_schedule=pv.schedules.cosine(1.0, 0.01),
        ema=0.9995,  # guide and critic circle around where they would stand still
        compile="trace",
        checkpoint_every=20,
    )
    return program, run


def moments_of(program: Posterior) -> tuple[Tensor, Tensor, Tensor]:
    """Return moments of the guide's draws, the exact ones, and how far they lie apart."""
    with torch.no_grad():
        found = moments(program.encoder(torch.zeros(400_000, 1)).sample().double())
    exact = exact_moments(program)
    # In units of what is spread: a mean of zero has no relative error.
    return found, exact, (found - exact).abs() / exact[1]


def adaptive_contrast(args: argparse.Namespace, density: str) -> dict[str, Any]:
    """Return what the adaptive contrast makes of the same guide, critic and number of steps."""
    program, run = avb_fit(f"avb_{density}_adaptive", args, density, "adaptive")
    found, _, apart = moments_of(program)
    return {
        "largest_error": float(apart.max()),
        "mean": found[0].tolist(),
        "standard_deviation": found[1].tolist(),
        "moments": MOMENTS,
        "steps": run.steps,
        "critic_loss": float(run.history["critic"][-1]),
        "loss": float(run.history["loss"][-1]),
        "seconds": float(run.history["seconds"].sum()),
    }


def avb_posterior(name: str, args: argparse.Namespace) -> Result:
    """Fit an implicit guide to a density, and compare its moments with the exact ones."""
    density = name.removeprefix("avb_")
    program, run = avb_fit(name, args, density, "prior")
    found, exact, apart = moments_of(program)
    more = {"adaptive_contrast": adaptive_contrast(args, density)} if density == "torus" else {}
    return Result(
        name=name,
        value=float(apart.max()),
        stderr=None,
        unit="largest error of a mean or standard deviation, in posterior standard deviations",
        estimator="400,000 draws of the guide against "
        + ("quadrature" if program.latent_dim == 2 else "HMC, 8 x 2 chains of 4,000 draws"),
        published=f"no figure ({MESCHEDER}, App. C: plots)",
        target="<= 0.05",
        data=density,
        binarization="none",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()),
        details={
            "steps": run.steps,
            "mean": found[0].tolist(),
            "exact_mean": exact[0].tolist(),
            "standard_deviation": found[1].tolist(),
            "exact_standard_deviation": exact[1].tolist(),
            "critic_loss": float(run.history["critic"][-1]),
            "loss": float(run.history["loss"][-1]),
            **more,
        },
    )


class FourPoints(nn.Module):
    """Four one-hot data and a code in the plane, of an implicit or a Gaussian guide."""

    def __init__(self, posterior: Any) -> None:
        super().__init__()
        self.decode = pv.nn.MLP(2, 4, (64, 64), activation="elu")
        self.encoder = posterior

    def model(self, x: Tensor) -> None:
        """Draw z from N(0, I) and the four bits of x: a code must tell which of them is set."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z from the encoder."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    @torch.no_grad()
    def log_evidence(self) -> Tensor:
        """Return log p of each of the four, by quadrature on a grid."""
        axis = torch.linspace(-6, 6, 801)
        z = torch.cartesian_prod(axis, axis)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
        bits = dist.Bernoulli(logits=self.decode(z)[:, None]).log_prob(torch.eye(4)).sum(-1)
        cell = 2 * (axis[1] - axis[0]).log()
        return (prior + bits + cell).double().logsumexp(0)


def avb_toy(name: str, args: argparse.Namespace) -> Result:
    """The toy of the paper: four points, whose codes share out the plane."""
    arms: dict[str, tuple[nn.Module, Any]] = {
        "vae": (pv.conditionals.Gaussian(pv.nn.MLP(4, 4, (64, 64))), pv.AnalyticELBO()),
        "avb": (
            NoiseFed(nn.Linear(4, 32), 2, noise_dim=32, features=32, hidden=(64, 64)),
            pv.AVB(
                Pairs(2, 4),
                contrast="prior",
                critic_steps=2,
                critic_optimizer=adam(1e-3, betas=(0.5, 0.999)),
            ),
        ),
    }
    found, seconds, run = {}, 0.0, None
    for arm, (posterior, objective) in arms.items():
        torch.manual_seed(args.seed)
        program = FourPoints(posterior)
        run = train(
            f"{name}_{arm}",
            args,
            program,
            torch.eye(4).repeat(32 * 100, 1),
            objective=objective,
            epochs=200,
            batch_size=128,
            optimizer=adam(3e-4, betas=(0.5, 0.999)),
            lr_schedule=pv.schedules.cosine(1.0, 0.01),
            compile="trace",
        )
        found[arm] = program.log_evidence()
        seconds += float(run.history["seconds"].sum())
    return Result(
        name=name,
        value=-float(found["avb"].mean()),
        stderr=None,
        unit="nats, negative log-likelihood of the four points",
        estimator="quadrature on a grid of 801 x 801 codes",
        published=f"1.403; 1.568 of a VAE ({MESCHEDER}, from memory); the optimum is log 4 = 1.386",
        target="<= 1.42",
        data="four one-hot vectors",
        binarization="none",
        seed=args.seed,
        seconds=seconds,
        details={
            "vae": -float(found["vae"].mean()),
            "each_of_four": found["avb"].tolist(),
            "steps": run.steps if run is not None else 0,
        },
    )


class Pairs(nn.Module):
    """A critic of codes and data that knows the prior: it is left the guide's log density."""

    def __init__(self, latent_dim: int, data_dim: int) -> None:
        super().__init__()
        self.net = pv.nn.Critic(latent_dim, data_dim, (128, 128))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the log ratio to N(0, I)."""
        return self.net(z, x) + 0.5 * z.square().sum(-1)


class Located(nn.Module):
    """A critic that begins as a Gaussian whose place and width it learns, and tells what is left.

    The log density of eight codes of a digit is mostly that.
    """

    def __init__(self, latent_dim: int, data_dim: int) -> None:
        super().__init__()
        self.place = pv.nn.MLP(data_dim, 2 * latent_dim, (256,))
        self.net = pv.nn.InnerProductCritic(latent_dim, data_dim, 128, (256, 256))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the log density of codes, as far as it is known."""
        mean, log_scale = self.place(x).chunk(2, -1)
        apart = (z - mean) * (-log_scale).exp()
        gaussian = dist.Normal(0.0, 1.0).log_prob(apart).sum(-1) - log_scale.sum(-1)
        return gaussian + self.net(apart, x)


def mnist_z8(
    name: str, args: argparse.Namespace, objective: Any, posterior: Any, lr: float = 5e-4
) -> Result:
    """Train a net of 8 latents on static MNIST, and score test digits by AIS from the prior."""
    data = pv.data.load("mnist_static")
    torch.manual_seed(args.seed)
    vae = pv.models.VAE(
        784, 8, hidden=(300, 300), posterior=posterior, data_mean=data.train.mean(0)
    )
    run = train(
        name,
        args,
        vae,
        data.train,
        valid=data.valid[:2000],
        objective=objective,
        epochs=40,
        batch_size=128,
        optimizer=adam(lr, betas=(0.5, 0.999)),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        compile="trace",
        checkpoint_every=5,
    )
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    settings = pv.AIS(num_temperatures=400, chains=4, start="prior", pilot=100)
    test = data.test[: args.rows or 500]
    found = pv.ais(vae, test, settings, progress=args.progress)
    np.savez(args.out / name / "ais.npz", log_prob=found.log_prob.numpy())
    return Result(
        name=name,
        value=-found.mean,
        stderr=found.stderr,
        unit="nats per digit, negative log-likelihood",
        estimator=f"AIS from the prior, T = 400, 4 chains, {len(test)} test digits",
        published=f"no figure for this net; conv, z = 8: in {MESCHEDER}",
        target="recorded",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()) + time.perf_counter() - start,
        details={
            "epochs": len(run.history["epoch"]),
            "best_epoch": run.best_epoch,
            "acceptance": float(found.acceptance.mean()),
            "median_ess_of_4": float(found.ess.median()),
            **{k: float(v[-1]) for k, v in run.history.items() if k not in ("epoch", "seconds")},
        },
    )


def vae_mnist_z8(name: str, args: argparse.Namespace) -> Result:
    """The Gaussian guide."""
    return mnist_z8(name, args, pv.AnalyticELBO(), pv.conditionals.Gaussian, 1e-3)


def avb_mnist_z8(name: str, args: argparse.Namespace) -> Result:
    """An implicit guide by AVB, the same decoder and as many epochs."""
    rate = adam(2e-3, betas=(0.5, 0.999))
    objective = pv.AVB(Located(8, 784), moments=16, critic_optimizer=rate)
    posterior = partial(NoiseFed, noise_dim=32, features=128, hidden=(128, 128))
    return mnist_z8(name, args, objective, posterior, 1e-3)


def avb_gain_mnist_z8(name: str, args: argparse.Namespace) -> Result:
    """What the implicit guide buys over the Gaussian one, digit by digit."""
    one, two = (
        np.load(args.out / arm / "ais.npz")["log_prob"] for arm in ("vae_mnist_z8", "avb_mnist_z8")
    )
    gain = two - one
    return Result(
        name=name,
        value=float(gain.mean()),
        stderr=float(gain.std() / len(gain) ** 0.5),
        unit="nats per digit that AVB gains over a Gaussian guide",
        estimator=f"paired difference, AIS from the prior, {len(gain)} test digits",
        published=f"1.7 for conv nets of 32 latents ({MESCHEDER})",
        target="recorded",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=args.seed,
        seconds=0.0,
    )


# -- Fashion-MNIST, 10,000 images ----------------------------------------------------------------


def fashion() -> tuple[Any, Tensor, Tensor]:
    """Return the data set, 10,000 images for training and 5,000 for the figures."""
    data = pv.data.load("fashion_mnist")
    train, test = (x.reshape(-1, *data.shape) for x in (data.train[:10_000], data.test[:5000]))
    return data, train, test


def classifier(folder: Path, data: Any, images: Tensor) -> nn.Module:
    """Return the features of a small classifier of the same images, trained once."""
    torch.manual_seed(0)
    seen = nn.Sequential(pv.nn.ConvEncoder(data.shape, 64, (16, 32)), nn.ReLU())
    told = nn.Linear(64, 10)
    labels = data.labels["train"][: len(images)]
    optimizer = torch.optim.Adam([*seen.parameters(), *told.parameters()], 2e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(told(seen(images[rows])), labels[rows])
            loss.backward()
            optimizer.step()
    return seen.eval().requires_grad_(False)


def fashion_arm(name: str, args: argparse.Namespace, objective: Any) -> Result:
    """Train one conv net, and judge it in the features of the classifier."""
    data, images, test = fashion()
    torch.manual_seed(args.seed)
    vae = pv.models.VAE(
        data.shape,
        32,
        (16, 32),
        network="conv",
        observation=partial(IsotropicGaussian, learn_scale=True),
        data_mean=images.mean(0),
    )
    run = train(
        name,
        args,
        vae,
        images,
        objective=objective,
        epochs=25,
        batch_size=64,
        optimizer=adam(1e-3, betas=(0.5, 0.999)),
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        compile="trace",
        checkpoint_every=5,
    )
    start = time.perf_counter()
    seen = classifier(args.out, data, images)
    torch.manual_seed(args.seed)
    found = pv.feature_distances(vae, test, seen)
    errors = (pv.reconstruct(vae, test) - test).square().flatten(1).mean(1)
    np.savez(
        args.out / name / "features.npz",
        reconstruction=found.reconstruction.numpy(),
        made=found.made.numpy(),
        data=found.data.numpy(),
    )
    made: Any = pv.generate(vae, 64, mean=True)
    title = f"{type(objective).__name__}: samples from the prior"
    sheet = pv.plots.samples(made.clamp(0, 1), title=title)
    pv.plots.save(sheet, args.out / name / "samples.png")
    figure = pv.plots.reconstructions(test[:24], pv.reconstruct(vae, test[:24]).clamp(0, 1))
    pv.plots.save(figure, args.out / name / "reconstructions.png")
    return Result(
        name=name,
        value=found.frechet,
        stderr=None,
        unit="Fréchet distance in the features of a classifier of these images (no FID)",
        estimator=f"{len(test)} new images against as many test images",
        published="no such figure",
        target="recorded",
        data="fashion_mnist, 10,000 images",
        binarization="none: grey levels",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()) + time.perf_counter() - start,
        details={
            "reconstruction_in_features": float(found.reconstruction.mean()),
            "reconstruction_stderr": float(found.reconstruction.std() / len(test) ** 0.5),
            "mean_squared_error_per_pixel": float(errors.mean()),
            **{k: float(v[-1]) for k, v in run.history.items() if k not in ("epoch", "seconds")},
        },
    )


def vae_fashion_features(name: str, args: argparse.Namespace) -> Result:
    """The VAE."""
    return fashion_arm(name, args, pv.AnalyticELBO())


def vaegan_fashion_features(name: str, args: argparse.Namespace) -> Result:
    """The same net by VAE/GAN."""
    critic = pv.nn.ConvCritic((1, 28, 28), (16, 32))
    rate = adam(5e-4, betas=(0.5, 0.999))
    return fashion_arm(name, args, pv.VAEGAN(critic, gamma=GAMMA, critic_optimizer=rate))


def vaegan_gain_fashion_features(name: str, args: argparse.Namespace) -> Result:
    """What VAE/GAN changes, image by image, and in the Fréchet distance by a bootstrap."""
    arms = ("vae_fashion_features", "vaegan_fashion_features")
    one, two = (np.load(args.out / arm / "features.npz") for arm in arms)
    apart = two["reconstruction"] - one["reconstruction"]
    draw = np.random.default_rng(0).integers(len(apart), size=(50, len(apart)))
    changes = [
        frechet(two["made"][rows], two["data"][rows])
        - frechet(one["made"][rows], one["data"][rows])
        for rows in draw
    ]
    change = frechet(two["made"], two["data"]) - frechet(one["made"], one["data"])
    return Result(
        name=name,
        value=float(change),
        stderr=float(np.std(changes)),
        unit="change of the Fréchet distance in own features, VAE/GAN less VAE",
        estimator=f"{len(apart)} images each; the error is a bootstrap over images",
        published="no such figure",
        target="< 0",
        data="fashion_mnist, 10,000 images",
        binarization="none: grey levels",
        seed=args.seed,
        seconds=0.0,
        details={
            "reconstruction_change": float(apart.mean()),
            "reconstruction_change_stderr": float(apart.std() / len(apart) ** 0.5),
        },
    )


def frechet(first: Any, second: Any) -> float:
    """Return the Fréchet distance of two arrays of features."""
    return frechet_distance(torch.from_numpy(first), torch.from_numpy(second))


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    **{f"avb_{name}": avb_posterior for name in DENSITIES},
    "avb_toy": avb_toy,
    "vae_mnist_z8": vae_mnist_z8,
    "avb_mnist_z8": avb_mnist_z8,
    "avb_gain_mnist_z8": avb_gain_mnist_z8,
    "vae_fashion_features": vae_fashion_features,
    "vaegan_fashion_features": vaegan_fashion_features,
    "vaegan_gain_fashion_features": vaegan_gain_fashion_features,
}
