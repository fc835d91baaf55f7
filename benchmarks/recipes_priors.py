"""Recipes of the VampPrior and of a flow posterior on static MNIST, for ``reproduce.py``.

The arms have one network (gated 784-300-300-40), one budget and one training recipe. They differ
from ``vae_gated_mnist_static`` in the prior alone, or in the posterior alone.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from arms import adam, gain, score, train
from results import Result

import pyro_vae as pv
from pyro_vae.conditionals import InverseAutoregressiveFlow, VampPrior

LATENT_DIM, HIDDEN, BATCH = 40, (300, 300), 100
EPOCHS, ROWS = 60, 1000
LR, WARMUP = 1e-3, 0.2  # Adam, a half cosine; share of the run until the KL weight is 1
PSEUDO_INPUTS = 500
IAF = partial(InverseAutoregressiveFlow, num_flows=2, hidden=(320,), context_dim=64)
TOMCZAK = "Tomczak and Welling (2018), arXiv:1705.07120, Table 1: VAE z = 40, up to 2000 epochs"
BASELINE, VAMP, FLOW = (
    "vae_gated_mnist_static",
    "vampprior_mnist_static",
    "iaf_posterior_mnist_static",
)


def _scored(name: str, args: argparse.Namespace, texts: dict[str, str], **parts: Any) -> Result:
    """Train one arm with checkpoints and score its first test images."""
    data = pv.data.load("mnist_static")
    torch.manual_seed(args.seed)
    vae = pv.models.VAE(
        784, LATENT_DIM, HIDDEN, activation="glu", data_mean=data.train.mean(0), **parts
    )
    if isinstance(vae.latent_prior, VampPrior):
        rows = torch.randperm(len(data.train))[:PSEUDO_INPUTS]
        vae.latent_prior.start_at(data.train[rows])
    run = train(
        name,
        args,
        vae,
        data.train,
        valid=data.valid,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=adam(LR),
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        beta=pv.schedules.linear(0.0, 1.0, over=WARMUP),
        patience=20,
        compile=True,
        checkpoint_every=3,
    )
    return score(
        name,
        args,
        vae,
        run,
        data.test[: args.rows or ROWS],
        judged=data.test,
        proposal="encoder",
        details=lambda diagnosis: {
            "valid_negative_elbo": -float(run.history["valid_elbo"].max()),
            "kl": diagnosis.kl["z"],
            "active_units": diagnosis.active_units["z"],
        },
        **texts,
    )


def vae_gated_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """The baseline: standard normal prior, diagonal Gaussian posterior."""
    texts = {"published": f"88.56 ({TOMCZAK})", "target": "above the other two arms"}
    return _scored(name, args, texts)


def vampprior_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """The same with a VampPrior of 500 pseudo-inputs."""
    texts = {"published": f"85.57 ({TOMCZAK})", "target": f">= 1.5 nats below {BASELINE}"}
    prior = partial(VampPrior, num_components=PSEUDO_INPUTS)
    return _scored(name, args, texts, prior=prior)


def iaf_posterior_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """The same with two inverse autoregressive flows in the posterior."""
    texts = {
        "published": "none for this network; convolutional, z = 64: VAE 82.14, IAF 80.79 "
        "(van den Berg et al., 2018, arXiv:1803.05649)",
        "target": f"below {BASELINE}",
    }
    return _scored(name, args, texts, posterior=IAF)


def _gain(name: str, args: argparse.Namespace, arm: str, what: str, **texts: str) -> Result:
    """Compare an arm with the baseline image by image."""
    test = pv.data.load("mnist_static").test[: args.rows or ROWS]
    return gain(name, args, (BASELINE, arm), test, what=f"{what} at equal epochs", **texts)


def vampprior_gain_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """What the VampPrior buys."""
    return _gain(
        name,
        args,
        VAMP,
        "a VampPrior of 500 pseudo-inputs gains over the standard normal prior",
        published=f"2.99 ({TOMCZAK})",
        target=">= 1.5",
    )


def iaf_gain_mnist_static(name: str, args: argparse.Namespace) -> Result:
    """What the flow posterior buys."""
    return _gain(
        name,
        args,
        FLOW,
        "two inverse autoregressive flows gain over the diagonal posterior",
        published="none for this network",
        target="> 0",
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    BASELINE: vae_gated_mnist_static,
    VAMP: vampprior_mnist_static,
    FLOW: iaf_posterior_mnist_static,
    "vampprior_gain_mnist_static": vampprior_gain_mnist_static,
    "iaf_gain_mnist_static": iaf_gain_mnist_static,
}
