"""Guides that are a point mass where the prior has a density: what their figures are none of."""

import warnings
from collections.abc import Collection

from pyro.distributions import Delta
from torch import Tensor

from pyro_vae.callers import of_user
from pyro_vae.program import checks
from pyro_vae.program.densities.terms import Latent, Terms
from pyro_vae.program.handlers import has_density_of_its_own, innermost
from pyro_vae.program.looks.findings import Dependence


def points_of(terms: Terms, dependence: Dependence) -> set[str]:
    """Return the local latents with a density of which the guide has one point.

    One that is a transform of another site of the guide has the spread of that site, and so has
    one that the guide draws itself. Of a draw a log density of 0 is right of a uniform one.
    """
    spread = {*terms.carried, *dependence.together}
    return {
        name
        for name, (draw, *_) in terms.latents.items()
        if name in dependence.fixed or (name not in spread and _is_point_of_density(draw))
        if not (name in dependence.redrawn and _is_in_unit_cube(draw.value))
    }


def tell_of_points(verb: str, names: Collection[str]) -> None:
    """Warn of such latents: p(x, z) at one z is no mass."""
    for name, *others in [sorted(names)] if names else []:
        more = f" (and {len(others)} more)" if others else ""
        warnings.warn(
            f"{verb}: site {name!r}{more}: the guide is a point mass and the prior a density, so "
            "that this is log p(x, z) at one z, neither log p(x) nor a bound of it; use "
            "a guide with a spread (AutoNormal), or, for latents of each datum, "
            "pv.fitted_log_likelihood(program, data), which asks the model alone",
            stacklevel=of_user(),
        )


def _is_in_unit_cube(value: Tensor) -> bool:
    return bool(((value >= 0) & (value <= 1)).all())


def _is_point_of_density(latent: Latent) -> bool:
    point = isinstance(innermost(latent.posterior), Delta)
    drawn = has_density_of_its_own(latent.posterior)
    return point and not drawn and checks.has_real_prior(latent.prior)
