"""How well sequences are predicted, in nats per step. Shapes: N sequences, T steps."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Independent
from torch.nn.functional import pad

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError
from pyro_vae.evaluation.likelihood import log_likelihood
from pyro_vae.evaluation.observed_distributions import observed_distributions
from pyro_vae.evaluation.standard_errors import mean_and_error, ratio_and_error
from pyro_vae.program.batches.batch import as_tensor, given_arguments, named_arguments
from pyro_vae.program.batches.streams import batches, is_stream, single
from pyro_vae.program.bounds import elbo
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program
from pyro_vae.threads import require_turn
from pyro_vae.words import PAD

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_KL = Verb("per_step", prior=True)
_ROWS = 1024  # of a batch, where the data do not say


@dataclass(frozen=True)
class PerStep:
    r"""What sequences cost, nats per step, smaller is better.

    Standard errors are over sequences; that of a single one is NaN.

    The literature of polyphonic music gives these three without saying which: each has a name here.

    Arguments:
        bound: :math:`\sum_i -\mathrm{ELBO}_i / \sum_i T_i`: every step counts alike.
        bound_stderr: its standard error.
        mean_of_sequences: :math:`\frac1N \sum_i -\mathrm{ELBO}_i / T_i`: every sequence counts
            alike.
        mean_of_sequences_stderr: its standard error.
        likelihood: as ``bound``, of :math:`\log p(x_i)` by importance sampling; None without.
        likelihood_stderr: its standard error.
        kl: of each step's latent, ``(T,)``, nats: at one draw, the mean of the sequences that have
            the step; None where no latent is a path over the steps, and none is a site of a step,
            by its number (``z_0``, ``z_1``, ...).
    """

    bound: float
    bound_stderr: float
    mean_of_sequences: float
    mean_of_sequences_stderr: float
    likelihood: float | None = None
    likelihood_stderr: float | None = None
    kl: Tensor | None = None

    @typed
    def plot(self) -> "Figure":
        """Draw the KL of each step, or where there is none the costs of a step."""
        from pyro_vae.plots import answers

        return answers.steps(self)


@typed
def per_step(
    program: Any,
    data: Any,
    *,
    lengths: str | None = None,
    likelihood_particles: int | None = None,
    num_particles: int = 1,
) -> PerStep:
    """Return what sequences cost per step, by the bound and by importance sampling.

    Arguments:
        program: A model of sequences.
        data: ``{"x": (N, T, *units), "lengths": (N)}`` with lengths of at least 1, or what the
            model takes by other names, as a dict or a tuple; or ``x`` alone, where all sequences
            have T steps; or batches of these (a ``DataLoader``, an iterable), each with a T of its
            own, which are read anew for each of the figures.
        lengths: Name of the model's argument that has the steps of each sequence; None: it is
            ``lengths``, or the only one with a whole number for each sequence.
        likelihood_particles: How many samples each likelihood takes; None: no likelihood.
        num_particles: Draws of which the bound is the mean.

    Raises:
        DataError: Other data, or an empty sequence, of which there is nothing per step.

    References:
        Structured inference networks for nonlinear state space models (Krishnan et al., 2017),
        arXiv:1609.09869, Table 3: ``likelihood`` is its (a), ``bound`` its (b),
        ``mean_of_sequences`` its {c}.
    """
    require_turn("per_step")
    read = _Read(program, data, lengths)
    bound = elbo(program, read.data, num_particles=positive("num_particles", num_particles))
    cost, steps = -bound.double().cpu(), read.lengths
    likelihood: tuple[Any, Any] = (None, None)
    if likelihood_particles is not None:
        scored = log_likelihood(
            program, read.data, num_particles=positive("likelihood_particles", likelihood_particles)
        ).log_prob
        likelihood = _numbers(ratio_and_error(-scored.double().cpu(), read.lengths))
    return PerStep(
        *_numbers(ratio_and_error(cost, steps)),
        *_numbers(mean_and_error(cost / steps)),
        *likelihood,
        _kl_of_steps(program, read),
    )


class _Read:
    """Sequences, and the lengths of those that a verb has read.

    Arguments:
        program: What is asked.
        data: In memory, or batches to come.
        lengths: The argument that has them, where it is named.

    Raises:
        DataError: An iterator, or while it is read: other data than ``per_step`` takes.
    """

    def __init__(self, program: Any, data: Any, lengths: str | None = None) -> None:
        if isinstance(data, Iterator):
            raise DataError(
                f"data: got {type(data).__name__}, an iterator, which can be read once; give an "
                "object whose __iter__ makes a new iterator"
            )
        self._program, self._batches, self._named = program, data, lengths
        self._lengths: list[Tensor] = []
        self.data = self if is_stream(data) else self._noted(data)

    def __iter__(self) -> Iterator[Any]:
        self._lengths = []
        return map(self._noted, map(single, batches(self._batches, _ROWS)))

    def _noted(self, batch: Any) -> Any:
        self._lengths.append(_lengths(self._program, batch, self._named))
        _require_lengths_of_sentences(self._program, batch)
        return batch

    @property
    def lengths(self) -> Tensor:
        """The steps of each sequence, ``(N,)``."""
        return torch.cat(self._lengths)


def _kl_of_steps(program: Any, read: _Read) -> Tensor | None:
    """Return the mean KL of each step's latents, (T,), at one draw.

    None where no latent is of a step, and where a guide has one density of a whole path.
    """
    total = torch.zeros(0, dtype=torch.float64)
    with Program.of(program).passes(read.data, _KL) as passes:
        for piece in passes:
            cost = _summed_by_step(piece.joint.terms())
            if cost is None:
                return None
            longest = max(len(total), len(cost))
            total, cost = (pad(each, (0, longest - len(each))) for each in (total, cost))
            total = total + cost
    if len(total) < read.lengths.max():
        return None  # numbers of something else, as of layers
    order = torch.arange(1, len(total) + 1)
    return total / (read.lengths >= order.unsqueeze(-1)).sum(-1).clamp(min=1)


def _summed_by_step(terms: Terms) -> Tensor | None:
    """Return the KL of each step, (T,), over some sequences: of paths, or of a site for each step.

    None where there are no such latents.
    """
    latents = [draws[0] for draws in terms.latents.values()]
    paths = [each for each in latents if _is_path(each.prior)]
    if not all(_has_steps(path.posterior) for path in paths):
        return None
    steps = [
        (_of_steps(path.posterior, path.value) - _of_steps(path.prior, path.value)).flatten(0, -2)
        for path in paths
    ]
    if not paths:
        steps = [torch.stack(each, -1).flatten(0, -2) for each in _numbered(terms.kls())]
    return sum(each.sum(0).double().cpu() for each in steps) if steps else None  # type: ignore[return-value]


def _numbered(kls: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return the KL of sites that are numbered from 0 or 1, as z_0, z_1, ..., in their order."""
    by_name: dict[str, dict[int, Tensor]] = {}
    for name, kl in kls.items():
        found = re.fullmatch(r"(.*?)(\d+)", name)
        if found:
            by_name.setdefault(found[1], {})[int(found[2])] = kl
    whole = [each for each in by_name.values() if max(each) - min(each) + 1 == len(each) > 1]
    return [[each[number] for number in sorted(each)] for each in whole if min(each) < 2]


