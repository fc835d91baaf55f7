"""The command line: ``pyro-vae train | evaluate | generate | diagnose | demo``.

The options, their defaults and their help are the signatures and docstrings of the functions below.
Exit codes: 0 done, 1 a failure while running, 2 bad input, which costs one line on stderr.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PyroVaeError
from pyro_vae.files import atomic_write_bytes, atomic_write_text
from pyro_vae.training.device import resolve_device

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

SETTINGS = "train.json"  # what `train` was asked for; itself a file for --config
# Not part of what a run is; a continuation may choose them anew.
_FREE = {"out", "resume", "device", "progress", "checkpoint_every", "patience"}


def train(
    model: Model = "VAE",
    data: Data = "digits",
    binarisation: Binarisation | None = None,
    latent_dim: int = 20,
    hidden: int | tuple[int, ...] = (400,),
    network: Literal["mlp", "conv"] = "mlp",
    observation: Observation | None = None,
    objective: Literal["elbo", "iwae"] = "elbo",
    num_particles: int = 1,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_schedule: Literal["constant", "cosine"] = "constant",
    beta: float = 1.0,
    warmup: float = 0.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | None = None,
    resume: bool = False,
    checkpoint_every: int | None = 10,
    progress: bool = True,
) -> None:
    """Train a model and write a run folder.

    Args:
        model: what is modelled.
        data: data set.
        binarisation: none keeps grey levels; null is static for mnist_static, none for LinearVAE
            and Autoencoder, dynamic otherwise.
        latent_dim: latent units.
        hidden: widths of the encoder's hidden layers, as 400 or [200,200]; mirrored by the decoder.
        network: kind of encoder and decoder (conv: hidden are channels).
        observation: p(x | z) of a VAE; null is Bernoulli for binary data, Gaussian for grey levels.
        objective: bound to maximise.
        num_particles: draws per datum behind the bound.
        epochs: passes over the training data.
        batch_size: data per step.
        lr: learning rate of Adam.
        lr_schedule: constant, or a half cosine down to 2 % of lr.
        beta: weight of the KL.
        warmup: share of the run over which the KL weight rises from 0 to beta.
        clip_norm: largest norm of the gradient; null clips nothing.
        patience: epochs without a better validation ELBO after which to stop; null never stops.
        seed: of weights, noise, order and binarisation.
        device: auto, cpu, cuda or cuda:N.
        out: run folder; null is a fresh one below runs.
        resume: go on from the checkpoint in out.
        checkpoint_every: epochs between checkpoints; null writes none.
        progress: show a progress bar.
    """
    settings = {k: v for k, v in locals().items() if k != "settings"}
    settings["binarisation"] = binarisation = binarisation or _default_binarisation(model, data)
    folder = Path(out) if out else _fresh(Path("runs") / f"{model.lower()}-{data}")
    if resume:
        if out is None:
            raise ConfigError("resume: needs the run folder, --out")
        _check_same_run(folder, settings)
    splits = _splits(data, binarisation, seed)
    torch.manual_seed(seed)
    program = _build(settings, splits)
    run = pv.fit(
        program,
        _rows(splits, splits.train, network),
        valid=_rows(splits, splits.valid, network),
        objective=OBJECTIVES[objective](num_particles),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lr_schedule=pv.schedules.cosine(1.0, 0.02) if lr_schedule == "cosine" else 1.0,
        beta=pv.schedules.linear(0.0, beta, over=warmup) if warmup else beta,
        clip_norm=clip_norm,
        patience=patience,
        transform=splits.transform,
        callbacks=[lambda run: _record(run, settings)],
        seed=seed,
        device=device,
        out=folder,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
    pv.plots.save(pv.plots.curves(run.history), folder / "curves.png")
    best = run.history["valid_elbo"][run.best_epoch - 1]
    _say(f"best epoch {run.best_epoch}: validation ELBO {best:.2f} nats per datum")
    _say(f"run folder: {folder}")
    if model != "Autoencoder":
        _say(f"next:       pyro-vae evaluate {folder}")


def evaluate(
    run: str,
    data: Data | None = None,
    binarisation: Binarisation | None = None,
    split: Split = "test",
    rows: int | None = None,
    samples: int = 1000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Judge a run: ELBO, log-likelihood, KL and active units, also written to evaluation.json.

    Args:
        run: run folder.
        data: data set; null is the one it was trained on.
        binarisation: null is that of the training.
        split: which part of the data.
        rows: only so many data from the start; null is all.
        samples: importance samples per datum behind the log-likelihood.
        seed: of the estimates.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    program, settings = _open(run, device)
    data, binarisation = data or settings["data"], binarisation or settings["binarisation"]
    splits = _splits(data, binarisation, settings["seed"])
    if rows is not None and rows < 1:
        raise ConfigError(f"rows: got {rows}, expected at least 1")
    x = _binary(splits, getattr(splits, split)[:rows], seed)
    figures = _judge(program, _rows(splits, x, settings["network"]), samples, seed, progress)
    figures = {"data": data, "binarisation": binarisation, "split": split, **figures}
    path = Path(run) / "evaluation.json"
    atomic_write_text(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    _say(_table(figures))
    _say(f"written to {path}")


def generate(run: str, n: int = 64, mean: bool = True, seed: int = 0, device: str = "auto") -> None:
    """Draw images from a trained model: samples.png and samples.npz in its run folder.

    Args:
        run: run folder.
        n: number of images.
        mean: the means of p(x | z); false draws from it.
        seed: of the draws.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = _open(run, device)
    torch.manual_seed(seed)
    drawn: Any = pv.generate(program, n, mean=mean)
    images = drawn.cpu().reshape(n, *settings["shape"])
    folder = Path(run)
    pv.plots.save(pv.plots.samples(images, title=_drawn(n, mean)), folder / "samples.png")
    _write_npz(folder / "samples.npz", images)
    _say(f"written to {folder / 'samples.png'} and {folder / 'samples.npz'}")


