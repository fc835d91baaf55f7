"""The objective of vector-quantised programs."""

import torch
from torch import Tensor

from pyro_vae.arguments import number, typed
from pyro_vae.errors import ProgramError
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.objective import TermsObjective
from pyro_vae.program.densities.terms import Terms


class VQ(TermsObjective):
    r"""The ELBO of a program with quantised latents, and what ties encodings to codes.

    .. math:: -\mathrm{ELBO} + \sum_{\mathrm{sites}} \beta\, \|h - \mathrm{sg}(e)\|^2
       + \gamma\, \|\mathrm{sg}(h) - e\|^2

    with h the encoding, e its code and sg the stop-gradient. The second term moves a codebook that
    is a parameter, and is zero for one that follows running means. A site is quantised if the
    guide's distribution there has ``penalties() -> (commitment, codebook)``, one number per datum
    each, as ``pyro_vae.distributions.StraightThrough`` has. The penalties are no part of
    the bound: the history's ``elbo`` leaves them out, its ``valid_bound`` has them in.

    Arguments:
        commitment: β of the formula, at least 0.
        codebook: γ of the formula, at least 0.
        num_particles: as for ``ELBO``. (One draw of the globals: the codebook moves once a step.)

    Raises:
        ConfigError: A weight that is negative or not finite.

    References:
        | Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937
    """

    @typed
    def __init__(
        self,
        commitment: float = 0.25,
        codebook: float = 1.0,
        *,
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_particles)
        self.commitment = number("commitment", commitment, "[0, inf)")
        self.codebook = number("codebook", codebook, "[0, inf)")
        self._elbo = ELBO(num_particles)

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative ELBO and the penalties, per datum."""
        found = [
            draw.posterior.penalties()
            for draws in terms.latents.values()
            for draw in draws
            if hasattr(draw.posterior, "penalties")
        ]
        if not found:
            raise ProgramError(
                f"VQ: none of the latents {list(terms.latents)} is quantised (its guide "
                "distribution has no .penalties()); use pv.ELBO, or a program as pv.models.VQVAE"
            )
        tied = torch.stack(
            [self.commitment * near.mean() + self.codebook * code.mean() for near, code in found]
        )
        return self._elbo.loss_of(terms) + tied.sum()
