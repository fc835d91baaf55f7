"""What is refused, or told of, where data are not independent of each other."""

import warnings
from collections.abc import Collection

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.errors import ProgramError
from pyro_vae.program.looks.findings import Dependence

_AS_ONE = "or read all data as one datum: pv.Program(model, guide, whole=True)"


def require_parts(found: Dependence, rows: int, total: int, argument: str | None) -> None:
    """Refuse to train on parts of the data what is another function of a part.

    Arguments:
        found: What is.
        rows: Of a part.
        total: N.
        argument: One that may have no rows.

    Raises:
        ProgramError: Names the site.
    """
    for name in found.unplated:
        raise ProgramError(
            f"batch_size: got {rows}, expected {total} (all data at once): latent {name!r} "
            "stands outside the plate of the data and is as many as its rows, so that a "
            "batch has a part of its prior, and N / B times that of the data; draw it inside "
            "the plate of the data, or give a DataLoader, whose batches stand alone"
        )
    reasons = {
        "depends on the rows beside a datum": found.beside,
        "is of a latent of all data, and depends on their rows": found.priors,
        "stands outside the plate of the data and is no sum over their rows": found.no_sums,
        "stands outside the plate of the data and depends on rows of them": found.untold,
    }
    for what, names in reasons.items():
        for name in names[:1]:
            raise ProgramError(
                f"batch_size: got {rows}, expected {total} (all data at once): the density of "
                f"site {name!r} {what}, so that each part of the data would have another "
                "model. Compute what all data share (a mean, a count) before, and let the "
                f"functions hold it{_constants(argument)}; or, where each batch is meant to "
                "stand alone, give a DataLoader"
            )
    reasons = {
        "its density in the guide depends on the rows beside a datum": found.beside_in_guide,
        "its density in the guide depends on the rows": found.informed,
        "its weight depends on the number of rows": tuple(
            name for name in found.by_count if name not in found.scaled_itself(total)
        ),
        "it stands outside the plate of the data, and is another number at each run, so that "
        "it cannot be told whether it depends on the rows": found.unclear,
    }
    for reason, names in reasons.items():
        for name in names[:1]:
            warnings.warn(
                f"site {name!r}: {reason}; training sees what it is of {counted(rows, 'row')}, "
                f"and elbo what it is of all {total}",
                stacklevel=of_user(),
            )


def tell_of_constants(found: Dependence, rows: int, total: int) -> None:
    """Warn of a constant that is N/B: nothing tells whether the program means N/B by it.

    Arguments:
        found: What is.
        rows: B, of a batch.
        total: N.
    """
    if rows == total:
        return
    for each in [each for each in found.counted if each.site in found.written_in(total)][:1]:
        ratio, way_out = ("N / B", "N / len(x)") if each.inside else ("B / N", "len(x) / N")
        warnings.warn(
            f"site {each.site!r}: its weight is {each.weight:.6g} for any number of rows, and "
            f"so is {ratio}, exactly or in whole batches (of {rows}, N = {total}): it is taken "
            f"for the program's own, and fit multiplies nothing by N / B. If it is, write "
            f"{way_out} "
            "for rows x; if it is a weight of its own, give another batch_size",
            stacklevel=of_user(),
        )


def tell_of_batches(found: Dependence, rows: int, total: int) -> None:
    """Warn of what weighs otherwise in a loader's batches than in steps of stock SVI.

    Arguments:
        found: What is.
        rows: Of a batch.
        total: N.
    """
    if rows == total or found.scaled_itself(total):  # it takes the program's own steps
        return
    for name in [name for name in found.means if name not in (*found.sums, *found.no_sums)][:1]:
        warnings.warn(
            f"site {name!r}: it stands outside the plate of the data and is a mean over the "
            f"rows of a batch; it counts once beside all {total} data, as from tensors, where "
            f"steps of stock SVI count it once beside the {rows} of each batch: multiply it "
            "by N / B if that is meant",
            stacklevel=of_user(),
        )
    for name in found.by_count[:1]:
        warnings.warn(
            f"site {name!r}: its weight depends on the number of rows, and fit multiplies what "
            "the plate holds by N / B, whatever it is",
            stacklevel=of_user(),
        )
    for name in found.unclear[:1]:
        warnings.warn(
            f"site {name!r}: it stands outside the plate of the data, and is another number at "
            "each run, so that it cannot be told whether it depends on the rows; it counts "
            f"once beside all {total} data, and not beside the {rows} of each batch: multiply "
            "it by N / B if that is meant, or draw its noise from torch",
            stacklevel=of_user(),
        )


def tell_of_moving(names: Collection[str]) -> None:
    """Warn of what is another at each run, from one state: it may be moved on by looks.

    Arguments:
        names: Sites that are.
    """
    for name in sorted(names)[:1]:
        warnings.warn(
            f"site {name!r} is another at each run of the program, from one random state, though "
            "what it keeps is put back: what comes of os.read, a weak reference or an object of a "
            "library is moved on by runs that look at the program, and steps begin where these "
            "end; keep it as a number. A generator without a seed (`default_rng()`) gives no run "
            "that can be repeated",
            stacklevel=of_user(),
        )


def require_each(found: Dependence, verb: str) -> None:
    """Refuse a question about each datum alone.

    Raises:
        ProgramError: A site outside the plate depends on what is inside.
    """
    way_out = f"; {_AS_ONE}" if verb == "refine" else ""  # a likelihood is one given its globals
    for name in found.found:
        what = "latents" if name in found.spanning else "rows"
        raise ProgramError(
            f"{verb}: site {name!r} stands outside the plate of the data and depends on their "
            f"{what}: the data have one joint density, and none each; write it inside the "
            f"plate, a term for each datum, or use elbo{way_out}"
        )
    for name in found.beside:
        raise ProgramError(
            f"{verb}: the density of site {name!r} of a datum depends on the rows beside it: "
            "the data have one joint density, and none each; compute what all share (a mean, a "
            f"scale, a count) before, and let the functions hold it; or use elbo{way_out}"
        )


def require_posteriors(found: Dependence, verb: str) -> None:
    """Refuse a question about the guide's density of each datum.

    Raises:
        ProgramError: The guide has one of all data.
    """
    for name in found.joined:
        way_out = "" if verb != "encode" else "; pv.infer(program, x).mean averages draws"
        raise ProgramError(
            f"{verb}: site {name!r} of the guide stands outside the plate of the data and "
            "draws the latents of all of them: they have one joint density, and none each; "
            "use AutoNormal, or a guide with the plate (elbo, fit and refine take this one)"
            f"{way_out}"
        )


def require_weights(found: Dependence, verb: str) -> None:
    """Refuse a question about p(x, z) / q(z | x) of each datum.

    Raises:
        ProgramError: The guide has no such density, or draws what the model has none for.
    """
    require_posteriors(found, verb)
    for name in found.unscored:
        raise ProgramError(
            f"{verb}: site {name!r} is auxiliary in the guide, and the model has no density "
            "for it: p(x, z) / q(z, a | x) is then no estimate of p(x); use ais or "
            "fitted_log_likelihood, or draw it in the model too"
        )


def _constants(argument: str | None) -> str:
    """Return how an argument that may have no rows is named, where there is one."""
    if argument is None:
        return ""
    return (
        "; if it comes from an argument that is as long as the data and has no rows, name that: "
        f"Program(..., constants=[{argument!r}])"
    )
