"""What several passes say of their data, side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

Values = Tensor | dict[str, Tensor]  # one site: its tensor; several: by name


def join_sites(verb: str, pieces: Sequence[dict[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Return the values of each site for the data of all pieces.

    A site that some pieces do not have (a step beyond the end of their sequences) is NaN there.

    Arguments:
        verb: Who asks; it begins the message.
        pieces: Values by site, ``(..., B, ...)``.
        dim: The dimension that counts the data.

    Raises:
        ProgramError: Pieces differ in a site whose values cannot be NaN, or in its shape.
    """
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return {name: _joined(verb, name, pieces, dim) for name in names}


def single(values: dict[str, Tensor]) -> Values:
    """Return the tensor of a lone site, the dict of several."""
    return next(iter(values.values())) if len(values) == 1 else values


def _joined(verb: str, name: str, pieces: Sequence[dict[str, Tensor]], dim: int) -> Tensor:
    like = next(piece[name] for piece in pieces if name in piece)
    found = [piece[name].shape for piece in pieces if name in piece]
    shapes = {(*shape[:dim], *shape[dim + 1 :]) for shape in found}
    missing = any(name not in piece for piece in pieces)
    if len(shapes) > 1 or (missing and not like.is_floating_point()):
        raise ProgramError(
            f"{verb}: site {name!r} is not of one kind in all passes (shapes {sorted(shapes)}"
            f"{', absent in some' if missing else ''}); ask for the data in groups that agree"
        )

    def absent(rows: int) -> Tensor:
        return like.new_full((*like.shape[:dim], rows, *like.shape[dim + 1 :]), torch.nan)

    sizes = [next(iter(piece.values())).shape[dim] for piece in pieces]
    parts = zip(pieces, sizes, strict=True)
    return torch.cat([p[name] if name in p else absent(rows) for p, rows in parts], dim)
