"""The epochs of a run: train, judge, remember the best, keep what a continuation needs."""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.arguments import typed
from pyro_vae.device import seeded
from pyro_vae.errors import DataError, TrainingDiverged
from pyro_vae.frames import to_frame
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.objective import Objective
from pyro_vae.names import Answer
from pyro_vae.program.batch import Batch, map_batch, num_rows
from pyro_vae.program.bounds import mean_bound, mean_elbo
from pyro_vae.program.handlers import Beta, validation
from pyro_vae.program.modules import frozen_parts, trainable_parts
from pyro_vae.program.program import Program
from pyro_vae.progress import progress_bar
from pyro_vae.storage.checkpoint import Checkpoint, Progress, read_checkpoint
from pyro_vae.storage.history import History
from pyro_vae.storage.loggers import Loggers
from pyro_vae.storage.random_state import (
    seed_outside_torch,
    set_random_state,
    take_random_state,
)
from pyro_vae.storage.run_folder import RunFolder
from pyro_vae.storage.save import save, state_modules
from pyro_vae.training.averaged_weights import AveragedWeights
from pyro_vae.training.feed import LoaderFeed, TensorFeed
from pyro_vae.training.limits import Limits
from pyro_vae.training.parallel import World
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.settings import shared_settings
from pyro_vae.training.step import Stepper
from pyro_vae.training.termination import end_if_asked, ended_workers_unheard
from pyro_vae.training.validation import Validation

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

# Training rows on which the un-annealed ELBO is measured where the loss does not tell it.
_JUDGED_ROWS = 1024

_INSISTED = 3  # interrupts of the last writes that do not end them


@dataclass
class Run(Answer):
    """What a training run left behind.

    Arguments:
        program: What was trained, as it was given; it holds the best weights where there was a
            validation set, the last ones otherwise.
        history: One array per column (``epoch``, ``loss``, ``elbo``, ``valid_elbo``, ``beta`` or
            ``beta[site]``, ``lr``, ``seconds``), in nats per datum where they are bounds.
        best_epoch: The epoch whose weights the program holds.
        steps: Optimizer steps taken.
        device: Where it trained.
        folder: The run folder, if any; text where it is an address.
        stopped_early: Whether patience or a callback ended it.
        rank: Which of the processes that trained together this one is; 0 writes the files.
        world_size: How many they were.
        compiled: What ran the steps: ``"graph"``, or ``"eager"``, with the reason if there is one.
        judged: Which weights were judged, and are the program's now: ``"weights"``, those of the
            steps, or ``"ema of decay 0.999"``, their moving average.
    """

    _elsewhere: ClassVar = {
        **{name: f"history[{name!r}]" for name in ("epoch", "loss", "elbo", "valid_elbo", "beta")},
        **dict.fromkeys(("losses", "train_loss"), "history['loss']"),
        **dict.fromkeys(("valid_loss", "val_loss"), "history['valid_elbo']"),
        "model": "program",
    }

    program: Any
    history: dict[str, np.ndarray]
    best_epoch: int
    steps: int
    device: torch.device
    folder: Path | str | None = None
    stopped_early: bool = False
    rank: int = 0
    world_size: int = 1
    compiled: str = "eager"
    judged: str = "weights"

    @typed
    def plot(self) -> Figure:
        """Draw the history: `pyro_vae.plots.curves`."""
        from pyro_vae.plots.curves import curves

        return curves(self)

    def to_pandas(self) -> Any:
        """Return the history, a row per epoch.

        Raises:
            ConfigError: pandas is not installed.
        """
        return to_frame(self.history, "epoch")

    def __repr__(self) -> str:
        """Show the last epoch, what the best one is worth, and the seconds of all."""
        last = {k: float(v[-1]) for k, v in self.history.items() if len(v)}
        if "seconds" in last:
            last["seconds"] = float(np.nansum(self.history["seconds"]))
        numbers = ", ".join(f"{k}={v:.4g}" for k, v in last.items())
        return f"Run(best_epoch={self.best_epoch}{self._worth()}, steps={self.steps}, {numbers})"

    def _worth(self) -> str:
        """Return by what the best epoch was chosen, in brackets."""
        chosen = [k for k in ("valid_objective", "valid_bound", "valid_elbo") if k in self.history]
        at = np.flatnonzero(self.history.get("epoch", np.zeros(0)) == self.best_epoch)
        named = chosen and len(at)
        return f" ({chosen[0]}={self.history[chosen[0]][at[0]]:.4g})" if named else ""


