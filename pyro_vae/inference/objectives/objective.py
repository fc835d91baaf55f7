"""What ``pv.fit`` asks of an objective, and what objectives over a program's terms share."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.looks.dependence import dependence_of
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.program import Program

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@typed
@dataclass(frozen=True)
class Update:
    """One optimizer step of a training step: what to minimise, over which parameters.

    Arguments:
        loss: Maps model and guide on one batch to a scalar in nats per datum.
        parameters: What this update moves.
        optimizer: Makes its optimizer; None takes that of ``pv.fit``.
        repeats: Steps of this update per batch.
        name: How the history calls its loss.
        due: Asked once per batch, in order: whether the update is to be made; None always. At
            least one must be due, and in several processes the same ones in each: what it hangs on
            is equal in all as a buffer of the objective. The history has the mean loss over the
            batches on which it was made (NaN on none), or on which another update with the same
            loss was.

    Raises:
        ConfigError: ``repeats`` below 1, or an argument of another type.
    """

    loss: Callable[[Joint], Tensor]
    parameters: tuple[nn.Parameter, ...]
    optimizer: OptimizerFactory | None = None
    repeats: int = 1
    name: str = "loss"
    due: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        positive("repeats", self.repeats)


class Objective(Protocol):
    """What ``pv.fit`` asks of an objective: its updates, for a program.

    Any object with such a method will do; it need not inherit from this class. One with parameters
    or state of its own is an ``nn.Module`` besides, and is then part of the checkpoints. One with
    a single loss over log densities is shorter as a ``pv.TermsObjective``.
    """

    def updates(self, program: Program) -> list[Update]:
        """Return the updates of one training step, in order."""
        ...


def with_arguments(objective: Any) -> str:
    """Return an objective as its constructor is written: ``IWAE(num_particles=5)``."""
    names = inspect.signature(type(objective)).parameters
    given = {name: getattr(objective, name) for name in names if hasattr(objective, name)}
    told = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
    return f"{type(objective).__name__}({told})"


class TermsObjective(pyro.infer.ELBO):
    r"""An objective with one loss, a function of the terms; stock ``pyro.infer.SVI`` takes it too.

    .. math:: \mathrm{loss} = f(\log p, \log q), \quad \text{each of shape } (S, K, B)

    Subclasses define ``loss_of``, or ``loss_of_joint`` where terms alone do not do.
    ``differentiable_loss`` follows Pyro's convention (the sum over the data set of N); everything
    else in this library is per datum.

    Arguments:
        num_particles: K, draws of the local latents per datum, in one pass.
        num_global_samples: S, draws of the global latents, in a loop.

    Raises:
        ConfigError: A count below 1.
    """

    averages = False  # whether the loss is a mean over particles, so that it takes a joint density
    is_bound = True  # whether minus the loss lies below log p(x)

    @typed
    def __init__(self, num_particles: int = 1, num_global_samples: int = 1) -> None:
        super().__init__(num_particles=positive("num_particles", num_particles))
        self.num_global_samples = positive("num_global_samples", num_global_samples)
        self._num_plates: int | None = None
        self._looked_at: Any = None
        self._dependence = Dependence()

    def __repr__(self) -> str:
        return with_arguments(self)

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss in nats per datum; its gradient is the estimator's."""
        raise ConfigError(
            f"objective: {type(self).__name__} defines no loss_of(self, terms), expected one that "
            "returns the loss in nats per datum"
        )

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum for model and guide on one batch, and N."""
        terms = joint.terms(self.num_global_samples, self.num_particles)
        return self.loss_of(terms), terms.size

    def per_datum(self, joint: Joint) -> Tensor:
        """Return the loss in nats per datum."""
        self._require_averages(joint)
        return self.loss_of_joint(joint)[0]

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        return [Update(self.per_datum, tuple(program.parameters()))]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss summed over the data set, differentiable (Pyro's convention)."""
        known = self._num_plates if self._looked_at == (model, guide) else None
        joint = Joint(model, guide, args, kwargs, num_plates=known)
        if self.num_particles > 1 and known is None:
            self._dependence = dependence_of(joint)
        joint.spanning = self._dependence.spanning
        joint.following = self._dependence.following
        self._num_plates, self._looked_at = joint.num_plates, (model, guide)
        self._require_averages(joint)
        loss, size = self.loss_of_joint(joint)
        return loss * size

    def _require_averages(self, joint: Joint) -> None:
        """Refuse K particles of a joint density to a loss that weighs those of each datum."""
        found = joint.spanning + joint.following
        if found and self.num_particles > 1 and not self.averages:
            raise ProgramError(
                f"{type(self).__name__}: site {found[0]!r} stands outside the plate of "
                "the data and depends on their latents: no datum has weights of its own; use ELBO, "
                "or num_particles=1, or write it inside the plate, a term for each datum"
            )

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


def with_globals(local: Tensor, terms: Terms) -> Tensor:
    """Add what no logarithm of a mean is about, per datum of the data set.

    That is log p − log q of the global sites, and the loss that the guide's factors are.

    Raises:
        ProgramError: A latent that is summed out couples the data, and there are K particles.
    """
    if terms.log_weight.shape[1] > 1:
        require_rows(terms)
    weight: Any = terms.global_signal
    local = local + weight.mean() / terms.size if isinstance(weight, Tensor) else local
    return local - terms.factor.mean() if isinstance(terms.factor, Tensor) else local


def require_rows(terms: Terms) -> None:
    """Refuse a program whose data are coupled by a latent that is summed out.

    Raises:
        ProgramError: Names the latent.
    """
    if terms.spanning:
        raise ProgramError(
            f"site {terms.spanning[0]!r} stands outside the plate of the data and depends on their "
            "latents: no datum has a signal of its own; use pyro.infer.Trace_ELBO(), or write it "
            "inside the plate, a term for each datum"
        )
    if terms.coupled:
        raise ProgramError(
            f"site {terms.coupled[0]!r} is summed out for all data at once: no datum has a weight "
            "or a signal of its own; use ELBO, with latents that have a reparametrised sampler"
        )


def require_paths(terms: Terms, objective: str) -> None:
    """Refuse latents without a reparametrised sampler.

    Raises:
        ProgramError: Names the site and what to use.
    """
    if terms.score:
        raise ProgramError(
            f"{objective}: site {next(iter(terms.score))!r} has no reparametrised sampler; use "
            "NVIL, RLOO, VIMCO, DisARM or ReweightedWakeSleep"
        )
