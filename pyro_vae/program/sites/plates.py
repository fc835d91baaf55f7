"""Which plate holds the data, where plates stand in tensors, and one layout for all of them."""

from dataclasses import dataclass, replace
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.handlers import PLATE, Message, data_frame, sample_sites, scoring_data


@dataclass(frozen=True)
class DataPlate:
    """The plate whose rows are the batch's rows.

    Arguments:
        name: As the program calls it.
        dim: Its batch dimension, counted from the right.
        sized: Whether the program gives it a size.
        in_guide: As the guide calls it, where that is another name.
        wide: Whether data right of it are more than their distributions.
    """

    name: str
    dim: int
    sized: bool = True
    in_guide: str | None = None
    wide: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """As the model calls it, and as the guide does."""
        return self.name, self.in_guide or self.name

    @property
    def canonical(self) -> bool:
        """Whether its frames are as everything behind the reader expects them."""
        as_told = self.name == PLATE and self.in_guide is None
        return as_told and self.sized and not self.wide

    def fill(self, site: Message) -> None:
        """Give what is observed a distribution for each of its values, as stock SVI scores it."""
        if not self.sized:
            fill(site)
        if self.wide and (shape := widened(site, self.dim)) is not None:
            site["fn"] = site["fn"].expand(shape)

    def frames(self, stack: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
        """Return the frames of a site with the data plate under its canonical name and size."""
        return tuple(self._frame(frame, rows) for frame in stack)

    def _frame(self, frame: Any, rows: int) -> Any:
        if frame.name in (self.name, self.in_guide):
            if frame.size == -1:
                frame = frame._replace(size=rows, full_size=rows)
            return frame._replace(name=PLATE)
        return frame._replace(name=f"{PLATE}_") if frame.name == PLATE else frame


class NoDataPlate(ProgramError):
    """No plate holds one row for each row of the batch."""


@dataclass(frozen=True)
class OneDatum(DataPlate):
    """Stands for the plate of a program that has none: its observed sites are those of one datum.

    Arguments:
        outside: The sites that the guide draws: latents of the data set.
    """

    outside: frozenset[str] = frozenset()

    @property
    def canonical(self) -> bool:
        """Never: the frame is not the program's own."""
        return False

    def around(self, site: Message) -> tuple[Any, ...]:
        """Return the frames of a site of the model, a plate of one row around what is observed."""
        own = tuple(
            frame._replace(name=f"{PLATE}_") if frame.name == PLATE else frame
            for frame in site["cond_indep_stack"]
        )
        if site["name"] in self.outside:
            return own
        return (*own, CondIndepStackFrame(PLATE, self.dim, 1, 0, 1))


class AroundOne(Messenger):
    """Put the plate of one datum around what a model without a plate of the data observes."""

    def __init__(self, plate: OneDatum) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg):
            fill(msg)
            msg["cond_indep_stack"] = self.plate.around(msg)


class Canonical(Messenger):
    """Show a program's data plate to what stands around it under one name and with its size.

    Arguments:
        plate: The program's own.
        rows: B, for a plate without a size.
    """

    def __init__(self, plate: DataPlate, rows: int) -> None:
        super().__init__()
        self.plate = plate
        self.rows = rows

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            return
        self.plate.fill(msg)
        msg["cond_indep_stack"] = self.plate.frames(msg["cond_indep_stack"], self._rows_of(msg))

    def _rows_of(self, msg: Message) -> int:
        """Return the rows of a plate without a size: K particles may be tiled into them."""
        if self.plate.sized:
            return self.rows
        shape, dim = msg["fn"].batch_shape, self.plate.dim
        return shape[dim] if len(shape) >= -dim and shape[dim] > 1 else self.rows