def _is_path(fn: Any) -> bool:
    return hasattr(fn, "step_log_prob")


def _has_steps(fn: Any) -> bool:
    """Return whether a distribution of paths is independent over the steps, or a path itself."""
    if isinstance(fn, Independent):
        return len(fn.base_dist.event_shape) < len(fn.event_shape)
    return _is_path(fn)


def _of_steps(fn: Any, path: Tensor) -> Tensor:
    """Return the log density of each step of paths (*, T, Z), shape (*, T)."""
    if _is_path(fn):
        return fn.step_log_prob(path)
    log_prob = fn.base_dist.log_prob(path)
    units = tuple(range(path.dim() - fn.event_dim + 1, log_prob.dim()))
    return log_prob.sum(units) if units else log_prob


def _lengths(program: Any, data: Any, named: str | None) -> Tensor:
    """Return how many steps each sequence of a batch has, ``(N,)``.

    Arguments:
        program: What takes the batch.
        data: The batch.
        named: The argument that has them, where it is told.
    """
    if hasattr(data, "shape"):
        x = as_tensor(data)
        _require_steps("x", x)
        return torch.full((len(x),), x.shape[1], dtype=torch.float64)
    own = isinstance(data, Mapping) and named in (None, "lengths")
    if own and data.get("x") is not None and data.get("lengths") is not None:
        return _checked("lengths", as_tensor(data["lengths"]), "x", as_tensor(data["x"]))
    wrapped = Program.of(program)
    batch = wrapped.adapt(data)
    wrapped.read(batch)
    given = named_arguments(wrapped.functions[0], *given_arguments(batch))
    observed = [name for name in given if name in wrapped.examples.observed(batch)]
    whole = [name for name, x in given.items() if isinstance(x, Tensor) and _counts(x)]
    alike = [name for name in whole if name not in observed]
    found = named or ("lengths" if "lengths" in given else alike[0] if len(alike) == 1 else None)
    if found is None or not isinstance(given.get(found), Tensor) or not observed:
        choice = f"one of {', '.join(alike)}" if alike else "whole numbers (N,), which none is"
        raise DataError(
            f"lengths: got {named!r} of a batch of {', '.join(given)}, expected the argument that "
            f"has the steps of each sequence ({choice}); or give x alone where all have T steps"
        )
    return _checked(found, given[found], observed[0], given[observed[0]])


def _counts(x: Tensor) -> bool:
    """Return whether a tensor may have a number of steps for each sequence."""
    return x.dim() == 1 and not x.is_floating_point() and x.dtype != torch.bool


def _require_steps(name: str, x: Tensor) -> None:
    if x.dim() < 2:
        raise DataError(f"data: got {name} of shape {tuple(x.shape)}, expected (N, T, *units)")


def _checked(name: str, given: Tensor, of: str, x: Tensor) -> Tensor:
    """Return lengths of sequences, each from 1 to the steps that there are."""
    _require_steps(of, x)
    lengths = given.double().cpu()
    wrong = (lengths < 1) | (lengths > x.shape[1])
    if lengths.shape != (len(x),) or bool(wrong.any()):
        which = wrong.nonzero().flatten()[:5].tolist()
        raise DataError(
            f"{name}: got shape {tuple(lengths.shape)}, rows {which} out of bounds, expected one "
            f"number from 1 to {x.shape[1]} for each of {len(x)} sequences"
        )
    return lengths


def _require_lengths_of_sentences(program: Any, data: Any) -> None:
    """Refuse sentences alone with <pad> behind their ends, each of which would count as a word."""
    if not hasattr(data, "shape") or not bool((as_tensor(data) == PAD).any()):
        return
    observed = observed_distributions(program, data[:1], "per_step").values()
    if any(getattr(fn, "pads_behind_its_end", False) for fn in observed):
        raise DataError(
            'data: got sentences with <pad> behind their ends, expected {"x": ..., "lengths": ...}'
        )


def _numbers(found: tuple[Tensor, Tensor]) -> tuple[float, float]:
    value, error = found
    return value.item(), error.item()
