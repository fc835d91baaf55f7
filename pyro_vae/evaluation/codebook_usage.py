"""How much of a codebook is in use."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import counted, typed
from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program
from pyro_vae.program.sites.roles import latent_names

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_VERB = Verb("code_usage", local="it needs a program with a codebook, as pv.models.VQVAE")


@dataclass(frozen=True)
class CodeUsage:
    r"""How often each code of a codebook is used, over data and positions.

    Arguments:
        counts: Uses of each code, ``(K,)``.
    """

    counts: Tensor

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def used(self) -> int:
        """Codes that are used at all."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        r""":math:`\exp(-\sum_k f_k \log f_k)` of the frequencies: K if all are equal."""
        share = self.counts / self.counts.sum()
        return float(torch.special.entr(share).sum().exp())

    @typed
    def plot(self) -> "Figure":
        """Draw how often each code is used, most used first."""
        from pyro_vae.plots import answers

        return answers.codes(self)

    def __repr__(self) -> str:
        return (
            f"CodeUsage({self.used} of {counted(self.num_codes, 'code')} used, "
            f"perplexity {self.perplexity:.1f}, {self.perplexity / self.num_codes:.0%})"
        )


@dataclass(frozen=True)
class ValueUsage:
    r"""What is known of a discrete latent y that is summed out, over data (and units of them).

    Arguments:
        shares: Of each value, the mean of :math:`p(y \mid x, z)`, ``(V,)``.
        information: :math:`H(\mathbb{E}\,p(y \mid x, z)) - \mathbb{E} H(p(y \mid x, z))`, nats:
            what a datum and its code tell of y, between 0 and log V.
    """

    shares: Tensor
    information: float

    @property
    def perplexity(self) -> float:
        """The exponential of the entropy of the shares: V if all are equal."""
        return float(torch.special.entr(self.shares).sum().exp())

    def __repr__(self) -> str:
        return (
            f"ValueUsage(perplexity {self.perplexity:.1f} of "
            f"{counted(len(self.shares), 'value')}, {self.information:.2f} nats told of it)"
        )


@typed
def code_usage(program: Any, data: Any) -> CodeUsage:
    """Count how often the guide uses each code of a program's codebook.

    Arguments:
        program: Anything with ``.model`` and ``.guide`` and one quantised latent, as
            ``pv.models.VQVAE``: the guide's distribution there has ``num_codes`` and ``numbers``.
        data: One row per datum, ``(N, ...)``.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: No latent is quantised.
    """
    counts: Any = 0
    with Program.of(program).passes(data, _VERB) as passes:
        for piece in passes:
            joint = piece.joint
            counts = counts + _count(
                poutine.trace(joint.guide).get_trace(*joint.args, **joint.kwargs)
            )
    return CodeUsage(counts.cpu())


def _count(trace: Any) -> Tensor:
    for _, site in sample_sites(trace):
        if hasattr(site["fn"], "numbers"):
            numbers = site["fn"].numbers(site["value"]).flatten()
            return torch.bincount(numbers, minlength=site["fn"].num_codes).double()
    raise ProgramError(
        f"code_usage: none of {latent_names(trace)} is quantised; it needs a "
        "program with a codebook, as pv.models.VQVAE"
    )