def find_plate(model: Trace, rows: int, wanted: str | None, before: str | None = None) -> DataPlate:
    """Return the plate that holds the data, read from a model's trace.

    It encloses an observed site, or a factor where none is observed, and its rows are those of the
    batch: the one that is asked for, else one called ``"data"``, else the only candidate, whatever
    its name and dimension. A plate of another size that stands inside a candidate holds units of
    each row, though it is called ``"data"``.

    Arguments:
        model: As the program's own functions left it.
        rows: B.
        wanted: Its name, where the user tells it.
        before: Its name in an earlier batch.

    Raises:
        NoDataPlate: There is none: the plates around the observed sites have other sizes, or the
            program loops over the rows (``for i in pyro.plate(...)``).
        ProgramError: There are two, or none of the name that is asked for.
        DataError: It has another number of rows than the batch.
    """
    around = {
        frame.name: frame for site in scoring_data(model) for frame in site["cond_indep_stack"]
    }
    loops = [name for name, frame in around.items() if frame.dim is None]
    frames = {name: frame for name, frame in around.items() if frame.dim is not None}
    if wanted in loops:
        raise NoDataPlate(f"plate {wanted!r} is a loop")
    if wanted is not None and wanted not in frames:
        raise ProgramError(
            f"plate: got {wanted!r}, expected a plate around an observed site, one of "
            f"{sorted(frames)}"
        )
    likely = [name for name in (before, PLATE) if name in frames]
    name = wanted or next(iter(likely), None)
    if name is None or (name not in (wanted, before) and _holds_units(model, name, rows)):
        fitting = [n for n, f in around.items() if f.size == -1 or rows in (f.size, f.full_size)]
        if fitting and set(fitting) <= set(loops):
            raise NoDataPlate(f"plate {fitting[0]!r} is a loop")
        name = _only(model, fitting, sorted(frames), rows)
    frame = frames[name]
    if frame.size not in (-1, rows) and frame.full_size == frame.size:
        others = [n for n, each in frames.items() if each.size == rows and wanted is None]
        ways = [f", or say which plate holds the data: Program(..., plate={n!r})" for n in others]
        raise DataError(
            f"plate {name!r} has {counted(frame.size, 'row')}, the batch {rows}; the first "
            f"dimension of each tensor is the datum{''.join(ways[:1])}"
        )
    return DataPlate(name, frame.dim, sized=frame.size != -1)


def _holds_units(model: Trace, name: str, rows: int) -> bool:
    """Return whether all in a plate of another size than the batch stands in one of its rows too.

    Arguments:
        model: As the program's own functions left it.
        name: The plate's.
        rows: B.
    """
    stacks = [site["cond_indep_stack"] for _, site in sample_sites(model)]
    held = [{frame.name: frame for frame in stack} for stack in stacks]
    held = [frames for frames in held if name in frames]
    own = held[0][name]
    if own.size in (-1, rows) or own.full_size != own.size:
        return False
    fits = (any(f.size == rows and f.dim is not None for f in each.values()) for each in held)
    return all(fits)


def plate_around(model: Trace, plate: DataPlate) -> CondIndepStackFrame | None:
    """Return a plate around all that the data plate holds, and around latents besides; else None.

    Its rows may be the data, and those of the data plate the units of one.

    Arguments:
        model: As the program's own functions left it.
        plate: That of the data.
    """
    sites = [site for _, site in sample_sites(model) if not site_is_subsample(site)]
    frames = [{frame.name: frame for frame in _frames_of(site)} for site in sites]
    inside = [set(each) for each in frames if plate.name in each]
    around = set.intersection(*inside) - {plate.name} if inside else set()
    latents = [
        each
        for each, site in zip(frames, sites, strict=True)
        if plate.name not in each and not site["is_observed"]
    ]
    return next((each[name] for each in latents for name in sorted(around & set(each))), None)


def with_name_in_guide(plate: DataPlate, model: Trace, guide: Trace, rows: int) -> DataPlate:
    """Return the data plate with the name that the guide gives it, where it is another one.

    It is the only frame of the guide at the plate's dimension and of its size, around a latent that
    the model draws inside the plate.
    """
    names = set()
    inside = [name for name, site in sample_sites(model) if _frame_of(site, plate.name)]
    for name, site in sample_sites(guide):
        if name in inside and not _frame_of(site, plate.name):
            names |= {
                frame.name
                for frame in site["cond_indep_stack"]
                if frame.dim == plate.dim and frame.size in (-1, rows)
            }
    return replace(plate, in_guide=names.pop()) if len(names) == 1 else plate


