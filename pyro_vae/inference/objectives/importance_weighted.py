"""Bounds with the logarithm outside the mean over particles."""

from torch import Tensor

from pyro_vae.arguments import number
from pyro_vae.inference.objectives.elbo import elbo_of
from pyro_vae.inference.objectives.objective import TermsObjective, require_paths, with_globals
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.terms import Terms


class IWAE(TermsObjective):
    r"""The importance-weighted bound: K particles are averaged inside the logarithm.

    .. math:: \mathbb{E}\Big[\log\tfrac{p(w)}{q(w)} + \tfrac{N}{B}\sum_n \log \tfrac{1}{K}
       \sum_k \tfrac{p(x_n, z_{nk} \mid w)}{q(z_{nk} \mid x_n)}\Big] / N

    Per datum inside, N/B outside. The K particles are one vectorised pass; the encoder sees a
    datum once.

    Arguments:
        num_particles: K; 1 is the ELBO.
        num_samples: S, draws of the global latents.

    Raises:
        ProgramError: A latent has no reparametrised sampler (see ``VIMCO``).

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        require_paths(terms, type(self).__name__)
        return -with_globals(log_mean_exp(terms.log_weight, dim=1).mean(), terms)


class Renyi(TermsObjective):
    r"""The variational Rényi bound; α → 1 is the ELBO, α = 0 is IWAE.

    .. math:: \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k
       \Big(\frac{p(x, z_k)}{q(z_k \mid x)}\Big)^{1 - \alpha}

    At finite K its expectation is not the Rényi bound itself, which it approaches as K grows.

    Arguments:
        alpha: α, any finite number.
        num_particles: K.
        num_samples: S, draws of the global latents.

    Raises:
        ConfigError: α is not finite.
        ProgramError: A latent has no reparametrised sampler.

    References:
        | Rényi Divergence Variational Inference (Li & Turner, 2016), arXiv:1602.02311
    """

    def __init__(self, alpha: float, num_particles: int = 5, num_samples: int = 1) -> None:
        super().__init__(num_particles, num_samples)
        self.alpha = number("alpha", alpha, "(-inf, inf)")

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        require_paths(terms, type(self).__name__)
        power = 1.0 - self.alpha
        if power == 0.0:
            return -elbo_of(terms)
        local = log_mean_exp(power * terms.log_weight, dim=1) / power
        return -with_globals(local.mean(), terms)
