"""The aggregated posterior against the prior: what a classifier of their draws can tell."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.arguments import counted, integer, typed
from pyro_vae.errors import DataError
from pyro_vae.inference.objectives.adversarial import codes, latents_of, told_apart
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program
from pyro_vae.threads import require_turn

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_VERB = Verb("aggregated_posterior")
_ROWS_PER_PASS = 1024
_FEWEST, _BATCH, _RATE, _WIDTH = 4, 256, 5e-3, 64


@dataclass(frozen=True, repr=False)
class AggregatedPosterior:
    """Codes of all data together against draws of the prior.

    Arguments:
        loss: Two-sample loss of the critic on codes that it was not trained on.
        stderr: Standard error of the loss.
        kl: Mean of its log ratio at these codes, nats: KL(q(z) || p(z)) as far as it knows.
        codes: One draw of the guide for each datum, ``(N, Z)``.
        prior: As many draws of the prior.
        equal: The loss where nothing tells the two apart, log 4.
    """

    loss: float
    stderr: float
    kl: float
    codes: Tensor
    prior: Tensor
    equal: float = math.log(4)

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

    def plot(self) -> "Figure":
        """Draw the codes of all data over draws of the prior."""
        from pyro_vae.plots import answers

        return answers.aggregated(self)

    def __repr__(self) -> str:
        return (
            f"AggregatedPosterior(loss={self.loss:.4f} ± {self.stderr:.4f} of {self.equal:.4f}, "
            f"kl={self.kl:.3f} nats, {counted(len(self.codes), 'datum', 'data')})"
        )


@typed
def aggregated_posterior(
    program: Any, data: Any, critic: nn.Module | None = None, *, num_steps: int = 500
) -> AggregatedPosterior:
    r"""Tell codes of the data from draws of the prior by a fresh critic, and score it on new ones.

    .. math:: -\mathbb{E}_{q(z)} \log \sigma(T) - \mathbb{E}_{p(z)} \log \sigma(-T), \qquad
       q(z) = \tfrac1N \sum_n q(z \mid x_n)

    The critic is trained on half of the codes, and the loss is that of the other half: in
    expectation no smaller than at the best critic, :math:`T = \log q(z) - \log p(z)`, so a loss
    below log 4 by several standard errors says that the two differ. A loss near it says that this
    critic has found no difference.

    Arguments:
        program: Anything with ``.model`` and ``.guide``; its latents of a datum have draws.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come;
            data that the program was not trained on tell more.
        critic: T, codes ``(B, Z)`` to ``(B,)``; a copy is trained. None: a small perceptron.
        num_steps: Steps of Adam; 0 takes the critic as it is.

    Raises:
        DataError: Fewer than four data.
        ProgramError: A latent is global, discrete or has no prior to draw from.

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017), arXiv:1610.06545
    """
    require_turn("aggregated_posterior")
    steps = integer("num_steps", num_steps, 0)
    ours, theirs = _drawn(Program.of(program), data)
    if len(ours) < _FEWEST:
        raise DataError(f"data: got {counted(len(ours), 'row')}, expected at least {_FEWEST}")
    judge = _fresh(ours.shape[1]) if critic is None else copy.deepcopy(critic)
    judge.to(ours)
    half = torch.randperm(len(ours), device=ours.device).chunk(2)
    _train(judge, ours[half[0]], theirs[half[0]], steps)
    judge.eval()
    with torch.no_grad():
        told, its = (judge(each[half[1]]).reshape(-1).double() for each in (ours, theirs))
    losses = softplus(-told), softplus(its)
    spread = sum((each.var() / len(each)).item() for each in losses)
    loss = sum(each.mean().item() for each in losses)
    return AggregatedPosterior(loss, spread**0.5, told.mean().item(), codes=ours, prior=theirs)


@torch.no_grad()
def _drawn(program: Program, data: Any) -> tuple[Tensor, Tensor]:
    """Return one code of each datum, and as many draws of the prior, ``(N, Z)``."""
    found = []
    with program.passes(data, _VERB, rows=_ROWS_PER_PASS) as passes:
        for piece in passes:
            guide, prior = piece.joint.guide_trace(1), piece.joint.prior_trace()
            names = latents_of(piece.joint, guide, "aggregated_posterior")
            found.append([codes(trace, names, len(piece))[0] for trace in (guide, prior)])
    ours, theirs = (torch.cat(each) for each in zip(*found, strict=True))
    return ours, theirs


def _fresh(latent_dim: int) -> nn.Module:
    """Return a small critic of codes."""
    layers: list[nn.Module] = []
    for inputs in (latent_dim, _WIDTH):
        layers += [nn.Linear(inputs, _WIDTH), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, 1), nn.Flatten(0))


def _train(critic: nn.Module, ours: Tensor, theirs: Tensor, steps: int) -> None:
    """Take steps of Adam at ever lower rates; a critic without parameters stays as it is."""
    trained = [p for p in critic.parameters() if p.requires_grad]
    if not (trained and steps):
        return
    optimizer = torch.optim.Adam(trained, _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(ours), (min(_BATCH, len(ours)),), device=ours.device)
            optimizer.zero_grad()
            told_apart(critic(ours[rows]), critic(theirs[rows])).backward()
            optimizer.step()
            schedule.step()