def _frame_of(site: Message, name: str) -> bool:
    return any(frame.name == name for frame in site["cond_indep_stack"])


def _only(model: Trace, fitting: list[str], plates: list[str], rows: int) -> str:
    if len(fitting) > 1:
        way_out = _between(model, sorted(fitting))
        raise ProgramError(
            f"plates {sorted(fitting)} have {counted(rows, 'row')} each, as the batch has, and "
            f"enclose an observed site; {way_out}"
        )
    if not fitting:
        raise NoDataPlate(
            f"no plate of {counted(rows, 'row')} encloses an observed site (plates: "
            f"{plates or 'none'}); write `with pyro.plate({PLATE!r}, len(x)):` around the sites "
            "of one datum"
        )
    return fitting[0]


def _between(model: Trace, plates: list[str]) -> str:
    """Return what to do about several plates, which may all hold the rows, one after another."""
    inside = [[f.name in plates for f in site["cond_indep_stack"]] for site in scoring_data(model)]
    if any(sum(each) > 1 for each in inside):
        return f"say which holds the data: Program(..., plate={plates[0]!r})"
    return (
        "they stand one after another: if the rows of all are the data, make one plate and enter "
        f"it each time, rows = pyro.plate({plates[0]!r}, len(x), dim=-1), then `with rows:`; if "
        f"those of one are, say which: Program(..., plate={plates[0]!r})"
    )


def shown_canonically(trace: Trace, plate: DataPlate, rows: int) -> Trace:
    """Rename the data plate in a trace that was taken of the program's own functions."""
    if isinstance(plate, OneDatum):
        for _, site in sample_sites(trace):
            fill(site)
            site["cond_indep_stack"] = plate.around(site)
    elif not plate.canonical:
        for _, site in sample_sites(trace):
            plate.fill(site)
            site["cond_indep_stack"] = plate.frames(site["cond_indep_stack"], rows)
    return trace


def fill(site: Message) -> None:
    """Give what is observed in a plate without a size a distribution for each of its values.

    Pyro expands distributions to the size of a plate alone; one is scored at all values otherwise.
    """
    fn, value = site["fn"], site["value"]
    if not site["is_observed"] or value is None or all(f.size != -1 for f in _frames_of(site)):
        return
    shape = value.shape[: value.dim() - fn.event_dim]
    pairs = zip(reversed(fn.batch_shape), reversed(shape), strict=False)
    wider = len(shape) >= len(fn.batch_shape) and all(own in (1, seen) for own, seen in pairs)
    if wider and shape != fn.batch_shape:
        site["fn"] = fn.expand(shape)


def widened(site: Message, dim: int) -> Any:
    """Return the batch shape of what is observed, where it is wider than its distribution's.

    In dimensions right of the data plate; None where it is not.

    Arguments:
        site: In the plate.
        dim: That of the plate.
    """
    fn, value = site["fn"], site["value"]
    if not site["is_observed"] or not isinstance(value, Tensor) or value.dim() <= fn.event_dim:
        return None
    seen, own = value.shape[: value.dim() - fn.event_dim], fn.batch_shape
    right = range(dim + 1, 0)
    if len(own) < -dim or len(seen) < -dim or all(seen[d] == own[d] for d in right):
        return None
    if any(own[d] not in (1, seen[d]) for d in right):
        return None
    return (*own[: dim + 1], *seen[dim + 1 :])


def _frames_of(site: Message) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.dim is not None]


