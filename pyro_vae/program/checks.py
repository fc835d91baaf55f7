"""What a pair of traces must satisfy, said in errors that name the site, the value and the fix."""

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence as Packed

from pyro_vae.arguments import counted, shown
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import Batch, named_arguments_of, named_arrays, named_leaves
from pyro_vae.program.densities.enumeration import can_be_listed, can_be_summed
from pyro_vae.program.handlers import (
    PLATE,
    Message,
    data_frame,
    innermost,
    is_data,
    is_open_chain,
    sample_sites,
)
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.sites.plates import data_dim
from pyro_vae.program.told import Told

_LARGE = 30.0  # root mean square of a column beyond which it counts as not scaled
SURPLUS = (
    "take what the program is for: transform=lambda batch: batch[0] in pv.fit, (x for x, y in "
    "loader) elsewhere"
)
SURPLUS_OF_VALID = (  # transform goes to the training data alone
    "give it what the program is for: valid=valid[0] of a tuple, valid=torch.cat([x for x, y in "
    "loader]) of a loader"
)


def check_pair(model: Trace, guide: Trace) -> None:
    """Require that the guide samples the model's latents, with equal event shapes.

    It may leave out discrete ones of finitely many values, which are summed out.

    Raises:
        ProgramError: Names the site that is missing, unknown, or of another shape.
    """
    drawn = dict(sample_sites(guide))
    for name, site in sample_sites(model):
        if site["is_observed"]:
            continue
        if name not in drawn:
            if can_be_summed(site["fn"]):
                continue
            kind, count = distribution_name(site["fn"]), site["fn"].event_shape.numel()
            why = f"{kind} has no finite support to sum over"
            if can_be_listed(site["fn"]):
                why = f"an event of {count} numbers of {kind} is not summed over, as by stock SVI"
            raise ProgramError(
                f"site {name!r}: sampled by the model and not by the guide, and {why}; add "
                f"pyro.sample({name!r}, ...) to the guide, or observe it with obs="
            )
        twin = drawn[name]
        p, q = site["fn"].event_shape, twin["fn"].event_shape
        if p != q:
            raise ProgramError(
                f"site {name!r}: the guide's event shape is {tuple(q)}, the model's {tuple(p)}; "
                "make latent_dim (or the .to_event) of both equal"
            )
        if (data_frame(site) is None) != (data_frame(twin) is None):
            raise ProgramError(
                f"site {name!r}: inside the plate {PLATE!r} in the "
                f"{'guide' if data_frame(site) is None else 'model'} only; put both inside or out"
            )
    for name, site in drawn.items():
        if data_frame(site) is None and not has_density(site["fn"]):
            raise ProgramError(
                f"site {name!r}: implicit in the guide, and outside the plate of the data; an "
                "implicit latent is one of each datum: write it inside the plate"
            )
        if site["infer"].get("is_auxiliary") or is_shown(site):
            continue
        known = name in model.nodes
        if site["is_observed"]:
            way_out = (
                "observe it in the model alone"
                if known
                else "write it in the model, or, if it is a term of the loss, as pyro.factor"
            )
            raise ProgramError(
                f"site {name!r}: observed by the guide{'' if known else ' and not by the model'}: "
                f"its density would be taken off the bound; {way_out}"
            )
        if known:
            continue
        raise ProgramError(
            f"site {name!r}: sampled by the guide and not by the model; remove it, mark it "
            "with infer={'is_auxiliary': True}, or, if it is a PyroSample attribute, which is "
            "drawn only where its module is called, write the model as forward: "
            "pv.Program(module, guide)"
        )


def is_shown(site: Message) -> bool:
    """Return whether a site only shows a value, and draws none: ``pyro.deterministic``."""
    return bool(site["is_observed"] and isinstance(innermost(site["fn"]), Delta))


def require_pair(model: Trace, guide: Trace, held: Collection[str] = ()) -> None:
    """Require in each pass that the guide draws what it drew when the pair was read.

    A latent of the model that nothing else draws would come from the prior, and none would say so.

    Raises:
        ProgramError: Names the site that one of the two has stopped sampling.
    """
    for name, site in sample_sites(model):
        summed = site["infer"].get("_enumerate_dim") is not None
        known = site["is_observed"] or summed or site_is_subsample(site)
        if not known and name not in guide.nodes:
            raise ProgramError(
                f"site {name!r}: the guide has stopped sampling it, and the model has not; let "
                "what decides on a site be an argument of both"
            )
    for name, site in sample_sites(guide):
        known = site["infer"].get("is_auxiliary") or site_is_subsample(site) or name in held
        known = known or is_shown(site)
        if name not in model.nodes and not known:
            raise ProgramError(
                f"site {name!r}: the model has stopped sampling it, and the guide has not; let "
                "what decides on a site be an argument of both"
            )


