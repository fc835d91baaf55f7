"""One training step: the updates of an objective, each checked before it moves a weight."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted
from pyro_vae.errors import ConfigError, ProgramError, TrainingDiverged
from pyro_vae.heap import keep_freed_blocks
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss, Mode, another, check_mode
from pyro_vae.inference.graphs.flat_inputs import FlatStep, global_norm
from pyro_vae.inference.graphs.graph_step import Prepared, Traced, hooked
from pyro_vae.inference.objectives.objective import Objective, OptimizerFactory, Update
from pyro_vae.program.batches.batch import Batch, map_rows, named_leaves, num_rows
from pyro_vae.program.handlers import Beta
from pyro_vae.program.parameters.modules import leaves_behind, make_dense
from pyro_vae.program.program import Program
from pyro_vae.recording import Recording
from pyro_vae.torch_private import skips_by_found_inf
from pyro_vae.training.adam import Adam
from pyro_vae.training.optimizers import checked, join, runs_others
from pyro_vae.training.parallel import Reduce
from pyro_vae.training.reasons import reason
from pyro_vae.training.scheduled_rates import ScheduledRates
from pyro_vae.training.shared_gradients import average, facts_of, set_apart
from pyro_vae.training.undo import Buffers, Undo, put_back_on_error, restore
from pyro_vae.training.updates import require_loss, updates_of
from pyro_vae.training.whole_step import WholeStep, flag

# Steps between two looks at the flag of a deferred check: one sync each.
CHECK_EVERY = 100
# Below this many steps tracing costs more than it saves.
_WORTH_TRACING = 50
_NOTHING_MOVES: AbstractContextManager[None] = nullcontext()


class Stepper:
    """An objective's updates with their optimizers.

    No step in which a loss or gradient is not finite moves a weight or a buffer: the updates of it
    that have passed are undone. On the CPU that is looked at before each update. On CUDA looking
    would stall the device, so a flag there makes the fused optimizers skip that update and all that
    follow, until ``check`` reads it.

    Arguments:
        program: What is trained.
        objective: Where the updates come from.
        optimizer: Factory for the updates that bring none of their own.
        clip_norm: Largest global norm of an update's gradient; None does not clip.
        size: N, the data of the training set.
        compile: False runs the program at each step; ``"trace"`` and True run its graph;
            ``"auto"`` decides by the steps to come.
        steps: Steps to come, as far as is known.
        reduce: Averages tensors over processes, in place: the loss and the gradients of an update.
        agree: Requires facts to be equal in all processes.
        accumulate: Parts in which a batch passes, one after another, for one step.
    """

    def __init__(
        self,
        program: Program,
        objective: Objective,
        optimizer: OptimizerFactory,
        *,
        clip_norm: float | None,
        size: int,
        compile: Mode = False,
        steps: int = 0,
        reduce: Reduce | None = None,
        agree: Callable[[dict[str, Any]], None] = lambda facts: None,
        accumulate: int = 1,
    ) -> None:
        keep_freed_blocks()
        self.program = program
        program.diverged = False
        self._objective = objective
        self._version = program.own.version
        self.updates = updates_of(objective, program)
        self._looks = 2 * len(self.updates)
        self._met: dict[int, Tensor] = {}
        still = program.own.untrained
        self.trained = [[p for p in u.parameters if p not in still] for u in self.updates]
        program.own.late.begin(p for trained in self.trained for p in trained)
        self._known = {id(p): p for p in program.parameters()}
        self._names = {p: name for name, p in program.named_parameters()}  # whatever comes later
        self._places = self._all_names()
        make_dense(p for trained in self.trained for p in trained)
        self._check_trained()
        self.optimizers = [
            (checked(update.optimizer) if update.optimizer else optimizer)(parameters)
            for update, parameters in zip(self.updates, self.trained, strict=True)
        ]
        self.rates = ScheduledRates(self.optimizers)
        self.clip_norm = clip_norm
        self.size = size
        self.reduce = reduce
        self._agree = agree
        # Of each update: how many more are to be compared with those of other processes.
        self._compared = [0] * len(self.updates)
        self._late: set[int] = set()  # parameters that have come within the epoch
        self.accumulate = accumulate
        # With several updates, one must not leave gradients on another's parameters.
        self._alone = len(self.updates) == 1
        self._homes = self._find_buffers()
        compile = check_mode(compile)
        short = compile == "auto" and steps < _WORTH_TRACING
        mode = False if short else compile
        self._short = f"{counted(steps, 'step')} would not pay for a trace" if short else None
        self._compiled = [
            CompiledLoss(
                u.loss,
                program,
                objective=objective,
                parameters=p,
                mode=mode,
                steps=steps * u.repeats,
            )
            if mode
            else None
            for u, p in zip(self.updates, self.trained, strict=True)
        ]
        self._direct = self._find_direct()
        self._latest: dict[int, tuple[Traced, list[Tensor]]] = {}
        self._deferred = program.device.type == "cuda" and all(
            skips_by_found_inf(optimizer) for optimizer in self.optimizers
        )
        self._broken: Tensor | None = None  # on the device: 1 once an update was not finite
        self._undo = Undo()
        self._unchecked = 0
        self.watched = False  # whether other code runs between the steps
        self._row: CompiledLoss | None = None  # of a step that the next one may be like
        self._once = self._alone and self.updates[0].repeats == 1

    def _find_buffers(self) -> list[tuple[nn.Module, str]]:
        own = [self._objective] if isinstance(self._objective, nn.Module) else []
        return [
            (part, name)
            for module in (self.program, *own)
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]

    def _find_direct(self) -> list[bool]:
        """Return which optimizers may be given a graph's gradients."""
        alone = self.clip_norm is None and self.reduce is None and self.accumulate == 1
        pairs = zip(self.optimizers, self.trained, strict=True)
        return [alone and _takes(optimizer, own) for optimizer, own in pairs]

    def _grow(self, *, everywhere: bool = False) -> None:
        """Train the parameters that a batch of another structure has brought, as stock SVI does.

        Arguments:
            everywhere: Whether other processes may have them, too: all compare what they train.

        Raises:
            ProgramError: They have not, for all that is known.
        """
        self._version = self.program.own.version
        self._known = {id(p): p for p in self.program.parameters()}
        self._names = {p: name for name, p in self.program.named_parameters()} | self._names
        self._places |= self._all_names()
        still = self.program.own.untrained
        for index, update in enumerate(self._objective.updates(self.program)):
            known = {*self.trained[index]} | still
            new = [parameter for parameter in update.parameters if parameter not in known]
            if new and self.reduce is not None and not (everywhere and self._compared[index]):
                self._refuse_late(new)
            make_dense(new)
            self._late |= {id(parameter) for parameter in new}
            self.trained[index] += new
            join(self.optimizers[index], new)
            self.rates.note_new()
            compiled = self._compiled[index]
            if compiled is not None:
                compiled.step.trained += new
                compiled.step.forget_parts()
        self._homes = self._find_buffers()
        self._direct = self._find_direct()

    def replaced(self) -> dict[nn.Parameter, str]:
        """Return the names of trained parameters in whose place the functions have put others."""
        now = dict(self.program.named_parameters(remove_duplicate=False))
        here, every = set(now.values()), [p for trained in self.trained for p in trained]
        gone = {p: self._names[p] for p in every if p in self._names and p not in here}
        return {parameter: name for parameter, name in gone.items() if name in now}

    def new_places(self) -> set[str]:
        """Return the names of weights where the program had none when it was last looked at."""
        now = self._all_names() if self._version == self.program.own.version else set()
        return {name for name in now - self._places if name.startswith("parts.")}

    def _all_names(self) -> set[str]:
        return {name for name, _ in self.program.named_parameters(remove_duplicate=False)}

    def first_names(self) -> dict[int, str]:
        """Return the names that the program had for parameters as they came, by their ids."""
        return {id(parameter): f"program.{name}" for parameter, name in self._names.items()}

    def admit(self, *, met: bool) -> None:
        """Train values that were withheld, equal in all processes, behind all others.

        Arguments:
            met: Those that the run which goes on has trained, or those that it has not.
        """
        late = self.program.own.late
        left = {key: each for key, each in late.withheld.items() if each != met}
        if left != late.withheld:
            late.withheld = left
            self._compared = [2] * len(self.updates)
            self._grow(everywhere=True)

    def _refuse_late(self, new: list[nn.Parameter]) -> None:
        """Refuse parameters of which other processes may know nothing, or have another value."""
        late = {id(parameter) for parameter in new}
        named = ((n.removeprefix("values."), p) for n, p in self.program.named_parameters())
        names = [name for name, parameter in named if id(parameter) in late] or ["of the objective"]
        raise ProgramError(
            f"devices: parameter {names[0]!r} has come within the run, and several "
            "processes train those that all have from the start; run the program once on a batch "
            "that brings it before pv.fit, or train on one device"
        )

    def _hold_made(self, index: int, loss: Tensor, batch: Batch) -> None:
        """Train a network that this step has made for a batch like those before."""
        made = self.program.own.made
        if made and any(leaf in made for leaf in leaves_behind(loss)):
            self.program.reader.hold_made(batch)
        if index == len(self.updates) - 1:  # others are thrown away: no loss depends on them
            made.clear()

    def _look_behind(self, loss: Tensor, batch: Batch) -> None:
        """Train the tensors behind a loss that are met twice and that nothing holds.

        A program is read in eval mode; this finds what it uses in training alone. A tensor that is
        met once was made by that one call.
        """
        own = self.program.own
        others = self._objective.parameters() if isinstance(self._objective, nn.Module) else ()
        rows = [leaf for _, leaf in named_leaves(batch)]
        known = {id(tensor) for tensor in (*own.parameters(), *others, *rows, *own.frozen)}
        for leaf in dict.fromkeys(leaves_behind(loss)):
            if id(leaf) not in known and id(leaf) in self._met:
                own.hold_found(leaf)
            self._met[id(leaf)] = leaf  # the tensor too: an id may be given again
        if not self._looks:
            self._met.clear()

    def step(self, batch: Batch, beta: Beta | None) -> list[Tensor | None]:
        """Apply all updates to one batch and return their losses, detached, on the device.

        That of one left out is that of another with the same loss, or None.

        Raises:
            TrainingDiverged: A loss or gradient is not finite; the step moved no weight and no
                buffer.
        """
        loss = None if self._row is None else self._another(self._row, batch, beta)
        if loss is not None:
            self._count(batch)
            return [loss]
        made: dict[int, Tensor] = {}
        if self.accumulate == 1:
            self.program.reader.fill_expected(batch)
        self._undo.begin(self._broken)
        try:
            for index, update in enumerate(self.updates):
                if not self._is_due(update):
                    self._note_left_out(index)
                    continue
                for again in reversed(range(update.repeats)):
                    self._last = again == 0 and index + 1 == len(self.updates)
                    whole = self._update if self.accumulate == 1 else self._update_in_parts
                    made[index] = whole(index, batch, beta)
        except BaseException:
            self._undo.back()
            raise
        if self._broken is not None:
            self._undo.buffers_back_where(self._broken)
        if not made:
            raise ConfigError(
                "objective: none of its updates is due, expected at least one a batch"
            )
        every = range(len(self.updates))
        losses = [made[i] if i in made else self._loss_of(i, made) for i in every]
        self._count(batch)
        return losses

    def _count(self, batch: Batch) -> None:
        """Count a step that was taken, and look at the flag after many."""
        self.program.own.moved = True
        self._unchecked += 1
        if self._deferred and self._unchecked >= CHECK_EVERY:
            self.check(batch)

    def _is_due(self, update: Update) -> bool:
        """Return whether an update is to be made: else a process would wait in it for the others.

        Raises:
            ConfigError: In some processes alone.
        """
        if update.due is None:
            return True
        due = bool(update.due())
        if self.reduce is not None:
            self._agree({f"due of update {update.name!r}": due})
        return due

    def _another(self, compiled: CompiledLoss, batch: Batch, beta: Beta | None) -> Tensor | None:
        """Take a step like the one before, and return its loss; None where this one is not.

        What `_update` does, without a look at what cannot have changed in a row.
        """
        self._row = None
        step = another(compiled, batch, beta, self.size)
        if step is None:
            return None
        self._latest.clear()  # their memory serves the next ones
        with torch.no_grad():
            try:
                if self._deferred:
                    return self._take_whole(compiled, step)
                loss, norm, grads = step.gradients_inside()
            except Exception as error:
                compiled.give_up(error)
                return None
            self._latest[0] = step.traced, grads
            finite = _are_finite(loss, norm)
            if finite:
                self.optimizers[0].move_again(grads)  # type: ignore[attr-defined]
        if not finite:
            self._refuse(loss, norm, 0, batch)
        self._row = compiled
        return loss

    def _take_whole(self, compiled: CompiledLoss, step: Prepared) -> Tensor:
        """Take a step that is launched at once on a GPU, and return its loss."""
        known, key = step.traced.launchers, (WholeStep, step.traced.run)
        if key not in known:
            known[key] = WholeStep(step.traced, self.optimizers[0], self.clip_norm)  # type: ignore[arg-type]
        whole = known[key]
        try:
            loss, grads = whole.take(step, self._broken)
        except Exception:
            self.optimizers[0].forget_lists()  # type: ignore[attr-defined]  # it looks anew
            raise
        self._broken = whole.broken
        self._latest[0] = step.traced, grads
        self._row = compiled
        return loss

    def _is_whole(self, step: Prepared) -> bool:
        """Return whether loss, gradients and optimizer of a step can be launched at once."""
        if not self._deferred or not self._once or step.traced.hooked or self.reduce is not None:
            return False
        optimizer = self.optimizers[0]
        own = _takes(optimizer, self.trained[0])
        return own and all(isinstance(group["lr"], float) for group in optimizer.param_groups)

    def _launched(self, traced: Traced) -> FlatStep:
        """Return what runs a graph: on a GPU as a recording, from its second call on."""
        if not traced.recordable:
            return traced.run
        known, key = traced.launchers, (Recording, traced.run)
        if key not in known:
            known[key] = Recording(traced.run, len(traced.homes))
        launched: FlatStep = known[key]
        return launched

    def _loss_of(self, index: int, made: Mapping[int, Tensor]) -> Tensor | None:
        """Return the loss of another update on this batch that has the same one."""
        wanted = self.updates[index].loss
        return next((loss for i, loss in made.items() if self.updates[i].loss == wanted), None)

    def doubt(self) -> None:
        """Compare graphs with the program again: a callback may have changed what is no tensor.

        Parameters that it has put into the program are trained from now on, as stock SVI does.
        """
        if any(id(p) not in self._known for p in self.program.parameters()):
            self._grow()
        for compiled in self._compiled:
            if compiled is not None:
                compiled.doubt()

    def look(self) -> None:
        """Look whether a transform or a loader has changed what the program keeps in Python."""
        for compiled in self._compiled:
            if compiled is not None:
                compiled.look()

    def watch(self) -> None:
        """Look for such changes before each step too: other code runs between any two."""
        self.watched = True
        for compiled in self._compiled:
            if compiled is not None:
                compiled.watch()

    @contextmanager
    def in_a_row(self) -> Iterator[None]:
        """Take steps inside that nothing but other steps comes between.

        Code of others does where a transform or a loader is at work, where an update is asked
        whether it is due, or where hooks wait for a step or a gradient.
        """
        if not self.watched and self._runs_others():
            self.watch()
        self._compared = [2] * len(self.updates)  # anew in each epoch: callbacks freeze and thaw
        self._late.clear()
        own = self.program.own
        if own.made:  # as it was judged
            own.hold_made(own.search())
        lone = self._alone and self.updates[0].due is None
        with ExitStack() as stack:
            for compiled in self._compiled:
                if compiled is not None and lone and not self.watched:
                    stack.enter_context(compiled.in_a_row())
            yield

    def _runs_others(self) -> bool:
        return any(map(hooked, self.trained)) or any(map(runs_others, self.optimizers))

    @property
    def compiled(self) -> str:
        """What ran the last step: ``"eager"``, with the reason if there is one, or ``"graph"``."""
        made = [c for c in self._compiled if c is not None]
        reasons = [self._short, *(c.reason for c in made)]
        if not any(reasons) and made and all(c.num_graphs for c in made):
            return "graph"
        reason = next(filter(None, [*reasons, *(c.spared for c in made)]), None)
        return "eager" if reason is None else f"eager: {reason}"

    def check(self, batch: Batch) -> None:
        """Hand the last gradients out, and read the deferred check's flag, if any (one sync).

        Arguments:
            batch: A batch to look for the reason on.

        Raises:
            TrainingDiverged: An update since the last look was not finite.
        """
        self._unchecked = 0
        self.hand_out()
        if self._broken is not None and bool(self._broken):
            self._undo.back()
            buffers = self._buffers()
            copies = [buffer.clone() for buffer in buffers]
            advice = reason(self.program, self._objective, batch)  # which runs the program once
            restore(buffers, copies)
            self.program.diverged = True
            raise TrainingDiverged(
                f"a loss or gradient was not finite in the last {CHECK_EVERY} steps" + advice
            )

    def _check_trained(self) -> None:
        for update, parameters in zip(self.updates, self.trained, strict=True):
            if not any(parameter.requires_grad for parameter in parameters):
                raise ConfigError(
                    f"objective: update {update.name!r} has no trainable parameters; give the "
                    "program some (as module attributes, pyro.param or Program(..., modules=)), or "
                    "call requires_grad_(True) on those to train"
                )

    def _update(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        compiled, optimizer = self._compiled[index], self.optimizers[index]
        step = compiled.prepare(batch, beta=beta, size=self.size) if compiled else None
        if self._version != self.program.own.version:  # the look before a trace has found more
            self._grow()
            return self._update(index, batch, beta)
        if step is not None and compiled is not None and self._is_whole(step):
            self._latest.pop(index, None)
            try:
                with torch.no_grad():
                    return self._take_whole(compiled, step)
            except Exception as error:
                compiled.give_up(error)
                return self._update(index, batch, beta)
        buffers = step.moving if step else self._buffers()
        copies = [buffer.clone() for buffer in buffers]
        homes = [] if step else [(part, name, part._buffers[name]) for part, name in self._homes]
        direct = self._direct[index] and step is not None and not step.traced.hooked
        self._latest.pop(index, None)  # their memory serves the next ones
        noted = (buffers, copies, homes)
        with put_back_on_error(noted) if buffers or homes else _NOTHING_MOVES:
            if step is None:
                loss = self._backward(index, batch, beta)
                norm = None
            else:
                try:
                    loss, norm = self._run(index, step, direct)
                except Exception as error:
                    restore(buffers, copies)
                    compiled.give_up(error)  # type: ignore[union-attr]
                    return self._update(index, batch, beta)
            if norm is None or self.reduce is not None:
                norm = self._reduced_norm(index, loss)
            if not self._deferred:
                self._require_finite(loss, norm, index, batch)
        if self._deferred:
            self._flag(loss + norm, index, buffers, copies)
        self._note(index, noted)
        if direct:
            traced, grads = self._latest[index]
            optimizer.move(traced.trained, grads)  # type: ignore[attr-defined]
        else:
            self._move(index, norm)
        quick = self._once and direct and not buffers and not self._deferred
        self._row = compiled if quick else None
        return loss

    def _note(self, index: int, buffers: Buffers) -> None:
        """Note what was there before an update that another one follows."""
        if not self._last:
            self._undo.note_buffers(buffers)
            self._undo.note(index, self.optimizers[index], self.trained[index])

    def _note_left_out(self, index: int) -> None:
        """Keep what an update has noted, if a step that it was a part of may have failed."""
        if self._deferred and not self._alone:
            self._undo.note(index, self.optimizers[index], self.trained[index])

    def _move(self, index: int, norm: Tensor) -> None:
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.trained[index], self.clip_norm, norm)
        self.optimizers[index].step()

    def _update_in_parts(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        r"""Apply one update by the gradient of a batch in parts.

        .. math:: g = \sum_i \frac{B_i}{B}\, g_i
        """
        buffers = self._buffers()
        copies = [buffer.clone() for buffer in buffers]
        homes = [(part, name, part._buffers[name]) for part, name in self._homes]
        with put_back_on_error((buffers, copies, homes)):
            loss = self._accumulated(index, batch, beta)
            norm = self._reduced_norm(index, loss)
            if not self._deferred:
                self._require_finite(loss, norm, index, batch)
        if self._deferred:
            self._flag(loss + norm, index, buffers, copies)
        self._note(index, (buffers, copies, homes))
        self._move(index, norm)
        return loss

    def _accumulated(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        """Set the gradients of a batch from those of its parts; return its loss, detached."""
        sums: dict[nn.Parameter, Tensor] = {}
        loss, rows = torch.zeros((), device=self.program.device), num_rows(batch)
        for part in parts_of(batch, self.accumulate):
            share = num_rows(part) / rows
            self.program.reader.fill_expected(part)
            loss = loss + share * self._gradients(index, part, beta)
            for parameter in self.trained[index]:
                if parameter.grad is not None:
                    grad = share * parameter.grad
                    sums[parameter] = sums[parameter] + grad if parameter in sums else grad
        for parameter in self.trained[index]:
            parameter.grad = sums.get(parameter)
        return loss

    def _gradients(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        """Set the gradients of one update, by its graph or without; return its loss, detached."""
        compiled = self._compiled[index]
        step = compiled.prepare(batch, beta=beta, size=self.size) if compiled else None
        if self._version != self.program.own.version:
            self._grow()
            return self._gradients(index, batch, beta)
        if step is None or compiled is None:
            return self._backward(index, batch, beta)
        copies = [buffer.clone() for buffer in step.moving]
        try:
            return step.backward(self._launched(step.traced))[0]
        except Exception as error:
            restore(step.moving, copies)
            compiled.give_up(error)
            return self._gradients(index, batch, beta)

    def _run(self, index: int, step: Prepared, direct: bool) -> tuple[Tensor, Tensor]:
        """Make the gradients of one update by its graph; return its loss and their norm.

        Where the optimizer alone sees them they are not set on the parameters, which costs a tenth
        of a small step: ``hand_out`` does it.
        """
        run = self._launched(step.traced)
        if not direct:
            return step.backward(run)
        loss, norm, grads = step.gradients(run)
        self._latest[index] = step.traced, grads
        return loss, norm

    def hand_out(self) -> None:
        """Set the gradients of the last step on the parameters, for whoever looks at them."""
        for traced, grads in self._latest.values():
            # Those of a recording lie in its memory, which the next step overwrites.
            traced.hand_out([grad.clone() for grad in grads] if self._deferred else grads)
        self._latest.clear()

    def _buffers(self) -> list[Tensor]:
        """Return the buffers that a forward pass may write to: any, as far as is known."""
        found = (part._buffers[name] for part, name in self._homes)
        return [buffer for buffer in found if buffer is not None]

    def _backward(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        """Set the gradients of one update by the program itself; return its loss, detached."""
        loss = self.updates[index].loss(self.program.joint(batch, beta=beta, size=self.size))
        require_loss(self.updates[index].name, loss)
        self._hold_made(index, loss, batch)
        if self._version != self.program.own.version:
            self._grow()
        if self._looks:
            self._looks -= 1
            self._look_behind(loss, batch)
        if self._version != self.program.own.version:  # what the loss has held all along
            self._grow(everywhere=True)
        trained = [parameter for parameter in self.trained[index] if parameter.requires_grad]
        for parameter in self.trained[index]:
            parameter.grad = None
        every = self._alone and not self.program.own.frozen
        loss.backward(inputs=None if every else trained)
        set_apart(self.trained[index])
        return loss.detach()

    def _reduced_norm(self, index: int, loss: Tensor) -> Tensor:
        """Average loss and gradients over the processes, in place; return the gradients' norm."""
        if self.reduce is not None:
            if self._compared[index]:
                self._compared[index] -= 1
                names = {id(p): name for name, p in self.program.named_parameters()}
                facts = facts_of(self.trained[index], names, self._late)
                self._agree({"update": self.updates[index].name, "parameters to train": facts})
            average(loss, self.trained[index], self.reduce)
        grads = [p.grad for p in self.trained[index] if p.grad is not None]
        return global_norm(grads) if grads else torch.zeros_like(loss)

    def _require_finite(self, loss: Tensor, norm: Tensor, index: int, batch: Batch) -> None:
        if not _are_finite(loss, norm):
            self._refuse(loss, norm, index, batch)

    def _refuse(self, loss: Tensor, norm: Tensor, index: int, batch: Batch) -> NoReturn:
        self.hand_out()
        self.program.diverged = True
        raise TrainingDiverged(
            f"{self.updates[index].name} is {loss.item():g}, gradient norm {norm.item():g}"
            + reason(self.program, self._objective, batch)
        )

    def _flag(self, value: Tensor, index: int, buffers: list[Tensor], copies: list[Tensor]) -> None:
        """Mark a value that is not finite on the device, where the optimizers see it."""
        before = torch.zeros_like(value) if self._broken is None else self._broken
        self._broken = before.to(torch.float32, copy=True)  # another one: the step knows its first
        flag(self._broken, value, buffers, copies)
        optimizer: Any = self.optimizers[index]
        optimizer.grad_scale = None
        optimizer.found_inf = self._broken  # what a gradient scaler sets: the fused step skips


def _are_finite(loss: Tensor, norm: Tensor) -> bool:
    # A sync, for free on the CPU: nothing may be written before the numbers are known.
    return math.isfinite(loss.item() + norm.item())


def _takes(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Return whether an optimizer may be given a graph's gradients: ours, over all parameters."""
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return type(optimizer) is Adam and owned == [id(p) for p in parameters]


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch in parts, as equal as can be, of at least two rows (batch norm needs two)."""
    rows = num_rows(batch)
    count = max(1, min(count, rows // 2))
    for place in range(count):
        start, stop = place * rows // count, (place + 1) * rows // count
        yield map_rows(lambda leaf, start=start, stop=stop: leaf[start:stop], batch)  # type: ignore[misc]
