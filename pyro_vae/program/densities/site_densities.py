"""The log density of one site of a trace: its weight, its mask, and what it is of each datum."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import PLATE, Message


@dataclass(frozen=True)
class Layout:
    """Where particles and plates stand in the log densities of a trace.

    Arguments:
        num_plates: Batch dimensions used by plates; the particles' stands left of them.
        num_particles: K.
        tiles: K where the particles are copies of the rows, in the data's own dimension; else 1.
    """

    num_plates: int
    num_particles: int = 1
    tiles: int = 1

    def per_datum(self, log_prob: Tensor, data: int) -> Tensor:
        """Sum over the plates but the data's, which has the dimension ``data``: ``(K, B)``."""
        depth = self.num_plates + 1
        shape = (1,) * (depth - log_prob.dim()) + tuple(log_prob.shape[-depth:])
        log_prob = log_prob.reshape(shape)
        inner = tuple(dim for dim in range(-self.num_plates, 0) if dim != data)
        if inner:
            log_prob = log_prob.sum(inner)
        return self.spread(log_prob)

    def spread(self, value: Tensor) -> Tensor:
        """Return ``(K or 1, B)``, or ``(1, K B)`` where particles are tiled, as ``(K, B)``."""
        if self.tiles > 1:
            return value.reshape(self.tiles, -1)
        return value.expand(self.num_particles, value.shape[-1])


def log_prob(name: str, site: Message) -> Tensor:
    """Return the log density of a site, with the weights of handlers and without N/B."""
    density = call(name, site, site["fn"].log_prob)
    return scale_and_mask(density, handler_scale(site), site["mask"])


def call(name: str, site: Message, function: Callable[..., Any]) -> Any:
    """Call a function of a site's value.

    Raises:
        ProgramError: The value has no density; names the site.
    """
    try:
        with _unchecked(site["fn"]):
            return function(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ProgramError(f"site {name!r}: its value cannot be scored: {error}") from error
    except (KeyError, NotImplementedError) as error:
        # A planar flow, for one, has no inverse: Pyro remembers its last draw alone.
        raise ProgramError(
            f"site {name!r}: {type(site['fn']).__name__} scores no value but the last that it "
            f"drew ({error}); use a distribution whose log_prob takes any value (of flows, one "
            "with an inverse, such as affine_autoregressive or spline)"
        ) from error


@contextmanager
def _unchecked(fn: Any) -> Iterator[None]:
    """Let a distribution check no value inside where validation is off.

    One that was made while it was on and then expanded (the prior of a ``PyroSample``) holds a flag
    of its own: each step would look into its values, which no graph can.
    """
    flagged = [] if Distribution._validate_args else _flagged(fn)
    for part in flagged:
        part._validate_args = False
    try:
        yield
    finally:
        for part in flagged:
            part._validate_args = True


def _flagged(fn: Any) -> list[Any]:
    """Return the distributions, of one and those within it, that hold such a flag, set."""
    held = vars(fn)
    parts = [fn] if held.get("_validate_args") else []
    for value in held.values():
        if isinstance(value, Distribution):
            parts += _flagged(value)
    return parts


def handler_scale(site: Message) -> Any:
    """Return the site's scale without the factor N/B of its plate."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.name == PLATE and frame.full_size is not None and frame.full_size != frame.size:
            scale = scale / (frame.full_size / frame.size)
    return scale


def kl_weight(*sites: Message) -> Any:
    """Return the one weight that `ScaleLatents` gave to all sites, None if they bear another."""
    weights = []
    for site in sites:
        unmarked = (1.0, site["scale"], site["scale"])
        weight, before, after = site.get("kl_weight", unmarked)
        # By identity: to look into a tensor would be a sync.
        if site["scale"] is not after or not is_plain({**site, "scale": before}):
            return None
        weights.append(weight)
    first, second = weights
    if isinstance(first, Tensor):
        return first if first is second and first.dim() == 0 else None
    return first if not isinstance(second, Tensor) and first == second else None


def is_plain(site: Message) -> bool:
    """Return whether neither a weight nor a mask changes the log density of a site."""
    scale = handler_scale(site)
    return site["mask"] is None and isinstance(scale, int | float) and abs(scale - 1) < 1e-9


def masked_inside(fn: Any) -> bool:
    """Return whether a mask lies within a distribution."""
    while hasattr(fn, "reinterpreted_batch_ndims"):
        fn = fn.base_dist
    # A chain cuts its own steps, by the lengths of its row.
    return isinstance(fn, MaskedDistribution) or getattr(fn, "kept", None) is not None
