"""What the options choose from, by the names they have on the command line."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pyro_vae as pv

IMAGES: dict[str, Callable[..., Any]] = {
    "VAE": pv.models.VAE,
    "LinearVAE": pv.models.LinearVAE,
    "Autoencoder": pv.models.Autoencoder,
}
# Built from their signatures: what --options names, and what the data say.
BY_SIGNATURE: dict[str, Callable[..., Any]] = {
    name: getattr(pv.models, name)
    for name in (
        *("HierarchicalVAE", "LadderVAE", "TopDownVAE", "BayesianVAE", "VQVAE", "SBN", "DEF"),
        *("ConditionalVAE", "M2", "MultimodalVAE"),
    )
}
LABELLED = {"ConditionalVAE": "c", "M2": "label"}  # and the argument that takes the labels
DOCUMENTS: dict[str, Callable[..., Any]] = {
    "NVDM": pv.models.NVDM,
    "GSM": pv.models.GSM,
    "ProdLDA": pv.models.ProdLDA,
    "ETM": pv.models.ETM,
    "LDA": pv.models.LDA,
}
SEQUENCES: dict[str, Callable[..., Any]] = {"DMM": pv.models.DMM, "VRNN": pv.models.VRNN}
SENTENCES: dict[str, Callable[..., Any]] = {
    "SentenceVAE": pv.models.SentenceVAE,
    "SentenceLM": pv.models.SentenceLM,
}
TABLES: dict[str, Callable[..., Any]] = {"TableVAE": pv.models.TableVAE}
MODELS = {**IMAGES, **BY_SIGNATURE, **DOCUMENTS, **SEQUENCES, **SENTENCES, **TABLES}
OBSERVATIONS: dict[str, Any] = {
    name: getattr(pv.conditionals, name)
    for name in ("Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic")
}
# From the settings of a run and held-out data.
OBJECTIVES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "elbo": lambda run, valid: pv.ELBO(**_particles(run)),
    "analytic_elbo": lambda run, valid: pv.AnalyticELBO(**_particles(run)),
    "iwae": lambda run, valid: pv.IWAE(**_particles(run)),
    "free_bits": lambda run, valid: pv.FreeBits(run["nats"], **_particles(run)),
    "target_kl": lambda run, valid: pv.TargetKL(run["nats"], **_particles(run)),
    "stl": lambda run, valid: pv.STL(**_particles(run)),
    "dreg": lambda run, valid: pv.DReG(**_particles(run)),
    "rloo": lambda run, valid: pv.RLOO(**_particles(run)),
    "vimco": lambda run, valid: pv.VIMCO(**_particles(run)),
    "disarm": lambda run, valid: pv.DisARM(),
    "reweighted_wake_sleep": lambda run, valid: pv.ReweightedWakeSleep(**_particles(run)),
    "vq": lambda run, valid: pv.VQ(),
    "lagging": lambda run, valid: pv.Lagging(valid),
    "aae": lambda run, valid: pv.AAE(pv.nn.Critic(run["latent_dim"])),
    "wae": lambda run, valid: pv.WAE(),
    "avb": lambda run, valid: pv.AVB(
        pv.nn.InnerProductCritic(run["latent_dim"], math.prod(valid.shape[1:]))
    ),
    "vaegan": lambda run, valid: pv.VAEGAN(pv.nn.ConvCritic(_plane(valid.shape[1:]))),
}
DEFAULT = {"VQVAE": "vq", "SBN": "disarm"}  # objective of a model, where it is not elbo
ADVERSARIAL = ("aae", "wae", "avb", "vaegan")


def in_small(objective: str) -> str:
    """Return the name of an objective for that of its class, as Python writes it."""
    named = {name.replace("_", ""): name for name in OBJECTIVES}
    return named.get(objective.lower(), objective)


def _particles(run: dict[str, Any]) -> dict[str, Any]:
    """Return the option of the draws per datum, where a run names them."""
    return {} if run["num_particles"] is None else {"num_particles": run["num_particles"]}


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image of which all pixels are in one row: those here are square."""
    side = math.isqrt(shape[0])
    return shape if len(shape) == 3 else (1, side, side)


Objective = Literal[
    "ELBO",
    "AnalyticELBO",
    "IWAE",
    "FreeBits",
    "TargetKL",
    "STL",
    "DReG",
    "RLOO",
    "VIMCO",
    "DisARM",
    "ReweightedWakeSleep",
    "VQ",
    "Lagging",
    "AAE",
    "WAE",
    "AVB",
    "VAEGAN",
    "elbo",
    "analytic_elbo",
    "iwae",
    "free_bits",
    "target_kl",
    "stl",
    "dreg",
    "rloo",
    "vimco",
    "disarm",
    "reweighted_wake_sleep",
    "vq",
    "lagging",
    "aae",
    "wae",
    "avb",
    "vaegan",
]
Posterior = Literal[
    "Gaussian",
    "FullGaussian",
    "LowRankGaussian",
    "PlanarFlow",
    "InverseAutoregressiveFlow",
    "SplineFlow",
    "BatchNormGaussian",
    "DeltaGaussian",
    "FixedScaleGaussian",
    "NoiseFed",
]
Observation = Literal["Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic"]
Binarization = Literal["static", "dynamic", "threshold", "none"]
Split = Literal["train", "valid", "test", "all"]
