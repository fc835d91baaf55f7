"""Reading a program: its parameters, its sites and its batch, from one trace of model and guide."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae.arguments import integer
from pyro_vae.errors import DataError, ProgramError, PyroVaeError
from pyro_vae.program import checks
from pyro_vae.program.batch import (
    Batch,
    arguments,
    as_argument,
    as_batch,
    as_tensor,
    check_finite,
    chunks,
    cuda_devices,
    datum_at,
    datum_first,
    datum_moved,
    map_arguments,
    map_batch,
    map_rows,
    named_arguments,
    named_leaves,
    num_rows,
    signature,
)
from pyro_vae.program.discovery import Discovery
from pyro_vae.program.handlers import (
    Beta,
    DatasetSize,
    ScaleLatents,
    data_frame,
    denormals_flushed,
    is_data,
    sample_sites,
    validation,
)
from pyro_vae.program.joint import Joint
from pyro_vae.program.modules import evaluating, leaves_behind
from pyro_vae.program.object_graph import PROGRAM
from pyro_vae.program.observed import Binding, Copies, bindings_of
from pyro_vae.program.parameters import Parameters, read_store, with_expected
from pyro_vae.program.particles import require_sums, takes_particles
from pyro_vae.program.passes import Passes, Verb, bytes_per_row
from pyro_vae.program.plates import Canonical, DataPlate, find_plate, shown_canonically
from pyro_vae.program.sites import Sites, read_sites
from pyro_vae.program.terms import Terms
from pyro_vae.threads import one_thread

_REMEMBERED_ROWS, _REMEMBERED_BYTES = 1000, 1 << 24

SIDES = ("model", "guide")


class Program(nn.Module):
    """A model and a guide with their parameters: what every verb of the library works on.

    Anything with ``.model`` and ``.guide`` is read by ``Program.of``; two plain Pyro functions are
    wrapped by ``Program(model, guide)``. Parameters come from the modules that own the functions or
    are used by them, and from ``pyro.param`` and ``pyro.module`` statements, which are answered
    from the program's own tensors: the global parameter store is never touched.

    Arguments:
        model, guide: Pyro functions of the batch (a tensor is one argument, a tuple positional
            arguments, a dict keywords). A plate holds the data: its rows are those of the batch,
            and it encloses an observed site, whatever its name, its size and its dimension.
        modules: Modules that the functions use, under names of your choice.
        params: ``pyro.get_param_store()`` of a program that stock SVI has trained: its values and
            constraints are copied.
        plate: Name of the plate that holds the data, where two could.
        observed: Arguments by the observed site whose value the model computes from them. Not
            needed where a site observes an argument, or a view or cast of one.
        dim: The dimension of the batch's tensors that counts the data (1: time comes first).
            Behind the program, and in what verbs return, the datum comes first.

    Raises:
        ConfigError: ``dim`` is no dimension counted from the left.
        ProgramError: A function is none.

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

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        modules: Mapping[str, nn.Module] | None = None,
        params: Any = None,
        plate: str | None = None,
        observed: Mapping[str, str] | None = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        dim = integer("dim", dim, 0)
        for side, function in zip(SIDES, (model, guide), strict=True):
            if not callable(function):
                raise ProgramError(f"{side}: got {function!r}, expected a Pyro function")
        self._dim = dim
        # A tuple: nn.Module must not register them twice.
        self._functions = (datum_moved(model, dim), datum_moved(guide, dim))
        self._plate = plate
        self._plate_before: str | None = None  # the data plate of the batch before
        self._observed = dict(observed or {})
        store = None if params is None else read_store(params)
        self.own = Parameters((model, guide), modules, store)
        self.parts, self.values = self.own.parts, self.own.values
        self.register_state_dict_post_hook(with_expected)
        self._source: Any = None
        self._origin: tuple[Any, Any] = (None, None)
        self._sites: Sites | None = None  # of the batch that was read last
        self._layouts: dict[Any, Sites] = {}  # by what must stay equal of a batch
        self._warned: set[str] = set()  # sites with a warning of unvalidated values
        self._first_rows: Batch | None = None
        self._remembered: Batch | None = None
        self._remembered_of = 0
        self.rows_read = 1
        self._tiled: dict[Any, bool] = {}
        self._fixed: bool | None = None  # to the rows that it was read with
        self._place = torch.device("cpu")

    @staticmethod
    def of(program: Any) -> "Program":
        """Return the ``Program`` of any object with ``.model`` and ``.guide``, one per object.

        Raises:
            ProgramError: The object lacks one of the two.
        """
        if isinstance(program, Program):
            program.follow()
            return program
        for side in SIDES:
            if not callable(getattr(program, side, None)):
                raise ProgramError(
                    f"got {type(program).__name__} without .{side}; pass an object with .model and "
                    ".guide, or pv.Program(model, guide)"
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
            self._first_rows = None  # the new ones may take other arguments
        elif not self.own.follow():
            return
        self._sites, self._plate_before = None, None
        self._layouts.clear()
        self._tiled.clear()
        self._fixed = None

    @property
    def source(self) -> Any:
        """The object that was read as a program; the program itself for two functions."""
        return self if self._source is None else self._source

    @property
    def functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The Pyro functions ``(model, guide)``, to be called inside ``running``."""
        return self._functions

    # -- parameters ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run model and guide inside this block on the program's own parameters.

        Raises:
            ConfigError: Another thread of this process trains.
        """
        with one_thread("program"), denormals_flushed(), self.own.answering():
            yield

    def share_values(self, other: "Program") -> None:
        """Answer ``pyro.param`` statements with another program's values from now on."""
        self.own.share_values(other.own)
        self.values = self.own.values

    # -- reading ---------------------------------------------------------------------------------

    @property
    def sites(self) -> Sites:
        """The sites by role; a program that knows an example of its data needs no batch first."""
        return self._sites if self._sites is not None else self.read(self.example())

    def example(self, n: int = 2) -> Batch:
        """Return n example rows: the program's own, else rows of the first batch that it saw.

        Raises:
            ProgramError: The program offers none and has seen no data.
        """
        own = getattr(self._source, "example", None)
        if callable(own):
            return own(n)
        if self._first_rows is None:
            raise ProgramError("this program has seen no data yet; call program.read(batch) first")
        rows = torch.arange(n) % num_rows(self._first_rows)
        return map_batch(
            lambda leaf: leaf.to(self.device), map_rows(lambda leaf: leaf[rows], self._first_rows)
        )

    def inputs(self, n: int) -> Batch:
        """Return n rows to generate data for: drawn at random where they are more than a shape.

        Where the model's arguments are all observed, their values do not matter.
        """
        if self._remembered is None or set(self.named(self._remembered)) <= set(
            self.sites.observed
        ):
            return self.example(n)
        rows = torch.randint(num_rows(self._remembered), (n,))
        picked = map_rows(lambda leaf: leaf[rows.to(leaf.device)], self._remembered)
        return map_batch(lambda leaf: leaf.to(self.device), picked)

    def completed(self, given: Mapping[str, Any], n: int, optional: bool = False) -> Batch:
        """Return arguments by name with those added, n rows, that the model needs and observes.

        Their values do not matter: they are drawn anew.

        Arguments:
            given: Some arguments, n rows each.
            n: Rows.
            optional: Whether to add those too that have a default, and were observed before.
        """
        needed = [
            name
            for name, parameter in inspect.signature(self._functions[0]).parameters.items()
            if name not in given
            and (parameter.default is parameter.empty or (optional and name in self.sites.observed))
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        if not needed:
            return dict(given)
        rows = self.named(self.example(n))
        missing = [name for name in needed if name not in rows]
        if missing:
            raise DataError(f"given: lacks the model's argument {missing[0]!r}, {n} rows")
        return {**{name: rows[name] for name in needed}, **given}

    def remember(self, data: Batch) -> None:
        """Keep some rows, evenly spaced, of the largest data set seen: inputs to generate for."""
        rows = num_rows(data)
        if rows <= self._remembered_of or checks.is_meta(data):
            return
        most = max(1, min(rows, _REMEMBERED_ROWS, _REMEMBERED_BYTES // bytes_per_row(data)))
        kept = torch.arange(most) * rows // most
        self._remembered = map_rows(lambda leaf: leaf[kept.to(leaf.device)].clone(), data)
        self._remembered_of = rows

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; where there is none yet, that of the last ``to``."""
        return next((p.device for p in self.parameters()), self._place)

    def to(self, *args: Any, **kwargs: Any) -> "Program":
        """Move the parameters, and remember where those that ``pyro.param`` still makes belong."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        self._place = device if device is not None else self._place
        return super().to(*args, **kwargs)

    def adapt(self, data: Any) -> Batch:
        """Return data as a batch with the datum first, tensors on the program's device.

        Floats come in the program's precision; what is no array stays as it is.

        Raises:
            DataError: An array that is no dense numeric one.
        """
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

        seen: set[int] = set()

        def on_device(leaf: Tensor) -> Tensor:
            floats = leaf.is_floating_point()
            leaf = leaf.to(self.device, dtype if floats and dtype is not None else None)
            # Observed sites are told by the memory that they look at: each argument has its own.
            memory = int(leaf.untyped_storage()._cdata)
            leaf = leaf.clone() if memory in seen else leaf
            seen.add(memory)
            return leaf

        alone = not isinstance(data, Mapping | tuple | list)
        batch = as_tensor(data) if alone else map_arguments(as_argument, data)
        batch = datum_first(batch, self._dim)
        batch = map_batch(on_device, batch)
        if callable(getattr(self._source, "example", None)):
            example = self.example(1)
            checks.check_example(batch, example)
            if isinstance(batch, Tensor) and isinstance(example, Tensor):
                return batch.to(example.dtype)
        return batch

    def as_given(self, batch: Batch) -> Batch:
        """Return a batch as a user gives it, its datum in the program's own dimension."""
        return datum_at(self._dim, batch)

    def read(self, batch: Batch) -> Sites:
        """Look at one batch with validation on, once per signature, and return the sites.

        Raises:
            DataError: Not finite, of a wrong shape, or outside an observed site's support.
            ProgramError: Model and guide disagree, or no plate holds the data, or two could.
        """
        key = signature(batch)
        if key in self._layouts:
            self._sites = self._layouts[key]
            return self._sites
        check_finite(batch)
        with Discovery.during(self.own) as discovery, Copies() as copies:
            model, guide = self._run_once(batch)
            plate = self._find_plate(model, batch)
            self._show(model, guide, plate, batch)
            checks.check_pair(model, guide)
            checks.check_values(model, self._warned)
            discovery.hold_used(lambda: self._leaves(batch))
        if self._first_rows is None:
            self._first_rows = map_rows(lambda leaf: leaf[:8].detach().clone(), batch)
        self._plate_before = plate.name
        bindings = self._bindings(model, batch, plate, copies)
        self._sites = self._layouts[key] = read_sites(model, guide, plate, bindings)
        self.rows_read = num_rows(batch)
        return self._sites

    def _find_plate(self, model: Trace, batch: Batch) -> DataPlate:
        try:
            return find_plate(model, num_rows(batch), self._plate, self._plate_before)
        except DataError as error:
            raise DataError(f"{error}; got {checks.shapes(batch)}") from None

    def _show(self, model: Trace, guide: Trace, plate: DataPlate, batch: Batch) -> None:
        for trace in (model, guide):
            shown_canonically(trace, plate, num_rows(batch))

    def _bindings(
        self, model: Trace, batch: Batch, plate: DataPlate, copies: Copies
    ) -> dict[str, Binding]:
        args, kwargs = arguments(batch)
        names = [n for n, site in sample_sites(model) if is_data(site)]
        values = {name: model.nodes[name] for name in names}
        keys = named_arguments(self._functions[0], tuple(range(len(args))), {k: k for k in kwargs})
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        return bindings_of(values, given, keys, self._observed, num_rows(batch), plate.dim, copies)

    def _canonical(self, sites: Sites, batch: Batch) -> tuple[Any, Any]:
        """Return model and guide with the data plate under its canonical name and size."""
        if sites.plate.canonical:
            return self._functions
        model, guide = self._functions
        handler = Canonical(sites.plate, num_rows(batch))
        return handler(model), handler(guide)

    def _leaves(self, batch: Batch) -> list[Tensor]:
        """Run the functions once and return the leaf tensors that their densities depend on."""
        args, kwargs = arguments(map_batch(torch.detach, batch))
        with self.quiet(batch), torch.enable_grad(), validation(False):
            model, guide = Joint(*self._functions, args, kwargs).sampled_traces()
            terms = [
                site["fn"].log_prob(site["value"]).sum()
                for trace in (model, guide)
                for _, site in sample_sites(trace)
            ]
        return [leaf for term in terms for leaf in leaves_behind(term)]

    def look(self, batch: Batch) -> tuple[Trace, Trace]:
        """Trace model and guide once: in eval mode, no gradient, and no random number used up."""
        model, guide = self._run_once(batch)
        self._show(model, guide, self._find_plate(model, batch), batch)
        return model, guide

    def _run_once(self, batch: Batch) -> tuple[Trace, Trace]:
        """Trace the functions as they are, their plates under their own names."""
        args, kwargs = arguments(batch)
        self.own.home = next(iter(named_leaves(batch)))[1].device
        try:
            with self.quiet(batch), validation(not checks.is_meta(batch)):
                return Joint(*self._functions, args, kwargs).sampled_traces()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, PyroVaeError):
                raise
            raise DataError(
                f"the program cannot take this batch ({checks.shapes(batch)}): {error}"
            ) from error

    @contextmanager
    def quiet(self, batch: Batch) -> Iterator[None]:
        """Run inside with weights in eval mode, no gradient, and the random state put back."""
        with (
            self.running(),
            evaluating(self),
            torch.random.fork_rng(cuda_devices(batch)),
            torch.no_grad(),
        ):
            yield

    def check(self, data: Batch, rows: int = 8192, first_rows: int = 1) -> None:
        """Check every row of a data set as ``read`` checks a batch, in chunks.

        Arguments:
            data: An adapted batch.
            rows: Of a chunk.
            first_rows: Rows of the first look, where the program has run on none yet.

        Raises:
            DataError: Names the site, the row, the value and the fix.
        """
        check_finite(data)
        self.require_own_rows(data)
        if self._sites is not None and self._sites.size is not None:
            return  # such a program fixes its own batch
        head = self._rows_to_read(data, first_rows)
        first = map_rows(lambda leaf: leaf[:head], data)
        sites = self.read(first)
        if checks.is_meta(data) or sites.size is not None:
            return
        model, _ = self.look(first)
        moving = False  # whether a support has to be asked of the model, batch by batch
        for name, site in sample_sites(model):  # sites may come and go with the values of a batch
            binding = sites.bindings.get(name)
            if not is_data(site) or checks.is_unchecked(site):
                continue
            support = checks.fixed_support(site["fn"])
            if support is None or binding is None or binding.computed:
                moving = True
                continue
            kind = checks.distribution_name(site["fn"])
            for index, piece in enumerate(chunks(data, rows)):
                value = binding.of(*arguments(piece))
                checks.check_support(name, support, kind, value, index * rows, sites.data_dim)
        if moving and num_rows(data) > head:
            size = max(rows, head)
            for index, piece in enumerate(chunks(data, size)):
                model, _ = self.look(piece)
                checks.check_values(model, self._warned, index * size)

    def _rows_to_read(self, data: Batch, first_rows: int) -> int:
        """Return how many rows to look at: as many as before, in one pass.

        A guide with one factor per datum makes them from the rows that it sees first, and takes no
        other number of rows from then on.
        """
        rows = num_rows(data)
        if not self._layouts:
            return min(rows, first_rows)
        return self.rows_read if self.rows_read <= rows else 1

    def is_fixed(self, batch: Batch) -> bool:
        """Return whether the program runs on the rows alone that it was read with.

        So does one whose guide has one factor per datum. Found out once, by a look at half of them.
        """
        half = min(self.rows_read, num_rows(batch)) // 2
        known = self._fixed is not None or half == 0 or checks.is_meta(batch)
        if not known and self.sites.size is None:
            self._fixed = not self._takes(map_rows(lambda leaf: leaf[:half], batch))
        return bool(self._fixed)

    def require_own_rows(self, batch: Batch) -> None:
        """Refuse other rows than those that a program is fixed to.

        Raises:
            DataError: Their number differs.
        """
        if self._fixed and num_rows(batch) != self.rows_read:
            raise DataError(
                f"got {num_rows(batch)} rows, expected the {self.rows_read} that the program was "
                "first read with: a guide with one factor per datum answers for the rows that it "
                "was trained on, all in one batch: pv.fit(..., batch_size=N)"
            )

    def _takes(self, batch: Batch) -> bool:
        try:
            traces = self.look(batch)
        except (DataError, ProgramError):
            return False
        frames = [data_frame(site) for trace in traces for _, site in sample_sites(trace)]
        return all(frame.size == num_rows(batch) for frame in frames if frame is not None)

    def require_whole(self, batch: Batch) -> None:
        """Refuse a program that draws a random part of the rows it is given.

        Raises:
            ProgramError: The plate holds fewer rows than the batch.
        """
        if self.sites.size is None:
            return
        model, _ = self.look(batch)
        frames = [data_frame(site) for _, site in sample_sites(model)]
        size = next(frame.size for frame in frames if frame is not None)
        if size != num_rows(batch):
            raise ProgramError(
                f"the plate 'data' holds {size} of the {num_rows(batch)} rows: this program draws "
                "its own minibatch, so no verb can answer for each row; give it a plate of len(x) "
                "and let pv.fit make the minibatches"
            )

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
        bound = named_arguments(self._functions[0], args, kwargs)
        return {name: value for name, value in bound.items() if isinstance(value, Tensor)}

    def observations(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch's values of the observed sites, by site name, as the sites see them.

        Raises:
            ProgramError: A site observes what the model computes.
        """
        sites = self.read(batch)
        args, kwargs = arguments(batch)
        return {site: sites.binding(site).of(args, kwargs) for site in sites.observed}

    def replace(self, batch: Batch, values: Mapping[str, Tensor]) -> Batch:
        """Return the batch with the values of some observed sites replaced (dreamt data).

        Raises:
            ProgramError: A site observes what the model computes.
        """
        return as_batch(batch, *self.read(batch).replace(*arguments(batch), values))

    # -- numbers ---------------------------------------------------------------------------------

    def joint(self, batch: Batch, *, beta: Beta | None = None, size: int | None = None) -> Joint:
        """Return model and guide on one batch, under a KL weight and for a data set of N rows.

        Arguments:
            batch: One row per datum.
            beta: KL weight of the local latents (``ScaleLatents``); None adds no handler.
            size: N, used where there are global sites; None: the bound speaks of this batch alone.
        """
        sites = self.read(batch)
        model, guide = self._canonical(sites, batch)
        covered = num_rows(batch)
        if sites.size is not None:
            covered = sites.size
        elif size is not None and sites.outside:
            model, guide = DatasetSize(size)(model), DatasetSize(size)(guide)
            covered = size
        if beta is not None:
            model, guide = ScaleLatents(beta)(model), ScaleLatents(beta)(guide)
        args, kwargs = arguments(batch)
        return Joint(
            model,
            guide,
            args,
            kwargs,
            tiled=self.tiled(batch),
            num_plates=sites.num_plates,
            data_dim=sites.data_dim,
            sums_out=bool(sites.enumerated),
            size=covered,
            subsampled=sites.size is not None,
            replace=sites.replace,
        )

    def terms(
        self, batch: Batch, num_samples: int = 1, num_particles: int = 1, *, size: int | None = None
    ) -> Terms:
        """Draw S sets of globals and K particles of the locals, and return their log densities.

        Arguments:
            batch: One row per datum.
            num_samples: S.
            num_particles: K.
            size: N, where the batch is part of a data set and there are global sites.
        """
        with self.running():
            return self.joint(batch, size=size).terms(num_samples, num_particles)

    def tiled(self, batch: Batch) -> bool:
        """Return whether K particles need K copies of the rows; found out once, by comparison."""
        sites = self.read(batch)
        key = (sites.observed, sites.local, sites.global_)
        if key not in self._tiled:
            with self.quiet(batch), validation(False):
                takes = checks.is_meta(batch) or takes_particles(
                    *self._canonical(sites, batch), batch, sites
                )
                if sites.enumerated and not checks.is_meta(batch):
                    require_sums(*self._canonical(sites, batch), batch, sites)
            self._tiled[key] = not takes
        return self._tiled[key]


def _origin(source: Any) -> tuple[Any, Any]:
    """Return what an object's model and guide are made from, the same at each look."""
    modules = vars(source).get("_modules", {})
    return tuple(getattr_static(source, side, modules.get(side)) for side in SIDES)
