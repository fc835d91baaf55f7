"""Bounds with the logarithm outside the mean over particles."""

import torch
from torch import Tensor

from pyro_vae.arguments import number, typed
from pyro_vae.inference.objectives.objective import TermsObjective, require_paths, with_globals
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.densities.terms import Terms


class IWAE(TermsObjective):
    r"""The importance-weighted bound: K particles are averaged inside the logarithm.

    .. math:: \mathbb{E}\Big[\log\tfrac{p(w)}{q(w)} + \tfrac{N}{B}\sum_n \log \tfrac{1}{K}
       \sum_k \tfrac{p(x_n, z_{nk} \mid w)}{q(z_{nk} \mid x_n)}\Big] / N

    Per datum inside, N/B outside. The K particles are one vectorised pass; the encoder sees a
    datum once.

    Arguments:
        num_particles: K; 1 is the ELBO.
        num_global_samples: S, draws of the global latents.

    Raises:
        ProgramError: A latent has no reparametrised sampler (see ``VIMCO``).

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
    """

    @typed
    def __init__(self, num_particles: int = 5, num_global_samples: int = 1) -> None:
        super().__init__(num_particles, num_global_samples)

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        require_paths(terms, type(self).__name__)
        return -with_globals(log_mean_exp(terms.log_weight, dim=1).mean(), terms)


class MIWAE(IWAE):
    r"""The importance-weighted bound of data with missing cells: that of the observed ones.

    .. math:: \frac1N \sum_n \mathbb{E} \log \frac1K \sum_k
       \frac{p(x_{n,o}, z_{nk})}{q(z_{nk} \mid x_{n,o})}

    The formula is that of ``IWAE``: what is missing is no part of the model's density. Cells must
    be missing at random.

    Arguments:
        num_particles: K.
        num_global_samples: S, draws of the global latents.

    Raises:
        ProgramError: A latent has no reparametrised sampler.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
          Frellsen, 2019), arXiv:1812.02633
    """


class Renyi(TermsObjective):
    r"""The variational Rényi bound; α → 1 is the ELBO, α = 0 is IWAE.

    .. math:: \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k
       \Big(\frac{p(x, z_k)}{q(z_k \mid x)}\Big)^{1 - \alpha}

    At finite K its expectation is not the Rényi bound itself, which it approaches as K grows.

    Arguments:
        alpha: α, any finite number.
        num_particles: K.
        num_global_samples: S, draws of the global latents.

    Raises:
        ConfigError: α is not finite.
        ProgramError: A latent has no reparametrised sampler.

    References:
        | Rényi Divergence Variational Inference (Li & Turner, 2016), arXiv:1602.02311
    """

    @typed
    def __init__(self, alpha: float, num_particles: int = 5, num_global_samples: int = 1) -> None:
        super().__init__(num_particles, num_global_samples)
        self.alpha = number("alpha", alpha, "(-inf, inf)")

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        require_paths(terms, type(self).__name__)
        local = power_mean(terms.log_weight, 1.0 - self.alpha, dim=1)
        return -with_globals(local.mean(), terms)


def power_mean(log_weight: Tensor, power: float, dim: int) -> Tensor:
    r"""Return the logarithm of the mean of order p of K weights.

    .. math:: \frac{1}{p} \log \frac{1}{K} \sum_k w_k^p

    Its limit at p = 0 is the mean of the logarithms. Near it the sum is 1 and a little, and all
    digits of the mean are in that little: the difference from the heaviest term is summed instead.

    Arguments:
        log_weight: Logarithms of weights.
        power: p.
        dim: The dimension of the K weights.
    """
    if power == 0.0:
        return log_weight.mean(dim)
    heaviest = (log_weight.amax if power > 0 else log_weight.amin)(dim, keepdim=True).detach()
    heaviest = heaviest.nan_to_num(0.0, 0.0, 0.0)  # where all weights vanish, any place will do
    little = torch.expm1(power * (log_weight - heaviest)).mean(dim)
    return heaviest.squeeze(dim) + torch.log1p(little) / power
