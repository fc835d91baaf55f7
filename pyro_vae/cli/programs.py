"""The program that the settings of a run ask for."""

import math
from functools import partial
from typing import Any

import pyro_vae as pv
from pyro_vae.cli.datasets import DataSet, kind_of
from pyro_vae.cli.options import ADVERSARIAL, MODELS, OBSERVATIONS
from pyro_vae.errors import ConfigError


def check_options(settings: dict[str, Any]) -> None:
    """Raise `ConfigError` for an option that the model of a run lacks: before data are loaded."""
    model, kind = settings["model"], kind_of(settings["model"])
    fixed = {"observation": None, "posterior": "Gaussian"} if model != "VAE" else {}
    fixed |= {"network": "mlp"} if kind != "images" or model == "LinearVAE" else {}
    fixed |= {"binarization": "none"} if kind != "images" else {}
    if settings.get("kinds") and kind != "tables":
        raise ConfigError(f"kinds: {model} has no columns; leave --kinds out")
    if kind == "sentences" and len(_widths(settings)) != 1:
        raise ConfigError(f"hidden: got {settings['hidden']}, expected one width for {model}")
    _check_objective(settings, kind)
    for name, default in fixed.items():
        if settings.get(name, default) != default:
            raise ConfigError(f"{name}: {model} has no choice of it; leave --{name} out")


def _check_objective(settings: dict[str, Any], kind: str) -> None:
    """Raise `ConfigError` for an objective that does not go with the model or its data."""
    objective = settings.get("objective", "elbo")
    if objective in ADVERSARIAL and kind != "images":
        raise ConfigError(f"objective: {objective} takes models of images, got a model of {kind}")
    if objective == "vaegan" and settings["binarization"] != "none":
        raise ConfigError(
            "objective: a critic tells binary images from grey means at once; give vaegan the grey "
            "levels, --binarization none"
        )
    if settings.get("posterior") == "NoiseFed" and objective not in ADVERSARIAL[:3]:
        raise ConfigError(
            f"posterior: NoiseFed has no density, which {objective} needs; use --objective avb"
        )


def build_program(settings: dict[str, Any], data: DataSet) -> Any:
    """Return a new program of the size of the data."""
    model, kind = settings["model"], kind_of(settings["model"])
    hidden = _widths(settings)
    source, latent_dim = data.source, settings["latent_dim"]
    if kind == "tables":
        kinds = settings.get("kinds")
        return MODELS[model](source.whole, latent_dim, hidden, kinds=kinds)
    if kind == "documents":
        return MODELS[model](len(source.vocabulary), latent_dim, hidden)
    if kind == "sentences":
        code = {} if model == "SentenceLM" else {"latent_dim": latent_dim}
        return MODELS[model](len(source.vocabulary), **code, hidden=hidden[0])
    if kind == "sequences":
        x, lengths = source.train["x"], source.train["lengths"]
        mean = x.sum((0, 1)) / lengths.sum()
        return MODELS[model](x.shape[-1], latent_dim, hidden, data_mean=mean)
    if model == "LinearVAE":
        return MODELS[model](math.prod(source.shape), latent_dim)
    options: dict[str, Any] = {
        "hidden": hidden,
        "network": settings["network"],
        "data_mean": data.rows("train").mean(0),
    }
    if model == "VAE":
        grey = settings["binarization"] == "none"
        chosen = settings["observation"] or ("Gaussian" if grey else "Bernoulli")
        options["observation"] = _observation(chosen, settings["data"])
        options["posterior"] = getattr(pv.conditionals, settings.get("posterior", "Gaussian"))
    size: Any = source.shape if settings["network"] == "conv" else math.prod(source.shape)
    return MODELS[model](size, latent_dim, **options)


def _widths(settings: dict[str, Any]) -> tuple[int, ...]:
    hidden = settings["hidden"]
    return (hidden,) if isinstance(hidden, int) else tuple(hidden)


def _observation(name: str, data: str) -> Any:
    """Return an observation with the options that suit grey levels of these data."""
    if name == "IsotropicGaussian":
        return partial(OBSERVATIONS[name], learn_scale=True)
    if name == "DiscretisedLogistic":
        return partial(OBSERVATIONS[name], levels=17 if data == "digits" else 256)
    return OBSERVATIONS[name]