def check_example(batch: Batch, example: Batch) -> None:
    """Compare a batch with a program's own example, before a matrix product complains.

    Raises:
        DataError: Another structure, or another shape after the first dimension.
    """
    got, expected = dict(named_arrays(batch)), dict(named_leaves(example))
    if not got:
        raise DataError(
            f"batch: got {shown(batch)}, expected numbers; of text, counts of words "
            "(scikit-learn's CountVectorizer) or numbers of words (pv.data.Vocabulary)"
        )
    if got.keys() != expected.keys():
        surplus = ""
        if len(got) > len(expected) == 1:
            surplus = f"; {SURPLUS}" if len(got) < 5 else "; rows are one array: np.stack(x)"
        raise DataError(f"batch: got {sorted(got)}, expected {sorted(expected)}{surplus}")
    for name, leaf in got.items():
        tail = tuple(expected[name].shape[1:])
        if tuple(leaf.shape[1:]) == tail:
            continue
        hint = "reshape the data, or build the program for it"
        if tuple(leaf.shape) == tail:
            hint = "this is one datum: pass x[None] for a batch of one"
        raise DataError(
            f"{'site ' + repr('x') if name == 'batch' else name}: got shape {tuple(leaf.shape)}, "
            f"expected (B, {', '.join(map(str, tail))}); {hint}"
        )


def check_real(batch: Batch) -> None:
    """Refuse complex numbers, which no distribution here observes.

    Raises:
        DataError: Names the tensor.
    """
    for name, leaf in named_leaves(batch):
        if leaf.is_complex():
            raise DataError(f"{name}: got complex numbers, expected real ones")


def check_values(model: Trace, told: Told, first_row: int = 0) -> None:
    """Require that each observed value has its distribution's shape and lies in its support.

    What a mask takes out (a step behind its sequence's end) may lie anywhere. A distribution with
    ``validate_args=False`` is taken at its author's word, with one warning.

    Raises:
        DataError: Names the site, the row, the value, and the fix.
    """
    for name, site in sample_sites(model):
        if not is_data(site):
            continue
        check_shape(name, site)
        try:
            check_value(name, site, first_row)
        except DataError:
            if not is_unvalidated(site["fn"]):
                raise
            told.warn(("support", name), _unvalidated(name, site["fn"]))


def check_value(name: str, site: Message, first_row: int = 0) -> None:
    """Require that an observed value lies in the support of its distribution, whoever checks it.

    Raises:
        DataError: Names the site, the row, the value, and the fix.
    """
    fn, value = site["fn"], site["value"]
    support = written_support(fn)
    kept = kept_units(fn, site["mask"], value.device)
    elsewhere = kept is not None and kept.shape != value.shape  # more steps than it draws
    if support is not None and not elsewhere and value.device.type != "meta":
        kind, dim = distribution_name(fn), data_dim(site)
        check_support(name, support, kind, value, first_row, dim, kept)


