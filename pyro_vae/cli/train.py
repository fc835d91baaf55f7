"""``pyro-vae train``."""

import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import pyro_vae as pv
from pyro_vae.arguments import counted, number
from pyro_vae.cli.datasets import default_binarization, default_model, kind_of, load_data
from pyro_vae.cli.options import (
    BY_SIGNATURE,
    DEFAULT,
    MODELS,
    OBJECTIVES,
    Binarization,
    Objective,
    Observation,
    Posterior,
    in_small,
)
from pyro_vae.cli.own_program import is_own
from pyro_vae.cli.programs import build_program, check_options, require_answers
from pyro_vae.cli.report import say
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import check_words, files_of, fresh_folder, go_on, record, removed_if_empty
from pyro_vae.data.table_files import SUFFIXES, Table, read_table
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.storage.checkpoint import has_checkpoint
from pyro_vae.storage.paths import local_path
from pyro_vae.training.continuation import goes_on_by

MOMENTUM = 0.9  # of the Adam that `fit` makes


def train(
    model: str | None = None,
    options: dict[str, Any] | None = None,
    data: str = "digits",
    vocab: str | None = None,
    kinds: dict[str, Any] | None = None,
    binarization: Binarization | None = None,
    latent_dim: int | None = None,
    hidden: int | tuple[int, ...] | None = None,
    network: Literal["mlp", "conv"] | None = None,
    observation: Observation | None = None,
    posterior: Posterior = "Gaussian",
    objective: Objective | None = None,
    nats: float = 0.5,
    num_particles: int | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    momentum: float = MOMENTUM,
    lr_schedule: Literal["constant", "cosine"] = "constant",
    beta: float = 1.0,
    warmup: float = 0.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | None = None,
    resume: bool | Literal["settings"] = False,
    checkpoint_every: int | None = 10,
    progress: bool = True,
) -> None:
    """Train a model and write a run folder.

    Arguments:
        model: a program of your own, as my_program.py:Clicks (a class, a function that returns a
            program, or a program), or a name of pyro_vae.models; may stand first, without --model.
            Null is TableVAE for a file .csv or .parquet, VAE for all else.
        options: arguments of the model's constructor, each as --options.NAME VALUE.
        data: data set: digits, mnist, mnist_static or fashion_mnist, or a file of arrays for these
            models and for your own: .npz (arrays by the names of the model's arguments), .npy, .pt,
            .csv, .parquet (needs pyarrow) or a folder of images. For topic models 20news,
            20news_etm, reuters (of the extra of that name), or a file .npz of counts, as
            scipy.sparse.save_npz writes it or with one array (of several, x); for DMM and VRNN jsb;
            for sentences coco_captions, or a file .txt, one a line; for TableVAE .csv or .parquet.
            Of a file every 20th row validates, and the tenth after it tests.
        vocab: text file of words, one a line: those of a file of counts (null numbers them), or
            those that are known in sentences (null are those that training lines have three times).
        kinds: kinds of a table's columns by name, where they do not show: real, positive, count,
            categorical, ordinal or censored, or a dict of `Column`'s arguments. Strings are
            categorical, whole numbers from 0 counts, other numbers real.
        binarization: none keeps grey levels; null is none for a file (which is taken as it is),
            LinearVAE and Autoencoder, static for mnist_static, threshold for other images with
            labels, dynamic without.
        latent_dim: latent units, or topics; null is 20, or what the model's constructor has.
        hidden: widths of the encoder's hidden layers, as 400 or [200,200]; mirrored by a VAE's
            decoder; one width for sentences; null is 400, or what the model's constructor has.
        network: kind of encoder and decoder (conv: hidden are channels); null is conv for VQVAE,
            mlp for all else.
        observation: p(x | z) of a VAE; null is Bernoulli for binary data, Gaussian for grey levels.
        posterior: q(z | x) of a VAE; the last three commit nats by construction.
        objective: what is maximised, by the name of its class in Python, as IWAE, or in small
            letters; null is vq for VQVAE, disarm for SBN, elbo for all else.
            rloo, vimco, disarm and reweighted_wake_sleep take discrete latents; analytic_elbo has
            less noise, free_bits, target_kl and lagging keep the posterior from collapsing; aae and
            wae hold the codes of all data to the prior,
            avb trains the posterior NoiseFed, vaegan compares images by a critic's features.
        nats: KL per unit that free_bits leaves free, or the whole KL that target_kl holds.
        num_particles: draws per datum behind the bound; null is what the objective has (5 for iwae,
            dreg, vimco and reweighted_wake_sleep, 2 for rloo, 1 for others).
        epochs: passes over the training data.
        batch_size: data per step.
        lr: learning rate of Adam.
        momentum: first beta of Adam; the published recipe of ProdLDA takes 0.99.
        lr_schedule: constant, or a half cosine down to 2 % of lr.
        beta: weight of the KL.
        warmup: share of the run over which the KL weight rises from 0 to beta.
        clip_norm: largest norm of the gradient; null clips nothing.
        patience: epochs without a better validation ELBO after which to stop; null never stops.
        seed: of weights, noise, order and binarization.
        device: auto, cpu, cuda or cuda:N.
        out: run folder; null is a fresh one below runs.
        resume: go on from the checkpoint in out, with the settings of its run where no others are
            typed; settings lets lr, beta and the like differ.
        checkpoint_every: epochs between checkpoints; null writes none.
        progress: show a progress bar.
    """
    settings = _with_defaults({k: v for k, v in locals().items() if k != "settings"})
    model, chosen = settings["model"], settings["objective"]
    called = model.rpartition(":")[2].removesuffix(".py").rpartition("/")[2].lower()
    fresh = Path("runs") / f"{called}-{Path(data).stem}"
    folder = local_path("out", out) if out else None
    asked = settings
    if resume:
        if folder is None:
            raise ConfigError("resume: needs the run folder, --out")
        settings, asked = go_on(folder, settings, renew=resume == "settings")
    number("warmup", warmup, "[0, 1]")
    check_options(settings)
    loaded = load_data(asked)
    torch.manual_seed(seed)
    with _told_of_data(model, asked["data"]):
        program = build_program(asked, loaded)
    loaded = loaded.taken_by(program, data)
    if is_own(model):
        require_answers(program, loaded.rows("train"), model)
    _say_columns(getattr(program, "columns", ()), kinds or {}, loaded.source)
    train, size = loaded.batches(batch_size)
    begun = fresh_folder(fresh) if folder is None else None
    folder = folder or begun or fresh
    words, files = loaded.words, files_of(folder, asked)
    write = partial(record, folder, settings, words, files)
    if resume:
        check_words(folder, words)
    with (
        removed_if_empty(begun),
        _told_of_edits(),
        _told_of_data(model, asked["data"]),
        _recorded_at_the_latest(model, folder, write),
    ):
        run = pv.fit(
            program,
            train,
            valid=loaded.rows("valid"),
            objective=OBJECTIVES[chosen](settings, loaded.drawn("valid", seed, 1000)),
            epochs=epochs,
            **size,
            **_adam(lr, number("momentum", momentum, "[0, 1)")),
            lr_schedule=pv.schedules.cosine(1.0, 0.02) if lr_schedule == "cosine" else 1.0,
            beta=pv.schedules.linear(0.0, beta, over=warmup) if warmup else beta,
            clip_norm=clip_norm,
            patience=patience,
            transform=loaded.transform,
            callbacks=[lambda run: write()],
            seed=seed,
            device=device,
            out=folder,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
        )
    pv.plots.save(run.plot(), folder / "curves.png")
    write_report(folder)
    _say_epochs(run, "last" if chosen in ("aae", "avb", "vaegan") else "best", epochs, patience)
    say(f"run folder: {folder}")
    if model != "Autoencoder":
        verb = {"documents": "topics"}.get(kind_of(model), "evaluate")
        say(f"next:       pyro-vae {verb} {shlex.quote(str(folder))}")


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with what the model and the data choose where nothing is said."""
    found, data = dict(settings), settings["data"]
    found["model"] = model = settings["model"] or default_model(data)
    found["network"] = settings["network"] or ("conv" if model == "VQVAE" else "mlp")
    found["objective"] = in_small(settings["objective"] or DEFAULT.get(model, "elbo"))
    if model in MODELS and model not in BY_SIGNATURE:
        found["latent_dim"] = 20 if settings["latent_dim"] is None else settings["latent_dim"]
        found["hidden"] = (400,) if settings["hidden"] is None else settings["hidden"]
    found["binarization"] = settings["binarization"] or default_binarization(model, data)
    return found


def _say_epochs(run: pv.Run, kept: str, epochs: int, patience: int | None) -> None:
    """Say which epoch is kept, and after which one patience has ended the run, if it has.

    Said of a continuation, too: with as much patience it trains no more.
    """
    say(f"{kept} epoch {run.best_epoch}: {_judged(run)} nats per datum")
    done = len(run.history["epoch"])
    if patience is not None and run.stopped_early and done < epochs:
        waited = counted(patience, "epoch", "epochs")
        say(
            f"ended after epoch {done} of {epochs}, {waited} without a better one (--patience "
            f"{patience}); it goes on by --resume true --patience null"
        )


def _say_columns(columns: Any, kinds: dict[str, Any], table: Any) -> None:
    for column in columns:
        named = f", {counted(len(column.categories), 'category')}" if column.named else ""
        told = "" if column.name in kinds else about_whole_numbers(column, table)
        say(f"  {column.name:<24}{column.kind} ({column.distribution}{named}){told}")


def about_whole_numbers(column: Any, table: Any) -> str:
    """Return how to say that a column of whole numbers, which the file has as 3.0, has counts.

    Arguments:
        column: of the program.
        table: the data; nothing is said of others than a `Table`.
    """
    if column.kind != "real" or not isinstance(table, Table):
        return ""
    cells = table.whole[column.name].dropna()
    if (cells < 0).any() or (cells % 1 != 0).any():
        return ""
    kinds = json.dumps({column.name: "count"})
    return f"; whole numbers: --kinds '{kinds}' if they are counts"


@contextmanager
def _told_of_data(model: str, data: str) -> Iterator[None]:
    """Say which data those are that a program refuses: the default, or a table with empty cells."""
    try:
        yield
    except DataError as error:
        if is_own(model) and data == "digits":
            raise DataError(f"{error}; these are digits, the default of --data") from error
        if data.endswith(SUFFIXES) and re.search(r"\bnan\b|missing cells", str(error)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they have been shown
                frame = read_table(Path(data))
            names = [str(name) for name in frame.columns if frame[name].isna().any()]
            if names:
                raise DataError(f"{error}; {data} has empty cells in {', '.join(names)}") from error
        raise


@contextmanager
def _told_of_edits() -> Iterator[None]:
    """Say in words of the shell how a run goes on whose settings or code are others now."""
    try:
        yield
    except ConfigError as error:
        told = str(error).replace("resume='settings'", "--resume settings")
        raise ConfigError(told.replace("architecture.", "")) from error


@contextmanager
def _told_of_factors(model: str, folder: Path) -> Iterator[None]:
    """Say how a guide with one factor per datum is trained: it has none for rows that validate."""
    try:
        yield
    except (DataError, ProgramError) as error:
        if not re.match("valid: .*one factor per datum", str(error)):
            raise
        raise ConfigError(
            f"{model}: its guide has one factor per datum, and train holds rows back to validate "
            f"by, which have none; train it on all rows in Python, pv.fit(program, data, out="
            f"{str(folder)!r}), and go on by pyro-vae evaluate {shlex.quote(str(folder))} "
            f"--program {shlex.quote(model)} --data FILE"
        ) from error


@contextmanager
def _recorded_at_the_latest(model: str, folder: Path, write: Callable[[], None]) -> Iterator[None]:
    """Write the settings of a run that ends in its first epoch and leaves a checkpoint behind.

    Say of one that is interrupted how it goes on.
    """
    way_on = f"pyro-vae train --resume true --out {shlex.quote(str(folder))}"
    begins = not has_checkpoint(folder)
    try:
        with goes_on_by(way_on), _told_of_factors(model, folder):
            yield
    except BaseException:
        if begins and has_checkpoint(folder):
            write()
        raise


def _judged(run: pv.Run) -> str:
    """Return what the epoch that is kept is worth; a guide without a density has no ELBO."""
    bound = "valid_elbo" in run.history
    value = run.history["valid_elbo" if bound else "valid_objective"][run.best_epoch - 1]
    name = "objective" if not bound else "log-likelihood" if run.without_latents else "ELBO"
    return f"validation {name} {value:.2f}"


def _adam(lr: float, momentum: float) -> dict[str, Any]:
    """Return the optimizer as arguments of `fit`.

    With a rate alone `fit` makes its own Adam, which is the fastest. One of another momentum is
    made here, and brings its rate along: `fit` refuses two.
    """
    if momentum == MOMENTUM:
        return {"lr": lr}
    return {"optimizer": partial(torch.optim.Adam, lr=lr, betas=(momentum, 0.999), fused=True)}
