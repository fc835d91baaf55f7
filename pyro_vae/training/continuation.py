"""What a continuation of a run needs: kept between two steps, written, and read again."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from pyro_vae.callers import of_user
from pyro_vae.inference.objectives.objective import Objective
from pyro_vae.program.parameters.values import listed
from pyro_vae.program.program import Program
from pyro_vae.storage.checkpoint import Checkpoint, Progress, read_checkpoint
from pyro_vae.storage.history import History
from pyro_vae.storage.moved_state import MovedState
from pyro_vae.storage.optimizer_state import names_of_replaced, parameter_names
from pyro_vae.storage.run_folder import RunFolder
from pyro_vae.storage.save import save, state_modules
from pyro_vae.training.averaged_weights import AveragedWeights
from pyro_vae.training.feed import TensorFeed
from pyro_vae.training.fingerprints import describe_modules
from pyro_vae.training.limits import Limits
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.loader_workers import ended_workers_unheard
from pyro_vae.training.mean_losses import Means
from pyro_vae.training.parallel import World
from pyro_vae.training.step import Stepper

_INSISTED = 3  # interrupts of the last writes that do not end them
_WAY_ON: ContextVar[str] = ContextVar("way_on", default="pv.fit(..., resume=True)")


@contextmanager
def goes_on_by(command: str) -> Iterator[None]:
    """Name a command, inside a block, as what goes on with a run that is ended there."""
    token = _WAY_ON.set(command)
    try:
        yield
    finally:
        _WAY_ON.reset(token)


class Continued:
    """The part of a loop that others can go on from: its attributes are those of ``Loop``."""

    program: Any
    wrapped: Program
    feed: TensorFeed | LoaderFeed
    objective: Objective
    stepper: Stepper
    folder: RunFolder | None
    writes: RunFolder | None
    limits: Limits
    settings: dict[str, Any]
    renew: bool
    world: World
    average: AveragedWeights | None
    history: History
    epoch: int
    steps: int
    best_epoch: int
    best_elbo: float
    best: dict[str, Tensor] | None
    moved: bool
    position: int
    seen: float
    sums: Means | None
    checkpoint: Checkpoint | None
    starts: list[Tensor]
    changes: list[str]
    plain: MovedState | None
    _told_of_replaced = False

    def _modules(self) -> dict[str, nn.Module]:
        """Return what has a state of its own: the program, the objective, the averaged weights."""
        average = {} if self.average is None else {"average": self.average}
        return state_modules(self.wrapped, self.objective) | average

    @property
    def _total(self) -> int:
        """The steps of the whole run."""
        return self.limits.steps(len(self.feed))

    def _out_of_patience(self) -> bool:
        patience = self.limits.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _keep(self) -> None:
        """Copy the state between two steps: an interrupt goes back to it."""
        if self.writes is None:
            return
        try:
            self.checkpoint = self._take()
        except (KeyboardInterrupt, SystemExit):  # nothing has moved: it is between two steps still
            self.checkpoint = self._take()
            raise

    def _describe_late_parts(self) -> None:
        """Let the settings tell of networks that have come: a continuation has made them, too."""
        told = self.settings["architecture"]
        modules = describe_modules(self.wrapped, told["modules"])
        if modules != told["modules"]:
            self.settings = {**self.settings, "architecture": {**told, "modules": modules}}

    def _take(self) -> Checkpoint:
        self._describe_late_parts()
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
        replaced = self.stepper.replaced()
        first = self.stepper.first_names()
        names = names_of_replaced(replaced, self.wrapped, optimizers, first)
        gone = {name for p, name in replaced.items() if id(p) not in names}
        self._tell_of_replaced(gone | self._moved_about(first))
        return Checkpoint.take(
            modules,
            optimizers,
            self.best,
            progress,
            self.history,
            device,
            self.starts,
            losses,
            self.plain,
            names,
            first,
        )

    def _moved_about(self, first: dict[int, str]) -> set[str]:
        """Return names of weights that a program built anew holds not, or under another name.

        Moments and values go by the names that weights have now, but averages follow each of them.

        Arguments:
            first: The names of weights, by their ids, as they came to the run.
        """
        now = parameter_names({"program": self.wrapped}, first)
        renamed = {name for key, name in now.items() if first.get(key, name) != name}
        averaged = renamed if self.average is not None else set()
        return {n.removeprefix("program.") for n in averaged} | self.stepper.new_places()

    def _tell_of_replaced(self, names: set[str]) -> None:
        """Warn, once a run, of parameters for which it cannot be gone on with."""
        if names and not self._told_of_replaced:
            self._told_of_replaced = True
            warnings.warn(
                "out: this run cannot be resumed: its functions put another parameter in the "
                f"place of {listed(sorted(n.removeprefix('parts.') for n in names))} as they run; "
                "let them write into it, with torch.no_grad(): weight.copy_(...), or keep it in a "
                "buffer",
                UserWarning,
                stacklevel=of_user(),
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
        if self.plain is not None:
            self.plain.leave()
        if folder is None:
            return None
        writes: list[Callable[[], Any]] = [lambda: save(self.program, folder.path)]
        # A folder that was emptied meanwhile has none to go on from.
        lost = checkpoint is not None and checkpoint.meta["steps"] and not folder.has_checkpoint
        if checkpoint is not None and (self.moved or lost):
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
            f"of step {self.checkpoint.meta['steps']}: go on by {_WAY_ON.get()}\n"
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
        if self.folder is None:
            return
        self.plain = MovedState(self.wrapped, main=self.world.main)
        if not self.folder.has_checkpoint:
            return
        device = self.wrapped.device
        path, optimizers = self.folder.path, self.stepper.optimizers
        self.stepper.admit(met=True)  # as they have come to the run
        modules = self._modules()
        best, progress, self.history, self.changes, losses = read_checkpoint(
            path,
            modules,
            optimizers,
            self.settings,
            device,
            renew=self.renew,
            generators=self.feed.generators,
            moved=self.plain,
        )
        self.stepper.admit(met=False)
        self.best = {k: v.to(device) for k, v in best.items()} or None
        self.epoch, self.steps = progress.epoch, progress.steps
        self.position, self.seen = progress.position, progress.seen
        self.starts = [generator.get_state() for generator in self.feed.generators]
        if self.position:
            self.sums = Means(len(self.stepper.updates))
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
                stacklevel=of_user(),
            )

    def _write_if_possible(self, when: str) -> None:
        self.limits.written()
        try:
            self._write()
        except OSError as error:  # the disk may have room again when the run ends
            warnings.warn(
                f"out: the checkpoint of {when} was not written ({error}); the run "
                "goes on, and the checkpoint before it stays",
                UserWarning,
                stacklevel=of_user(),
            )


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None  # of an extra state


def first_error(writes: Iterable[Callable[[], Any]]) -> Exception | None:
    """Try each of several writes, whatever becomes of the others; return the first error."""
    found: list[Exception] = []
    for write in writes:
        try:
            write()
        except Exception as error:
            found.append(error)
    return found[0] if found else None
