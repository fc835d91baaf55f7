"""Reweighted wake-sleep: the model by importance weights, the guide awake and asleep."""

import torch
from torch import Tensor

from pyro_vae.arguments import number, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.objective import TermsObjective, with_globals
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.densities.joint import Joint


class ReweightedWakeSleep(TermsObjective):
    r"""Train the model and the guide by K self-normalised weights, and the guide on dreams.

    .. math:: -\sum_k \tilde w_k \log p(x, z_k) - a \sum_k \tilde w_k \log q(z_k \mid x)
       - b\, \log q(z' \mid x'), \quad z_k \sim q(z \mid x),\ (z', x') \sim p

    The draws are constants: latents of any kind. The reported value is the importance-weighted
    bound; the gradient is that of the three terms, biased at finite K.

    Arguments:
        num_particles: K.
        wake: Weight a of the wake update of the guide.
        sleep: Weight b of the sleep update of the guide.

    Raises:
        ConfigError: A negative weight, or both zero.
        ProgramError: The program has global latents.

    References:
        | Reweighted Wake-Sleep (Bornschein & Bengio, 2015), arXiv:1406.2751
    """

    @typed
    def __init__(self, num_particles: int = 5, *, wake: float = 1.0, sleep: float = 0.0) -> None:
        super().__init__(num_particles)
        self.wake = number("wake", wake, "[0, inf)")
        self.sleep = number("sleep", sleep, "[0, inf)")
        if wake == sleep == 0:
            raise ConfigError("wake and sleep are both 0: the guide would not be trained")

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum, and N."""
        if not torch.is_grad_enabled():
            terms = joint.terms(1, self.num_particles)
            return -with_globals(log_mean_exp(terms.log_weight, dim=1).mean(), terms), terms.size
        terms, _ = joint.leaf_terms(1, self.num_particles)
        if terms.global_log_q:
            raise ProgramError(
                f"ReweightedWakeSleep: site {next(iter(terms.global_log_q))!r} is global; use ELBO"
            )
        weight = terms.log_weight.detach().softmax(dim=1)
        log_p, log_q = sum(terms.log_p.values()), sum(terms.log_q.values())
        # The draws are held: a factor trains what it holds besides them.
        surrogate = with_globals((weight * (log_p + self.wake * log_q)).sum(1).mean(), terms)
        if self.sleep:
            surrogate = surrogate + self.sleep * joint.dream_log_q().mean()
        value = with_globals(log_mean_exp(terms.log_weight, dim=1).mean(), terms).detach()
        return -(value + surrogate - surrogate.detach()), terms.size
