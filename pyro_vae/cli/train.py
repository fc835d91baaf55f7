"""``pyro-vae train``."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import pyro_vae as pv
from pyro_vae.arguments import number
from pyro_vae.cli.datasets import default_binarization, default_model, kind_of, load_data
from pyro_vae.cli.options import (
    OBJECTIVES,
    Binarization,
    Model,
    Objective,
    Observation,
    Posterior,
)
from pyro_vae.cli.programs import build_program, check_options
from pyro_vae.cli.report import say
from pyro_vae.cli.runs import check_same_run, check_words, fresh_folder, record
from pyro_vae.errors import ConfigError


def train(
    model: Model | None = None,
    data: str = "digits",
    vocab: str | None = None,
    kinds: dict[str, Any] | None = None,
    binarization: Binarization | None = None,
    latent_dim: int = 20,
    hidden: int | tuple[int, ...] = (400,),
    network: Literal["mlp", "conv"] = "mlp",
    observation: Observation | None = None,
    posterior: Posterior = "Gaussian",
    objective: Objective = "elbo",
    nats: float = 0.5,
    num_particles: int = 1,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    momentum: float = 0.9,
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
        model: what is modelled: images by the first three, counts of words by the next five,
            chorales by DMM and VRNN, sentences by the next two, a table by TableVAE;
            null is TableVAE for a file .csv or .parquet, VAE for all else.
        data: data set: digits, mnist, mnist_static or fashion_mnist; 20news, 20news_etm,
            reuters (of the extra of that name), or a file .npz of counts, as
            scipy.sparse.save_npz writes it or with an array x; jsb; coco_captions, or a file .txt
            of sentences, one a line; a table, .csv or .parquet (needs pyarrow).
        vocab: text file of words, one a line: those of a file of counts (null numbers them), or
            those that are known in sentences (null are those that training lines have three times).
        kinds: kinds of a table's columns by name, where they do not show: real, positive, count,
            categorical, ordinal or censored, or a dict of `Column`'s arguments. Strings are
            categorical, whole numbers from 0 counts, other numbers real.
        binarization: none keeps grey levels; null is static for mnist_static, dynamic for other
            images of a VAE, none otherwise.
        latent_dim: latent units, or topics.
        hidden: widths of the encoder's hidden layers, as 400 or [200,200]; mirrored by a VAE's
            decoder; one width for sentences.
        network: kind of encoder and decoder (conv: hidden are channels).
        observation: p(x | z) of a VAE; null is Bernoulli for binary data, Gaussian for grey levels.
        posterior: q(z | x) of a VAE; the last three commit nats by construction.
        objective: what is maximised; analytic_elbo has less noise, free_bits, target_kl and lagging
            keep the posterior from collapsing; aae and wae hold the codes of all data to the prior,
            avb trains the posterior NoiseFed, vaegan compares images by a critic's features.
        nats: KL per unit that free_bits leaves free, or the whole KL that target_kl holds.
        num_particles: draws per datum behind the bound.
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
        resume: go on from the checkpoint in out; settings lets lr, beta and the like differ.
        checkpoint_every: epochs between checkpoints; null writes none.
        progress: show a progress bar.
    """
    settings = {k: v for k, v in locals().items() if k != "settings"}
    settings["model"] = model = model or default_model(data)
    settings["binarization"] = binarization = binarization or default_binarization(model, data)
    folder = Path(out) if out else fresh_folder(Path("runs") / f"{model.lower()}-{Path(data).stem}")
    if resume:
        if out is None:
            raise ConfigError("resume: needs the run folder, --out")
        check_same_run(folder, settings, renew=resume == "settings")
    check_options(settings)
    loaded = load_data(settings)
    torch.manual_seed(seed)
    program = build_program(settings, loaded)
    for column in getattr(program, "columns", ()):
        named = f", {len(column.categories)} categories" if column.named else ""
        say(f"  {column.name:<24}{column.kind} ({column.distribution}{named})")
    words = loaded.words
    if resume:
        check_words(folder, words)
    train, size = loaded.batches(batch_size)
    run = pv.fit(
        program,
        train,
        valid=loaded.rows("valid"),
        objective=OBJECTIVES[objective](settings, loaded.drawn("valid", seed, 1000)),
        epochs=epochs,
        **size,
        lr=lr,
        optimizer=_adam(lr, number("momentum", momentum, "[0, 1)")),
        lr_schedule=pv.schedules.cosine(1.0, 0.02) if lr_schedule == "cosine" else 1.0,
        beta=pv.schedules.linear(0.0, beta, over=warmup) if warmup else beta,
        clip_norm=clip_norm,
        patience=patience,
        transform=loaded.transform,
        callbacks=[lambda run: record(run, settings, words)],
        seed=seed,
        device=device,
        out=folder,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
    pv.plots.save(pv.plots.curves(run.history), folder / "curves.png")
    kept = "last" if objective in ("aae", "avb", "vaegan") else "best"
    say(f"{kept} epoch {run.best_epoch}: {_judged(run)} nats per datum")
    say(f"run folder: {folder}")
    if model != "Autoencoder":
        verb = {"documents": "topics"}.get(kind_of(model), "evaluate")
        say(f"next:       pyro-vae {verb} {folder}")


def _judged(run: pv.Run) -> str:
    """Return what the epoch that is kept is worth; a guide without a density has no ELBO."""
    bound = "valid_elbo" in run.history
    value = run.history["valid_elbo" if bound else "valid_objective"][run.best_epoch - 1]
    return f"validation {'ELBO' if bound else 'objective'} {value:.2f}"


def _adam(lr: float, momentum: float) -> Any:
    """Return Adam as a factory; None: the default of `fit`."""
    if momentum == 0.9:
        return None
    return partial(torch.optim.Adam, lr=lr, betas=(momentum, 0.999), fused=True)
