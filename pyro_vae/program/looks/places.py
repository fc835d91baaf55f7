"""Programs that find what they have of a datum by its place in the batch: ``loc[: len(x)]``."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.looks.cuts import (
    TRIES,
    PairOf,
    cut_to,
    followers,
    latents_cut,
    rounding_of,
    run_rounded,
    unlike,
    with_equal_noise,
)

_OF_A_DATUM = 32  # numbers of one datum that lie side by side, at most


def goes_by_place(run: PairOf, few: Batch) -> bool | None:
    """Return whether a density of a datum is another at another place among the same rows.

    So it is of what is looked up by ``loc[: len(x)]``, and of what follows the rows in their order.
    None where it does not run on them.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows.
    """
    turned = torch.arange(num_rows(few)).roll(1)
    try:
        # A seed moves no generator of the program's own, whose numbers go by the place too.
        run = with_equal_noise(run, few)
        whole = run(few, {})
        moved = run(cut_to(few, turned), latents_cut(whole, turned))
        if not unlike(whole, moved, turned):
            return False
        rounding = rounding_of(whole, [run_rounded(run, few, whole, s) for s in range(TRIES)])
        found = {each for each in unlike(whole, moved, turned, rounding) if each.inside}
    except Exception:  # as in changes_beside
        return None
    # Latents outside the plate keep their places.
    return bool(found) and not followers(run, few, turned[1:])


def may_find_parameters(parameters: Iterable[Tensor], rows: int) -> bool:
    """Return whether one has as many numbers as a batch has rows, or they are so many themselves.

    Along one of its dimensions.

    Arguments:
        parameters: Those that a run has made among them.
        rows: Of a batch.
    """
    every = list(parameters)
    made = (each for each in every if not is_lazy(each))
    return len(every) >= rows or any(size >= rows for each in made for size in each.shape)


def finds_parameters(run: PairOf, few: Batch, parameters: Iterable[Tensor]) -> bool:
    """Return whether each place has numbers among the parameters that move no other place.

    So have factors: number k of ``loc``, some in a row of it, or the k-th of many parameters. What
    goes by the place and is no parameter (a trend over steps, noise in a table or of NumPy's) moves
    with weights that all places share.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows.
        parameters: No two numbers among them are equal.
    """
    rows = range(num_rows(few))
    whole = run(few, {})
    latents = latents_cut(whole)

    def moved(parameter: Tensor, dim: int = 0, *number: int) -> set[int]:
        before, changed = parameter.data, parameter.data.clone()
        (changed.select(dim, *number) if number else changed).mul_(1.5)
        parameter.data = changed  # another one: the traces have views of that before
        try:
            after = run(few, latents)
            return {k for k in rows if unlike(whole, after, torch.tensor([k]), both=True)}
        except Exception:  # as in changes_beside: a number of all, for all that is known
            return {*rows}
        finally:
            parameter.data = before

    def alone(parameter: Tensor, dim: int) -> set[int]:
        """Return the places of the first numbers, up to one that moves several, or none."""
        found: set[int] = set()
        for number in range(min(parameter.shape[dim], _OF_A_DATUM * len(rows))):
            place = moved(parameter, dim, number)
            if len(place) != 1 or found == {*rows}:
                break
            found |= place
        return found

    each: set[int] = set()
    for parameter in parameters:
        dims = (dim for dim, size in enumerate(parameter.shape) if size >= len(rows))
        if any(alone(parameter, dim) == {*rows} for dim in dims):
            return True
        every = moved(parameter)
        each |= every if len(every) == 1 else set()
    return each == {*rows}
