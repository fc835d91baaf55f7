"""Where the plates of a site stand in its tensors, and one layout for all of them."""

from torch import Tensor

from pyro_vae.program.handlers import PLATE, Message


def inner_plates(site: Message) -> tuple[int, ...]:
    """Return the dimensions of the vectorised plates around a site but ``"data"``, left to right.

    Dimensions count from the right of the batch shape, as Pyro's do.
    """
    return tuple(
        sorted(
            frame.dim
            for frame in site["cond_indep_stack"]
            if frame.name != PLATE and frame.dim is not None
        )
    )


def by_datum(
    value: Tensor, event_dim: int, plates: tuple[int, ...], num_particles: int, rows: int
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
    """
    place = value.dim() - event_dim
    batch, event = tuple(value.shape[:place]), tuple(value.shape[place:])
    depth = max([1, *(-dim for dim in plates)])
    batch = (1,) * (depth - len(batch)) + batch
    value = value.reshape((-1, *batch[len(batch) - depth :], *event))  # (K or 1, ..., rows) | event
    value = value.squeeze(tuple(1 + depth + dim for dim in range(-depth, -1) if dim not in plates))
    data = 1 + len(plates)
    if value.shape[data] == rows:
        value = value.movedim(data, 1)
        return value.expand(num_particles, *value.shape[1:])
    tiled = value.squeeze(0).unflatten(data - 1, (num_particles, rows))
    return tiled.movedim((data - 1, data), (0, 1))