def diagnose(
    run: str, data: Data | None = None, split: Split = "test", seed: int = 0, device: str = "auto"
) -> None:
    """Say how many nats each latent unit carries, and which are active.

    Args:
        run: run folder.
        data: data set; null is the one it was trained on.
        split: which part of the data.
        seed: of the estimates.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = _open(run, device)
    splits = _splits(data or settings["data"], settings["binarisation"], settings["seed"])
    torch.manual_seed(seed)
    x = _rows(splits, _binary(splits, getattr(splits, split), seed), settings["network"])
    found = pv.diagnose(program, x)
    for site, kl in found.kl.items():
        active = found.active_units.get(site, 0)
        _say(f"site {site}: KL {kl:.2f} nats per datum, {active} active units")
        units = found.unit_kl.get(site, torch.zeros(0))
        for unit in units.argsort(descending=True).tolist():
            bar = "▇" * round(20 * float(units[unit] / units.max().clamp(min=1e-9)))
            _say(f"  unit {unit:3d}  KL {units[unit]:6.3f}  {bar}")
    _say(f"reconstruction: {found.reconstruction:.2f} nats per datum")


def demo(
    out: str | None = None,
    epochs: int = 50,
    latent_dim: int = 2,
    samples: int = 1000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Train a VAE on the embedded digits, judge it and draw what it learned, in under a minute.

    Args:
        out: run folder; null is a fresh one, runs/demo.
        epochs: passes over the training data.
        latent_dim: latent units; two can be drawn as they are.
        samples: importance samples per datum behind the log-likelihood.
        seed: of weights, noise and order.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    start = time.perf_counter()
    folder = Path(out) if out else _fresh(Path("runs") / "demo")
    settings: dict[str, Any] = {"model": "VAE", "data": "digits", "binarisation": "threshold"}
    settings |= {"latent_dim": latent_dim, "hidden": (256, 128), "network": "mlp", "epochs": epochs}
    settings |= {"observation": "Bernoulli", "batch_size": 64, "lr": 3e-3, "seed": seed}
    settings |= {"lr_schedule": "cosine", "warmup": 0.2}
    splits = _splits("digits", "threshold", seed)
    torch.manual_seed(seed)
    vae = _build(settings, splits)
    where = resolve_device(device)
    _say(f"Training a VAE with {latent_dim} latent units on {len(splits.train)} digits ({where})")
    run = pv.fit(
        vae,
        splits.train,
        valid=splits.valid,
        epochs=epochs,
        batch_size=settings["batch_size"],
        lr=settings["lr"],
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        beta=pv.schedules.linear(0.0, 1.0, over=settings["warmup"]),
        callbacks=[lambda run: _record(run, settings)],
        seed=seed,
        device=where,
        out=folder,
        progress=progress,
    )
    figures = {"data": "digits", "binarisation": "threshold", "split": "test"}
    figures |= _judge(vae, splits.test, samples, seed, progress)
    atomic_write_text(folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    drawn = _draw(vae, splits, run, folder, seed)
    _say("\n" + _table(figures))
    _say(f"\n{folder} holds, after {time.perf_counter() - start:.0f} seconds:")
    _say(f"  pictures         {', '.join(drawn)}")
    _say("  numbers          history.csv, evaluation.json, tensorboard/")
    _say("  the model        config.json, program.json and its weights")
    _say("\nNext:")
    _say(f'  python -c "import pyro_vae as pv; print(pv.load({str(folder)!r}))"')
    _say(f"  pyro-vae generate {folder} -n 100")
    _say("  pyro-vae train --data mnist --latent_dim 20 --epochs 20")
    _say(f"  tensorboard --logdir {folder.parent}")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "diagnose": diagnose,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # One flag for all commands, wherever it stands; the parser only documents it.
    debug = "--debug" in arguments
    try:
        parsed = parser.parse_args([a for a in arguments if a != "--debug"])
        return _run(COMMANDS[parsed.command], parsed[parsed.command], debug)
    except SystemExit as stop:  # help (0) and usage errors (2)
        return int(stop.code or 0)


def _run(command: Callable[..., None], values: Namespace, debug: bool) -> int:
    options = {k: v for k, v in values.as_dict().items() if k not in ("config", "debug")}
    try:
        command(**options)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:
        if debug:
            raise
        # Those that are a ValueError blame what was asked for; so does a device that is not here.
        asked = isinstance(error, ValueError | pv.errors.DeviceError)
        bad_input = isinstance(error, PyroVaeError) and asked
        text = str(error) if isinstance(error, PyroVaeError) else f"{type(error).__name__}: {error}"
        return _complain(text, 2 if bad_input else 1)
    return 0


class _Parser(ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.exit(_complain(message, 2))


def _parser() -> ArgumentParser:
    parser = _Parser(prog="pyro-vae", description=pv.__doc__, version=pv.__version__)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, function in COMMANDS.items():
        title = (function.__doc__ or name).splitlines()[0]
        sub = _Parser(description=title)
        sub.add_argument("--config", action="config", help="YAML or JSON file with options.")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error.")
        skipped: set[str | int] = {"n"} if name == "generate" else set()
        sub.add_function_arguments(function, as_positional=True, skip=skipped)
        if skipped:
            sub.add_argument("-n", "--n", type=int, default=64, help="number of images.")
        commands.add_subcommand(name, sub, help=title)
    return parser


def _complain(message: str, code: int) -> int:
    print(f"pyro-vae: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _say(text: str) -> None:
    print(text, flush=True)


# -- Run folders -----------------------------------------------------------------------------------


def _fresh(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3, ... that does not exist."""
    number, path = 1, folder
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path


