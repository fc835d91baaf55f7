"""A distribution that can be drawn from, and whose density nobody knows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.nn import sizes


@typed
class Implicit(Expandable):
    r"""The distribution of a function of noise: draws, with a path for gradients, and no density.

    .. math:: z = f(\epsilon), \quad \epsilon \sim p(\epsilon)

    It stands at a latent site of the guide, declared once: what needs draws alone works as ever
    (`generate`, `reconstruct`, `refine`, `ais` from the prior), and what needs the density says so.

    Arguments:
        noise: distribution of ε, with a reparametrised sampler; its batch is that of z.
        function: ε, shape (* | noise), to z, shape (* | event), for any leading dims *.
        event_shape: shape of one z.

    Raises:
        ConfigError: the noise has no reparametrised sampler.
        ProgramError: the log density is asked for.

    References:
        Adversarial Variational Bayes (Mescheder et al., 2017), arXiv:1701.04722.

    Example:
        >>> import pyro.distributions as dist
        >>> noise = dist.Normal(torch.zeros(5, 3), 1.0).to_event(1)
        >>> Implicit(noise, lambda e: e.square().sum(-1, keepdim=True), (1,)).sample((4,)).shape
        torch.Size([4, 5, 1])
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    has_density = False
    batched = ("noise",)

    def __init__(
        self,
        noise: torch.distributions.Distribution,
        function: Callable[[Tensor], Tensor],
        event_shape: torch.Size | Sequence[int],
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not noise.has_rsample:
            raise ConfigError(
                f"noise: got {type(noise).__name__}, expected one with a reparametrised sampler"
            )
        self.noise: Any = noise
        self.function = function
        event = torch.Size(sizes("event_shape", event_shape))
        super().__init__(noise.batch_shape, event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, shape (sample_shape, batch | event).

        Raises:
            ProgramError: The function makes another event than it was said to.
        """
        shape = torch.Size(sample_shape)
        made = self.function(self.noise.rsample(shape))
        if made.shape != shape + self.batch_shape + self.event_shape:
            raise ProgramError(
                f"function: got draws of shape {tuple(made.shape)}, expected "
                f"{tuple(shape + self.batch_shape + self.event_shape)}: (* | event) of noise "
                f"(* | noise), with event_shape={tuple(self.event_shape)}"
            )
        return made

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Raise: nobody knows it."""
        raise ProgramError(
            "an implicit distribution has draws and no density: train it by pv.AVB, estimate "
            "likelihoods by pv.ais or pv.fitted_log_likelihood and posteriors by pv.refine"
        )
