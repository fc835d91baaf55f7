"""The aggregated posterior against the prior: what a classifier of their draws can tell."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted, integer, require_network, typed
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.evaluation.density_ratios import Judge, losses_of, sights, trained
from pyro_vae.inference.objectives.adversarial import codes, latents_of
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program
from pyro_vae.threads import require_turn

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_VERB = Verb("aggregated_posterior")
_ROWS_PER_PASS = 1024
_FEWEST = 8
_CLOSE = 0.02  # nats of the loss
_MANY, _FOLDS = 4096, 4  # of more codes a half does to train on
_PRIORS, _ENOUGH = 8, 100_000  # draws of the prior for each code, and of them all


@dataclass(frozen=True, repr=False)
class AggregatedPosterior:
    """Codes of all data together against draws of the prior.

    Arguments:
        loss: Two-sample loss of the critics on codes that they were not trained on.
        stderr: Standard error of the loss.
        kl: Mean of their log ratio at these codes, nats: KL(q(z) || p(z)) as far as they know.
        codes: One draw of the guide for each datum, ``(N, Z)``.
        prior: As many draws of the prior.
        floor: Loss on the codes that they were trained on, at the end of the training. That of the
            best critic of their kind lies between it and ``loss``, but for noise.
        equal: The loss where nothing tells the two apart, log 4.
    """

    loss: float
    stderr: float
    kl: float
    codes: Tensor
    prior: Tensor
    floor: float
    equal: float = math.log(4)

    @property
    def too_few(self) -> bool:
        """Whether the number of codes limits the critics: ``floor`` lies below what noise is."""
        return self.loss - self.floor > _CLOSE + 3 * self.stderr

    @property
    def mean_gap(self) -> Tensor:
        """Mean of the codes less that of the draws of the prior, ``(Z,)``."""
        return self.codes.mean(0) - self.prior.mean(0)

    @property
    def covariance_gap(self) -> Tensor:
        """Covariance of the codes less that of the draws of the prior, ``(Z, Z)``."""
        size = self.codes.shape[1]
        ours, theirs = (torch.cov(each.T).reshape(size, size) for each in (self.codes, self.prior))
        return ours - theirs

    @typed
    def plot(self) -> "Figure":
        """Draw the codes of all data over draws of the prior."""
        from pyro_vae.plots import answers

        return answers.aggregated(self)

    def __repr__(self) -> str:
        few = (
            f"; so few codes leave open whether it is as low as {self.floor:.2f}"
            if self.too_few
            else ""
        )
        return (
            f"AggregatedPosterior(loss={self.loss:.4f} ± {self.stderr:.4f} of {self.equal:.4f}, "
            f"kl={self.kl:.3f} nats, {counted(len(self.codes), 'datum', 'data')}{few})"
        )


@typed
def aggregated_posterior(
    program: Any, data: Any, critic: nn.Module | None = None, *, num_steps: int = 1000
) -> AggregatedPosterior:
    r"""Tell codes of the data from draws of the prior by fresh critics, scored on other codes.

    .. math:: -\mathbb{E}_{q(z)} \log \sigma(T) - \mathbb{E}_{p(z)} \log \sigma(-T), \qquad
       q(z) = \tfrac1N \sum_n q(z \mid x_n)

    Each half of the codes is judged by a critic that the other half has trained, so that the loss
    is in expectation no smaller than at the best critic, :math:`T = \log q(z) - \log p(z)`: a loss
    below log 4 by several standard errors says that the two differ. A loss near it says that these
    critics have found no difference; whether more codes could show one, ``too_few`` tells.

    Arguments:
        program: Anything with ``.model`` and ``.guide``; its latents of a datum have draws.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come;
            data that the program was not trained on tell more.
        critic: T, codes ``(B, Z)`` to ``(B,)``; copies are trained. None: the log ratio of the
            Gaussians with the moments of both, and a small network besides.
        num_steps: Steps of Adam; 0 takes the critic as it is. Of the weights on the way those are
            taken that a fifth of the codes to train on, left out of it, is told apart best by.

    Raises:
        DataError: Fewer than eight data.
        ProgramError: A latent is global, discrete or has no prior to draw from; codes or draws of
            the prior are not finite.

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017), arXiv:1610.06545
    """
    require_turn("aggregated_posterior")
    if critic is not None:
        require_network("critic", critic)
    steps = integer("num_steps", num_steps, 0)
    ours, theirs = _drawn(Program.of(program), data)
    if len(ours) < _FEWEST:
        raise DataError(f"data: got {counted(len(ours), 'row')}, expected at least {_FEWEST}")
    for what, draws in (("a code", ours), ("a draw of the prior", theirs)):
        if not bool(draws.isfinite().all()):
            raise ProgramError(f"aggregated_posterior: {what} is not finite")
    with torch.inference_mode(False), torch.enable_grad():
        judged = _judged(ours.clone(), theirs.clone(), critic, steps)
    codes_lost, prior_lost, told, floors = zip(*judged, strict=True)
    losses = torch.cat(codes_lost), torch.cat(prior_lost)
    return AggregatedPosterior(
        loss=sum(each.mean().item() for each in losses),
        stderr=sum((each.var() / len(each)).item() for each in losses) ** 0.5,
        kl=torch.cat(told).mean().item(),
        codes=ours,
        prior=theirs[: len(ours)],
        floor=sum(floors) / len(floors),
    )


def _judged(
    ours: Tensor, theirs: Tensor, critic: nn.Module | None, steps: int
) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Return for each fold its losses of codes and of prior, T at its codes, and the floor."""
    if critic is None:
        ours, theirs = ours.double(), theirs.double()
    count = _FOLDS if len(ours) <= _MANY else 2
    folds = [torch.randperm(len(z), device=z.device).chunk(count) for z in (ours, theirs)]
    found = []
    for fold in range(count):
        new = [z[rows[fold]] for z, rows in zip((ours, theirs), folds, strict=True)]
        known = [
            z[torch.cat([*rows[:fold], *rows[fold + 1 :]])]
            for z, rows in zip((ours, theirs), folds, strict=True)
        ]
        found.append(_fold(known, new, critic, steps))
    return found


