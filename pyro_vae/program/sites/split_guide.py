"""Pyro's ``AutoDiagonalNormal`` as the product that it is: a factor for each latent and datum."""

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoDiagonalNormal
from torch.distributions import biject_to

_ITS_OWN = ("forward", "get_base_dist", "get_transform", "get_posterior", "_unpack_latent")


class SplitGuide:
    r"""A guide with the density of an ``AutoDiagonalNormal``, site by site.

    .. math:: q(u) = \prod_i N(u_i \mid m_i, s_i^2) = \prod_{\text{site, datum}} q(u_{sn})

    Its vector u has no correlations, so that each latent of each datum has a density of its own:
    that of its entries, in the order of ``_unpack_latent``, and the Jacobian of its constraint.

    Arguments:
        guide: Has the parameters; it is set up by its first run.
    """

    def __init__(self, guide: AutoDiagonalNormal) -> None:
        self.guide = guide

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample each latent in its plates."""
        guide: Any = self.guide
        if guide.prototype_trace is None:
            guide(*args, **kwargs)
        plates = guide._create_plates(*args, **kwargs)
        scales = (scale for _, scale in guide._unpack_latent(guide.scale))
        for (site, loc), scale in zip(guide._unpack_latent(guide.loc), scales, strict=True):
            name, event_dim = site["name"], site["fn"].event_dim
            transform = biject_to(site["fn"].support)
            free_dim = loc.dim() - len(site["fn"].batch_shape)
            with ExitStack() as stack:
                for frame in guide._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                free = pyro.sample(
                    f"{name}_unconstrained",
                    dist.Normal(loc, scale).to_event(free_dim),
                    infer={"is_auxiliary": True},
                )
                value = transform(free)
                density: Any = 0.0
                if poutine.get_mask() is not False:
                    density = transform.inv.log_abs_det_jacobian(value, free)
                    density = sum_rightmost(density, density.dim() - value.dim() + event_dim)
                pyro.sample(name, dist.Delta(value, log_density=density, event_dim=event_dim))


def split(guide: Any) -> SplitGuide | None:
    """Return a guide with a density for each datum in place of one that is a product of such.

    None where it is no ``AutoDiagonalNormal``, or one that a subclass has changed.
    """
    if not isinstance(guide, AutoDiagonalNormal):
        return None
    own = all(getattr(type(guide), n) is getattr(AutoDiagonalNormal, n) for n in _ITS_OWN)
    return SplitGuide(guide) if own else None
