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
OBJECTIVES: dict[str, Callable[..., Any]] = {"elbo": pv.ELBO, "iwae": pv.IWAE}
Model = Literal["VAE", "LinearVAE", "Autoencoder"]
Observation = Literal["Bernoulli", "Gaussian", "IsotropicGaussian", "DiscretisedLogistic"]
Data = Literal["digits", "mnist", "mnist_static", "fashion_mnist"]
Binarisation = Literal["static", "dynamic", "threshold", "none"]
Split = Literal["train", "valid", "test"]
