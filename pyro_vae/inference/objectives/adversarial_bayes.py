"""Adversarial variational Bayes: the ELBO of a guide whose density a critic finds out."""

from typing import Any, Literal

import torch
from pyro.distributions import Normal
from pyro.poutine.trace_struct import Trace
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
from pyro_vae.inference.objectives.objective import OptimiserFactory, Update, with_globals
from pyro_vae.program.joint import Joint
from pyro_vae.program.program import Program


@typed
class AVB(Adversarial):
    r"""The ELBO of an implicit guide, whose log density a critic estimates.

    .. math:: \mathbb{E}_q[\log p(x, z) - \log r(z) - T(z, x)], \qquad
       T = \arg\min\; -\mathbb{E}_q \log \sigma(T) - \mathbb{E}_r \log \sigma(-T)
       = \log q(z \mid x) - \log r(z)

    with r the contrast: the prior, or (adaptive) the Gaussian with the mean and variance of
    q(z | x), which lies nearer. Its moments come from draws of the guide and are constants; the
    critic then sees :math:`(z - \mu(x)) / \sigma(x)`. Few draws leave noise in the moments, and
    the KL comes out too small, by about Z / (2 M) nats. Far from all draws a network is a straight
    line, which can pay a guide for outliers (the loss then falls without end, or the moments grow);
    against a prior N(0, I) the cure is a critic that has its tails: T(z) + ||z||² / 2.

    The guide may be any whose latents have a reparametrised sampler: one of
    ``pv.distributions.Implicit`` (``posterior=pv.conditionals.NoiseFed``), a function of auxiliary
    noise, or a plain one. What is reported is no bound: the critic lags. Judge by ``pv.ais`` or
    ``pv.fitted_log_likelihood``. The model's prior need not have draws under the adaptive contrast.

    Arguments:
        critic: T, a module of codes ``(B, Z)`` and of the batch ``(B, ...)`` to ``(B,)``, as
            ``pv.nn.Critic(Z, data_dim)``; a batch of several tensors comes as ``(B, D)``.
        contrast: ``"adaptive"`` or ``"prior"``.
        moments: M, draws of the guide behind the moments of the adaptive contrast.
        critic_steps: Steps of the critic per step of the program.
        critic_optimiser: Makes the critic's optimiser; None takes that of ``fit``.

    Raises:
        ConfigError: An argument out of range.
        ProgramError: A latent is global, discrete, or stands under a mask.

    References:
        | Adversarial Variational Bayes (Mescheder et al., 2017), arXiv:1701.04722
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        contrast: Literal["adaptive", "prior"] = "adaptive",
        moments: int = 16,
        critic_steps: int = 1,
        critic_optimiser: OptimiserFactory | None = None,
    ) -> None:
        super().__init__(critic, critic_steps, critic_optimiser)
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
            prior = joint.prior_trace() if self.contrast == "prior" else None
            names = latents_of(guide, "AVB")
            z = codes(guide, names, rows_of(joint))[0]
            if prior is None:
                mean, scale = self._moments(joint, names)
                z, other = (z - mean) / scale, torch.randn_like(z)
            else:
                other = codes(prior, names, rows_of(joint))[0]
        x = data_of(joint)
        at_both = self.critic(torch.cat([z, other]), torch.cat([x, x]))
        return told_apart(*at_both.split(len(z)))

    def per_datum(self, joint: Joint) -> Tensor:
        """Return minus the ELBO per datum, by the critic as it stands."""
        model, guide = joint.traces()
        names = latents_of(guide, "AVB")
        terms = terms_of(joint, model, guide)
        weight = kl_weight_of(model, guide, names, "AVB")
        z = codes(guide, names, rows_of(joint))[0]
        log_p: Any = sum(terms.log_p.values())
        if self.contrast == "adaptive":
            mean, scale = self._moments(joint, names)
            log_r = Normal(mean, scale).log_prob(z).sum(-1)
            ratio = log_r + self.critic((z - mean) / scale, data_of(joint))
        else:
            log_p = log_p - sum(terms.log_p[name] for name in names)
            ratio = self.critic(z, data_of(joint))
        return -with_globals((log_p - weight * ratio).mean(), terms)

    @torch.no_grad()
    def _moments(self, joint: Joint, names: list[str]) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the codes of each datum, ``(B, Z)``."""
        drawn: Trace = joint.guide_trace(self.moments)
        z = codes(drawn, names, rows_of(joint), self.moments)
        tiny = torch.finfo(z.dtype).eps ** 0.5
        return z.mean(0), z.std(0).clamp(min=tiny)
