"""How the numbers that a network gives become parameters of a distribution."""

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError
from pyro_vae.nn import as_shape

LOG_SCALE_LIMIT = 7.0


@typed
def widen(shape: Sequence[int], width: int) -> tuple[int, ...]:
    """Return the output shape of a network that feeds a conditional.

    Arguments:
        shape: of one datum, (D,) or (C, H, W).
        width: outputs for each dimension, as the conditional's `width()` says.

    Returns:
        (width D,) or (width C, H, W).

    Raises:
        ConfigError: A shape or a width that is none.

    Example:
        >>> widen((3, 28, 28), 2)
        (6, 28, 28)
    """
    first, *rest = as_shape("shape", shape)
    return (first * positive("width", width), *rest)


@typed
def bounded(log_scale: Tensor) -> Tensor:
    r"""Bound a log-scale smoothly: s itself for |s| <= 7, and never beyond ±14.

    .. math:: s \mapsto c + \frac{s - c}{1 + |s - c| / 7}, \quad c = \mathrm{clip}(s, -7, 7)

    Its slope is continuous and never zero, so that a unit driven outside can come back (under a
    clamp it could not); scales stay in (8e-7, 1.2e6), where float32 densities and KLs are finite.

    Arguments:
        log_scale: s, any shape.

    Raises:
        ConfigError: no tensor.
    """
    # As clamp, with one operation in its gradient in place of four.
    inside = nn.functional.hardtanh(log_scale, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)
    excess = log_scale - inside
    return inside + excess / (1 + excess.abs() / LOG_SCALE_LIMIT)


def split(outputs: Tensor, parts: int, event_dim: int) -> tuple[Tensor, ...]:
    """Split (*, parts D) or (*, parts C, H, W) into `parts` tensors along the first event dim."""
    if outputs.dim() < event_dim or outputs.shape[-event_dim] % parts:
        raise DataError(
            f"network output has shape {tuple(outputs.shape)}; expected dim {-event_dim} to hold "
            f"{parts} numbers per data dimension: size the network with width() and widen()"
        )
    return outputs.chunk(parts, -event_dim)
