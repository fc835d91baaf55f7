"""One figure for each answer of a verb; `plot` of the answer calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae.arguments import counted, shortened
from pyro_vae.plots.latent import latent_map
from pyro_vae.plots.panels import bars, clouds, ranges, row, spread, traces
from pyro_vae.plots.sequence_panels import step_kl
from pyro_vae.plots.style import (
    FAINT,
    PALETTE,
    as_array,
    decimals,
    new_figure,
    plain_axes,
    set_title,
    signed,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_TRUSTED = 0.7  # Pareto shapes above are not (Vehtari et al., 2015)
_MIXED = 1.05  # R-hat above is of chains that have not mixed
_FEW = 10  # effective draws: a mean over fewer is warned of
_SHOWN = 15  # topics or coordinates of either end that a figure has room for


def likelihood(found: Any) -> Figure:
    """Draw log p(x), effective sample size and, where it is known, Pareto shape over the data."""
    shapes = as_array(found.psis_k)
    known = np.isfinite(shapes).any()
    figure, (left, middle, *others) = row(3 if known else 2)
    spread(left, found.log_prob, "log p(x), nats", f"Mean {signed(found.mean)} nats")
    spread(middle, found.ess, "effective sample size", f"Of {counted(found.samples, 'draw')}")
    for axes in others:
        spread(axes, shapes, "Pareto shape k", "Not to be trusted: above 0.7", _TRUSTED)
    return figure


def sandwich(found: Any) -> Figure:
    """Draw both bounds of log p(x) against each other, and the gap between them."""
    figure, (left, right) = row(2)
    lower, upper = as_array(found.lower), as_array(found.upper)
    left.scatter(lower, upper, s=14, color=PALETTE[0], alpha=0.7, lw=0)
    left.axline((float(lower.mean()), float(lower.mean())), slope=1, color=FAINT, lw=1, ls="--")
    left.set(xlabel="lower bound, nats", ylabel="upper bound, nats")
    plain_axes(left)
    set_title(left, "log p(x) lies between")
    spread(
        right,
        upper - lower,
        "upper minus lower, nats",
        f"Mean gap {signed(found.gap, '.3f')} nats",
        0.0,
    )
    return figure


def classes(found: Any) -> Figure:
    """Draw how many data each class has, and how sure the model is of it."""
    figure, (left, right) = row(2)
    count = found.probabilities.shape[1]
    share = torch.bincount(found.predicted, minlength=count) / len(found.probabilities)
    bars(left, share, "most probable class", "Classes of the data")
    sure = found.probabilities.amax(-1)
    spread(right, sure, "p(y | x) of that class", f"Mean confidence {sure.mean().item():.3f}")
    return figure


def codes(found: Any) -> Figure:
    """Draw how often each code is used, most used first."""
    figure, (axes,) = row(1, width=5.2)
    share = np.sort(as_array(found.counts))[::-1] / max(1, int(found.counts.sum()))
    title = (
        f"{found.used} of {counted(found.num_codes, 'code')} used, perplexity "
        f"{found.perplexity:.1f}"
    )
    bars(axes, share, "code, most used first", title, 1 / found.num_codes)
    return figure


def imputed(found: Any) -> Figure:
    """Draw the errors of the cells that were filled in, and the draws behind each datum."""
    figure, (left, right) = row(2)
    pairs = (
        [(found.stderr[site], cells) for site, cells in found.missing.items()]
        if isinstance(found.missing, dict)
        else [(found.stderr, found.missing)]
    )
    errors = [as_array(error).astype(float)[as_array(cells).astype(bool)] for error, cells in pairs]
    filled = np.concatenate(errors)
    spread(
        left, filled, "standard error of a filled cell", f"{counted(len(filled), 'cell')} filled in"
    )
    left.set_ylabel("cells")
    label = f"effective draws of {found.num_particles}"
    spread(right, found.ess, label, f"Too few: below {_FEW}", _FEW)
    return figure


def coherence(found: Any) -> Figure:
    """Draw the coherence of each topic, best first; of many the fifteen best and worst."""
    order = found.npmi.argsort(descending=True).tolist()
    shown = order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], *order[-_SHOWN:]]
    figure = new_figure(8.4, 1.0 + 0.22 * len(shown))
    axes = figure.add_subplot()
    axes.barh(range(len(shown)), found.npmi[shown].tolist(), color=PALETTE[3])
    names = [shortened(f"{' '.join(found.words[k])}   {k}", 60) for k in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)  # a word may be $$
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("NPMI")
    plain_axes(axes)
    left_out = len(order) - len(shown)
    more = f"; {left_out} between not shown" if left_out else ""
    coherent = signed(found.coherence, ".3f")
    set_title(axes, f"Coherence {coherent}, diversity {found.diversity:.2f}{more}")
    return figure


def perplexity(found: Any) -> Figure:
    """Draw both perplexities with their errors."""
    figure, (axes,) = row(1, width=5.2, height=1.8)
    rows = {
        "per document": (found.per_document, found.per_document_stderr),
        "of the corpus": (found.corpus, found.corpus_stderr),
    }
    ranges(axes, _with_numbers(rows), "perplexity", "Smaller is better")
    return figure


def steps(found: Any) -> Figure:
    """Draw the KL of each step, or where there is none the costs of a step."""
    if found.kl is not None:
        return step_kl(
            {"": found.kl}, title=f"{signed(found.bound, '.3f')} nats per step by the bound"
        )
    figure, (axes,) = row(1, width=5.2, height=2.2)
    rows = {
        "bound": (found.bound, found.bound_stderr),
        "mean of sequences": (found.mean_of_sequences, found.mean_of_sequences_stderr),
        "likelihood": (found.likelihood, found.likelihood_stderr),
    }
    known = {name: pair for name, pair in rows.items() if pair[0] is not None}
    ranges(axes, _with_numbers(known), "nats per step", "Smaller is better")
    return figure


def _with_numbers(rows: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the rows with their numbers, and errors where they are known, in their names."""
    digits = decimals(*(value for value, _ in rows.values()))
    named = {}
    for name, (value, error) in rows.items():
        text = f"{name}  {signed(value, f'.{digits}f')}"
        text += f" ± {error:.{digits}f}" if np.isfinite(error) else ""
        named[text] = (value, error)
    return named


