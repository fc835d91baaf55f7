"""Guides that are a point mass where the prior has a density: what their figures are none of."""

import warnings
from collections.abc import Iterable

from pyro.distributions import Delta

from pyro_vae.program import checks
from pyro_vae.program.densities.terms import Latent, Terms
from pyro_vae.program.handlers import has_density_of_its_own, innermost
from pyro_vae.program.looks.findings import Dependence


def points_of(terms: Terms, dependence: Dependence) -> set[str]:
    """Return the local latents with a density of which the guide has one point.

    One that is a transform of another site of the guide has the spread of that site.
    """
    spread = {*terms.carried, *dependence.together}
    return {
        name
        for name, (draw, *_) in terms.latents.items()
        if name not in spread and _is_point_of_density(draw)
    }


def tell_of_points(verb: str, names: Iterable[str]) -> None:
    """Warn of such latents: p(x, z) at one z is no mass."""
    for name in sorted(names):
        warnings.warn(
            f"{verb}: site {name!r}: the guide is a point mass and the prior a density, so "
            "that this is log p(x, z) at one z, neither log p(x) nor a bound of it; use "
            "pv.fitted_log_likelihood(program, data), which asks the model alone, or a guide with "
            "a spread (AutoNormal)",
            stacklevel=4,
        )


def _is_point_of_density(latent: Latent) -> bool:
    prior = latent.prior
    if checks.distribution_name(prior) == "NoPrior":  # of an autoencoder, which claims no bound
        return False
    density = not (checks.is_discrete(prior) or checks.is_point_mass(prior))
    point = isinstance(innermost(latent.posterior), Delta)
    return density and point and not has_density_of_its_own(latent.posterior)
