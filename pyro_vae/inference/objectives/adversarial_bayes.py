"""Adversarial variational Bayes: the ELBO of a guide whose density a critic finds out."""

from typing import Any, Literal

import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import ConfigError
from pyro_vae.inference.objectives.adversarial import (
    Adversarial,
    codes,
    data_of,
    kl_weight_of,
    latents_of,
    rows_of,
    terms_of,
    told_apart,
)
from pyro_vae.inference.objectives.objective import OptimizerFactory, Update, with_globals
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.program import Program


@typed
class AVB(Adversarial):
    r"""The ELBO of an implicit guide, whose log density a critic estimates.

    .. math:: \mathbb{E}_q[\log p(x, z) - U(z, x)], \qquad
       U = \arg\min\; -\mathbb{E}_q \log \sigma(T) - \mathbb{E}_r \log \sigma(-T)
       = \log q(z \mid x), \quad T = U(z, x) - \log r(z)

    with r the contrast. The adaptive one is the Gaussian with the mean and variance of q(z | x),
    from M draws of the guide: the critic is U, sees z as it is, and is told log r. Its optimum does
    not depend on M, nor on r; a contrast that lies near makes it easier to find. Under the contrast
    with the prior, r = p(z), whose density cancels, the critic is T itself: log q - log p.

    Far from all draws a network is a straight line. The joint density keeps outliers in check under
    the adaptive contrast; under a prior N(0, I) T may pay for them (the loss falls without end):
    the cure is a critic that has the tails of the prior, T(z) + ||z||² / 2.

    The guide may be any whose latents have a reparametrised sampler: one of
    ``pv.distributions.Implicit`` (``posterior=pv.conditionals.NoiseFed``), a function of auxiliary
    noise, or a plain one. What is reported is no bound: the critic lags. Judge by ``pv.ais`` or
    ``pv.fitted_log_likelihood``. The model's prior need not have draws under the adaptive contrast.

    Arguments:
        critic: U or T, a module of codes ``(B, Z)`` and of the batch ``(B, ...)`` to ``(B,)``, as
            ``pv.nn.Critic(Z, data_dim)``; a batch of several tensors comes as ``(B, D)``.
        contrast: ``"adaptive"`` or ``"prior"``.
        moments: M, draws of the guide behind the moments of the adaptive contrast, at least 2.
        critic_steps: Steps of the critic per step of the program.
        critic_optimizer: Makes the critic's optimizer; None takes that of ``fit``.

    Raises:
        ConfigError: An argument out of range.
        ProgramError: A latent is global, discrete, or stands under a mask.

    References:
        | Adversarial Variational Bayes (Mescheder et al., 2017), arXiv:1701.04722
    """

    seen = ("codes", "data")
    example = "pv.nn.Critic(Z, data_dim)"

    def __init__(
        self,
        critic: nn.Module,
        *,
        contrast: Literal["adaptive", "prior"] = "adaptive",
        moments: int = 16,
        critic_steps: int = 1,
        critic_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(critic, critic_steps, critic_optimizer)
        self.contrast = contrast
        self.moments = positive("moments", moments)
        if contrast == "adaptive" and self.moments < 2:
            raise ConfigError("moments: got 1, expected at least 2: a variance is taken of them")

    def updates(self, program: Program) -> list[Update]:
        """Return the critic's update, and that of all parameters of the program."""
        return [self.critic_update(program), Update(self.per_datum, tuple(program.parameters()))]

    def critic_loss(self, joint: Joint) -> Tensor:
        """Return the critic's loss at draws of the guide and of the contrast."""
        with torch.no_grad():
            guide = joint.guide_trace(1)
            names = latents_of(joint, guide, "AVB")
            z = codes(guide, names, rows_of(joint))[0]
            other, known = self._contrasted(joint, names, z)
        x = data_of(joint)
        told = self.told(torch.cat([z, other]), torch.cat([x, x])) - known
        return told_apart(*told.split(len(z)))

    def per_datum(self, joint: Joint) -> Tensor:
        """Return minus the ELBO per datum, by the critic as it stands."""
        model, guide = joint.traces()
        names = latents_of(joint, guide, "AVB")
        # The prior's density is a part of what a critic tells against it.
        terms = terms_of(joint, model, guide, names if self.contrast == "prior" else ())
        weight = kl_weight_of(model, guide, names, "AVB")
        log_p: Any = sum(terms.log_p.values())
        told = self.told(codes(guide, names, rows_of(joint))[0], data_of(joint))
        return -with_globals((log_p - weight * told).mean(), terms)

    def _contrasted(
        self, joint: Joint, names: list[str], z: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """Return draws of the contrast, and its log density at z and at them where it is told."""
        if self.contrast == "prior":
            return codes(joint.prior_trace(), names, rows_of(joint))[0], 0.0
        drawn = codes(joint.guide_trace(self.moments), names, rows_of(joint), self.moments)
        mean, scale = drawn.mean(0), drawn.std(0).clamp(min=torch.finfo(z.dtype).eps ** 0.5)
        other = mean + scale * torch.randn_like(z)
        near = Normal(mean, scale)
        return other, torch.cat([near.log_prob(each).sum(-1) for each in (z, other)])
