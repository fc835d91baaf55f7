"""What training minimises: losses over a program's terms, in nats per datum."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.infer
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.program.handlers import WantParameters
from pyro_vae.program.joint import Joint
from pyro_vae.program.program import Program
from pyro_vae.program.terms import Terms

OptimiserFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Update:
    """One optimiser step of a training step: what to minimise, over which parameters.

    Arguments:
        loss: Maps model and guide on one batch to a scalar in nats per datum.
        parameters: What this update moves.
        optimiser: Makes its optimiser; None takes that of ``pv.fit``.
        repeats: Steps of this update per batch.
        name: How the history calls its loss.
        due: Asked once per batch, in order: whether the update is to be made; None always. The
            loss of one left out is reported as that of another. At least one must be due.
    """

    loss: Callable[[Joint], Tensor]
    parameters: tuple[nn.Parameter, ...]
    optimiser: OptimiserFactory | None = None
    repeats: int = 1
    name: str = "loss"
    due: Callable[[], bool] | None = None


class Objective(Protocol):
    """What ``pv.fit`` asks of an objective: its updates, for a program.

    One with parameters or state of its own is an ``nn.Module`` besides.
    """

    def updates(self, program: Program) -> list[Update]:
        """Return the updates of one training step, in order."""
        ...


class TermsObjective(pyro.infer.ELBO):
    """An objective with one loss, a function of the terms; stock ``pyro.infer.SVI`` takes it too.

    Subclasses define ``loss_of``, or ``loss_of_joint`` where terms alone do not do.
    ``differentiable_loss`` follows Pyro's convention (the sum over the data set of N); everything
    else in this library is per datum.
    """

    is_bound = True  # whether minus the loss lies below log p(x)

    def __init__(self, num_particles: int = 1, num_samples: int = 1) -> None:
        for name, value in (("num_particles", num_particles), ("num_samples", num_samples)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
        super().__init__(num_particles=num_particles)
        self.num_samples = num_samples
        self._num_plates: int | None = None
        self._looked_at: Any = None

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss in nats per datum; its gradient is the estimator's."""
        raise NotImplementedError

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum for model and guide on one batch, and N."""
        terms = joint.terms(self.num_samples, self.num_particles)
        return self.loss_of(terms), terms.size

    def per_datum(self, joint: Joint) -> Tensor:
        """Return the loss in nats per datum."""
        return self.loss_of_joint(joint)[0]

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        return [Update(self.per_datum, tuple(program.parameters()))]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss summed over the data set, differentiable (Pyro's convention)."""
        known = self._num_plates if self._looked_at == (model, guide) else None
        joint = Joint(model, guide, args, kwargs, num_plates=known)
        if self.num_particles > 1:
            self._num_plates, self._looked_at = joint.num_plates, (model, guide)
        loss, size = self.loss_of_joint(joint)
        return loss * size

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return Joint(model, guide, args, kwargs).traces()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss summed over the data set, as a float (Pyro's convention; a sync)."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Back-propagate the summed loss and return it as a float (what ``SVI.step`` calls)."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()


class ELBO(TermsObjective):
    r"""The evidence lower bound, estimated with K particles: a ``Trace_ELBO`` without device syncs.

    .. math:: \mathbb{E}_{q(w)}\Big[\log\tfrac{p(w)}{q(w)} + \tfrac{N}{B}\sum_n
       \mathbb{E}_{q(z_n \mid x_n)} \log\tfrac{p(x_n, z_n \mid w)}{q(z_n \mid x_n)}\Big] / N

    Latents with a reparametrised sampler get the pathwise gradient, others the score function
    (per datum: the signal of one datum does not enter another's gradient). A factor of the guide
    counts as in ``Trace_ELBO``, value and gradient; besides, it is in the signal of latents that
    have a score function, as the gradient's mean asks.

    Arguments:
        num_particles: K, draws of the local latents per datum, in one pass.
        num_samples: S, draws of the global latents, in a loop.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114
        | Black Box Variational Inference (Ranganath et al., 2014), arXiv:1401.0118
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative ELBO per datum."""
        value = elbo_of(terms)
        if not terms.score and not terms.factor_score:
            return -value
        surrogate = elbo_of(terms, detached=(*terms.no_path, *terms.factor_score))
        surrogate = surrogate + _score_term(terms.score, terms.signal, terms.global_signal, terms)
        # A factor multiplies what Pyro's does: the log weight, which has no factor in it.
        surrogate = surrogate + _score_term(
            terms.factor_score, terms.log_weight, terms.global_log_weight, terms
        )
        return -(value.detach() + surrogate - surrogate.detach())


class AnalyticELBO(TermsObjective):
    r"""The ELBO with the KL of each local latent in closed form, where that is right and known.

    .. math:: \mathbb{E}_q[\log p(x \mid z)] - \sum_l
       \mathbb{E}_q\,\mathrm{KL}(q(z_l \mid x, \cdot) \,\|\, p(z_l \mid \cdot))

    A latent whose prior may depend on latents that the guide draws after it (a bottom-up guide of a
    hierarchical model) keeps its Monte-Carlo KL: integrating over it alone would be wrong. So does
    one whose pair of distributions has no registered KL, and one under a mask or under a weight
    other than ``beta``. The bound is that of ``ELBO``, its gradient has less noise: early in a
    training that can decide whether a code comes to life or collapses.

    Arguments:
        num_particles, num_samples: As for ``ELBO``.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114, App. B
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        if terms.score:
            raise ProgramError(
                f"AnalyticELBO: site {next(iter(terms.score))!r} has no reparametrised sampler"
            )
        value = elbo_of(terms)
        for name in analytic_sites(terms):
            estimate = terms.kl(name)
            analytic = torch.stack(
                [kl_divergence(draw.posterior, draw.prior).sum() for draw in terms.latents[name]]
            ).sum()
            # Summed over nested plates, averaged over draws, particles and data.
            weight = terms.latents[name][0].kl_weight
            value = value + estimate.mean() - weight * analytic / estimate.numel()
        return -value


def analytic_sites(terms: Terms) -> list[str]:
    """Return the local latents whose KL may be taken in closed form."""
    guide_order = [name for name in terms.log_q if name in terms.latents]
    found: list[str] = []
    for index, (name, draws) in enumerate(terms.latents.items()):
        # The latents before this one in the model are its possible parents; all must be drawn
        # before it in the guide too.
        parents = set(list(terms.latents)[:index])
        drawn = set(guide_order[: guide_order.index(name)])
        alone, pair = draws[0].kl_weight is not None, (draws[0].posterior, draws[0].prior)
        if parents <= drawn and alone and has_kl(*pair):
            found.append(name)
    return found


def has_kl(posterior: Any, prior: Any) -> bool:
    """Return whether torch or Pyro knows the KL of this pair in closed form."""
    try:
        kl_divergence(posterior, prior)
    except NotImplementedError:
        return False
    return True


def elbo_of(terms: Terms, detached: tuple[str, ...] = ()) -> Tensor:
    """Return the ELBO estimate in nats per datum; log q of the ``detached`` sites as a constant."""
    local_mean = terms.signal.mean()
    weight: Any = terms.global_signal
    counted = terms.log_q | terms.global_log_q | terms.factors
    for name in detached:  # adding and taking away the same value leaves its gradient out
        nothing = counted[name] - counted[name].detach()
        if nothing.dim() == 3:
            local_mean = local_mean + nothing.mean()
        else:
            weight = weight + nothing
    if isinstance(weight, Tensor):
        return local_mean + weight.mean() / terms.size
    return local_mean


def _score_term(
    scores: Mapping[str, Tensor], signal: Tensor, global_signal: Any, terms: Terms
) -> Tensor | float:
    """Return the surrogate whose gradient is the score-function part, per datum."""
    signal = signal.detach()
    whole = global_signal + terms.size * signal.mean((1, 2))
    parts = [
        (signal * score).mean()
        if score.dim() == 3
        else (whole.detach() * score).mean() / terms.size
        for score in scores.values()
    ]
    return torch.stack(parts).sum() if parts else 0.0


class StockObjective:
    """Any ``pyro.infer.ELBO`` as an objective: one update, its loss divided by the data it covers.

    Losses without ``differentiable_loss`` (``RenyiELBO``, ``TraceGraph_ELBO``,
    ``ReweightedWakeSleep``) are taken through ``loss_and_grads``: the gradients they leave are
    handed on by autograd.
    """

    def __init__(self, elbo: pyro.infer.ELBO) -> None:
        self.elbo = elbo
        self._elbo: Any = elbo  # the base class of Pyro declares neither way to its loss

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        parameters = tuple(program.parameters())
        if hasattr(type(self.elbo), "differentiable_loss"):
            return [Update(self._loss, parameters)]
        return [Update(lambda joint: self._loss_from_grads(joint, parameters), parameters)]

    def _loss(self, joint: Joint) -> Tensor:
        loss = self._elbo.differentiable_loss(joint.model, joint.guide, *joint.args, **joint.kwargs)
        return loss / joint.size

    def _loss_from_grads(self, joint: Joint, parameters: tuple[nn.Parameter, ...]) -> Tensor:
        kept = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        with WantParameters():
            value = self._elbo.loss_and_grads(joint.model, joint.guide, *joint.args, **joint.kwargs)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad / joint.size for p in parameters]
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
        # Pyro's wake-sleep answers a pair of losses, the model's and the guide's.
        total = sum(value) if isinstance(value, tuple) else value
        constant = parameters[0].new_tensor(float(total) / joint.size)
        return _Handout.apply(constant, grads, *parameters)


class _Handout(torch.autograd.Function):
    """A scalar whose backward hands out gradients computed elsewhere."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (None, None, *(upstream * grad for grad in ctx.grads))


def _without_jit(elbo: pyro.infer.ELBO) -> pyro.infer.ELBO:
    """Return a loss of the class that one of Pyro's Jit classes speeds up: ``compile=`` does that.

    A Jit class keeps a trace by ``torch.jit`` of its first batch's functions.
    """
    kind = type(elbo)
    if kind.__module__.partition(".")[0] != "pyro" or not kind.__name__.startswith("Jit"):
        return elbo
    plain = kind.__mro__[1]
    names = inspect.signature(pyro.infer.ELBO.__init__).parameters
    kept = {name: getattr(elbo, name) for name in names if hasattr(elbo, name)}
    return plain(**kept)


def as_objective(objective: Any) -> Objective:
    """Return an objective for None (the ELBO), an objective, or any ``pyro.infer.ELBO``.

    Raises:
        ConfigError: Something else.
    """
    if objective is None:
        return ELBO()
    if hasattr(objective, "updates") and not isinstance(objective, type):
        return objective
    if isinstance(objective, pyro.infer.ELBO):
        return StockObjective(_without_jit(objective))
    raise ConfigError(
        f"objective: got {objective!r}, expected an instance of a pyro.infer.ELBO or an object "
        "with .updates(program)"
    )
