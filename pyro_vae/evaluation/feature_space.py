"""How far what a program makes lies from the data, in the features of a network."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted, positive, shown, typed
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.evaluation.codes import reconstruct
from pyro_vae.evaluation.generation import generate
from pyro_vae.program.parameters.modules import evaluating
from pyro_vae.program.program import Program
from pyro_vae.threads import require_turn

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_ROWS_PER_PASS = 1024


@dataclass(frozen=True, repr=False)
class FeatureDistances:
    """Distances in the features of a network; none of other features compares with them.

    Arguments:
        reconstruction: Squared distance of each datum and its reconstruction, ``(N,)``.
        frechet: Fréchet distance of generated data and the data.
        made: Features of what was generated, ``(n, F)``.
        data: Features of the data, ``(N, F)``.
    """

    reconstruction: Tensor
    frechet: float
    made: Tensor
    data: Tensor

    @typed
    def plot(self) -> "Figure":
        """Draw the distances of reconstructions, and the features of both sides."""
        from pyro_vae.plots import answers

        return answers.features(self)

    def __repr__(self) -> str:
        return (
            f"FeatureDistances(reconstruction={self.reconstruction.mean().item():.4f}, "
            f"frechet={self.frechet:.4f}, {counted(len(self.data), 'datum', 'data')})"
        )


@typed
def feature_distances(
    program: Any, data: Tensor, features: Callable[[Tensor], Tensor], *, n: int | None = None
) -> FeatureDistances:
    r"""Judge reconstructions and new data in the features of a network that the user trusts.

    .. math:: \|f(x) - f(\hat x)\|^2, \qquad
       \|m - m'\|^2 + \mathrm{tr}\big(C + C' - 2 (C C')^{1/2}\big)

    with m, C mean and covariance of f at the data, m', C' those at new data (means of p(x | z) at z
    from the prior). Take the layer before the last of a small classifier trained on the same data;
    distances by other features, those of Inception (FID) too, are other numbers.

    Arguments:
        program: Anything with ``.model`` and ``.guide``, with one observed site.
        data: One row per datum, ``(N, ...)``.
        features: f, ``(B, ...)`` to ``(B, F)``; a module runs in eval mode.
        n: New data; None: N.

    Raises:
        ConfigError: The features are no rows of numbers.
        DataError: Fewer than two data.
        ProgramError: The program observes several sites.

    References:
        | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), arXiv:1706.08500
    """
    require_turn("feature_distances")
    rows = len(data) if data.dim() else 1
    count = rows if n is None else positive("n", n)
    if min(rows, count) < 2:
        raise DataError(f"data: got {counted(min(rows, count), 'row')}, expected at least 2")
    wrapped = Program.of(program)
    again, made = reconstruct(wrapped, data), generate(wrapped, count, mean=True)
    if isinstance(again, dict) or isinstance(made, dict):
        raise ProgramError("feature_distances: the model observes several sites, expected one")
    own, back, new = (_seen(features, each) for each in (data.to(again), again, made))
    return FeatureDistances(
        (own - back).square().sum(-1), frechet_distance(own, new), made=new, data=own
    )


@torch.no_grad()
def _seen(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    owner = getattr(features, "__self__", features)
    # Dropout would make each distance noise.
    with evaluating(owner) if isinstance(owner, nn.Module) else nullcontext():
        pieces = [_rows_of(features, piece) for piece in x.split(_ROWS_PER_PASS)]
    return torch.cat(pieces).double()


def _rows_of(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        found: Any = features(x)
        what = f"gives {shown(found)}"
    except (TypeError, ValueError, RuntimeError) as error:
        found, what = None, f"fails ({error})"
    if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1]:
        raise ConfigError(
            f"features: got {shown(features)}, which {what} at {shown(x)}; expected a function or "
            "a module that gives one row of features per datum"
        )
    return found.flatten(1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of the Gaussians with the moments of two sets, ``(N, F)``."""
    shift = (first.mean(0) - second.mean(0)).square().sum()
    one, two = (torch.cov(each.T).reshape(each.shape[1], -1) for each in (first, second))
    # The eigenvalues of C C' are those of a product with its root on both sides.
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return float(shift + one.trace() + two.trace() - 2 * common)