def _fold(
    known: list[Tensor], new: list[Tensor], critic: nn.Module | None, steps: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the losses of new codes and draws by a critic of known ones, T at the codes, floor."""
    if critic is not None:
        judge = copy.deepcopy(critic).to(known[0])
        _, floor = trained(judge, known[0], known[1], steps)
        return (*losses_of(judge, new[0], new[1]), floor)
    found = []
    for see in sights(known[0], known[1]):
        ours, theirs = (see(z) for z in known)
        judge = Judge(ours.shape[1]).to(ours)
        held, floor = trained(judge, ours, theirs, steps)
        found.append((held, floor, see, judge))
    _, floor, see, judge = min(found, key=lambda each: each[0])
    return (*losses_of(judge, *(see(z) for z in new)), floor)


@torch.no_grad()
def _drawn(program: Program, data: Any) -> tuple[Tensor, Tensor]:
    """Return one code of each datum, ``(N, Z)``, and draws of the prior, as many or more."""
    found: list[Tensor] = []
    drawn: list[list[Tensor]] = []
    with program.passes(data, _VERB, rows=_ROWS_PER_PASS) as passes:
        rounds = min(_PRIORS, max(1, _ENOUGH // max(1, passes.total)))
        for piece in passes:
            guide = piece.joint.guide_trace(1)
            names = latents_of(piece.joint, guide, "aggregated_posterior")
            found.append(codes(guide, names, len(piece))[0])
            traces = [piece.joint.prior_trace() for _ in range(rounds)]
            drawn.append([codes(trace, names, len(piece))[0] for trace in traces])
    # The first of each datum, then the others.
    return torch.cat(found), torch.cat([one for each in zip(*drawn, strict=True) for one in each])
