"""The epochs of a run: train, judge, remember the best, keep what a continuation needs."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.callers import of_user
from pyro_vae.device import seeded
from pyro_vae.errors import DataError, TrainingDiverged
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.objective import Objective
from pyro_vae.interrupts import end_if_asked, training_ends
from pyro_vae.program.batches.batch import Batch, map_batch, num_rows
from pyro_vae.program.bounds import mean_bound, mean_elbo
from pyro_vae.program.handlers import Beta, validation
from pyro_vae.program.parameters.modules import frozen_parts, trainable_parts
from pyro_vae.program.program import Program
from pyro_vae.progress import progress_bar
from pyro_vae.storage.checkpoint import Checkpoint
from pyro_vae.storage.history import History
from pyro_vae.storage.loggers import Loggers
from pyro_vae.storage.random_state import (
    seed_outside_torch,
    set_random_state,
    take_random_state,
)
from pyro_vae.storage.run_folder import RunFolder
from pyro_vae.training.averaged_weights import AveragedWeights
from pyro_vae.training.continuation import Continued
from pyro_vae.training.feed import TensorFeed
from pyro_vae.training.limits import Limits
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.mean_losses import Means
from pyro_vae.training.parallel import World
from pyro_vae.training.run import Run
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.settings import shared_settings
from pyro_vae.training.step import Stepper
from pyro_vae.training.validation import Validation

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    pass

# Training rows on which the un-annealed ELBO is measured where the loss does not tell it.
_JUDGED_ROWS = 1024


@dataclass
class Loop(Continued):
    """The epochs of one run."""

    program: Any
    wrapped: Program
    feed: TensorFeed | LoaderFeed
    valid: Validation | None
    objective: Objective
    stepper: Stepper
    lr_schedule: Schedule
    beta: Callable[[float], Beta | None]
    transform: Callable[[Batch], Batch] | None
    callbacks: tuple[Callable[[Run], Any], ...]
    seed: int
    folder: RunFolder | None
    limits: Limits
    loggers: Loggers
    progress: bool
    settings: dict[str, Any]
    renew: bool
    world: World
    precision: Callable[[], AbstractContextManager[None]]
    average: AveragedWeights | None = None

    def __post_init__(self) -> None:
        self.history = History()
        self.epoch = 0
        self.steps = 0
        self.best_epoch = 0
        self.best_elbo = -math.inf
        self.best: dict[str, Tensor] | None = None
        self.frozen = frozen_parts(self.wrapped)
        self.stopped = False  # by a callback; patience is worked out from the epochs
        self.told_of_nan = False
        self.moved = False  # whether this call has taken a step
        self.position, self.seen = 0, 0.0  # batches and rows of the running epoch that are done
        self.sums: Means | None = None  # of the running epoch
        self.cut = False  # whether steps or minutes have ended the run within an epoch
        self.checkpoint: Checkpoint | None = None
        self.starts: list[Tensor] = []  # of the loader's generators, where the epoch begins
        self.changes: list[str] = []  # what this continuation was asked to do otherwise
        self.plain = None  # values in Python that a run with a folder moves
        # All processes know the folder, to resume from; one writes.
        self.writes = self.folder if self.world.main else None

    def run(self) -> Run:
        """Train to the last epoch, or until patience or a callback ends it."""
        held = nullcontext() if self.writes is None else self.writes.held()
        telling = self.loggers.opened(self.settings)
        with held, modes_kept(self.wrapped, self.objective), telling:
            self._resume()  # first: a checkpoint that does not fit must leave the folder as it is
            self._start_together()
            error = self._train_and_leave()
            if error is not None:
                raise error
        self.world.wait()  # what is in the folder is there for all
        return self._so_far()

    def _start_together(self) -> None:
        if self.valid is not None:
            self.valid.require_read()
        facts = {
            "rows of data": self.feed.size,
            "batch size": self.feed.batch_size or 0,
            "batches": len(self.feed),
            "epochs": self.limits.epochs,
            "steps": self.limits.max_steps,
            "minutes": self.limits.max_minutes,
            "steps done": self.steps,
            "seed": self.seed,
            "updates": [
                f"{update.name}, {update.repeats} times" for update in self.stepper.updates
            ],
            "patience": self.limits.patience,
            **shared_settings(self.settings, self.feed, self.valid),
        }
        self.world.start(self._modules(), facts)

    def _train_and_leave(self) -> Exception | None:
        """Train, and leave the run behind however it ends; return the error of a last write."""
        try:
            with training_ends():
                self._train()
            if self.best is None:
                self.best_epoch = self.epoch
            return self._leave_behind()
        except BaseException as error:
            try:  # at once: an interrupt that came in the midst of another one is raised here
                failed = self._leave_behind()
            except (KeyboardInterrupt, SystemExit):
                failed = self._leave_behind_all_the_same()
            if failed is not None:  # must not hide what ended the run
                warnings.warn(f"out: the ended run was not saved: {failed}", stacklevel=of_user())
            elif isinstance(error, TrainingDiverged):
                error.args = (f"{error}{self._remedy()}",)
            elif not isinstance(error, Exception):  # Ctrl-C, a signal
                self._say_how_to_go_on()
            raise

    def _train(self) -> None:
        if self.steps:  # of a run that goes on, on the same data
            self._note_rows()
        shown = self.progress and self.world.main
        self._keep()
        with progress_bar(total=self._total, initial=self.steps, shown=shown, unit="step") as bar:
            while self.epoch < self.limits.epochs and not self._ended():
                self._epoch(bar)
                end_if_asked()  # after the last one too: the other processes hear of it

    def _note_rows(self) -> None:
        feed, plain = self.feed, self.transform is None
        rows = feed.data if plain and isinstance(feed, TensorFeed) else None
        self.wrapped.rows.note_trained(rows)

    def _ended(self) -> bool:
        early = self.stopped or self.cut or self._out_of_patience()
        return early or (self.position == 0 and self.limits.spent(self.steps, self.world))

    def _epoch(self, bar: Any) -> None:
        start = time.perf_counter()
        losses = self._steps(bar)
        if not self.position:
            return
        if not self.cut:
            self.position, self.seen, self.sums = 0, 0.0, None
        self.epoch += 1
        row: dict[str, float] = {"epoch": float(self.epoch)}
        names = [update.name for update in self.stepper.updates]
        row |= dict(zip(names, torch.stack(losses).tolist(), strict=True))  # one sync per epoch
        with nullcontext() if self.average is None else self.average.in_place():
            row |= self._judge(row.get("loss", math.nan))
            self._remember_best(row)
        row["lr"] = float(self.stepper.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        bar.set_postfix({k: f"{row[k]:.2f}" for k in ("elbo", "valid_elbo") if k in row})
        self.loggers.log(row, self.epoch)
        if self.writes is not None:
            self.writes.log(row, self.epoch)
        try:
            self.stopped = self.world.any(self._call_back())
        finally:
            if not self.cut:  # a continuation of a cut epoch has yet to judge it
                self._keep()  # after the callbacks: one may draw random numbers
        if not self.cut and self.limits.after_epoch(self.epoch):
            self._write_if_possible(f"epoch {self.epoch}")

    def _call_back(self) -> bool:
        """Call the callbacks; return whether one asks for the end."""
        if not self.callbacks:
            if self.stepper.watched:
                self.stepper.look()
            return False
        so_far, before = self._so_far(), trainable_parts(self.wrapped)
        with torch.enable_grad():  # one that turns gradients off has them back afterwards
            answers = [bool(callback(so_far)) for callback in self.callbacks]  # all are asked
        self._freeze(before)
        self.stepper.doubt()
        return any(answers)

    def _freeze(self, before: list[nn.Module]) -> None:
        """Keep what a callback has frozen in eval mode, and let what it has thawed go.

        All parts are in eval mode while callbacks run: weights alone tell.
        """
        if not before:
            return
        trained = set(trainable_parts(self.wrapped))
        still = [
            p for p in self.frozen if p not in trained and next(p.parameters(), None) is not None
        ]
        lost = [part for part in before if part not in trained]
        self.frozen = [inner for part in [*still, *lost] for inner in part.modules()]

    def _steps(self, bar: Any) -> list[Tensor]:
        """Train for one epoch and return the mean losses per datum, on the device.

        Raises:
            DataError: It has no batches.
        """
        sums = self.sums = self.sums or Means(len(self.stepper.updates))
        total, batch = max(1, self._total - 1), None
        # Tensors were checked as a whole; what a loader yields or a transform makes is new here.
        made = isinstance(self.feed, LoaderFeed) or self.transform is not None
        unseen = made and not self.moved
        self.wrapped.train()
        for part in self.frozen:
            part.training = False
        batches = self._batches()
        with (
            self.wrapped.answering(),
            validation(False),
            self.stepper.in_a_row(),
            self.precision(),
            _lone_rows_told(),
        ):
            for batch in batches:
                end_if_asked()
                if self.transform is not None:
                    batch = self.transform(self._own_copy(batch))
                if unseen:
                    self.wrapped.read(batch)
                    self.wrapped.check(batch)
                progress = min(1.0, self.steps / total)  # a loader may yield more than it says
                self.stepper.rates.set(self.lr_schedule(progress))
                with self.world.together():
                    losses = self.stepper.step(batch, self.beta(progress))
                sums.add(losses, self.world.rows(batch))
                self.seen += self.world.rows(batch)
                self.steps, self.position = self.steps + 1, self.position + 1
                if self.average is not None:
                    self.average.follow(self.steps)
                if not self.moved:
                    self._start()
                bar.update()
                if self.writes is not None:
                    self.writes.beat()
                    if self.limits.within_epoch(self.steps):
                        self.stepper.check(batch)
                        self._keep()
                        self._write_if_possible(f"step {self.steps}")
            if batch is not None:
                self.stepper.check(batch)  # before any weight is judged or kept
            self.world.settle()
            if self.cut and self.position:
                self._keep()
        if isinstance(self.feed, LoaderFeed) and not self.cut:
            self.feed.require_all_rows(self.seen)
        self.wrapped.eval()
        if self.position:
            return sums.over(self.world)
        if self.cut:  # its time was over before its first batch came
            return []
        raise DataError(
            f"data: epoch {self.epoch + 1} had no batches, expected all rows in each; give an "
            "object whose __iter__ begins anew each time"
        )

    def _own_copy(self, batch: Batch) -> Batch:
        """Return what a transform in place may write to: a loader's batch may be the caller's."""
        made = isinstance(self.feed, LoaderFeed)
        return map_batch(torch.clone, batch) if made else batch

    def _batches(self) -> Iterator[Batch]:
        """Yield what is left of the epoch, until the run has spent its steps or minutes.

        The batches that are done are read once more, for a feed is known by its beginning; what
        draws from the global generators meanwhile leaves them as they were.
        """
        words = (self.epoch, self.position) if self.position else (self.epoch,)
        self.world.reseed(self.seed, *words)
        if self.world.size > 1:
            seed_outside_torch(self.world.seed(self.seed, *words))
        batches = self.feed.epoch(_epoch_seed(self.seed, self.epoch), self.epoch)
        if self.position:
            state = take_random_state(self.wrapped.device)
            for _ in zip(range(self.position), batches, strict=False):
                pass
            set_random_state(state, self.wrapped.device)
        for batch in batches:
            if self.limits.spent(self.steps, self.world):
                self.cut = True
                return
            yield batch

    def _start(self) -> None:
        """Write the configuration once a step has succeeded: what fails before leaves no folder.

        The guide has the posteriors of these rows from now on, and of those before until then.

        A checkpoint is tried then, too: what no file can hold is found now, not after the run.
        """
        self._note_rows()
        if self.writes is not None:
            self._take().check(self.writes.path)
            settings = {"epochs": self.limits.epochs, **self.settings}
            self.writes.write_config(self.wrapped, settings, self.changes)
            self.writes.publish()
        self.moved = True

    def _judge(self, loss: float) -> dict[str, float]:
        """Measure the un-annealed ELBO on training and validation data, in eval mode.

        A guide or a prior without a density has none: the objective's own measure is all there is.
        """
        beta = self.beta(min(1.0, self.steps / max(1, self._total)))
        sites = self.wrapped.sites
        implicit = bool(sites.implicit or sites.implicit_prior)
        row = {} if implicit else {"elbo": -loss}
        told = isinstance(self.objective, ELBO) and beta is None and self.average is None
        if not implicit and not told:
            sample = self.feed.sample(self._rows_to_judge())
            sample = self.transform(sample) if self.transform is not None else sample
            row["elbo"] = self._mean_elbo([self._own_part(sample)])
        if self.valid is not None:
            if not implicit:
                row["valid_elbo"] = self._mean_elbo(self.valid.pieces())
            if self._has_own_bound():
                row[self._own_name] = self._mean_elbo(self.valid.pieces(), self.objective)
        if isinstance(beta, Mapping):
            return row | {f"beta[{site}]": float(value) for site, value in beta.items()}
        return row | {"beta": 1.0 if beta is None else float(beta)}

    def _rows_to_judge(self) -> int:
        """Return how many rows to look at: as many as the program takes, where it fixes that."""
        if self.wrapped.sites.size is not None:
            return self.feed.size
        return self.wrapped.rows.fixed_to or _JUDGED_ROWS

    @property
    def _own_name(self) -> str:
        return "valid_bound" if getattr(self.objective, "is_bound", True) else "valid_objective"

    def _has_own_bound(self) -> bool:
        own = callable(getattr(self.objective, "per_datum", None))
        return own and not isinstance(self.objective, ELBO)

    def _own_part(self, sample: Batch) -> tuple[Batch, float]:
        """Return this process's rows of a sample, and for how many of all they stand."""
        if isinstance(self.feed, LoaderFeed) and self.feed.sharded:
            return sample, num_rows(sample)
        part = self.world.share(sample)
        return part, self.world.rows(part)

    def _mean_elbo(self, pieces: Iterable[tuple[Batch, float]], objective: Any = None) -> float:
        """Return the mean over the rows of all processes, in eval mode."""
        total = torch.zeros(2, dtype=torch.float64)
        # The same noise each epoch: epochs are compared, and training does not depend on judging.
        with seeded(self.wrapped.device, self.world.seed(self.seed)), modes_kept(objective):
            if isinstance(objective, nn.Module):
                objective.eval()  # a critic's own moments must not follow the validation rows
            for part, rows in pieces:
                end_if_asked()
                if self.writes is not None:
                    self.writes.beat()
                if objective is not None:
                    value = mean_bound(self.wrapped, part, objective, size=self.feed.size)
                else:
                    value = mean_elbo(self.wrapped, part, size=self.feed.size)
                total += torch.tensor([value * rows, rows], dtype=torch.float64)
        total = self.world.sum(total)
        return (total[0] / total[1]).item()

    def _remember_best(self, row: dict[str, float]) -> None:
        if self.valid is None or not getattr(self.objective, "ranks_epochs", True):
            return
        # An objective of its own is judged by itself: IWAE does not raise the ELBO.
        name = self._own_name if self._own_name in row else "valid_elbo"
        score = row[name]
        if math.isnan(score) and not self.told_of_nan:
            self.told_of_nan = True
            warnings.warn(
                f"valid: {name} of epoch {self.epoch} is nan, and such an epoch can not be the "
                "best; look at the validation rows, and at what the program makes of them",
                UserWarning,
                stacklevel=of_user(),
            )
        if score > self.best_elbo:
            self.best_elbo, self.best_epoch = score, self.epoch
            state = self.wrapped.state_dict()
            self.best = {
                k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v)
                for k, v in state.items()
            }

    def _so_far(self) -> Run:
        sites = self.wrapped.sites
        return Run(
            program=self.program,
            history=self.history.arrays(),
            best_epoch=self.best_epoch,
            steps=self.steps,
            device=self.wrapped.device,
            folder=self.folder.name if self.folder else None,
            stopped_early=self.stopped or self.cut or self._out_of_patience(),
            rank=self.world.rank,
            world_size=self.world.size,
            compiled=self.stepper.compiled,
            judged="weights" if self.average is None else f"ema of decay {self.average.decay:g}",
            without_latents=not (sites.local or sites.global_),
        )


@contextmanager
def modes_kept(*things: Any) -> Iterator[None]:
    """Put each module back into the mode, training or evaluation, that it was in before."""
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _lone_rows_told() -> Iterator[None]:
    """Say what a batch of one row lacks, where batch normalisation takes its variance.

    Raises:
        DataError: In the place of torch's own error.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "got a batch of one row, expected at least 2: batch normalisation knows no variance of "
            f"one ({str(error).splitlines()[0]}); set batch_size to 2 or more"
        ) from error


def _epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed for one epoch's order: known without having run the epochs before it."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
