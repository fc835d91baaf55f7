"""``pv.fit``: stochastic variational inference for any program, from data to judged weights."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae.errors import ConfigError
from pyro_vae.inference.batch import Batch, check_finite
from pyro_vae.inference.bounds import mean_bound, mean_elbo, positive
from pyro_vae.inference.compiled import Mode
from pyro_vae.inference.handlers import Beta, validation
from pyro_vae.inference.objectives import (
    ELBO,
    Objective,
    OptimiserFactory,
    TermsObjective,
    as_objective,
)
from pyro_vae.inference.program import Program
from pyro_vae.training.checkpoint import read_checkpoint, write_checkpoint
from pyro_vae.training.device import resolve_device
from pyro_vae.training.feed import LoaderFeed, TensorFeed, make_feed
from pyro_vae.training.folder import RunFolder
from pyro_vae.training.history import History
from pyro_vae.training.saving import save, state_modules
from pyro_vae.training.schedules import Schedule, as_schedule
from pyro_vae.training.step import Stepper

# Training rows on which the un-annealed ELBO is measured where the loss does not tell it.
_JUDGED_ROWS = 1024


@dataclass
class Run:
    """What a training run left behind.

    Arguments:
        program: What was trained, as it was given; it holds the best weights where there was a
            validation set, the last ones otherwise.
        history: One array per column (``epoch``, ``loss``, ``elbo``, ``valid_elbo``, ``beta``,
            ``lr``, ``seconds``), in nats per datum where they are bounds.
        best_epoch: The epoch whose weights the program holds.
        steps: Optimiser steps taken.
        device: Where it trained.
        folder: The run folder, if any.
        stopped_early: Whether patience or a callback ended it.
    """

    program: Any
    history: dict[str, np.ndarray]
    best_epoch: int
    steps: int
    device: torch.device
    folder: Path | None = None
    stopped_early: bool = False

    def __repr__(self) -> str:
        last = {k: float(v[-1]) for k, v in self.history.items() if len(v)}
        numbers = ", ".join(f"{k}={v:.4g}" for k, v in last.items())
        return f"Run(best_epoch={self.best_epoch}, steps={self.steps}, {numbers})"


def fit(
    program: Any,
    data: Any,
    *,
    valid: Any = None,
    objective: Any = None,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimiser: OptimiserFactory | None = None,
    lr_schedule: Schedule | float = 1.0,
    clip_norm: float | None = None,
    beta: float | Schedule | Mapping[str, float | Schedule] = 1.0,
    patience: int | None = None,
    transform: Callable[[Batch], Batch] | None = None,
    callbacks: Iterable[Callable[[Run], Any]] = (),
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: Mode = False,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    r"""Train a program by stochastic variational inference.

    .. math:: \min_{\theta, \phi} \; -\frac{1}{N} \sum_n \mathbb{E}_{q_\phi(z \mid x_n)}
       [\log p_\theta(x_n \mid z) - \beta\,(\log q_\phi(z \mid x_n) - \log p_\theta(z))]

    Arguments:
        program: Anything with ``.model`` and ``.guide``; functions: ``pv.Program(model, guide)``.
        data: Training data, one row per datum: tensor, array, tuple or dict of them, ``Dataset``,
            or ``DataLoader``. Tensors that fit are kept on the device and indexed there.
        valid: Validation data: its un-annealed ELBO is measured each epoch, and the weights of the
            best epoch are kept (best by the objective's own bound, where it is another).
        objective: An objective or any ``pyro.infer.ELBO``; None is ``pv.ELBO()``.
        epochs: Passes over the data.
        batch_size: B (a ``DataLoader`` brings its own).
        lr: Learning rate of the default optimiser, Adam.
        optimiser: Factory ``parameters -> torch.optim.Optimizer`` in place of it.
        lr_schedule: Multiplier of the learning rate, a function of the progress in [0, 1].
        clip_norm: Largest global norm of the gradient.
        beta: KL weight: a number (0 is allowed), a function of the progress (``pv.schedules``), or
            one of these per latent site.
        patience: Epochs without a better validation ELBO after which to stop.
        transform: Applied to each batch on the device (``torch.bernoulli``: dynamic binarisation).
        callbacks: Called with the ``Run`` so far after each epoch; a true answer stops the run.
        seed: Of noise and order; the global random state is left as found.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        compile: False runs model and guide at each step; ``"trace"`` traces them once per batch
            shape and runs the tensor graph, with equal numbers; True also compiles the graph
            (Inductor; the first step of each shape waits for the compiler).
        out: Run folder: ``config.json``, weights, ``history.csv``, TensorBoard events, checkpoints.
        checkpoint_every: Epochs between checkpoints in ``out``.
        resume: Go on from the checkpoint in ``out``, if there is one; bit-identical on the CPU.
        progress: Show a progress bar.

    Raises:
        DataError: Data that the program cannot take; nothing is changed.
        ConfigError: An argument out of range, or ``out`` holds another run.
        TrainingDiverged: A loss or gradient is not finite; weights are those before that step.
        DeviceError: The device is not there.
    """
    positive("epochs", epochs)
    positive("batch_size", batch_size)
    for name, count in (("patience", patience), ("checkpoint_every", checkpoint_every)):
        if count is not None:
            positive(name, count)
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ConfigError(f"clip_norm: got {clip_norm!r}, expected a positive number")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed: got {seed!r}, expected an integer of at least 0")
    if checkpoint_every is not None and out is None:
        raise ConfigError("checkpoint_every: needs a run folder, out=...")
    if resume and out is None:
        raise ConfigError("resume: needs the run folder, out=...")
    if patience is not None and valid is None:
        raise ConfigError("patience: early stopping needs validation data, valid=...")
    wrapped = Program.of(program)
    wrapped.to(resolve_device(device))
    feed, judged = _prepare_data(wrapped, data, valid, batch_size, transform)
    weights = _beta_schedule(beta, wrapped.sites.local)
    rates = as_schedule("lr_schedule", lr_schedule)
    factory = optimiser or adam(lr)
    chosen = as_objective(objective)
    if isinstance(chosen, nn.Module):
        chosen.to(wrapped.device)
    folder = RunFolder.open(out, resume) if out is not None else None
    loop = _Loop(
        program=program,
        wrapped=wrapped,
        feed=feed,
        valid=judged,
        objective=chosen,
        stepper=Stepper(
            wrapped, chosen, factory, clip_norm=clip_norm, size=feed.size, compile=compile
        ),
        epochs=epochs,
        lr_schedule=rates,
        beta=weights,
        patience=patience,
        transform=transform,
        callbacks=tuple(callbacks),
        seed=seed,
        folder=folder,
        checkpoint_every=checkpoint_every,
        progress=progress,
        settings={
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "clip_norm": clip_norm,
            "seed": seed,
            "objective": _objective_name(chosen),
            "data": feed.size,
        },
    )
    with torch.random.fork_rng([wrapped.device] if wrapped.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return loop.run()


def adam(lr: float) -> OptimiserFactory:
    """Return the factory of the default optimiser, Adam in one fused kernel.

    Raises:
        ConfigError: A learning rate that is not positive.
    """
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ConfigError(f"lr: got {lr!r}, expected a positive number")
    return partial(torch.optim.Adam, lr=lr, fused=True)


@dataclass
class _Loop:
    """The epochs of one run."""

    program: Any
    wrapped: Program
    feed: TensorFeed | LoaderFeed
    valid: Batch | None
    objective: Objective
    stepper: Stepper
    epochs: int
    lr_schedule: Schedule
    beta: Callable[[float], Beta | None]
    patience: int | None
    transform: Callable[[Batch], Batch] | None
    callbacks: tuple[Callable[[Run], Any], ...]
    seed: int
    folder: RunFolder | None
    checkpoint_every: int | None
    progress: bool
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self.history = History()
        self.epoch = 0
        self.steps = 0
        self.best_epoch = 0
        self.best_elbo = -math.inf
        self.best: dict[str, Tensor] | None = None
        self.stopped = False

    def run(self) -> Run:
        self._resume()  # first: a checkpoint that does not fit must leave the folder as it is
        if self.folder is not None:
            self.folder.write_config(self.wrapped, self.settings)
        total = self.epochs * len(self.feed)
        bar = tqdm(total=total, initial=self.steps, disable=not self.progress, unit="step")
        try:
            while self.epoch < self.epochs and not self.stopped:
                self._epoch(bar)
        finally:
            bar.close()
            if self.folder is not None:
                self.folder.close(self.history)
        if self.best is not None:
            self.wrapped.load_state_dict(self.best)
        else:
            self.best_epoch = self.epoch
        if self.folder is not None:
            save(self.program, self.folder.path)
        return self._so_far()

    def _epoch(self, bar: Any) -> None:
        start = time.perf_counter()
        losses = self._steps(bar)
        self.epoch += 1
        row: dict[str, float] = {"epoch": float(self.epoch)}
        names = [update.name for update in self.stepper.updates]
        row |= dict(zip(names, torch.stack(losses).tolist(), strict=True))  # one sync per epoch
        row |= self._judge(row.get("loss", math.nan))
        row["lr"] = self.stepper.optimisers[0].param_groups[0]["lr"]
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        self._remember_best(row)
        bar.set_postfix({k: f"{row[k]:.2f}" for k in ("elbo", "valid_elbo") if k in row})
        if self.folder is not None:
            self.folder.log(row, self.epoch)
        so_far = self._so_far()
        stops = [bool(callback(so_far)) for callback in self.callbacks]
        self.stopped = self.stopped or any(stops)
        due = self.checkpoint_every and self.epoch % self.checkpoint_every == 0
        if self.folder is not None and due:
            self._checkpoint()

    def _steps(self, bar: Any) -> list[Tensor]:
        """Train for one epoch and return the mean losses, on the device."""
        totals: list[Tensor] | None = None
        total = max(1, self.epochs * len(self.feed) - 1)
        self.wrapped.train()
        with self.wrapped.running(), validation(False):
            for batch in self.feed.epoch(_epoch_seed(self.seed, self.epoch)):
                if self.transform is not None:
                    batch = self.transform(batch)
                progress = self.steps / total
                self.stepper.set_lr(self.lr_schedule(progress))
                losses = self.stepper.step(batch, self.beta(progress))
                if totals is None:
                    totals = losses
                else:
                    totals = [a + b for a, b in zip(totals, losses, strict=True)]
                self.steps += 1
                bar.update()
        self.wrapped.eval()
        assert totals is not None  # a feed has at least one batch
        return [value / len(self.feed) for value in totals]

    def _judge(self, loss: float) -> dict[str, float]:
        """Measure the un-annealed ELBO on training and validation data, in eval mode."""
        row = {"elbo": -loss}
        beta = self.beta(self.steps / max(1, self.epochs * len(self.feed)))
        if beta is not None or not isinstance(self.objective, ELBO):
            sample = self.feed.sample(_JUDGED_ROWS)
            sample = self.transform(sample) if self.transform is not None else sample
            row["elbo"] = self._mean_elbo(sample)
        if self.valid is not None:
            row["valid_elbo"] = self._mean_elbo(self.valid)
            if self._has_own_bound():
                row["valid_bound"] = self._mean_elbo(self.valid, self.objective)
        if isinstance(beta, float):
            row["beta"] = beta
        elif beta is None:
            row["beta"] = 1.0
        return row

    def _has_own_bound(self) -> bool:
        return isinstance(self.objective, TermsObjective) and not isinstance(self.objective, ELBO)

    def _mean_elbo(self, batch: Batch, objective: Any = None) -> float:
        # The same noise each epoch: epochs are compared, and training does not depend on judging.
        cuda = [self.wrapped.device] if self.wrapped.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(self.seed)
            if objective is not None:
                return mean_bound(self.wrapped, batch, objective, size=self.feed.size)
            return mean_elbo(self.wrapped, batch, size=self.feed.size)

    def _remember_best(self, row: dict[str, float]) -> None:
        if self.valid is None:
            return
        # An objective that is a bound of its own is judged by it: IWAE does not raise the ELBO.
        score = row.get("valid_bound", row["valid_elbo"])
        if score > self.best_elbo:
            self.best_elbo, self.best_epoch = score, self.epoch
            self.best = {k: v.clone() for k, v in self.wrapped.state_dict().items()}
        elif self.patience is not None and self.epoch - self.best_epoch >= self.patience:
            self.stopped = True

    def _so_far(self) -> Run:
        return Run(
            program=self.program,
            history=self.history.arrays(),
            best_epoch=self.best_epoch,
            steps=self.steps,
            device=self.wrapped.device,
            folder=self.folder.path if self.folder else None,
            stopped_early=self.stopped,
        )

    def _checkpoint(self) -> None:
        assert self.folder is not None  # the caller has asked
        meta = {
            "epoch": self.epoch,
            "steps": self.steps,
            "best_epoch": self.best_epoch,
            "best_elbo": self.best_elbo if math.isfinite(self.best_elbo) else None,
            "stopped": self.stopped,
            "history": self.history.as_json(),
            "seed": self.seed,
            "batches": len(self.feed),
        }
        modules = state_modules(self.wrapped, self.objective)
        write_checkpoint(self.folder.path, modules, self.stepper.optimisers, self.best, meta)
        self.history.write_csv(self.folder.path / "history.csv")

    def _resume(self) -> None:
        if self.folder is None or not self.folder.has_checkpoint:
            return
        modules = state_modules(self.wrapped, self.objective)
        expected = {"seed": self.seed, "batches": len(self.feed)}
        path, optimisers = self.folder.path, self.stepper.optimisers
        best, meta = read_checkpoint(path, modules, optimisers, expected)
        device = self.wrapped.device
        self.best = {k: v.to(device) for k, v in best.items()} or None
        self.epoch, self.steps = meta["epoch"], meta["steps"]
        self.best_epoch, self.stopped = meta["best_epoch"], meta["stopped"]
        self.best_elbo = -math.inf if meta["best_elbo"] is None else meta["best_elbo"]
        self.history = History(meta["history"])


def _prepare_data(
    program: Program,
    data: Any,
    valid: Any,
    batch_size: int,
    transform: Callable[[Batch], Batch] | None,
) -> tuple[TensorFeed | LoaderFeed, Batch | None]:
    """Check all data before anything changes, and return the feed and the validation batch."""
    feed = make_feed(program, data, batch_size)
    with torch.random.fork_rng([program.device] if program.device.type == "cuda" else []):
        first = feed.first()
        program.read(transform(first) if transform is not None else first)
    if isinstance(feed, TensorFeed):
        if transform is None:
            program.check(feed.data)
        else:
            check_finite(feed.data)
    if valid is None:
        return feed, None
    judged = program.adapt(valid)
    program.check(judged)
    return feed, judged


def _beta_schedule(
    beta: float | Schedule | Mapping[str, float | Schedule], sites: tuple[str, ...]
) -> Callable[[float], Beta | None]:
    """Return the KL weight as a function of the progress; None where it is 1 throughout."""
    if isinstance(beta, Mapping):
        unknown = [site for site in beta if site not in sites]
        if unknown:
            raise ConfigError(f"beta: got site {unknown[0]!r}, expected one of {list(sites)}")
        schedules = {site: as_schedule(f"beta[{site!r}]", b) for site, b in beta.items()}
        return lambda t: {site: schedule(t) for site, schedule in schedules.items()}
    schedule = as_schedule("beta", beta)
    if not callable(beta) and float(beta) == 1.0:
        return lambda t: None
    return schedule


def _epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed for one epoch's order: known without having run the epochs before it."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _objective_name(objective: Any) -> str:
    return type(getattr(objective, "elbo", objective)).__name__
