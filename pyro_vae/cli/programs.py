"""The data and the program that the settings of a run ask for."""

import math
from functools import partial
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.cli.options import MODELS, OBSERVATIONS, Binarisation
from pyro_vae.errors import ConfigError


def default_binarisation(model: str, data: str) -> Binarisation:
    """Return the binarisation of a run that names none."""
    if data == "mnist_static":
        return "static"
    return "dynamic" if model == "VAE" else "none"


def load_splits(data: str, binarisation: str, seed: int) -> pv.data.Splits:
    """Return a data set under a binarisation as the command line names it."""
    chosen = None if binarisation == "none" else binarisation
    return pv.data.load(data, binarisation=chosen, seed=seed)


def shaped_rows(splits: pv.data.Splits, x: torch.Tensor, network: str) -> torch.Tensor:
    """Return images as the network takes them."""
    return splits.images(x) if network == "conv" else x


def as_binary(splits: pv.data.Splits, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return one draw of data that are drawn afresh in training."""
    if splits.transform is None:
        return x
    torch.manual_seed(seed)
    return splits.transform(x)  # what is binary already stays as it is


def build_program(settings: dict[str, Any], splits: pv.data.Splits) -> Any:
    """Return a new program of the size of the data; raise `ConfigError` for options it lacks."""
    model, latent_dim = settings["model"], settings["latent_dim"]
    for name, default in (("observation", None), ("posterior", "Gaussian")):
        if settings.get(name, default) != default and model != "VAE":
            raise ConfigError(f"{name}: {model} has no choice of it; leave --{name} out")
    if model == "LinearVAE":
        if settings["network"] == "conv":
            raise ConfigError("network: LinearVAE has no network; leave --network out")
        return MODELS[model](math.prod(splits.shape), latent_dim)
    hidden = settings["hidden"]
    options: dict[str, Any] = {
        "hidden": (hidden,) if isinstance(hidden, int) else tuple(hidden),
        "network": settings["network"],
        "data_mean": shaped_rows(splits, splits.train, settings["network"]).mean(0),
    }
    if model == "VAE":
        grey = settings["binarisation"] == "none"
        chosen = settings["observation"] or ("Gaussian" if grey else "Bernoulli")
        options["observation"] = _observation(chosen, settings["data"])
        options["posterior"] = getattr(pv.conditionals, settings.get("posterior", "Gaussian"))
    size: Any = splits.shape if settings["network"] == "conv" else math.prod(splits.shape)
    return MODELS[model](size, latent_dim, **options)


def _observation(name: str, data: str) -> Any:
    """Return an observation with the options that suit grey levels of these data."""
    if name == "IsotropicGaussian":
        return partial(OBSERVATIONS[name], learn_scale=True)
    if name == "DiscretisedLogistic":
        return partial(OBSERVATIONS[name], levels=17 if data == "digits" else 256)
    return OBSERVATIONS[name]
