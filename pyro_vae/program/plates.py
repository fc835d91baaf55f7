"""Where the plates of a site stand in its tensors, and one layout for all of them."""

from torch import Tensor

from pyro_vae.program.handlers import PLATE, Message, data_frame


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
    """
    place = value.dim() - event_dim
    batch, event = tuple(value.shape[:place]), tuple(value.shape[place:])
    depth = max(-dim for dim in (data, *plates))
    batch = (1,) * (depth - len(batch)) + batch
    value = value.reshape((-1, *batch[len(batch) - depth :], *event))  # (K or 1, ...) | event
    own = sorted((data, *plates))
    value = value.squeeze(tuple(1 + depth + dim for dim in range(-depth, 0) if dim not in own))
    axis = 1 + own.index(data)
    if value.shape[axis] == rows:
        value = value.movedim(axis, 1)
        return value.expand(num_particles, *value.shape[1:])
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
    return by_datum(value, event, plates, num_particles, rows, data_dim(site))