def features(found: Any) -> Figure:
    """Draw the distances of reconstructions, and the features of data and of what was made."""
    figure, (left, right) = row(2)
    distance = found.reconstruction
    label = "squared distance of a reconstruction"
    spread(left, distance, label, f"Mean {distance.mean().item():.4g}")
    pair = {"made": found.made, "data": found.data}
    clouds(right, pair, f"Fréchet distance {found.frechet:.4g}")
    return figure


def aggregated(found: Any) -> Figure:
    """Draw the codes of all data over draws of the prior."""
    figure, (axes,) = row(1, width=5.4, height=4.8)
    title = f"Loss of the critic {signed(found.loss, '.3f')}; equal at {found.equal:.3f}"
    clouds(axes, {"codes": found.codes, "prior": found.prior}, title)
    return figure


def posterior_of_data(found: Any) -> Figure:
    """Draw the posterior means of all data in the plane."""
    mean = found.mean
    each = mean.values() if isinstance(mean, Mapping) else [mean]
    return latent_map(torch.cat([part.flatten(1) for part in each], 1), title="Posterior means")


def chains_of_data(found: Any) -> Figure:
    """Draw R-hat and sample size over the data, and the chains of the datum that mixed worst."""
    figure, (left, middle, right) = row(3)
    spread(left, found.rhat, "R-hat", f"Not mixed: above {_MIXED}", _MIXED)
    spread(middle, found.ess, "effective draws", "Of each datum")
    worst = int(found.rhat.nan_to_num(torch.inf).argmax())
    site, draws = next(iter(found.samples.items()))
    chains = draws[:, :, worst].reshape(*draws.shape[:2], -1)
    unit = _least_settled(chains)
    name = f"{shortened(site, 18)}, unit {unit}"
    traces(right, chains[..., unit], name, f"The worst datum, {worst}")
    return figure


def chains_of_globals(found: Any) -> Figure:
    """Draw mean and deviation of each coordinate, worst R-hat first, and the worst one's chains."""
    rhat = torch.cat([each.reshape(-1) for each in found.rhat.values()])
    mean, scale = (
        torch.cat([each.reshape(-1) for each in part.values()])
        for part in (found.means, found.scales)
    )
    draws = torch.cat([each.reshape(*each.shape[:2], -1) for each in found.samples.values()], -1)
    names = [
        f"{site}[{place}]" if each.numel() > 1 else site
        for site, each in found.means.items()
        for place in range(each.numel())
    ]
    order = rhat.nan_to_num(torch.inf).argsort(descending=True).tolist()
    shown = order[: 2 * _SHOWN]
    rows = {
        f"{shortened(names[k], 32)}  {rhat[k].item():.3f}": (mean[k].item(), scale[k].item())
        for k in shown
    }
    figure, (left, right) = row(2, height=1.4 + 0.22 * max(9, len(shown)))
    figure.set_figwidth(figure.get_figwidth() + max(map(text_width, rows)))
    more = f"; {len(order) - len(shown)} more" if len(order) > len(shown) else ""
    ranges(left, rows, "mean ± deviation", f"R-hat, worst first{more}")
    traces(right, draws[..., shown[0]], names[shown[0]], "Its chains")
    return figure


def _least_settled(chains: torch.Tensor) -> int:
    """Return the unit whose chains have means the farthest apart, ``(C, S, D)``."""
    apart = chains.mean(1).std(0, correction=0) / chains.std((0, 1), correction=0)
    return int(apart.nan_to_num(0.0).argmax())
