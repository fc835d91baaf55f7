"""Autoencoders whose codes, of all data together, are to be distributed as the prior."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.arguments import number, typed
from pyro_vae.errors import DataError
from pyro_vae.inference.objectives.adversarial import (
    Adversarial,
    codes,
    kl_weight_of,
    latents_of,
    rows_of,
    terms_of,
    told_apart,
)
from pyro_vae.inference.objectives.objective import (
    OptimizerFactory,
    Update,
    with_arguments,
    with_globals,
)
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.program import Program

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel, in units of the prior's


@typed
class AAE(Adversarial):
    r"""The adversarial autoencoder: a critic holds the aggregated posterior to the prior.

    .. math:: -\mathbb{E}_q[\log p(x \mid z)] - \lambda\, \mathbb{E}_{q(z)} \log \sigma(-T(z)),
       \qquad T = \log q(z) - \log p(z), \quad q(z) = \tfrac1N \sum_n q(z \mid x_n)

    The prior may be any that has draws; its own parameters stand still. The guide may be a point
    mass (``encoder=pv.conditionals.Point(net)``), a Gaussian, or implicit. The loss is no bound:
    judge by ``pv.ais`` or ``pv.fitted_log_likelihood``. A KL weight multiplies λ.

    Arguments:
        critic: T, a module of codes ``(B, Z)`` to ``(B,)``, as ``pv.nn.Critic(Z)``.
        weight: λ, nats.
        critic_steps: Steps of the critic per step of the program.
        critic_optimizer: Makes the critic's optimizer; None takes that of ``fit``.

    Raises:
        ConfigError: A weight that is not positive.
        ProgramError: A latent is global, discrete or has no prior to draw from.

    References:
        | Adversarial Autoencoders (Makhzani et al., 2016), arXiv:1511.05644
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        weight: float = 1.0,
        critic_steps: int = 1,
        critic_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(critic, critic_steps, critic_optimizer)
        self.weight = number("weight", weight, "(0, inf)")

    def updates(self, program: Program) -> list[Update]:
        """Return the critic's update, and that of all parameters of the program."""
        return [self.critic_update(program), Update(self.per_datum, tuple(program.parameters()))]

    def critic_loss(self, joint: Joint) -> Tensor:
        """Return the critic's loss at codes of the data and at draws of the prior."""
        with torch.no_grad():
            guide, prior = joint.guide_trace(1), joint.prior_trace()
            names = latents_of(joint, guide, "AAE")
            ours, theirs = (codes(t, names, rows_of(joint))[0] for t in (guide, prior))
        at_both = self.told(torch.cat([ours, theirs]))
        return told_apart(*at_both.split(len(ours)))

    def per_datum(self, joint: Joint) -> Tensor:
        """Return the reconstruction's loss and what it takes to deceive the critic, per datum."""
        model, guide = joint.traces()
        names = latents_of(joint, guide, "AAE")
        terms = terms_of(joint, model, guide, without=names)
        weight = self.weight * kl_weight_of(model, guide, names, "AAE")
        told = softplus(self.told(codes(guide, names, rows_of(joint))[0])).mean()
        return weight * told - with_globals(terms.log_likelihood().mean(), terms)


@typed
class WAE:
    r"""The Wasserstein autoencoder: a kernel holds the aggregated posterior to the prior.

    .. math:: -\mathbb{E}_q[\log p(x \mid z)] + \lambda\, \mathrm{MMD}^2(q(z), p(z)), \qquad
       k(a, b) = \sum_s \frac{2 Z s}{2 Z s + \|a - b\|^2}

    The unbiased estimate of the squared maximum mean discrepancy, by codes of the batch and as many
    draws of the prior: its mean is 0 where q(z) is the prior. No critic, no game. The loss is no
    bound. A KL weight multiplies λ.

    Arguments:
        weight: λ, nats.

    Raises:
        ConfigError: A weight that is not positive.
        ProgramError: A latent is global, discrete or has no prior to draw from.

    References:
        | Wasserstein Auto-Encoders (Tolstikhin et al., 2018), arXiv:1711.01558
        | A Kernel Two-Sample Test (Gretton et al., 2012), JMLR 13
    """

    is_bound = False

    def __init__(self, weight: float = 10.0) -> None:
        self.weight = number("weight", weight, "(0, inf)")

    def __repr__(self) -> str:
        return with_arguments(self)

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        return [Update(self.per_datum, tuple(program.parameters()))]

    def per_datum(self, joint: Joint) -> Tensor:
        """Return the reconstruction's loss and the discrepancy, per datum.

        Raises:
            DataError: A batch of one row.
        """
        if rows_of(joint) < 2:
            raise DataError(
                "WAE: got a batch of one row, expected at least 2: the kernel compares pairs; "
                "choose a batch_size that leaves no single row, or drop_last=True of a DataLoader"
            )
        model, guide = joint.traces()
        names = latents_of(joint, guide, "WAE")
        terms = terms_of(joint, model, guide, without=names)
        weight = self.weight * kl_weight_of(model, guide, names, "WAE")
        with torch.no_grad():
            theirs = codes(joint.prior_trace(), names, rows_of(joint))[0]
        apart = discrepancy(codes(guide, names, rows_of(joint))[0], theirs)
        return weight * apart - with_globals(terms.log_likelihood().mean(), terms)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased estimate of MMD² between draws ``(M, Z)`` and ``(N, Z)``, a scalar."""
    return _kernel(a, a, twice=True) + _kernel(b, b, twice=True) - 2 * _kernel(a, b)


def _kernel(a: Tensor, b: Tensor, *, twice: bool = False) -> Tensor:
    """Return the mean of the kernel over pairs; ``twice``: of one set, none with itself."""
    squares = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT
    size = 2.0 * a.shape[-1]
    kernel: Any = sum(size * s / (size * s + squares.clamp(min=0)) for s in _SCALES)
    if not twice:
        return kernel.mean()
    rows = len(a)
    return (kernel.sum() - kernel.diagonal().sum()) / (rows * (rows - 1))
