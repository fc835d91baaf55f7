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
MODELS = {**IMAGES, **DOCUMENTS, **SEQUENCES, **SENTENCES, **TABLES}
OBSERVATIONS: dict[str, Any] = {
    name: getattr(pv.conditionals, name)
    for name in ("Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic")
}
# From the settings of a run and held-out data.
OBJECTIVES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "elbo": lambda run, valid: pv.ELBO(run["num_particles"]),
    "analytic_elbo": lambda run, valid: pv.AnalyticELBO(run["num_particles"]),
    "iwae": lambda run, valid: pv.IWAE(run["num_particles"]),
    "free_bits": lambda run, valid: pv.FreeBits(run["nats"], num_particles=run["num_particles"]),
    "target_kl": lambda run, valid: pv.TargetKL(run["nats"], num_particles=run["num_particles"]),
    "lagging": lambda run, valid: pv.Lagging(valid),
    "aae": lambda run, valid: pv.AAE(pv.nn.Critic(run["latent_dim"])),
    "wae": lambda run, valid: pv.WAE(),
    "avb": lambda run, valid: pv.AVB(
        pv.nn.InnerProductCritic(run["latent_dim"], math.prod(valid.shape[1:]))
    ),
    "vaegan": lambda run, valid: pv.VAEGAN(pv.nn.ConvCritic(_plane(valid.shape[1:]))),
}
ADVERSARIAL = ("aae", "wae", "avb", "vaegan")


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image of which all pixels are in one row: those here are square."""
    side = math.isqrt(shape[0])
    return shape if len(shape) == 3 else (1, side, side)


Model = Literal[
    "VAE",
    "LinearVAE",
    "Autoencoder",
    "NVDM",
    "GSM",
    "ProdLDA",
    "ETM",
    "LDA",
    "DMM",
    "VRNN",
    "SentenceVAE",
    "SentenceLM",
    "TableVAE",
]
Objective = Literal[
    "elbo",
    "analytic_elbo",
    "iwae",
    "free_bits",
    "target_kl",
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
Split = Literal["train", "valid", "test"]