def _record(run: Any, settings: dict[str, Any]) -> None:
    """Write the settings once the run folder is there."""
    path = run.folder / SETTINGS
    if not path.exists():
        kept = {k: v for k, v in settings.items() if k not in _FREE}
        atomic_write_text(path, json.dumps(kept, indent=2) + "\n")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no run of `pyro-vae train` ({SETTINGS} is missing)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict) or not {"data", "binarisation", "seed"} <= set(found):
        raise ConfigError(f"{path}: not the settings of a run")
    return found


def _check_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """Require of a continuation the settings of its run."""
    if not (folder / SETTINGS).exists():
        return
    # Where no schedule runs over the whole of them, the epochs only say when to stop.
    free = set() if settings["lr_schedule"] != "constant" or settings["warmup"] else {"epochs"}
    for name, before in _read_settings(folder).items():
        now = settings.get(name)
        if name not in free and (list(now) if isinstance(now, tuple) else now) != before:
            raise ConfigError(
                f"resume: {name} is {now!r}, but the run in {folder} has {before!r}; "
                f"use its settings (--config {folder / SETTINGS}), or another --out"
            )


def _open(run: str, device: str) -> tuple[Any, dict[str, Any]]:
    """Return the program of a run and its settings."""
    where, settings = resolve_device(device), _read_settings(Path(run))
    program = pv.load(run, device=where)
    shape = (1, 8, 8) if settings["data"] == "digits" else (1, 28, 28)
    return program, {"network": "mlp", "shape": shape, **settings}


# -- Data and programs -----------------------------------------------------------------------------


def _default_binarisation(model: str, data: str) -> Binarisation:
    if data == "mnist_static":
        return "static"
    return "dynamic" if model == "VAE" else "none"


def _splits(data: str, binarisation: str, seed: int) -> pv.data.Splits:
    chosen = None if binarisation == "none" else binarisation
    return pv.data.load(data, binarisation=chosen, seed=seed)


def _rows(splits: pv.data.Splits, x: torch.Tensor, network: str) -> torch.Tensor:
    """Return images as the network takes them."""
    return splits.images(x) if network == "conv" else x


