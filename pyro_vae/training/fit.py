"""``pv.fit``: stochastic variational inference for any program, from data to judged weights."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from pyro_vae.arguments import (
    counted,
    integer,
    is_number,
    number,
    positive,
    shown,
    takes_one,
    typed,
)
from pyro_vae.callers import of_user
from pyro_vae.device import seeded
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.inference.graphs.compiled_loss import Mode
from pyro_vae.inference.objectives.objective import Objective
from pyro_vae.inference.objectives.stock import as_objective
from pyro_vae.interrupts import terminated_softly
from pyro_vae.program.batches.batch import (
    Batch,
    Part,
    Whole,
    check_finite,
    named_leaves,
    num_rows,
    of_arguments,
)
from pyro_vae.program.checks import SURPLUS, SURPLUS_OF_VALID
from pyro_vae.program.first_call import forgotten_on_error
from pyro_vae.program.program import Program
from pyro_vae.program.sites.sites import Sites
from pyro_vae.program.sites.whole import require_rows
from pyro_vae.storage.checkpoint import kept_given
from pyro_vae.storage.loggers import Loggers
from pyro_vae.storage.random_state import seeded_outside_torch
from pyro_vae.storage.run_folder import RunFolder
from pyro_vae.threads import one_thread
from pyro_vae.training.averaged_weights import AveragedWeights
from pyro_vae.training.counted_rows import Size
from pyro_vae.training.feed import TensorFeed, make_feed
from pyro_vae.training.limits import Limits
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.loop import Loop
from pyro_vae.training.optimizers import as_factory
from pyro_vae.training.parallel import Devices, World, join
from pyro_vae.training.precision import (
    Precision,
    contexts,
    convert,
    default_type_told,
    is_of_types,
)
from pyro_vae.training.run import Run
from pyro_vae.training.schedules import Schedule, as_schedule
from pyro_vae.training.settings import (
    KLWeight,
    adam,
    beta_schedule,
    check_schedules,
    is_of_a_user,
    listed_callbacks,
    own_callback,
    record_data,
    record_steps,
    warn_of_marks,
)
from pyro_vae.training.step import Stepper, parts_of
from pyro_vae.training.surroundings import surroundings_kept
from pyro_vae.training.validation import Validation

__all__ = ["Run", "adam", "fit"]


@typed
@one_thread("fit", training=True)
def fit(
    program: Any,
    data: Any,
    *,
    valid: Any = None,
    objective: Any = None,
    epochs: int | None = None,
    batch_size: int = 128,
    accumulate: int = 1,
    lr: float | None = None,
    optimizer: Any = None,
    lr_schedule: Schedule | float = 1.0,
    clip_norm: float | None = None,
    ema: float | None = None,
    beta: float | Schedule | Mapping[str, float | Schedule] = 1.0,
    patience: int | None = None,
    transform: Callable[[Batch], Batch] | None = None,
    callbacks: Callable[[Run], Any] | Iterable[Callable[[Run], Any]] = (),
    size: int | Literal["count"] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    devices: Devices = "auto",
    precision: Precision = None,
    reduce_dtype: torch.dtype | None = None,
    compile: Mode = "auto",
    out: str | os.PathLike[str] | None = None,
    logger: Any = None,
    checkpoint_every: int | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 10.0,
    resume: bool | str = False,
    max_steps: int | None = None,
    max_minutes: float | None = None,
    progress: bool = True,
) -> Run:
    r"""Train a program by stochastic variational inference.

    .. math:: \min_{\theta, \phi} \; -\frac{1}{N} \sum_n \mathbb{E}_{q_\phi(z \mid x_n)}
       [\log p_\theta(x_n \mid z) - \beta\,(\log q_\phi(z \mid x_n) - \log p_\theta(z))]

    The history has, per epoch, ``loss`` (the mean over the data of what was minimised), ``elbo``,
    ``valid_elbo``, ``beta`` and ``lr``. The program holds the weights of the best epoch where there
    is ``valid``, and the last ones otherwise. Ctrl-C, SIGTERM or an error puts the best so far into
    it (without ``valid`` it stays as it is), and writes a checkpoint into ``out``. The modules run
    in train mode within an epoch and in eval mode between two. ``torchrun`` runs a script,
    unchanged, on several devices. ``docs/guide/training.md`` tells all of this in full, and what
    batches, streams, continuations and threads are.

    Arguments:
        program: Anything with ``.model`` and ``.guide``; functions: ``pv.Program(model, guide)``.
        data: One row per datum: tensor, array, sparse matrix, tuple or dict of them, ``Dataset``,
            ``DataLoader``, or an object whose ``__iter__`` yields the batches of an epoch; ``()``
            where the model takes no arguments.
        valid: Validation data, in any of these forms: the un-annealed ELBO of each epoch.
        objective: An objective or any ``pyro.infer.ELBO``; None is ``pv.ELBO()``, which any program
            admits. ``pv.AnalyticELBO()`` is the same bound, with less noise where a KL is known.
        epochs: Passes over the data; None are 10, or what ``max_steps`` takes.
        batch_size: B, rows of a step, of all devices together; a ``DataLoader`` brings its own.
        accumulate: Parts in which each batch passes, one after another, for one step.
        lr: Learning rate of the default optimizer, Adam, or of a class; None is 1e-3.
        optimizer: In its place: a factory ``parameters -> torch.optim.Optimizer``, a class of
            ``torch.optim`` or ``pyro.optim``, which gets ``lr``, or an optimizer of either.
        lr_schedule: Multiplier of the learning rate, a function of the progress in [0, 1].
        clip_norm: Largest global norm of the gradient.
        ema: Decay, in (0, 1), of a moving average of the weights, which is then judged and kept.
        beta: KL weight: a number, a function of the progress in [0, 1], or one per latent site.
        patience: Epochs without a better validation ELBO after which to stop.
        transform: Applied to each training batch on the device (``torch.bernoulli``: dynamic
            binarization); ``valid`` is judged as it is given.
        callbacks: Called with the ``Run`` so far after each epoch; a true answer stops the run.
        size: N, the rows of a stream that does not tell it; ``"count"`` reads it once before.
        seed: Of noise and order; the global random state is left as found.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        devices: A number of this machine's; ``"auto"``: those of torchrun or srun, else one.
        precision: ``"32-true"``, ``"64-true"`` or ``"bf16-mixed"``; None leaves the parameters.
        reduce_dtype: In which gradients are summed over processes; None: their own.
        compile: ``"trace"`` runs the tensor graph of a step, True also compiles it, ``"auto"``
            does so where it pays, and False runs model and guide at each step.
        out: Run folder: settings, weights, history, checkpoints; or an address (``"s3://..."``).
        logger: In place of TensorBoard's events: a logger of ``lightning_fabric``, or several.
        checkpoint_every: Epochs between checkpoints in ``out``; there is one at the end.
        checkpoint_steps, checkpoint_minutes: Steps and minutes between them, within epochs too.
        resume: Go on from the checkpoint in ``out``, if there is one, with the program, data and
            settings of its run; ``"settings"`` lets learning rate, schedules and the like differ.
        max_steps: Steps of the whole run, after which it ends, within an epoch too.
        max_minutes: Likewise, minutes of this call.
        progress: Show a progress bar.

    Raises:
        DataError: Data that the program cannot take.
        ConfigError: An argument out of range; ``out`` is in use or holds another run; another
            thread is training.
        TrainingDiverged: A loss or gradient is not finite; weights are the best so far, or without
            ``valid`` those before that step.
        CheckpointError: The checkpoint in ``out`` is damaged or does not fit, or the optimizer's
            state fits no file.
        DeviceError: The device is not there.
        OSError: ``out`` cannot be written when the run begins or ends.
        ProcessError: Another process of the group has failed; names it and its error.
        ProgramError: Several devices or parts, for a program that takes its data whole.
    """
    world = join(devices, device)
    with _training(world), ExitStack() as stack:
        every = checkpoint_every, checkpoint_steps, checkpoint_minutes
        limits = Limits(epochs, patience, max_steps, max_minutes, *every, out=out)
        batch_size, seed = positive("batch_size", batch_size), integer("seed", seed, 0)
        accumulate = positive("accumulate", accumulate)
        _check_arguments(clip_norm, ema, patience, valid, out, resume, beta, lr_schedule, transform)
        wrapped = stack.enter_context(_drawing(Program.of(program).to(world.device), seed))
        convert(wrapped, precision)
        moved = _conformed(wrapped, transform and of_arguments(transform))
        with default_type_told(precision), forgotten_on_error(wrapped):
            feed, first = _prepared(wrapped, data, batch_size, moved, world, size, seed, precision)
            judged = _prepare_valid(wrapped, valid, batch_size, feed, world, moved is not None)
            _check_parts(wrapped, first, feed.size, accumulate)
        weights = beta_schedule(beta, wrapped.sites.local)
        factory = adam(lr) if optimizer is None else as_factory(optimizer, wrapped, first, lr)
        chosen = _chosen(objective, patience, world, wrapped.sites)
        folder = stack.enter_context(_folder(wrapped, out, bool(resume), world, logger is None))
        stepper = Stepper(
            wrapped,
            chosen,
            factory,
            clip_norm=clip_norm,
            size=feed.size,
            compile=compile,
            steps=limits.steps(len(feed)),
            reduce=world.reducing(reduce_dtype),
            agree=world.agree,
            accumulate=accumulate,
        )
        settings: dict[str, Any] = {}
        if folder is not None or logger is not None or world.size > 1:
            settings |= record_data(wrapped, feed, judged, transform, precision, seed)
            settings |= record_steps(stepper, chosen, beta, lr_schedule, ema, reduce_dtype)
        if isinstance(feed, LoaderFeed) or moved or any(map(is_of_a_user, (beta, lr_schedule))):
            stepper.watch()
        loop = Loop(
            program=program,
            wrapped=wrapped,
            feed=feed,
            valid=judged,
            objective=chosen,
            stepper=stepper,
            lr_schedule=as_schedule("lr_schedule", lr_schedule),
            beta=weights,
            transform=moved,
            callbacks=(*own_callback(chosen), *listed_callbacks(callbacks)),
            seed=seed,
            folder=folder,
            limits=limits,
            loggers=Loggers(logger if world.main else None),
            progress=progress,
            settings=settings,
            renew=resume == "settings",
            world=world,
            precision=contexts(wrapped, precision, first),
            average=None if ema is None else AveragedWeights(wrapped, ema),
        )
        with seeded(wrapped.device, seed), seeded_outside_torch(world.seed(seed)):
            return loop.run()


@contextmanager
def _training(world: World) -> Iterator[None]:
    """Take gradients inside, end with the other processes, and leave the process as it was."""
    kept = world.guarded(), terminated_softly(), surroundings_kept()
    with kept[0], kept[1], kept[2], torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _drawing(program: Program, seed: int) -> Iterator[Program]:
    """Yield a program whose values that come late are drawn by a seed inside."""
    with program.own.late.drawn_by(seed):
        yield program


@contextmanager
def _folder(
    program: Program,
    out: str | os.PathLike[str] | None,
    resume: bool,
    world: World,
    events: bool,
) -> Iterator[RunFolder | None]:
    """Yield the run folder, which no process writes into before all have looked at it."""
    folder = None if out is None else RunFolder.open(out, resume, events)
    world.wait()
    with kept_given(program, None if folder is None else folder.path):
        yield folder


def _chosen(objective: Any, patience: int | None, world: World, sites: Sites) -> Objective:
    """Return the objective, its own parameters and state on the device.

    Raises:
        ConfigError: Patience, where no epoch is better than another; or a state of each datum, in
            several processes.
    """
    chosen = as_objective(objective)
    warn_of_marks(chosen, sites)
    _check_alone(chosen, world)
    if patience is not None and not getattr(chosen, "ranks_epochs", True):
        raise ConfigError(
            f"patience: {type(chosen).__name__} plays against a critic that moves, so that its "
            "figures of two epochs do not compare; leave patience out (the last weights are kept)"
        )
    return chosen.to(world.device) if isinstance(chosen, nn.Module) else chosen


def _check_arguments(
    clip_norm: float | None,
    ema: float | None,
    patience: int | None,
    valid: Any,
    out: Any,
    resume: bool | str,
    beta: KLWeight,
    lr_schedule: Schedule | float,
    transform: Callable[[Batch], Batch] | None,
) -> None:
    check_schedules(beta, lr_schedule)
    _check_transform(transform)
    if clip_norm is not None:
        number("clip_norm", clip_norm, "(0, inf)")
    if ema is not None:
        number("ema", ema, "(0, 1)")
    if resume not in (False, True, "settings"):
        raise ConfigError(
            f"resume: got {resume!r}, expected True, False or 'settings'; the folder of the run is "
            "out=..."
        )
    if resume and out is None:
        raise ConfigError("resume: needs the run folder, out=...")
    if is_number(valid) or isinstance(valid, bool):
        raise ConfigError(
            f"valid: got {valid!r}, expected rows of their own, as in pv.fit(program, x[100:], "
            "valid=x[:100])"
        )
    if patience is not None and valid is None:
        raise ConfigError("patience: early stopping needs validation data, valid=...")


def _check_transform(transform: Callable[[Batch], Batch] | None) -> None:
    """Refuse a function of the parts of a batch, which is one argument."""
    if transform is None or takes_one(transform):
        return
    raise ConfigError(
        f"transform: got {shown(transform)}, which does not take one argument, expected a function "
        "of the batch, a tuple where the model takes several: lambda batch: (noisy(batch[0]), "
        "batch[1])"
    )


def _check_shares(program: Program, feed: TensorFeed | LoaderFeed, world: World) -> None:
    """Refuse what several processes cannot deal out among themselves."""
    if world.size == 1:
        return
    if program.sites.size is not None:
        raise ProgramError(
            f"devices: this program draws its own minibatch, which {world.size} processes cannot "
            "deal out; give it a plate of len(x) and let pv.fit make the minibatches"
        )
    if isinstance(feed, TensorFeed) and feed.batch_size < 2 * world.size:
        raise ConfigError(
            f"batch_size: got {counted(feed.batch_size, 'row')} for {world.size} devices, "
            f"expected at least {2 * world.size}: it counts the rows of all together"
        )


def _check_alone(objective: Objective, world: World) -> None:
    """Refuse state of each datum, of which each process would move some and average all."""
    if world.size > 1 and getattr(objective, "of_each_datum", False):
        raise ConfigError(
            f"objective: {objective!r} keeps a state for each datum, which {world.size} processes "
            "cannot share; train on one device, or without it (persistent=0)"
        )


def _tell_of_own_rows(sites: Sites) -> None:
    """Warn of a program that draws its own minibatch, before hours have gone into its training."""
    for name in [sites.plate.name] if sites.rows_drawn else sites.parts_beside:
        warnings.warn(
            f"fit: the plate {name!r} draws some of its rows at each step (subsample_size): fit "
            "trains on these, and no other verb can answer for each row; leave subsample_size out"
            + ", for batch_size= makes the minibatches"
            * bool(sites.rows_drawn),
            stacklevel=of_user(),
        )


def _tell_of_another_size(program: Program, first: Batch, total: int) -> None:
    """Warn of a plate that has another number of all rows written in than the data have."""
    name = program.sites.plate.name
    own = isinstance(first, Whole | Part) or program.rows.fixed  # rows that the guide has found
    of_model = total if own else program.reader.runs.written.get(name, total)
    written = program.sites.size or of_model
    if isinstance(first, Whole) or written in (total, num_rows(first)):
        return
    warnings.warn(
        f"fit: the plate {name!r} says that there are {counted(written, 'row')} in all, and the "
        f"data have {total}: rows of a batch of B count {total} / B times, and {written} / B times "
        f"in steps of stock SVI; write {total} in the program, or give all {written} rows",
        stacklevel=of_user(),
    )


def _check_parts(program: Program, first: Batch, size: int, count: int) -> None:
    """Refuse programs of whose batches no part can be taken."""
    if count == 1:
        return
    fixed = program.rows.are_fixed(first) and not isinstance(first, Part)
    if isinstance(first, Whole) or program.sites.size is not None or fixed:
        reason = "is one datum, which is never cut"
        if program.sites.size is not None:
            reason = "draws its own minibatch"
        elif fixed:
            reason = "has one factor per datum, found by its place in the batch"
        raise ProgramError(
            f"accumulate: got {count}, and the program {reason}; leave accumulate out"
        )
    for name in sorted(program.reader.in_training(program.sites.dependence).written_in(size)):
        raise ProgramError(
            f"accumulate: got {count}, and the weight of site {name!r} is N / B of a whole batch, "
            "for any number of rows; write N / len(x) for rows x, or leave accumulate out"
        )
    try:
        program.reader.require_parts(next(parts_of(first, count)), size)
    except ProgramError as error:
        names = program.sites.dependence.of_parts
        if not names:
            raise
        raise ProgramError(
            f"accumulate: got {count}, and a part of a batch has another model than the batch: "
            f"the density of site {names[0]!r} is no sum over the rows; leave accumulate out"
        ) from error


def _require_whole_batches(
    program: Program,
    first: Batch,
    feed: TensorFeed | LoaderFeed,
    world: World,
    *,
    transformed: bool = False,
    by_number: bool = False,
) -> None:
    """Refuse parts of the data under a guide that has one factor per datum.

    The factors would be those of places in a batch (or in a process's share), not of data.

    Arguments:
        program, first, feed, world: What runs on which batch of which data.
        transformed: Whether batches are what a function makes of the data.
        by_number: Whether the guide is known to have factors that row numbers would find.
    """
    _require_all_to_draw_of(program, first, feed)
    fixed = program.rows.are_fixed(first)  # found out here in any case: verbs ask for it later
    whole = isinstance(feed, TensorFeed) and feed.batch_size >= feed.size and world.size == 1
    numbered = isinstance(first, Part) and world.size == 1
    own = (fixed and program.rows.per_datum()) or program.rows.total is not None
    if not (own or isinstance(first, Part)) and feed.size > num_rows(first):
        own = by_number = by_number or program.rows.go_by_number(first, feed.size)
    by_number = by_number or program.rows.total is not None
    # Numbers that are put in order are those of other rows, though the batch says which it has.
    by_place = (numbered or not own) and program.rows.go_by_place(first)
    if by_place and not own:
        own = True
        if whole:
            program.rows.keep_places(feed.size)
    if own and isinstance(feed, LoaderFeed) and world.size == 1:
        raise ProgramError(
            f"data: got a loader, which does not say which rows its batches of {feed.batch_size} "
            "have, and the program has one factor per datum; give the rows as tensors, which "
            "pv.fit(..., batch_size=) deals out by their numbers, or a guide that reads the data"
        )
    if by_number and transformed and world.size == 1 and not (whole or numbered):
        raise ProgramError(
            "transform: got a function whose batches do not say which rows of the data they are, "
            "and the program has one factor per datum; leave it out and give the data that it "
            f"makes, or let it have all rows at once: batch_size={feed.size}"
        )
    if own and not (whole or (numbered and not by_place)):
        on = f" on {world.size} devices" if world.size > 1 else ""
        raise ProgramError(
            f"batch_size: got {feed.batch_size}{on}, and the program has one factor per datum "
            "that it does not find by the rows of a part; give it all rows, as tensors, on one "
            f"device: batch_size={feed.size}, with a program made anew; or index its factors by "
            "the plate (`with pyro.plate(...) as i: loc[i]`, pyro.param(..., event_dim=), "
            "AutoNormal), or take pv.LocalGuide: these train in minibatches"
        )


def _require_all_to_draw_of(program: Program, first: Batch, feed: TensorFeed | LoaderFeed) -> None:
    """Refuse parts of the data to a program that looks up factors of the rows that it draws."""
    whole = isinstance(feed, TensorFeed) and feed.batch_size >= feed.size
    if whole or not program.rows.draws_factors(first, feed.size):
        return
    given = (
        "data: got a loader with batches of" if isinstance(feed, LoaderFeed) else "batch_size: got"
    )
    raise ProgramError(
        f"{given} {feed.batch_size}, expected all {feed.size} rows at once: the program "
        "draws some rows of a batch (subsample_size) and finds their factors by their places in "
        "it, which are others in the data; leave subsample_size out, observe x in place of x[i], "
        "and let pv.fit make the minibatches, or hand over all rows at each step, as tensors: "
        f"batch_size={feed.size}"
    )


def _require_own(program: Program, judged: Batch, feed: TensorFeed | LoaderFeed) -> None:
    """Refuse validation data that a guide with one factor per datum has no factors for.

    It would judge them by the factors of the training data of the same numbers.
    """
    if program.rows.total is None:
        return
    own = dict(named_leaves(feed.data)) if isinstance(feed, TensorFeed) else {}
    for name, leaf in named_leaves(judged):
        same = own.get(name)
        if same is None or same.shape != leaf.shape or not bool((same.to(leaf) == leaf).all()):
            raise ProgramError(
                "valid: got data besides those of training, and the guide has one factor per datum "
                "of training, none for new ones; leave valid out, give a guide that reads the "
                "data, or ask pv.infer(program, valid, how='local') after training"
            )


def _conformed(
    program: Program, transform: Callable[[Batch], Batch] | None
) -> Callable[[Batch], Batch] | None:
    """Return a transform that makes what the program takes: data may hold more, as labels."""
    return None if transform is None else lambda batch: program.conform(transform(batch))


def _prepared(
    program: Program,
    data: Any,
    batch_size: int,
    transform: Callable[[Batch], Batch] | None,
    world: World,
    size: Size | None,
    seed: int,
    precision: Precision,
) -> tuple[TensorFeed | LoaderFeed, Batch]:
    """Check all data before anything changes; return the feed and a first batch."""
    known = not program.reader.fresh
    try:
        feed, first = _read(program, data, batch_size, transform, world, size, seed)
    except DataError as error:  # values in the types of their statements beside converted networks
        if not (is_of_types(error) and program.own.types.convert_first()):
            raise
        program.start_anew()
        feed, first = _read(program, data, batch_size, transform, world, size, seed)
    if convert(program, precision):  # what that run has made: the data come in its type
        feed, first = _read(program, data, batch_size, transform, world, feed.size, seed)
    _check_shares(program, feed, world)
    _tell_of_own_rows(program.sites)
    _tell_of_another_size(program, first, feed.size)
    program.batches_alone = isinstance(feed, LoaderFeed)
    if isinstance(feed, LoaderFeed):
        program.reader.tell_of_batches(first, feed.size)
    if isinstance(feed, TensorFeed):
        if transform is None:
            program.check(feed.data)
        else:
            check_finite(feed.data)
        if num_rows(first) < feed.size:
            # A transform is asked once more only where a term could read the rows it makes.
            if transform is None or program.sites.outside:
                with _forked(program), seeded_outside_torch(0):
                    program.reader.look_over(feed.data, transform)
            program.reader.require_parts(first, feed.size)
    # What was known of such batches, others may have asked for.
    program.own.late.asked = program.reader.asked(first) if known else program.sites.values
    shown = feed.data if isinstance(feed, TensorFeed) and transform is None else first
    program.examples.remember(shown)
    return feed, first


def _read(
    program: Program,
    data: Any,
    batch_size: int,
    transform: Callable[[Batch], Batch] | None,
    world: World,
    size: Size | None,
    seed: int,
) -> tuple[TensorFeed | LoaderFeed, Batch]:
    """Let a program read a first batch; return the feed and that batch."""
    adapt = program.adapt if transform is None else program.as_tensors
    require_whole = partial(_require_whole_batches, transformed=transform is not None)
    feed = make_feed(program, data, batch_size, world=world, adapt=adapt, size=size)
    # Starting values that a first run draws are others in each restart.
    start = seeded(program.device, _start(seed)) if seed else _forked(program)
    with start, seeded_outside_torch(0):
        first = feed.first()
        first = transform(first) if transform is not None else first
        if isinstance(feed, LoaderFeed) or world.size > 1:
            require_rows(first)
        if not program.reader.fresh:  # factors that fit no part are told before shapes that differ
            require_whole(program, first, feed, world)
        # The factors that a read would make of one row are like weights that all rows share.
        made_of_one = program.reader.fresh and num_rows(first) == 1 < feed.size
        by_number = made_of_one and program.rows.makes_factors(first, feed.size)
        if isinstance(feed, LoaderFeed) and not program.reader.fresh:
            program.reader.read_anew(first)  # as tensors are looked over anew
        program.read(first)
        if program.conform(first) is not first:  # counts, which the program takes as floats
            first = program.conform(first)
            program.read(first)
            if transform is None:
                feed = make_feed(program, data, batch_size, world=world, size=feed.size)
        require_whole(program, first, feed, world, by_number=by_number)
    return feed, first


def _forked(program: Program) -> AbstractContextManager[None]:
    """Return a context that leaves the random state of a program's device as it is."""
    return torch.random.fork_rng([program.device] if program.device.type == "cuda" else [])


def _start(seed: int) -> int:
    """Return a seed that hangs on the global random state too, which stays as it is."""
    with torch.random.fork_rng([]):
        return int(torch.randint(2**31, ())) ^ seed


def _prepare_valid(
    program: Program,
    valid: Any,
    batch_size: int,
    feed: TensorFeed | LoaderFeed,
    world: World,
    transformed: bool,
) -> Validation | None:
    """Check validation data before anything changes, those of a stream by their first batch.

    Arguments:
        program: What is judged.
        valid: In any form that ``fit`` takes.
        batch_size: Rows of a batch, where the data do not say.
        feed: Of training.
        world: The processes that judge together.
        transformed: Whether the data of training are, which these are not.
    """
    world.agree({"valid": "none" if valid is None else "some"})
    if valid is None:
        return None
    try:
        judged = Validation(program, valid, batch_size, world)
    except DataError as error:
        told = str(error).replace(SURPLUS, SURPLUS_OF_VALID)
        if transformed and SURPLUS not in str(error):
            told += "; transform= is applied to data alone: give valid as it makes them"
        raise DataError(f"valid: {told}") from error
    _require_own(program, judged.first, feed)
    return judged
