"""A program: a model and a guide with their parameters, what every verb works on."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import getattr_static
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyro_vae.arguments import integer, positive, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.names import missing, no_call
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import (
    Batch,
    Whole,
    arguments,
    as_batch,
    named_arguments,
    num_rows,
)
from pyro_vae.program.batches.examples import Examples
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.particles import (
    Subject,
    sums_one_by_one,
    takes_copies,
    takes_particles,
)
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.first_call import as_new_if_refused, forgotten_on_error
from pyro_vae.program.given_data import GivenData
from pyro_vae.program.handlers import (
    Beta,
    DatasetSize,
    ScaledRows,
    ScaleLatents,
    denormals_flushed,
    validation,
)
from pyro_vae.program.parameters.arrivals import Arrivals
from pyro_vae.program.parameters.given_store import read_store
from pyro_vae.program.parameters.loads import add_expected, arrived, receive
from pyro_vae.program.parameters.modules import library_method, owners
from pyro_vae.program.parameters.object_graph import PROGRAM
from pyro_vae.program.parameters.parameters import Parameters
from pyro_vae.program.passes import Passes, Verb
from pyro_vae.program.reader import Reader
from pyro_vae.program.rows import Rows
from pyro_vae.program.sites.prior_guide import prior_of
from pyro_vae.program.sites.sites import Sites
from pyro_vae.program.sites.split_guide import split
from pyro_vae.program.told import silent
from pyro_vae.threads import one_thread
from pyro_vae.torch_private import device_of_to

SIDES = ("model", "guide")


class Program(nn.Module):
    """A model and a guide with their parameters: what every verb of the library works on.

    Anything with ``.model`` and ``.guide`` is read by ``Program.of``; two plain Pyro functions are
    wrapped by ``Program(model, guide)``. Parameters come from the modules that own the functions or
    are used by them, and from ``pyro.param`` and ``pyro.module`` statements, which are answered
    from the program's own tensors: the global parameter store is never touched. A second program of
    the same two functions has tensors of its own for these, and starts anew: keep the trained one.

    Arguments:
        model, guide: Pyro functions of the batch (a tensor is one argument, a tuple positional
            arguments, a dict keywords). A plate holds the data: its rows are those of the batch,
            and it encloses an observed site, whatever its name, its size and its dimension. A
            model without such a plate (a Gaussian process, ``.to_event(1)`` over all data, a loop)
            is one datum: its latents are global, its data are never cut (``batch_size`` does not
            count), and its numbers are those of all data together. Functions without arguments
            take ``()`` for data. Each dimension of a site's batch shape belongs to a plate, as
            under stock SVI.
        modules: Modules that the functions use, under names of your choice.
        params: ``pyro.get_param_store()`` of a program that stock SVI has trained: its values and
            constraints are copied.
        plate: Name of the plate that holds the data, where two could.
        observed: Arguments by the observed site whose value the model computes from them. Not
            needed where a site observes an argument, or a view or cast of one.
        dim: The dimension of the batch's tensors that counts the data (1: time comes first).
            Behind the program, and in what verbs return, the datum comes first.
        constants: Names of the arguments that are as long as the data, and are no rows. Found out
            where it is not told, by what happens to the numbers of a datum where the others are cut
            away; where that leaves two readings, ``fit`` asks for it before it cuts.
        whole: Read all data as one datum, as without a plate, though a plate has their rows: a
            series whose steps depend on each other (a random walk by ``cumsum`` over a plate of
            time) has one bound, and HMC draws all its latents together.

    Raises:
        ConfigError: ``dim`` is no dimension counted from the left; ``whole`` beside a plate.
        ProgramError: A function is none, or the guide is left out.

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     loc = pyro.param("loc", torch.tensor(0.0))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> program = Program(model, guide)
    >>> program.read(torch.zeros(3)).local
    ('z',)
    >>> [name for name, _ in program.named_parameters()]
    ['values.loc']
    """

    @typed
    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        params: Any = None,
        plate: str | None = None,
        observed: Mapping[str, str] | None = None,
        dim: int = 0,
        constants: Sequence[str] | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__()
        dim = integer("dim", dim, 0)
        if guide is None:
            _refuse_one(model)
        if whole and plate is not None:
            raise ConfigError(
                f"plate: got {plate!r} beside whole=True, expected one of the two: all data are "
                "one datum, or the plate has a row for each"
            )
        for side, function in zip(SIDES, (model, guide), strict=True):
            if isinstance(function, type):
                raise ProgramError(
                    f"{side}: got the class {function.__name__}, expected a function or an "
                    f"instance of the class, such as {function.__name__}(model)"
                )
        self._options: dict[str, Any] = {
            "modules": modules,
            "plate": plate,
            "observed": observed,
            "dim": dim,
            "constants": constants,
            "whole": whole,
        }
        self._by_datum: list[Program] = []  # the same pair, its guide split by datum; no child
        self._given = GivenData(self, dim, constants, plate)
        # A tuple: nn.Module must not register them twice.
        self._functions = (model, guide)
        store = None if params is None else read_store(params)
        self.own = Parameters((model, guide), modules, store)
        self.parts, self.values = self.own.parts, self.own.values
        self.register_state_dict_post_hook(add_expected)
        self.register_load_state_dict_pre_hook(receive)
        self.register_load_state_dict_post_hook(arrived)
        self._source: Any = None
        self._origin: tuple[Any, Any] = (None, None)
        self._particles: dict[Any, tuple[bool, bool, bool]] = {}  # tiled, alone, one by one
        self.examples = Examples(self)
        self.reader = Reader(self, plate, observed, whole=whole)
        self.rows = Rows(self, self.reader)
        self._summable: dict[Any, bool] = {}  # by layout: one value at a time, or all at once
        self._place = torch.device("cpu")
        self.batches_alone = False  # as those of a loader, in training
        self.diverged = False  # in its last training
        self.held: list[dict[str, Tensor]] = []  # draws of the globals, inside passes.holding

    @staticmethod
    @typed
    def of(program: Any) -> "Program":
        """Return the ``Program`` of any object with ``.model`` and ``.guide``, one per object.

        Raises:
            ProgramError: The object lacks one of the two.
        """
        if isinstance(program, Program):
            program.follow()
            return program
        if isinstance(program, type):
            raise ProgramError(
                f"got the class {program.__name__}, expected an object of it, "
                f"{program.__name__}(...); of static functions make a program once: "
                f"pv.Program({program.__name__}.model, {program.__name__}.guide)"
            )
        for side in SIDES:
            if not callable(getattr(program, side, None)):
                raise ProgramError(
                    f"got {type(program).__name__} without .{side}; pass an object with .model and "
                    f".guide, or pv.Program(model, guide){_instead_of_a_program(program)}"
                )
        if not isinstance(getattr(program, "__dict__", None), dict):
            raise ProgramError(
                f"got {type(program).__name__}, which takes no attributes (a namedtuple, slots), "
                "so that nothing can be kept of it between calls; make a program of its "
                "functions once: program = pv.Program(it.model, it.guide)"
            )
        known = program.__dict__.get(PROGRAM)
        if known is None:
            known = Program(program.model, program.guide)
            known.__dict__["_source"] = program
            known.__dict__["_origin"] = _origin(program)
            # Past nn.Module.__setattr__: the object must not become its own grandchild.
            program.__dict__[PROGRAM] = known
        known.follow()
        return known

    def follow(self) -> None:
        """Read again what has been replaced since: model or guide of the source, a network."""
        origin = (None, None) if self._source is None else _origin(self._source)
        if any(new is not old for new, old in zip(origin, self._origin, strict=True)):
            self.__dict__["_origin"] = origin
            self._functions = (self._source.model, self._source.guide)
            self.own.replace(self._functions)
            self.rows.told = self.rows.trained = None
            self.examples.forget()
            self.start_anew()
        elif self.own.follow():
            self.forget()

    def start_anew(self) -> None:
        """Find out anew which arguments the functions take, and what they do with a batch."""
        self._given.start_anew()
        self.forget()

    def forget(self) -> None:
        """Find out anew what the functions do with a batch."""
        self._by_datum.clear()
        self.reader.forget()
        self.examples.forget_form()
        self.rows.forget()
        self._particles.clear()
        self._summable.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(vars(self).copy(), memo))
        if self._source is None:  # an object's copy shares what the object shares
            _refuse_shared(self, twin)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse another model or guide: nn.Module would keep a network beside what runs."""
        if name in SIDES:
            raise ProgramError(
                f"{name}: a program's cannot be replaced; make another, pv.Program(model, guide)"
            )
        super().__setattr__(name, value)

    forward = no_call

    def __getattr__(self, name: str) -> Any:
        """Say that verbs are functions of the library, where one is asked of a program.

        Raises:
            AttributeError: The program has nothing of this name.
        """
        return missing(self, name, super().__getattr__)

    @property
    def model(self) -> Callable[..., Any]:
        """The model as it was given; inside ``running`` its ``pyro.param`` values are trained."""
        return self._functions[0]

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide as it was given: of an autoguide that has met data, ``program.guide.median()``.

        Outside ``with program.running():`` its ``pyro.param`` statements read Pyro's own store.
        """
        return self._functions[1]

    @property
    def moves_data(self) -> bool:
        """Whether the datum comes in another dimension than the first (``dim``)."""
        return bool(self._options["dim"])

    @property
    def source(self) -> Any:
        """The object that was read as a program; the program itself for two functions."""
        return self if self._source is None else self._source

    @property
    def functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The Pyro functions ``(model, guide)``, to be called inside ``running``."""
        return self._given.functions

    def of_each_datum(self) -> "Program | None":
        """Return the program with a guide that has a density for each datum; None: there is none.

        Where that of the guide is one of all data, but a product of such (``SplitGuide``).
        """
        guide = split(self._functions[1])
        if guide is None:
            return None
        if not self._by_datum:
            self._by_datum.append(self.under(guide, **self._options))
        return self._by_datum[0]

    def under(self, guide: Callable[..., Any], **options: Any) -> "Program":
        """Return the model under another guide, with the values of this program."""
        other = Program(self._functions[0], guide, **options)
        other.share_values(self)
        return other

    def under_prior(self) -> "Program":
        """Return the model with its prior as guide: for data that the guide has no factor for."""
        options = {**self._options, "modules": dict(self.parts)}
        return self.under(prior_of(self._functions[0]), **options)

    # -- parameters ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run model and guide inside this block on the program's own parameters.

        What has been loaded stands in it as soon as the functions have made its place.

        Raises:
            CheckpointError: What the functions make does not fit what was loaded.
            ConfigError: Another thread of this process trains.
            ProgramError: The place of what was loaded is only found by ``read``.
        """
        with self.answering(), as_new_if_refused(self), Arrivals(self.own).giving():
            yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Run functions inside as ``running`` does, on batches that have been read.

        Raises:
            ConfigError: Another thread of this process trains.
        """
        with one_thread("program"), denormals_flushed(), self.own.answering():
            try:
                yield
            finally:
                self.reader.runs.release_iterators()

    @typed
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load parameters, as of any module; names and shapes that the first run asks for, then.

        Until it has run nothing tells which values its statements have: names and shapes of those
        that are loaded are compared at the first run. Under ``strict`` it refuses to make others,
        and warns where none were loaded at all, as of a program that has not run; what it does not
        ask for is kept, as other data may.

        Raises:
            RuntimeError: Names or shapes differ from those known; values to come are as before.
        """
        put_back, self.own.loads.strict = self.own.remembered(), strict
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except BaseException:
            put_back()
            raise
        finally:
            self.own.loads.strict = None

    def share_values(self, other: "Program") -> None:
        """Answer ``pyro.param`` statements with another program's values from now on."""
        self.own.share_values(other.own)
        self.values = self.own.values

    # -- reading ---------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Return how the last batch was read, once one was."""
        last = self.reader.last
        return "" if last is None else last.told(self.reader.rows_read, self._options["dim"])

    @property
    def sites(self) -> Sites:
        """The sites by role; a program that knows an example of its data needs no batch first."""
        return self.reader.sites

    def read(self, batch: Batch) -> Sites:
        """Look at one batch with validation on, once per signature, and return the sites.

        Raises:
            DataError: Not finite, of a wrong shape, or outside an observed site's support.
            ProgramError: Model and guide disagree, or no plate holds the data, or two could.
        """
        batch = self.reader.known_whole(batch)
        if not self.reader.fresh:
            return self.reader.read(batch)
        with forgotten_on_error(self):
            return self.reader.read(batch)

    def check(self, data: Batch, rows: int = 8192, first_rows: int = 1) -> None:
        """Check every row of a data set; see ``Rows.check``."""
        with forgotten_on_error(self):
            self.rows.check(self.reader.known_whole(data), rows, first_rows)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; where there is none yet, that of the last ``to``."""
        return next((p.device for p in self.parameters()), self._place)

    def to(self, *args: Any, **kwargs: Any) -> "Program":
        """Move the parameters, and remember where those that ``pyro.param`` still makes belong."""
        device = device_of_to(*args, **kwargs)
        self._place = device if device is not None else self._place
        return super().to(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "Program":
        """Remember the type that all floats are given, in which others will be made."""
        types = {fn(torch.zeros((), dtype=each)).dtype for each in (torch.float32, torch.float64)}
        if len(types) == 1:
            self.own.types.convert(types.pop())
        return super()._apply(fn, *args, **kwargs)

    def adapt(self, data: Any) -> Batch:
        """Return data as a batch with the datum first, tensors on the program's device.

        A list of batches (dicts, or tuples of the model's arguments) is joined to one.
        Floats come in the program's precision, and so do integers that a density over floats
        observes (counts under Poisson); what is no array stays as it is.

        Raises:
            DataError: An array that is no dense numeric one, or arguments that the program does not
                take.
        """
        return self.conform(self.as_tensors(data))

    def as_tensors(self, data: Any) -> Batch:
        """Return data as a batch that a transform has yet to make into what the program takes.

        Raises:
            DataError: An array that is no dense numeric one.
        """
        return self._given.as_tensors(data)

    def conform(self, batch: Batch) -> Batch:
        """Return a batch of tensors as the program takes it.

        Raises:
            DataError: Arguments that the program does not take.
        """
        return self._given.conform(batch)

    def unwrapped(self, batch: Any) -> Any:
        """Return what a loader's list of one tensor holds; the list, for functions that open it."""
        return self._given.unwrapped(batch)

    def as_given(self, batch: Batch) -> Batch:
        """Return a batch as a user gives it, its datum in the program's own dimension."""
        return self._given.as_given(batch)

    def shown(self, values: Any, like: Sequence[Any] | None = None) -> Any:
        """Return what a verb answers as its user has data: a data frame where they are one.

        Arguments:
            values: Of the observed site, ``(N, *event)``, or by site.
            like: The data frames that the verb was given, none of other data; None where it was
                given no data.
        """
        shows = library_method(self.source, "shows")
        if shows is None or not isinstance(values, Tensor):
            return values
        framed = self.source.shows_frames if like is None else like
        return shows(values, like) if framed else values

    @property
    def precision(self) -> torch.dtype | None:
        """Return the dtype of the program's parameters; None where none is a float."""
        return self.own.types.precision

    @property
    def row_precision(self) -> torch.dtype | None:
        """Return the dtype to which rows are converted; None where the data come otherwise."""
        return self._given.row_precision

    def passes(
        self,
        data: Any,
        verb: Verb,
        *,
        rows: int = 1024,
        particles: int = 1,
        num_global_samples: int = 1,
    ) -> Passes:
        """Open the door of a verb: the data checked, the globals held, and passes to walk through.

        See ``Passes`` for the arguments.
        """
        return Passes(
            self,
            data,
            verb,
            rows=rows,
            particles=particles,
            num_global_samples=num_global_samples,
        )

    # -- the batch -------------------------------------------------------------------------------

    def named(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch's tensors by the names that the model's signature gives them."""
        args, kwargs = arguments(batch)
        bound = named_arguments(self.functions[0], args, kwargs)
        return {name: value for name, value in bound.items() if isinstance(value, Tensor)}

    def replace(self, batch: Batch, values: Mapping[str, Tensor]) -> Batch:
        """Return the batch with the values of some observed sites replaced (dreamt data).

        Raises:
            ProgramError: A site observes what the model computes.
        """
        return as_batch(batch, *self.read(batch).replace(*arguments(batch), values))

    # -- numbers ---------------------------------------------------------------------------------

    @typed
    def joint(
        self,
        batch: Batch,
        *,
        beta: Beta | None = None,
        size: int | None = None,
        judged: bool = False,
    ) -> Joint:
        """Return model and guide on one batch, under a KL weight and for a data set of N rows.

        Arguments:
            batch: One row per datum.
            beta: KL weight of the local latents (``ScaleLatents``); None adds no handler.
            size: N, used where there are global sites; None: the bound speaks of this batch alone.
            judged: Whether the batch is none of training: its rows may be more or less than those
                for which the program has N/B written in.
        """
        size = None if size is None else positive("size", size)
        sites = self.read(batch)
        batch = self.reader.runs.as_taken(batch)  # the read may have been the first of integers
        model, guide = self.reader.canonical(sites, batch)
        covered, found = num_rows(batch), sites.dependence
        found = self.reader.in_training(found) if self.training else found
        if sites.size is not None:
            covered = sites.size
        elif size is not None and found.weighed_beside(size, covered):
            covered = found.weighed_beside(size, covered)
        elif size is not None and (sites.outside or found.scaled_itself(size)):
            own = bool(found.scaled_itself(size))  # then its step is as stock SVI takes it
            sums = found.of_each_batch if self.batches_alone else found.scaled
            scaled = DatasetSize(size, covered, () if own else sums, done=own)
            model, guide = scaled(model), scaled(guide)
            covered = size
        written = sites.dependence.written_for(size) if judged and size is not None else 0
        if written:
            weighed = ScaledRows(written / num_rows(batch))
            model, guide = weighed(model), weighed(guide)
        if beta is not None:
            model, guide = ScaleLatents(beta)(model), ScaleLatents(beta)(guide)
        args, kwargs = arguments(batch)
        tiled, alone, one_by_one = self._takes(batch, sites)
        return Joint(
            model,
            guide,
            args,
            kwargs,
            tiled=tiled,
            num_plates=sites.num_plates,
            data_dim=sites.data_dim,
            sums_out=bool(sites.enumerated),
            size=covered,
            alone=alone,
            replace=sites.replace,
            spanning=sites.dependence.spanning,
            following=sites.dependence.following,
            carried=sites.dependence.carried,
            redrawn=sites.dependence.redrawn,
            one_by_one=one_by_one,
        )

    @typed
    def terms(
        self,
        batch: Batch,
        num_global_samples: int = 1,
        num_particles: int = 1,
        *,
        size: int | None = None,
    ) -> Terms:
        """Draw S sets of globals and K particles of the locals, and return their log densities.

        Arguments:
            batch: One row per datum.
            num_global_samples: S.
            num_particles: K.
            size: N, where the batch is part of a data set and there are global sites.
        """
        with self.answering():
            joint = self.joint(batch, size=size)
            samples = positive("num_global_samples", num_global_samples)
            return joint.terms(samples, positive("num_particles", num_particles))

    def summed_joint(self, batch: Batch) -> Joint:
        """Return the densities of a batch with all discrete local latents summed out.

        Those that the guide draws as well; it is found out once whether the model takes them.

        Raises:
            ProgramError: It does not; names the site.
        """
        sites = self.read(batch)
        batch = self.reader.runs.as_taken(batch)
        joint = self.joint(batch).densities()
        key = (sites.observed, sites.local, sites.global_)
        if sites.discrete and key not in self._summable and not checks.is_meta(batch):
            subject = Subject(*self.reader.canonical(sites, batch), batch, sites)
            runs = self.reader.runs
            with runs.nothing_kept(), runs.quiet(batch), validation(False):
                self._summable[key] = sums_one_by_one(subject, sites.discrete)
        return joint.summing(sites.discrete, one_by_one=self._summable.get(key, False))

    def tiled(self, batch: Batch) -> bool:
        """Return whether K particles need K copies of the rows; found out once, by comparison."""
        sites = self.read(batch)
        return self._takes(self.reader.runs.as_taken(batch), sites)[0]

    def _takes(self, batch: Batch, sites: Sites) -> tuple[bool, bool, bool]:
        """Return whether K particles need K copies of the rows, and whether those fail as well.

        And whether the model takes one value at a time of the latents that the guide leaves out.
        """
        if isinstance(batch, Whole):
            return False, False, False  # no site of a datum is drawn
        key = (sites.observed, sites.local, sites.global_)
        if key not in self._particles:
            if checks.is_meta(batch):
                return False, False, False  # no values to compare
            subject = Subject(*self.reader.canonical(sites, batch), batch, sites)
            runs = self.reader.runs
            with runs.nothing_kept(), runs.quiet(batch), validation(False), silent():
                one = bool(sites.enumerated) and sums_one_by_one(subject)
                subject = replace(subject, one_by_one=one)
                takes = takes_particles(subject, self.parts)
                copies = takes or sites.size is None
                if not takes and copies:
                    copies = takes_copies(subject, self.parts)
            self._particles[key] = not takes, not copies, one
        return self._particles[key]


def _refuse_one(given: Any) -> NoReturn:
    """Refuse a model alone, and what is a program already.

    Raises:
        ProgramError: Always.
    """
    if all(callable(getattr(given, side, None)) for side in SIDES):
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        raise ProgramError(
            f"guide: left out, and {name} has .model and .guide: "
            + (
                f"make an instance, {name}(...), which is a program as it is"
                if isinstance(given, type)
                else "it is a program as it is: pv.fit(it, x)"
            )
        )
    raise ProgramError(
        "guide: left out, expected pv.Program(model, guide): a function that samples the latents "
        "of the model, or one of pyro.infer.autoguide, such as AutoNormal(model)"
    )


def _instead_of_a_program(given: Any) -> str:
    """Return what is meant where something else stands in a program's place."""
    if callable(getattr(getattr(given, "program", None), "model", None)):  # a Run
        return "; here its .program"
    is_data = isinstance(given, Tensor | tuple | list | dict) or hasattr(given, "__array__")
    return "; the program comes before the data" if is_data else ""


def _refuse_shared(program: Program, twin: Program) -> None:
    """Refuse a copy whose functions use the networks of what it is a copy of."""
    mine = {id(module) for module in owners(*program._functions).values()}
    for name, module in owners(*twin._functions).items():
        if id(module) in mine and any(True for _ in module.parameters()):
            raise ProgramError(
                f"copy: the functions hold the network {name!r} themselves (in a closure or a "
                "global), so that a copy would train the same one; write model and guide as "
                "methods of an nn.Module and copy that, or keep weights by copying "
                "program.state_dict()"
            )


def _origin(source: Any) -> tuple[Any, Any]:
    """Return what an object's model and guide are made from, the same at each look."""
    modules = vars(source).get("_modules", {})
    return tuple(getattr_static(source, side, modules.get(side)) for side in SIDES)