def check_shape(name: str, site: Message) -> None:
    """Require that an observed value has its distribution's shape.

    Raises:
        DataError: Names the site and both shapes.
    """
    fn, value = site["fn"], site["value"]
    if value.shape != fn.batch_shape + fn.event_shape and not is_open_chain(fn, value):
        if value.shape == fn.event_shape:
            of_batch = ", ".join(map(str, ("B", *fn.event_shape)))
            ways = ["this is one datum: pass x[None] for a batch of one", *_without_rows(fn)]
            told = "; or ".join(ways if value.dim() == 1 else reversed(ways))
            raise DataError(
                f"site {name!r}: got shape {tuple(value.shape)}, expected ({of_batch}); {told}"
            )
        way_out = "give data of this shape, or build the networks of the model for theirs"
        plates = [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
        if len(plates) > 1 and value.shape == (*fn.batch_shape[::-1], *fn.event_shape):
            way_out = (
                "its plates stand in the other order: give each its dimension of the data, as "
                "pyro.plate(name, size, dim=-1) the last one"
            )
        raise DataError(
            f"site {name!r}: got data of shape {tuple(value.shape)}, the model expects "
            f"{tuple(fn.shape())}; {way_out}"
        )


def _without_rows(fn: Any) -> list[str]:
    """Return what to do where an event has the rows of the data in it; nothing where it has not.

    The plate has then repeated one event for each row. One row alone has a density in each of as
    many rows as it has numbers, which differ where latents make them.
    """
    base, shape = innermost(fn), fn.shape()
    made = len(fn.event_shape) - len(base.event_shape)  # by .to_event
    full = [p for p in vars(base).values() if isinstance(p, Tensor) and p.dim() == len(shape)]
    if not made or fn.batch_shape != fn.event_shape[:1] or any(each.stride(0) for each in full):
        return []
    way_out = f"write .to_event({made - 1})" if made > 1 else "leave it out"
    return [
        f".to_event({made}) makes all {shape[0]} rows one event, which the plate around it repeats "
        f"for each row: {way_out}"
    ]


def is_unchecked(site: Message) -> bool:
    """Return whether an observed value may lie anywhere, or is taken at its author's word."""
    return written_support(site["fn"]) is None or is_unvalidated(site["fn"])


def is_unvalidated(fn: Any) -> bool:
    """Return whether the program's author said ``validate_args=False`` of a distribution."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    # Only an argument of its own puts it beside the class's default.
    return vars(fn).get("_validate_args") is False


def _unvalidated(site: str, fn: Any) -> str:
    return (
        f"site {site!r}: values outside the support of {distribution_name(fn)} are scored as they "
        "are, since it has validate_args=False; its log_prob is no log density of them, and what "
        "is called a likelihood is none"
    )


def support_of(fn: Any) -> Any:
    """Return the support of a distribution; None where it is masked, or nobody wrote it down."""
    base = fn
    while hasattr(base, "base_dist"):
        if type(base).__name__ == "MaskedDistribution":
            return None
        base = base.base_dist
    return written_support(fn)


def written_support(fn: Any) -> Any:
    """Return the support of a distribution, masked or not; None where nobody wrote it down."""
    try:
        return fn.support
    except NotImplementedError:
        return None


def fixed_support(fn: Any) -> Any:
    """Return the support where it does not depend on parameters or on a mask, else None."""
    return None if support_of(fn) is None else support_of_all(fn)


def support_of_all(fn: Any) -> Any:
    """Return the support where it does not depend on parameters, masked or not, else None."""
    base = innermost(fn)
    # A class attribute is one constraint for all parameters; a property depends on them. That of a
    # transform is the range of the transform, that of a mixture the support of its components.
    transformed, mixed = (
        vars(kind)["support"]
        for kind in (
            torch.distributions.TransformedDistribution,
            torch.distributions.MixtureSameFamily,
        )
    )
    support = getattr(type(base), "support", None)
    if support is transformed:
        support = base.support
    elif support is mixed:
        support = support_of_all(base.component_distribution)
    if isinstance(support, constraints.Constraint) and not constraints.is_dependent(support):
        return constraints.independent(support, len(fn.event_shape) - len(base.event_shape))
    return None


def check_support(
    site: str,
    support: Any,
    distribution: str,
    value: Tensor,
    first_row: int = 0,
    dim: int = -1,
    kept: Tensor | None = None,
) -> None:
    """Require that every row of a value lies in a support (one device sync).

    Arguments:
        site, distribution: For the message.
        support: A constraint.
        value: ``batch | event``.
        first_row: The number of its first row.
        dim: The dimension of the rows in its batch shape, counted from the right.
        kept: Which units of the value count, in its shape; None: all.

    Raises:
        DataError: Names the site, the row, the value, and the fix.
    """
    if kept is None and _is_plainly_binary(support, value):
        return
    inside = _lies_in(support, value, kept)
    if bool(inside.all()):
        return
    if inside.dim() < -dim:  # one datum without a dimension of its own
        lacking = (1,) * (-dim - inside.dim())
        inside, value = inside.reshape(lacking + inside.shape), value.reshape(lacking + value.shape)
    rows = inside.movedim(dim, 0)
    row = int((~rows.reshape(len(rows), -1).all(-1)).nonzero()[0])
    base = _innermost_of(support)
    axis = value.dim() - support.event_dim + dim
    element = _units_in(base, value, kept)
    picked = value.movedim(axis, 0)[row].flatten()
    if element.shape == value.shape:
        picked = picked[~element.movedim(axis, 0)[row].flatten()]
    worst = picked[0].item()
    raise DataError(
        f"site {site!r}: value {worst:g} in row {first_row + row} is outside the support "
        f"({base}) of {distribution}; {_remedy(distribution, worst)}"
    )


def _is_plainly_binary(support: Any, value: Tensor) -> bool:
    """Return whether all numbers are 0 or 1 where such are asked for, in a third of the time.

    These are their own squares; so is infinity, beside which no sum is finite.
    """
    if _innermost_of(support) is not constraints.boolean or value.device.type != "cpu":
        return False  # elsewhere each look is a sync
    real = value.is_floating_point()
    return real and torch.equal(value * value, value) and math.isfinite(float(value.sum()))


def _lies_in(support: Any, value: Tensor, kept: Tensor | None) -> Tensor:
    """Return which draws lie in a support, as far as their units count, shape ``batch``."""
    if kept is None:
        return support.check(value)
    base = _innermost_of(support)
    units = _units_in(base, value, kept)
    dims = support.event_dim - base.event_dim
    return units.flatten(units.dim() - dims).all(-1) if dims else units


def _units_in(base: Any, value: Tensor, kept: Tensor | None) -> Tensor:
    """Return which units lie in their support, or do not count."""
    inside = base.check(value)
    if kept is None:
        return inside
    counts = kept.flatten(value.dim() - base.event_dim).any(-1) if base.event_dim else kept
    return inside | ~counts


def _innermost_of(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _remedy(distribution: str, value: float) -> str:
    if "Bernoulli" in distribution and 0 < value < 1:
        return (
            "binarise the grey values (x.bernoulli(); transform=torch.bernoulli in pv.fit; "
            "pv.data.load(..., binarization='dynamic')), or use observation=Gaussian"
        )
    if "Discretised" in distribution and value > 1:
        return "scale grey levels to [0, 1]: divide bytes by 255"
    if "Bernoulli" in distribution:
        return "scale to [0, 1] and binarise (x > 127), or use a discretised observation"
    if "Categorical" in distribution:
        return "class numbers are whole and count from 0: give y - y.min(), or more classes"
    return "transform the data, or choose another observation distribution"


def distribution_name(fn: Any) -> str:
    """Return the name of the innermost distribution: ``Independent(Bernoulli)`` is Bernoulli."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def is_discrete(fn: Any) -> bool:
    """Return whether the values of a distribution can be counted."""
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:  # a support that nobody has written down
        return False


def has_real_prior(fn: Any) -> bool:
    """Return whether a prior has a density: neither discrete, nor a point, nor an autoencoder's."""
    return not (is_discrete(fn) or is_point_mass(fn) or distribution_name(fn) == "NoPrior")


def is_point_mass(fn: Any) -> bool:
    """Return whether a distribution has all its mass on one value."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta) or getattr(fn, "point_mass", False)


def has_density(fn: Any) -> bool:
    """Return whether a distribution knows its density: an implicit one has draws alone."""
    return bool(getattr(innermost(fn), "has_density", True))


def unscaled(batch: Batch) -> str:
    """Return what to do about floats far from unit size, which no learning rate cures, or nothing.

    Networks start far from any answer on them.
    """
    for name, leaf in named_leaves(batch):
        if not leaf.is_floating_point() or leaf.is_meta or leaf.dim() == 0 or not leaf.numel():
            continue
        columns = leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None]
        size = float(columns.double().square().mean(0).sqrt().max())  # of the largest column
        if size > _LARGE:
            return (
                f"The values of {name} are of size {size:.3g}, far from 1: standardise them, "
                "(x - x.mean(0)) / x.std(0).clamp(min=1e-6), or, where they are counts, give the "
                "networks x.log1p(), standardised. "
            )
    return ""


def padding_left(batch: Batch) -> str:
    """Return a hint where packed sequences end before what was padded with them; else nothing."""
    packed = [len(a.batch_sizes) for _, a in named_arguments_of(batch) if isinstance(a, Packed)]
    padded = [(name, leaf.shape[1]) for name, leaf in named_leaves(batch) if leaf.dim() > 1]
    longer = [(name, size) for name, size in padded if packed and size > max(packed)]
    if not longer:
        return ""
    name, size = longer[0]
    return (
        f"; the model may want packed sequences as long as what is padded: these rows have "
        f"{counted(max(packed), 'step')}, {name} {size}, since they were cut from longer ones; "
        "hand over batches that are each padded to their own longest (a DataLoader with a "
        "collate_fn)"
    )


def shapes(batch: Batch) -> str:
    """Return the shapes and dtypes of a batch in one line."""
    return ", ".join(f"{name} {tuple(v.shape)} {v.dtype}" for name, v in named_arrays(batch))


def is_meta(batch: Batch) -> bool:
    """Return whether a batch has shapes and no values."""
    return any(leaf.device.type == "meta" for _, leaf in named_leaves(batch))
