"""Labels of data: probabilities of a discrete latent. Shapes: N data, K classes."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.inference.sampling.diagnostics import median
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.batches.batch import arguments
from pyro_vae.program.densities.enumeration import listed
from pyro_vae.program.densities.terms import stack
from pyro_vae.program.passes import Pass, Verb, runs
from pyro_vae.program.program import Program
from pyro_vae.program.sites.plates import inner_plates

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_PARTICLES = 100  # where there is no classifier
_ROWS_PER_PASS = 4096
_DATA_PER_PASS = 256
_VERB = Verb("classify", prior=True, each=True, guide="weight")


@dataclass(frozen=True, repr=False)
class Classes:
    """The label of each datum, as far as a model knows it.

    Arguments:
        probabilities: p(y | x), ``(N, K)``.
        log_likelihood: log p(x) by the same draws, ``(N,)``, nats; None of a classifier alone.
        ess: Effective sample size of the weights of each datum, ``(N,)``; None likewise.
    """

    probabilities: Tensor
    log_likelihood: Tensor | None = None
    ess: Tensor | None = None

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each datum, ``(N,)``."""
        return self.probabilities.argmax(-1)

    @typed
    def accuracy(self, labels: Tensor) -> float:
        """Return the share of data whose most probable class is the true one."""
        return (self.predicted == self._true(labels)).double().mean().item()

    @typed
    def predictive(self, labels: Tensor) -> float:
        """Return the predictive likelihood: the mean of log p(y | x) at the true labels, nats."""
        true = self._true(labels).unsqueeze(-1)
        return self.probabilities.gather(-1, true).log().double().mean().item()

    def _true(self, labels: Tensor) -> Tensor:
        count, classes = self.probabilities.shape
        wrong = labels.shape != (count,) or labels.is_floating_point()
        if wrong or bool(((labels < 0) | (labels >= classes)).any()):
            raise DataError(
                f"labels: got a tensor of shape {tuple(labels.shape)} and type {labels.dtype}, "
                f"expected a whole number from 0 to {classes - 1} for each of {count} data"
            )
        return labels.to(self.probabilities.device, torch.long)

    @typed
    def plot(self) -> "Figure":
        """Draw how many data each class has, and how sure the model is of it."""
        from pyro_vae.plots import answers

        return answers.classes(self)

    def __repr__(self) -> str:
        count, classes = self.probabilities.shape
        sure = self.probabilities.amax(-1).mean().item()
        more = ""
        if self.log_likelihood is not None and self.ess is not None:
            mean, ess = self.log_likelihood.mean().item(), median(self.ess).item()
            more = f", log p(x) {mean:.4f} nats, median ess={ess:.1f}"
        return (
            f"Classes({counted(count, 'datum', 'data')}, {counted(classes, 'class')}, mean "
            f"confidence {sure:.3f}{more})"
        )


@typed
def classify(
    program: Any,
    data: Any,
    *,
    num_particles: int | None = None,
    site: str | None = None,
    progress: bool = True,
) -> Classes:
    r"""Return the probability of each label of each datum.

    .. math:: p(y \mid x) \approx \sum_k \tilde w_k \, p(y \mid x, z_k), \quad
        \tilde w_k \propto \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    A label that the guide draws too is set to each of its K values in turn, so that q(y | x), a
    guess of the guide, decides nothing:

    .. math:: p(x, y) \approx \frac1K \sum_k \frac{p(x, y, z_k)}{q(z_k \mid x, y)}, \quad
        z_k \sim q(z \mid x, y)

    Labels that are given are kept: leave them out of the data to ask what the model says.

    Arguments:
        program: Anything whose model draws a discrete latent of few values, as `pv.models.M2`; the
            guide may leave it out or draw it.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come.
        num_particles: K, importance samples per datum (and value, where the guide draws the label);
            None asks the program's own classifier q(y | x), where it has one (``label_logits``): a
            network, fast, and no answer of the model; 100 where it has none.
        site: The latent that is asked for, where there are several.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        Probabilities, with log p(x) and the effective sample size where the model is asked.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: No discrete latent of few values, or several and none is named.
    """
    wrapped = Program.of(program)
    if num_particles is None and not hasattr(wrapped.source, "label_logits"):
        num_particles = _PARTICLES
    count = 1 if num_particles is None else positive("num_particles", num_particles)

    def of(piece: Pass) -> tuple[Tensor, ...]:
        if num_particles is None:
            return (_by_classifier(wrapped.source, piece),)
        return _by_model(piece, count, site)

    with wrapped.passes(data, _VERB, rows=_DATA_PER_PASS) as passes:
        parts = passes.map(of, progress=progress)
    return Classes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _by_classifier(source: Any, piece: Pass) -> Tensor:
    args, kwargs = arguments(piece.batch)
    given = dict(zip(("x", "label"), args, strict=False)) | kwargs
    logits = source.label_logits(given["x"])
    return source.given_logits(logits, given.get("label")).softmax(-1)


