"""Bounds whose guide is trained through its samples alone: the score of log q is left out."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.inference.objectives.elbo import elbo_of
from pyro_vae.inference.objectives.objective import TermsObjective, require_paths, with_globals
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.densities.joint import Joint, Leaf
from pyro_vae.program.densities.terms import Terms


class _PathObjective(TermsObjective):
    """A bound whose guide gradient flows through the samples alone.

    The score of log q, which has expectation zero, is left out. Model parameters take the gradient
    of log p at weights v_k, guide parameters the gradient through z_k at weights u_k.
    """

    trades_score = False  # whether u pays for a score of log q, which a KL weight would change

    def particle_weights(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return v and u, ``(S, K, B)``, for detached log weights."""
        raise NotImplementedError

    def bound(self, terms: Terms) -> Tensor:
        """Return the bound per datum."""
        raise NotImplementedError

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum, and N."""
        if not torch.is_grad_enabled():
            terms = joint.terms(self.num_global_samples, self.num_particles)
            return -self.bound(terms), terms.size
        terms, leaves = joint.leaf_terms(self.num_global_samples, self.num_particles)
        require_paths(terms, type(self).__name__)
        value = self.bound(terms).detach()
        v, u = self.particle_weights(terms.log_weight.detach())
        log_p, log_q = sum(terms.log_p.values()), sum(terms.log_q.values())
        # The score of log q has mean zero under even weights; at the posterior it cancels for w.
        score, kept = torch.full_like(v, 1.0 / v.shape[1]), torch.zeros_like(v)
        if self.trades_score and not _is_plain(terms):
            u = score = kept = v
        model = with_prior((v * log_p - kept * log_q).sum(1).mean(), terms)
        path = with_globals((u * terms.log_weight).sum(1).mean(), terms)
        # To the local bound a global latent is what a parameter of the model is.
        outer = with_globals((v * log_p - score * log_q).sum(1).mean(), terms)
        shared = [leaf for leaf in leaves if leaf.site in terms.global_log_q]
        local = [leaf for leaf in leaves if leaf.site not in terms.global_log_q]
        surrogate = model + through_samples(path, local) + through_samples(outer, shared)
        return -(value + surrogate - surrogate.detach()), terms.size


class STL(_PathObjective):
    r"""The ELBO with the sticking-the-landing gradient: log q's parameters are held fixed.

    .. math:: \nabla_\phi = \mathbb{E}_\epsilon \Big[\frac{1}{K}\sum_k \nabla_z \big(\log p(x, z_k)
       - \log q(z_k \mid x)\big)\, \nabla_\phi z_k(\epsilon_k, \phi)\Big]

    Its variance is zero where the guide is the posterior. One more pass through the guide.

    Arguments:
        num_particles: K.
        num_global_samples: S, draws of the global latents.

    Raises:
        ConfigError: A count below 1.
        ProgramError: A latent without a reparametrised sampler.

    References:
        | Sticking the Landing (Roeder et al., 2017), arXiv:1703.09194
    """

    def bound(self, terms: Terms) -> Tensor:
        """Return the ELBO per datum."""
        return elbo_of(terms)

    def particle_weights(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return equal weights."""
        equal = torch.full_like(log_weight, 1.0 / log_weight.shape[1])
        return equal, equal


class DReG(_PathObjective):
    r"""The IWAE bound with the doubly reparametrised gradient.

    .. math:: \nabla_\phi = \mathbb{E}\sum_k \tilde w_k^2\, \nabla_z \log w_k \nabla_\phi z_k, \quad
       \nabla_\theta = \mathbb{E}\sum_k \tilde w_k \nabla_\theta \log w_k, \quad
       \tilde w_k = w_k / \textstyle\sum_j w_j

    The signal-to-noise ratio of the guide's gradient does not fall as K grows. Under a KL weight or
    a mask the identity behind it does not hold: the gradient is then that of ``IWAE``.

    Arguments:
        num_particles: K.
        num_global_samples: S, draws of the global latents.

    Raises:
        ConfigError: A count below 1.
        ProgramError: A latent without a reparametrised sampler.

    References:
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019), arXiv:1810.04152
    """

    trades_score = True

    @typed
    def __init__(self, num_particles: int = 5, num_global_samples: int = 1) -> None:
        super().__init__(num_particles, num_global_samples)

    def bound(self, terms: Terms) -> Tensor:
        """Return the importance-weighted bound per datum."""
        return with_globals(log_mean_exp(terms.log_weight, dim=1).mean(), terms)

    def particle_weights(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised weights and their squares."""
        normalised = log_weight.softmax(dim=1)
        return normalised, normalised.square()


def _is_plain(terms: Terms) -> bool:
    """Return whether no weight and no mask changes a log density of a local latent."""
    return all(draw.plain for draws in terms.latents.values() for draw in draws)


def through_samples(path: Tensor, leaves: list[Leaf]) -> Tensor:
    """Return a surrogate that hands the gradient of ``path`` at each leaf on to the guide."""
    moved = [leaf for leaf in leaves if leaf.attached.requires_grad and leaf.cut.requires_grad]
    if not moved:
        return path.new_zeros(())
    grads = torch.autograd.grad(path, [leaf.cut for leaf in moved], retain_graph=True)
    return torch.stack(
        [(grad * leaf.attached).sum() for grad, leaf in zip(grads, moved, strict=True)]
    ).sum()


def with_prior(local: Tensor, terms: Terms) -> Tensor:
    """Add the same without log q: what has a gradient in parameters where the draws are held."""
    log_q: Any = sum(terms.global_log_q.values())
    log_q = log_q.mean() / terms.size if isinstance(log_q, Tensor) else log_q
    return with_globals(local, terms) + log_q
