"""What the options choose from, by the names they have on the command line."""

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
MODELS = {**IMAGES, **DOCUMENTS, **SEQUENCES, **SENTENCES}
OBSERVATIONS: dict[str, Any] = {
    name: getattr(pv.conditionals, name)
    for name in ("Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic")
}
# From the particles, the nats, and held-out data.
OBJECTIVES: dict[str, Callable[[int, float, Any], Any]] = {
    "elbo": lambda particles, nats, valid: pv.ELBO(particles),
    "analytic_elbo": lambda particles, nats, valid: pv.AnalyticELBO(particles),
    "iwae": lambda particles, nats, valid: pv.IWAE(particles),
    "free_bits": lambda particles, nats, valid: pv.FreeBits(nats, num_particles=particles),
    "target_kl": lambda particles, nats, valid: pv.TargetKL(nats, num_particles=particles),
    "lagging": lambda particles, nats, valid: pv.Lagging(valid),
}
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
]
Objective = Literal["elbo", "analytic_elbo", "iwae", "free_bits", "target_kl", "lagging"]
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
]
Observation = Literal["Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic"]
Binarisation = Literal["static", "dynamic", "threshold", "none"]
Split = Literal["train", "valid", "test"]
