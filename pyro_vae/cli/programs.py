"""The program that the settings of a run ask for."""

import difflib
import inspect
from contextlib import suppress
from functools import partial
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.cli.datasets import DataSet, kind_of, require_as_it_is
from pyro_vae.cli.options import ADVERSARIAL, BY_SIGNATURE, IMAGES, MODELS, OBSERVATIONS
from pyro_vae.cli.own_program import called, is_own, own_program
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.handlers import DrawnRows


def check_options(settings: dict[str, Any]) -> None:
    """Raise `ConfigError` for an option that the model of a run lacks: before data are loaded."""
    model, kind = settings["model"], kind_of(settings["model"])
    if model not in MODELS and not is_own(model):
        small = {name.lower(): name for name in MODELS}
        meant = [small[name] for name in difflib.get_close_matches(model.lower(), small, n=1)]
        raise ConfigError(
            f"model: got {model!r}, expected FILE.py:NAME or one of {', '.join(MODELS)}"
            + "".join(f"; did you mean {name}?" for name in meant)
        )
    fixed = {"observation": None, "posterior": "Gaussian"} if model != "VAE" else {}
    fixed |= {"network": "mlp"} if model not in ("VAE", "Autoencoder", "VQVAE") else {}
    fixed |= {"latent_dim": None, "hidden": None} if is_own(model) else {}
    fixed |= {"binarization": "none"} if kind != "images" else {}
    if settings.get("kinds") and kind != "tables":
        raise ConfigError(f"kinds: {model} has no columns; leave --kinds out")
    if kind == "sentences" and len(_widths(settings)) != 1:
        raise ConfigError(f"hidden: got {settings['hidden']}, expected one width for {model}")
    if kind == "images":
        require_as_it_is(settings)
    _check_objective(settings, kind)
    for name, default in fixed.items():
        if settings.get(name, default) != default:
            hint = f", or give --options.{name}" if model in BY_SIGNATURE or is_own(model) else ""
            raise ConfigError(f"{name}: {model} has no choice of it; leave --{name} out{hint}")


def _check_objective(settings: dict[str, Any], kind: str) -> None:
    """Raise `ConfigError` for an objective that does not go with the model or its data."""
    objective = settings.get("objective") or "elbo"
    if objective in ADVERSARIAL and settings["model"] not in IMAGES:
        raise ConfigError(
            f"objective: {objective} takes models of images ({', '.join(IMAGES)}), "
            f"got {settings['model']}"
        )
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
    model, options = settings["model"], dict(settings.get("options") or {})
    if is_own(model):
        return own_program(model, options)
    known = _signature(model)
    said = {name: value for name, value in _said(settings, data).items() if name in known}
    for name, value in options.items():
        by_class = name in known and inspect.isclass(known[name].default)
        options[name] = getattr(pv.conditionals, str(value), value) if by_class else value
    return called(partial(MODELS[model], **said), options, model)


def require_answers(program: Any, rows: Any, model: str) -> None:
    """Refuse a program that draws its own minibatch before it is trained: nothing can judge it.

    Raises:
        ConfigError: Names the plate.
    """
    wrapped, drawn = pv.Program.of(program), DrawnRows()
    with drawn, suppress(DataError):  # what else is wrong, training says
        wrapped.reader.runs.trace_of_model(wrapped.adapt(rows))
    for plate in drawn.plates:
        raise ConfigError(
            f"{model}: the plate {plate!r} draws some of the rows (subsample_size), so that no "
            "command could judge the run; leave subsample_size out: --batch_size makes minibatches"
        )


def _signature(model: str) -> Any:
    """Return the parameters of a model; those of `VAE` where it hands them on."""
    found = dict(inspect.signature(MODELS[model]).parameters)
    return (
        dict(inspect.signature(pv.models.VAE).parameters) | found if "options" in found else found
    )


def _mean(x: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Return the mean of data, of the observed cells where the model is asked to take holes.

    Raises:
        DataError: There are holes, and it is not; names the file and what takes them.
    """
    if not bool(x.isnan().any()):
        return x.mean(0)
    asked = "missing" in (settings.get("options") or {})
    if not asked and "data_mean" in _signature(settings["model"]):
        raise DataError(
            f"{settings['data']}: has missing cells, expected numbers alone; train a VAE with "
            "--options.missing nan, or TableVAE on a table"
        )
    return x.nanmean(0)


def _said(settings: dict[str, Any], data: DataSet) -> dict[str, Any]:
    """Return the arguments that data and short options say, for all models together."""
    model, kind = settings["model"], kind_of(settings["model"])
    latent_dim, hidden = settings.get("latent_dim"), settings.get("hidden")
    said: dict[str, Any] = {}
    if latent_dim is not None:
        said |= {"latent_dim": latent_dim, "num_topics": latent_dim}
    if hidden is not None:
        said["hidden"] = _widths(settings)[0] if kind == "sentences" else _widths(settings)
    if kind == "tables":
        return said | {"table": data.source.whole, "kinds": settings.get("kinds")}
    if kind in ("documents", "sentences"):
        return said | {"words": len(data.source.vocabulary)}
    rows = data.rows("train")
    if kind == "sequences":
        mean = rows["x"].sum((0, 1)) / rows["lengths"].sum()
        return said | {"data_dim": rows["x"].shape[-1], "data_mean": mean}
    x = rows if isinstance(rows, torch.Tensor) else rows.get("x", next(iter(rows.values())))
    said |= {"data_dim": x.shape[-1] if x.ndim == 2 else tuple(x.shape[1:])}
    said |= {"data_mean": _mean(x, settings), "network": settings["network"]}
    if data.label:
        said["num_classes"] = int(rows[data.label].max()) + 1
    if model == "VAE":
        said["posterior"] = getattr(pv.conditionals, settings.get("posterior", "Gaussian"))
    if model != "DEF":
        binary = settings["binarization"] != "none" or bool(((x == 0) | (x == 1) | x.isnan()).all())
        chosen = settings["observation"] or ("Bernoulli" if binary else "Gaussian")
        said["observation"] = _observation(chosen, settings["data"])
    return said


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