@dataclass
class Loop:
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
        self.sums: _Means | None = None  # of the running epoch
        self.cut = False  # whether steps or minutes have ended the run within an epoch
        self.checkpoint: Checkpoint | None = None
        self.starts: list[Tensor] = []  # of the loader's generators, where the epoch begins
        self.changes: list[str] = []  # what this continuation was asked to do otherwise
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

    def _modules(self) -> dict[str, nn.Module]:
        """Return what has a state of its own: the program, the objective, the averaged weights."""
        average = {} if self.average is None else {"average": self.average}
        return state_modules(self.wrapped, self.objective) | average

    def _train_and_leave(self) -> Exception | None:
        """Train, and leave the run behind however it ends; return the error of a last write."""
        try:
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
                warnings.warn(f"out: the ended run was not saved: {failed}", stacklevel=2)
            elif isinstance(error, TrainingDiverged):
                error.args = (f"{error}{self._remedy()}",)
            elif not isinstance(error, Exception):  # Ctrl-C, a signal
                self._say_how_to_go_on()
            raise

    def _train(self) -> None:
        shown = self.progress and self.world.main
        self._keep()
        with progress_bar(total=self._total, initial=self.steps, shown=shown, unit="step") as bar:
            while self.epoch < self.limits.epochs and not self._ended():
                self._epoch(bar)

    @property
    def _total(self) -> int:
        """The steps of the whole run."""
        return self.limits.steps(len(self.feed))

    def _ended(self) -> bool:
        early = self.stopped or self.cut or self._out_of_patience()
        return early or (self.position == 0 and self.limits.spent(self.steps, self.world))

    def _epoch(self, bar: Any) -> None:
        start = time.perf_counter()
        losses = self._steps(bar)
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
            so_far = self._so_far()
            before = trainable_parts(self.wrapped) if self.callbacks else []
            with torch.enable_grad():  # one that turns gradients off has them back afterwards
                answers = [bool(callback(so_far)) for callback in self.callbacks]  # all are asked
            self._freeze(before)
            self.stopped = self.world.any(any(answers))
            if answers:
                self.stepper.doubt()
            elif self.stepper.watched:
                self.stepper.look()
        finally:
            if not self.cut:  # a continuation of a cut epoch has yet to judge it
                self._keep()  # after the callbacks: one may draw random numbers
        if not self.cut and self.limits.after_epoch(self.epoch):
            self._write_if_possible(f"epoch {self.epoch}")

    def _write_if_possible(self, when: str) -> None:
        self.limits.written()
        try:
            self._write()
        except OSError as error:  # the disk may have room again when the run ends
            warnings.warn(
                f"out: the checkpoint of {when} was not written ({error}); the run "
                "goes on, and the checkpoint before it stays",
                UserWarning,
                stacklevel=2,
            )

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
        """Train for one epoch and return the mean losses per datum, on the device."""
        sums = self.sums = self.sums or _Means(len(self.stepper.updates))
        total, batch = max(1, self._total - 1), None
        # Tensors were checked as a whole; what a loader yields or a transform makes is new here.
        made = isinstance(self.feed, LoaderFeed) or self.transform is not None
        unseen = made and not self.moved
        self.wrapped.train()
        for part in self.frozen:
            part.training = False
        batches = self._batches()
        with (
            self.wrapped.running(),
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
                self.stepper.set_lr(self.lr_schedule(progress))
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
            if self.cut:
                self._keep()
        if isinstance(self.feed, LoaderFeed) and not self.cut:
            self.feed.require_all_rows(self.seen)
        self.wrapped.eval()
        return sums.over(self.world)

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

        A checkpoint is tried then, too: what no file can hold is found now, not after the run.
        """
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
            sample = self.feed.sample(_JUDGED_ROWS)
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
                stacklevel=2,
            )
        if score > self.best_elbo:
            self.best_elbo, self.best_epoch = score, self.epoch
            state = self.wrapped.state_dict()
            self.best = {
                k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v)
                for k, v in state.items()
            }

    def _out_of_patience(self) -> bool:
        patience = self.limits.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _so_far(self) -> Run:
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
        )

    # -- what a continuation needs ---------------------------------------------------------------

    def _keep(self) -> None:
        """Copy the state between two steps: an interrupt goes back to it."""
        if self.writes is None:
            return
        try:
            self.checkpoint = self._take()
        except (KeyboardInterrupt, SystemExit):  # nothing has moved: it is between two steps still
            self.checkpoint = self._take()
            raise

    def _take(self) -> Checkpoint:
        progress = Progress(
            epoch=self.epoch,
            steps=self.steps,
            best_epoch=self.best_epoch,
            best_elbo=self.best_elbo,
            settings=self.settings,
            position=self.position,
            seen=self.seen,
            rows=tuple(self.sums.rows) if self.position and self.sums else (),
        )
        modules = self._modules()
        optimizers, device = self.stepper.optimizers, self.wrapped.device
        if not self.position:
            self.starts = [generator.get_state() for generator in self.feed.generators]
        totals = self.sums.totals if self.position and self.sums else []
        losses = {index: loss for index, loss in enumerate(totals) if loss is not None}
        return Checkpoint.take(
            modules, optimizers, self.best, progress, self.history, device, self.starts, losses
        )

    def _write(self) -> None:
        if self.writes is not None and self.checkpoint is not None:
            self.writes.require()
            self.checkpoint.write(self.writes.path)
            self.writes.write_history(self.history)
            self.writes.publish()

    def _leave_behind(self) -> Exception | None:
        """Leave the best weights in the program, then in the folder, with a checkpoint beside.

        Returns:
            The first error of a write; the others were tried all the same.
        """
        if self.best is not None:
            now = self.wrapped.state_dict()  # a part that has come since keeps what it has
            alike = {k for k in now if _shape(now[k]) == _shape(self.best.get(k))}
            known = {k: v for k, v in self.best.items() if k in alike}
            self.wrapped.load_state_dict({**now, **known})
        elif self.average is not None:
            self.average.put_in()
        folder, checkpoint = self.writes, self.checkpoint
        if folder is None:
            return None
        writes: list[Callable[[], Any]] = [lambda: save(self.program, folder.path)]
        # One to go on with is not in a folder that was emptied meanwhile.
        if checkpoint is not None and (self.moved or checkpoint.meta["steps"]):
            writes += [
                lambda: checkpoint.write(folder.path),
                lambda: folder.write_history(self.history),
            ]
        elif not folder.has_checkpoint:
            return None  # no step was taken, here or before: there is no run to leave behind
        with ended_workers_unheard():
            return first_error([folder.require]) or first_error([*writes, folder.publish])

    def _leave_behind_all_the_same(self) -> Exception | None:
        """Leave the run behind, anew where an interrupt comes in the midst of that, a few times.

        Who ends a run often says so more than once: Slurm to each process and torchrun to its own,
        and torchrun to those that are left where one has died.
        """
        for _ in range(_INSISTED):
            with suppress(KeyboardInterrupt, SystemExit):  # the error under way ends the run
                return self._leave_behind()
        return self._leave_behind()

    def _say_how_to_go_on(self) -> None:
        """Say so where no warning can: one that is an error would hide what ends the run."""
        if self.writes is None or self.checkpoint is None or not self.moved:
            return
        sys.stderr.write(
            f"the run was ended in step {self.steps + 1}; {self.writes.name} holds a checkpoint "
            f"of step {self.checkpoint.meta['steps']}: go on by pv.fit(..., resume=True), "
            "or pyro-vae train ... --resume true\n"
        )

    def _remedy(self) -> str:
        """Return what has been kept of a run that diverged, and how it may go on."""
        kept = f". The best weights, of epoch {self.best_epoch}, are back" if self.best else ""
        if self.writes is not None and self.writes.has_checkpoint:
            kept += (
                f". {self.writes.name} holds a checkpoint of epoch {self.epoch}: go on from there "
                "by pv.fit(..., resume='settings') with a lower lr or a clip_norm"
            )
        return kept

    def _resume(self) -> None:
        if self.folder is None or not self.folder.has_checkpoint:
            return
        device = self.wrapped.device
        modules = self._modules()
        path, optimizers = self.folder.path, self.stepper.optimizers
        best, progress, self.history, self.changes, losses = read_checkpoint(
            path,
            modules,
            optimizers,
            self.settings,
            device,
            renew=self.renew,
            generators=self.feed.generators,
        )
        self.best = {k: v.to(device) for k, v in best.items()} or None
        self.epoch, self.steps = progress.epoch, progress.steps
        self.position, self.seen = progress.position, progress.seen
        self.starts = [generator.get_state() for generator in self.feed.generators]
        if self.position:
            self.sums = _Means(len(self.stepper.updates))
            self.sums.rows = list(progress.rows)
            self.sums.totals = [
                losses[i].to(device) if i in losses else None for i in range(len(self.sums.totals))
            ]
        self.best_epoch, self.best_elbo = progress.best_epoch, progress.best_elbo
        if any(change.startswith(("valid", "transform")) for change in self.changes):
            # A score on other rows is no measure for what comes, nor are weights chosen by it.
            self.best, self.best_epoch, self.best_elbo = None, self.epoch, -math.inf
        self.changes = [f"epoch {self.epoch}: {change}" for change in self.changes]
        self._tell_of_iterators()

    def _tell_of_iterators(self) -> None:
        """Warn where a continuation draws from an iterator that no step of this process has."""
        ahead = self.wrapped.reader.runs.iterators_ahead() if self.world.main else []
        goes_on = 0 < self.steps < self._total and not self._out_of_patience()
        if ahead and goes_on:
            warnings.warn(
                f"resume: the program draws from an iterator, {ahead[0]!r}, which no checkpoint "
                f"holds: here it begins anew, where the run has taken {self.steps} steps; draw "
                "before `fit` what these have drawn, or keep a number in a buffer",
                stacklevel=2,
            )


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None  # of an extra state


class _Means:
    """The mean loss of each update over the rows on which it was made, on the device.

    Arguments:
        updates: How many there are.
    """

    def __init__(self, updates: int) -> None:
        self.totals: list[Tensor | None] = [None] * updates
        self.rows = [0.0] * updates

    def add(self, losses: list[Tensor | None], rows: float) -> None:
        """Take in the losses of one batch; None of an update that was left out."""
        for index, loss in enumerate(losses):
            if loss is None:
                continue
            total = self.totals[index]
            self.rows[index] += rows
            self.totals[index] = loss * rows if total is None else total.add_(loss, alpha=rows)

    def over(self, world: World) -> list[Tensor]:
        """Return the means over all processes; NaN of an update that none has made."""
        like = next(total for total in self.totals if total is not None)  # at least one batch
        totals = [like.new_zeros(()) if total is None else total for total in self.totals]
        rows = [like.new_tensor(count) for count in self.rows]
        if world.size == 1:
            return [total / count for total, count in zip(totals, rows, strict=True)]
        summed = world.sum(torch.stack([*totals, *rows]))
        return list(summed[: len(totals)] / summed[len(totals) :])


def first_error(writes: Iterable[Callable[[], Any]]) -> Exception | None:
    """Try each of several writes, whatever becomes of the others; return the first error."""
    found: list[Exception] = []
    for write in writes:
        try:
            write()
        except Exception as error:
            found.append(error)
    return found[0] if found else None


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
