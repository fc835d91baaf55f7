"""What the options choose from, by the names they have on the command line."""

from collections.abc import Callable
from typing import Any, Literal

import pyro_vae as pv

MODELS: dict[str, Callable[..., Any]] = {
    "VAE": pv.models.VAE,
    "LinearVAE": pv.models.LinearVAE,
    "Autoencoder": pv.models.Autoencoder,
}
OBSERVATIONS: dict[str, Any] = {
    name: getattr(pv.conditionals, name)
    for name in ("Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic")
}
# From the particles, the nats, and held-out data.
OBJECTIVES: dict[str, Callable[[int, float, Any], Any]] = {
    "elbo": lambda particles, nats, valid: pv.ELBO(particles),
    "iwae": lambda particles, nats, valid: pv.IWAE(particles),
    "free_bits": lambda particles, nats, valid: pv.FreeBits(nats, num_particles=particles),
    "target_kl": lambda particles, nats, valid: pv.TargetKL(nats, num_particles=particles),
    "lagging": lambda particles, nats, valid: pv.Lagging(valid[:1000]),
}
Model = Literal["VAE", "LinearVAE", "Autoencoder"]
Objective = Literal["elbo", "iwae", "free_bits", "target_kl", "lagging"]
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
Data = Literal["digits", "mnist", "mnist_static", "fashion_mnist"]
Binarisation = Literal["static", "dynamic", "threshold", "none"]
Split = Literal["train", "valid", "test"]