def inner_plates(site: Message) -> tuple[int, ...]:
    """Return the dimensions of the units of a datum at a site, left to right.

    Those of the vectorised plates around it but ``"data"``, and those right of the data that no
    plate holds, as stock SVI takes them. They count from the right of the batch shape, as Pyro's.
    """
    dims = {f.dim: f.name for f in site["cond_indep_stack"] if f.dim is not None}
    own = {dim for dim, name in dims.items() if name != PLATE}
    shape, data = site["fn"].batch_shape, data_dim(site)
    right = range(max(data + 1, -len(shape)), 0)
    return tuple(sorted(own | {dim for dim in right if dim not in dims and shape[dim] > 1}))


def data_dim(site: Message) -> int:
    """Return the dimension of the data plate around a site; -1 where it is not vectorised."""
    frame = data_frame(site)
    return -1 if frame is None or frame.dim is None else frame.dim


def by_datum(
    value: Tensor,
    event_dim: int,
    plates: tuple[int, ...],
    num_particles: int,
    rows: int,
    data: int = -1,
) -> Tensor:
    """Return what a site has for each particle, datum and unit, ``(K, B, *plates, *event)``.

    A second plate (the steps of a sequence, say) makes units, as the dimensions of an event do.

    Arguments:
        value: In a layout of Pyro's: particles, if any, left of all plates, or tiled into the rows;
            a dimension of 1 where a plate of other sites stands.
        event_dim: Dimensions of one draw.
        plates: What ``inner_plates`` says of the site.
        num_particles: K.
        rows: B.
        data: The dimension of the data plate.

    Raises:
        ProgramError: The value has a dimension that no plate explains.
    """
    place = value.dim() - event_dim
    batch, event = tuple(value.shape[:place]), tuple(value.shape[place:])
    depth = max(-dim for dim in (data, *plates))
    batch = (1,) * (depth - len(batch)) + batch
    value = value.reshape((-1, *batch[len(batch) - depth :], *event))  # (K or 1, ...) | event
    own = sorted((data, *plates))
    value = value.squeeze(tuple(1 + depth + dim for dim in range(-depth, 0) if dim not in own))
    axis = 1 + own.index(data)
    if value.shape[axis] in (1, rows):  # one for all data, in a plate without a size
        value = value.movedim(axis, 1)
        if len(value) not in (1, num_particles):
            raise ProgramError(
                f"got batch shape {batch} without the particles, expected plates alone, of "
                f"{rows} data; its distribution has a dimension more (zeros(1).expand_by([n]) is "
                "n x 1): drop it in the model"
            )
        return value.expand(num_particles, rows, *value.shape[2:])
    tiled = value.squeeze(0).unflatten(axis - 1, (num_particles, rows))
    return tiled.movedim((axis - 1, axis), (0, 1))


def by_plates(
    value: Tensor, event_dim: int, plates: tuple[int, ...], depth: int, data: int = -1
) -> Tensor:
    """Return values ``(K, B, *plates, *event)`` in Pyro's layout: what ``by_datum`` undoes.

    Arguments:
        value: For each particle, datum and unit.
        event_dim: Dimensions of one draw.
        plates: What ``inner_plates`` says of the site.
        depth: Batch dimensions that plates use; one of 1 stands for a plate of other sites.
        data: The dimension of the data plate.
    """
    own = sorted((data, *plates))
    value = value.movedim(1, 1 + own.index(data))  # the plates from left to right
    event = value.shape[value.dim() - event_dim :]
    sizes = dict(zip(own, value.shape[1 : 1 + len(own)], strict=True))
    return value.reshape(len(value), *(sizes.get(dim, 1) for dim in range(-depth, 0)), *event)


def of_datum(site: Message, value: Tensor, rows: int, num_particles: int = 1) -> Tensor:
    """Return a value of a site (or its mean, say) with the datum first, ``by_datum``.

    Arguments:
        site: In the plate of the data, from a trace.
        value: In the site's own shape.
        rows: B.
        num_particles: K.
    """
    plates, event = inner_plates(site), len(site["fn"].event_shape)
    try:
        return by_datum(value, event, plates, num_particles, rows, data_dim(site))
    except ProgramError as error:
        raise ProgramError(f"site {site['name']!r}: {error}") from error