def _binary(splits: pv.data.Splits, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return one draw of data that are drawn afresh in training."""
    if splits.transform is None:
        return x
    torch.manual_seed(seed)
    return splits.transform(x)  # what is binary already stays as it is


def _build(settings: dict[str, Any], splits: pv.data.Splits) -> Any:
    model, latent_dim = settings["model"], settings["latent_dim"]
    if settings["observation"] and model != "VAE":
        raise ConfigError(f"observation: {model} has no choice of it; leave --observation out")
    if model == "LinearVAE":
        if settings["network"] == "conv":
            raise ConfigError("network: LinearVAE has no network; leave --network out")
        return MODELS[model](math.prod(splits.shape), latent_dim)
    hidden = settings["hidden"]
    options: dict[str, Any] = {
        "hidden": (hidden,) if isinstance(hidden, int) else tuple(hidden),
        "network": settings["network"],
        "data_mean": _rows(splits, splits.train, settings["network"]).mean(0),
    }
    if model == "VAE":
        grey = settings["binarisation"] == "none"
        chosen = settings["observation"] or ("Gaussian" if grey else "Bernoulli")
        options["observation"] = _observation(chosen, settings["data"])
    size: Any = splits.shape if settings["network"] == "conv" else math.prod(splits.shape)
    return MODELS[model](size, latent_dim, **options)


def _observation(name: str, data: str) -> Any:
    """Return an observation with the options that suit grey levels of these data."""
    if name == "IsotropicGaussian":
        return partial(OBSERVATIONS[name], learn_scale=True)
    if name == "DiscretisedLogistic":
        return partial(OBSERVATIONS[name], levels=17 if data == "digits" else 256)
    return OBSERVATIONS[name]


# -- Judging and drawing ---------------------------------------------------------------------------


def _judge(program: Any, x: Any, samples: int, seed: int, progress: bool) -> dict[str, Any]:
    """Return the figures of one evaluation, ready for JSON."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    scored = pv.log_likelihood(program, x, samples=samples, progress=progress)
    elbo, found = pv.elbo(program, x), pv.diagnose(program, x)
    error = float(elbo.std()) / math.sqrt(len(elbo)) if len(elbo) > 1 else None
    return {
        "rows": len(x),
        "elbo": float(elbo.mean()),
        "elbo_stderr": error,
        "log_likelihood": scored.mean,
        "log_likelihood_stderr": scored.stderr if len(elbo) > 1 else None,
        "samples": samples,
        "median_ess": float(scored.ess.median()),
        "kl": found.kl,
        "active_units": found.active_units,
        "units": {site: value.numel() for site, value in found.variance.items()},
        "reconstruction": found.reconstruction,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }


def _table(figures: dict[str, Any]) -> str:
    """Return the figures as a table a person reads."""

    def value(name: str) -> str:
        error = figures[f"{name}_stderr"]
        return f"{figures[name]:8.2f}" + ("" if error is None else f" ± {error:.2f}")

    heading = "{data}, {split} split, {rows} data, binarisation {binarisation}".format(**figures)
    lines = [
        ("ELBO", value("elbo"), "nats per datum"),
        (
            "log-likelihood",
            value("log_likelihood"),
            f"nats per datum, K = {figures['samples']}",
        ),
        ("reconstruction", f"{figures['reconstruction']:8.2f}", "nats per datum, E_q log p(x | z)"),
    ]
    for site, kl in figures["kl"].items():
        active, units = figures["active_units"].get(site), figures["units"].get(site)
        lines.append((f"KL of {site}", f"{kl:8.2f}", "nats per datum"))
        if units is not None:
            lines.append(
                (
                    f"active units of {site}",
                    f"{active:5d} of {units}",
                    "variance of the mean > 0.01",
                )
            )
    body = "\n".join(f"  {name:<18}{number:<19}{note}" for name, number, note in lines)
    return f"{heading}\n{'─' * 66}\n{body}\n{'─' * 66}"


def _draw(vae: Any, splits: pv.data.Splits, run: Any, folder: Path, seed: int) -> list[str]:
    """Write the demo's figures; return their names."""
    torch.manual_seed(seed)
    some = splits.test[:24]
    generated: Any = pv.generate(vae, 100, mean=True)
    reconstructed: Any = pv.reconstruct(vae, some)
    codes: Any = pv.encode(vae, torch.cat([splits.train, splits.test]))
    figures = {
        "samples.png": pv.plots.samples(splits.images(generated), title=_drawn(100, True)),
        "reconstructions.png": pv.plots.reconstructions(
            splits.images(some), splits.images(reconstructed)
        ),
        "latent_map.png": pv.plots.latent_map(
            codes,
            torch.cat([splits.labels["train"], splits.labels["test"]]),
            title="Posterior means of training and test digits",
        ),
        "curves.png": pv.plots.curves(run.history),
    }
    for name, figure in figures.items():
        pv.plots.save(figure, folder / name)
    return list(figures)


def _drawn(n: int, mean: bool) -> str:
    return f"{n} draws from the prior" + (", decoded to E[x | z]" if mean else "")


def _write_npz(path: Path, images: torch.Tensor) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy())
    atomic_write_bytes(path, buffer.getvalue())
