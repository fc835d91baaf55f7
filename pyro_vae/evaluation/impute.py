"""Missing cells, given those that are there. Shapes: N data, K draws of the code."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.callers import of_user
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation.given_code import GivenCode
from pyro_vae.evaluation.site_values import known_mean
from pyro_vae.inference.sampling.diagnostics import median
from pyro_vae.program.densities.joining import join_sites, single
from pyro_vae.program.densities.terms import stack
from pyro_vae.program.handlers import innermost
from pyro_vae.program.parameters.modules import library_method
from pyro_vae.program.passes import Pass, Verb, runs
from pyro_vae.program.program import Program
from pyro_vae.program.sites.plates import of_datum

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_ROWS_PER_PASS = 4096
_DATA_PER_PASS = 256
_VERB = Verb("impute", prior=True, draws=True, each=True, guide="weight", answers=True)


@dataclass(frozen=True, repr=False)
class Imputed:
    """Data with their missing cells filled in.

    Arguments:
        values: The data, ``(N, *event)``, or a data frame: observed cells as they were given. Where
            several sites are observed, this and the next two are dicts by site.
        missing: Which cells were missing, ``(N, *event)``; of a data frame, in its order.
        stderr: Standard error, by the sampling, of each mean that was filled in, in the units of
            the program's cells (the jackknife's); 0 at observed cells, NaN where names were filled
            in, or draws, or where a single draw has all weight.
        ess: Effective sample size of the weights of each datum, ``(N,)``, between 1 and K. Holes
            that are filled in by fewer than 10 (and than K/10) are warned of. A guide that misses
            part of the posterior may have more, and still be off.
        num_particles: K.
    """

    values: Any
    missing: Any
    stderr: Any
    ess: Tensor
    num_particles: int

    @typed
    def plot(self) -> "Figure":
        """Draw the errors of the cells that were filled in, and the draws behind each datum."""
        from pyro_vae.plots import answers

        return answers.imputed(self)

    def __repr__(self) -> str:
        missing = self.missing.values() if isinstance(self.missing, dict) else [self.missing]
        cells = sum(int(each.sum()) for each in missing)
        return (
            f"Imputed({counted(len(self.ess), 'datum', 'data')}, {counted(cells, 'cell')} filled "
            f"in, num_particles={self.num_particles}, median ess={median(self.ess).item():.1f})"
        )


@typed
def impute(
    program: Any,
    data: Any,
    *,
    how: Literal["mean", "sample"] = "mean",
    num_particles: int = 1000,
    progress: bool = True,
) -> Imputed:
    r"""Fill in missing cells, given the observed ones, by self-normalised importance sampling.

    .. math:: \mathbb{E}[x_m \mid x_o] \approx \sum_k \tilde w_k \, \mathbb{E}[x_m \mid z_k], \quad
        \tilde w_k \propto \frac{p(x_o, z_k)}{q(z_k \mid x_o)}, \quad z_k \sim q(z \mid x_o)

    A cell without a mean (a category, a rank) gets its most probable value: that of the averaged
    probabilities. With ``how="sample"`` a code is picked by its weight, and all missing cells are
    drawn at it: one draw of :math:`p(x_m \mid x_o)`, exact as K grows. Missing is what the model
    masks. A latent that is summed out (a label) is summed out here too, and drawn given the code
    for a draw; `pv.classify` says what it is.

    Arguments:
        program: Anything that masks cells of what it observes: ``VAE(missing="nan")``,
            ``TableVAE``, ``MultimodalVAE``, or a distribution under ``.mask``.
        data: One row per datum with holes, in any form that the program takes; of data frames to
            come, all are kept.
        how: "mean" or "sample" (a program's draws come from torch's global generator).
        num_particles: K.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        The data, and how far to trust what is new in them; by site where several are observed.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: The program masks nothing, or a masked site depends on several latents that
            are summed out.

    References:
        | MIWAE (Mattei & Frellsen, 2019), arXiv:1812.02633
    """
    count = positive("num_particles", num_particles)
    wrapped = Program.of(program)
    with wrapped.passes(data, _VERB, rows=_DATA_PER_PASS) as passes:
        parts = passes.map(lambda piece: _filled(piece, count, how), progress=progress)
    values, missing, stderr = (
        single(join_sites("impute", list(each))) for each in list(zip(*parts, strict=True))[:3]
    )
    ess = torch.cat([part[3] for part in parts])
    _tell_of_few(ess, missing, count)
    completes: Any = library_method(wrapped.source, "completes")
    if completes is not None and passes.frames:
        values, (missing, stderr) = completes(passes.frames, values, missing, stderr)
    return Imputed(values, missing, stderr, ess, count)


def _tell_of_few(ess: Tensor, missing: Any, count: int) -> None:
    """Warn of rows that are filled in by few of many draws."""
    sites = missing.values() if isinstance(missing, dict) else [missing]
    holes = torch.stack([each.reshape(len(ess), -1).any(-1) for each in sites]).any(0)
    few = (holes & (10 * ess < min(100, count))).nonzero().flatten().tolist()
    if few:
        rows = ", ".join(map(str, few[:5])) + ", ..." * (len(few) > 5)
        warnings.warn(
            f"impute: {len(few)} of {len(ess)} rows ({rows}) are filled in by fewer than "
            f"{min(10.0, count / 10):g} of {count} draws in effect (Imputed.ess): values and "
            "errors are rough there; give more num_particles, or train the guide longer",
            stacklevel=of_user(),
        )


def _filled(piece: Pass, count: int, how: str) -> tuple[Any, Any, Any, Tensor]:
    """Return values, what was missing, errors of what is new, by site, and sample sizes."""
    joint, drawn = piece.joint.densities(), _Drawn()
    means: dict[str, _Mean] = {}
    for size in runs(count, joint, piece, _ROWS_PER_PASS):
        model, guide = joint.traces(size)
        log_weight = stack([joint.scored(model, guide, size)]).log_weight[0]  # (k, B)
        given_code = GivenCode(piece, joint, model, guide, size)
        kept = given_code.kept()
        for name in kept:
            mean = given_code.mean(name, *_statistics(model.nodes[name]["fn"]))
            means.setdefault(name, _Mean()).add(log_weight, mean)
        if how == "sample":
            drawn.add(log_weight, given_code.draws(list(kept)))
    values, missing, errors = {}, {}, {}
    for name in piece.sites.observed:
        site: Any = model.nodes[name]
        given = of_datum(site, site["value"], len(piece), size)[0]  # rows may be tiled
        values[name], missing[name] = given, torch.zeros_like(given, dtype=torch.bool)
        errors[name] = torch.zeros_like(given, dtype=log_weight.dtype)
        if name in kept:
            error = _errors(site, means[name].error())
            known = how == "mean" and error.shape == given.shape
            error = error if known else torch.full_like(errors[name], torch.nan)
            new = drawn.value[name] if how == "sample" else _values(site, means[name].value())
            values[name] = torch.where(kept[name], given, new.to(given.dtype))
            missing[name], errors[name] = ~kept[name], error.masked_fill(kept[name], 0.0)
    return values, missing, errors, means[next(iter(kept))].ess()


def _statistics(fn: Any) -> tuple[Tensor, int]:
    """Return what is averaged over codes, means or probabilities of classes, and its event dims."""
    datum = getattr(fn, "datum", fn)
    if hasattr(datum, "statistics"):
        return datum.statistics(), 1
    mean, classes = known_mean(fn), _classes(fn)
    if classes is not None:
        return classes.probs, 1 + len(fn.event_shape)
    if mean is None:
        raise ProgramError(
            f'impute: {type(innermost(fn)).__name__} has no mean; take how="sample", or another '
            "distribution of the cells"
        )
    return mean, len(fn.event_shape)


def _values(site: Any, mean: Tensor) -> Tensor:
    """Return the values that averaged statistics stand for, (B, *event)."""
    datum = getattr(site["fn"], "datum", site["fn"])
    if hasattr(datum, "of_statistics"):
        return datum.of_statistics(mean)
    return mean.argmax(-1) if _classes(site["fn"]) is not None else mean


def _errors(site: Any, error: Tensor) -> Tensor:
    """Return the errors of values that averaged statistics stand for, (B, *event)."""
    datum = getattr(site["fn"], "datum", site["fn"])
    return datum.errors_of_statistics(error) if hasattr(datum, "of_statistics") else error


def _classes(fn: Any) -> Any:
    """Return the categorical distribution of cells that are names, else None."""
    inner = innermost(getattr(fn, "datum", fn))
    return inner if isinstance(inner, torch.distributions.Categorical) else None


class _Mean:
    """Sums of weights times values, of a stream of them; the heaviest draw is kept apart.

    The heaviest has weight 1, and values are differences to the first draw: a spread that is small
    beside them is not rounded away.
    """

    start: Tensor
    heaviest: Tensor
    sums: list[Tensor]

    def __init__(self) -> None:
        self.top: Tensor | None = None

    def add(self, log_weight: Tensor, value: Tensor) -> None:
        """Take in log weights (k, B) and values (k, B, *event)."""
        if self.top is None:
            self.start, self.sums = value[0], [torch.zeros(())] * 5
            before = log_weight.new_full(log_weight.shape[1:], -torch.inf)
        else:
            before, held = self.top, self.heaviest + self.start
            log_weight = torch.cat([before.unsqueeze(0), log_weight])
            value = torch.cat([held.unsqueeze(0), value])
        value = value - self.start
        self.top, place = log_weight.max(0)
        rows = torch.arange(len(place), device=place.device)
        self.heaviest = value[place, rows]
        w = (log_weight - self.top).exp().index_put((place, rows), log_weight.new_zeros(()))
        shrink = (before - self.top).exp()
        tail = (..., *(None,) * (value.dim() - 2))
        v, s = w[tail], shrink[tail]
        new = [w.sum(0), w.square().sum(0), (v * value).sum(0)]
        new += [(v.square() * value).sum(0), (v.square() * value.square()).sum(0)]
        by = [shrink, shrink.square(), s, s.square(), s.square()]
        self.sums = [b * old + n for b, old, n in zip(by, self.sums, new, strict=True)]
        self.tail = tail

    def value(self) -> Tensor:
        """Return the self-normalised mean, (B, *event)."""
        return self.start + self._mean()

    def _mean(self) -> Tensor:
        return (self.heaviest + self.sums[2]) / (1 + self.sums[0])[self.tail]

    def ess(self) -> Tensor:
        return (1 + self.sums[0]).square() / (1 + self.sums[1])

    def error(self) -> Tensor:
        r"""Return the jackknife's error, :math:`\sqrt{\sum_k \tilde w_k^2 (m_k - \bar m_{-k})^2}`.

        Where one draw has nearly all weight, that is how far it lies from the mean of the others;
        the error of the delta method, by :math:`m_k - \bar m`, would be 0. The mean without the
        heaviest is exact, and that without another at most as far as a weight of
        :math:`\min(\tilde w, 1 - \tilde w)` has it, with w the heaviest. NaN of a single draw.
        """
        first, square, linear, flat, quadratic = self.sums
        mean, share = self._mean(), 1 / (1 + first)
        others = quadratic - 2 * mean * flat + mean.square() * square[self.tail]
        others = others.clamp(min=0) / (1 - torch.minimum(share, 1 - share))[self.tail].square()
        alone = (self.heaviest - linear / first[self.tail]).square()
        return (alone + others).sqrt() * share[self.tail]


class _Drawn:
    """One of a stream of values, picked by its weight (the largest of log w + Gumbel noise)."""

    def __init__(self) -> None:
        self.best: Tensor | None = None
        self.value: dict[str, Tensor] = {}

    def add(self, log_weight: Tensor, values: dict[str, Tensor]) -> None:
        """Take in log weights (k, B) and values (k, B, *event) by site, all at the same codes."""
        noise = -torch.empty_like(log_weight).exponential_().log()
        best, place = (log_weight + noise).max(0)
        rows = torch.arange(len(place), device=place.device)
        picked = {name: value[place, rows] for name, value in values.items()}
        if self.best is not None:
            better = best > self.best
            for name, value in picked.items():
                mine = better.reshape(-1, *(1,) * (value.dim() - 1))
                picked[name] = torch.where(mine, value, self.value[name])
            best = torch.maximum(self.best, best)
        self.best, self.value = best, picked
