"""The absence of a prior."""

from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ProgramError
from pyro_vae.nn import sizes


@typed
class NoPrior(Expandable):
    r"""The absence of a prior: a flat, improper density, log p(z) = 0, that cannot be sampled.

    It stands at the latent site of a deterministic autoencoder, where an ELBO then has no KL term.

    Arguments:
        event_shape: shape of one z.
        batch_shape: shape of independent ones.

    Raises:
        ProgramError: when sampled.

    Example:
        >>> NoPrior((2,)).log_prob(torch.ones(3, 2))
        tensor([0., 0., 0.])
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        event_shape: torch.Size | Sequence[int] = (),
        batch_shape: torch.Size | Sequence[int] = (),
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch, event = sizes("batch_shape", batch_shape), sizes("event_shape", event_shape)
        super().__init__(torch.Size(batch), torch.Size(event), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros, shape (batch)."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(torch.broadcast_shapes(lead, self.batch_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Raise: there is nothing to draw from."""
        raise ProgramError(
            "a latent site has no prior to sample from (NoPrior), so this program cannot generate, "
            "nor has it a likelihood; an autoencoder can encode and reconstruct data: use that, or "
            "a VAE, which learns the same networks under a prior"
        )