def _by_model(piece: Pass, count: int, site: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return p(y | x), (B, K), log p(x) and the effective sample size, (B,) each."""
    name = _site(piece, site)
    ask = _summed_out if name in piece.sites.enumerated else _value_by_value
    log_weight, found = ask(piece, count, name)  # (K, B), (K, B or 1, V)
    share = log_weight.softmax(0)
    probabilities = (share.unsqueeze(-1) * found).sum(0)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities, log_mean_exp(log_weight, dim=0), 1 / share.square().sum(0)


def _summed_out(piece: Pass, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Return log weights of draws of the guide, ``(K, B)``, and p(y | x, z), ``(K, B, V)``."""
    joint = piece.joint.densities()
    weights: list[Tensor] = []
    found: list[Tensor] = []
    for size in runs(count, joint, piece, _ROWS_PER_PASS):
        model, guide = joint.traces(size)
        weights.append(stack([joint.scored(model, guide, size)]).log_weight[0])  # (k, B)
        found.append(joint.posteriors_at(guide, size)[name])  # (k, B, V)
    _require_one(name, plates=found[0].dim() != 3)
    return torch.cat(weights), torch.cat(found)


def _value_by_value(piece: Pass, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Return log weights ``(V K, B)`` of draws at each value of a latent, and which it is."""
    joint = piece.joint.densities()
    drawn: Any = joint.guide_trace(1).nodes[name]
    _require_one(name, plates=bool(inner_plates(drawn)))
    event = drawn["fn"].event_shape
    values = listed(drawn["fn"]).reshape(-1, *event)
    weights: list[Tensor] = []
    for value in values:
        for size in runs(count, joint, piece, _ROWS_PER_PASS):
            fixed = joint.fixing({name: joint.placed(value.expand(size, len(piece), *event))})
            terms = stack([fixed.scored(*fixed.traces(size), size)])
            log_q = {other: q for other, q in terms.log_q.items() if other != name}  # y is no draw
            weights.append(replace(terms, log_q=log_q).log_weight[0])  # (k, B)
    which = torch.eye(len(values), device=values.device).repeat_interleave(count, 0)
    # A mean over the draws of one value, and a sum over values: p(x) = sum_y p(x, y).
    return torch.cat(weights) + math.log(len(values)), which.unsqueeze(1)


def _require_one(name: str, *, plates: bool) -> None:
    if plates:
        raise ProgramError(
            f"classify: site {name!r} stands in a plate inside that of the data: a datum has many"
        )


def _site(piece: Pass, site: str | None) -> str:
    sites = piece.sites
    alike = set(sites.discrete) - set(sites.countless) - set(sites.events)
    known = (*sites.enumerated, *(name for name in sites.discrete if name in alike))
    if not known:
        raise ProgramError(
            "classify: the model draws no discrete latent of few values for each datum; leave "
            "labels out of the data (they are then drawn: obs=None), or use pv.models.M2"
        )
    if site is None and len(known) > 1:
        raise ProgramError(
            f"classify: got several discrete latents, {', '.join(known)}; say which: "
            f"site={known[0]!r}"
        )
    if site is not None and site not in known:
        raise ProgramError(f"site: got {site!r}, expected one of {', '.join(known)}")
    return site or known[0]
