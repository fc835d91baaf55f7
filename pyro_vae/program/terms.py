"""The one place where numbers are born: log p and log q, per site, per particle, per datum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import PLATE, Message, data_frame, sample_sites
from pyro_vae.program.plates import by_datum, inner_plates

# S draws of the globals, K particles of the locals, B data of the batch, N data of the data set.


@dataclass(frozen=True)
class Latent:
    """One local latent in one draw: its prior, its posterior and its value, (K, B) | event.

    ``plain`` says that neither a weight nor a mask changes its log densities; ``weights`` holds
    both, ``(scale, mask)`` in the model and in the guide; ``plates`` are the dimensions of plates
    around it other than ``"data"``. ``kl_weight`` is β where nothing else weighs it (1 without),
    None where something does.
    """

    prior: Any
    posterior: Any
    value: Tensor
    plain: bool = True
    weights: tuple[tuple[Any, Any], tuple[Any, Any]] = ((1.0, None), (1.0, None))
    plates: tuple[int, ...] = ()
    kl_weight: Any = 1.0


@dataclass(frozen=True)
class Terms:
    """Log densities of a model and a guide at draws from the guide, in nats.

    Weights of handlers (KL weight, masks) are in, unless the terms are those of
    ``Joint.densities``; the factor N/B is not: it is ``size`` over ``batch_size``.

    The guide's factors are no part of log q: the ELBO loses their mean, and no other number knows
    them. One that claims to come from a reparametrised distribution (``has_rsample=True``) is a
    density, as Pyro has it, and is in log q.

    Arguments:
        log_p: log p of each local latent and each observed site, ``(S, K, B)``.
        log_q: log q of each local latent (and auxiliary guide site), ``(S, K, B)``.
        global_log_p: log p of each global site, summed, ``(S,)``.
        global_log_q: log q of each global site, summed, ``(S,)``.
        score: log q, without handlers' weights, of the guide's sites that have no reparametrised
            gradient: ``(S, K, B)`` for local ones, ``(S,)`` for global ones.
        no_path: Guide sites whose log q contributes no gradient of its own to the ELBO (its
            expectation is zero): those with a score only.
        observed: Names of the observed sites.
        latents: Per local latent, one ``Latent`` per draw of the globals.
        size: N, the data that the bound speaks of (B where nothing subsamples).
        batch_size: B.
        factors: What the guide observes or adds by ``pyro.factor``: ``(S, K, B)`` inside the plate,
            ``(S,)`` outside it.
        factor_score: Those of them that Pyro's ELBO takes as a score, without handlers' weights.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    global_log_p: dict[str, Tensor]
    global_log_q: dict[str, Tensor]
    score: dict[str, Tensor]
    no_path: tuple[str, ...]
    observed: tuple[str, ...]
    latents: dict[str, list[Latent]]
    size: int
    batch_size: int
    factors: dict[str, Tensor] = field(default_factory=dict)
    factor_score: dict[str, Tensor] = field(default_factory=dict)

    @property
    def log_weight(self) -> Tensor:
        r"""Local log weight :math:`\log p(x, z) - \log q(z \mid x)`, ``(S, K, B)``."""
        return _total(self.log_p) - _total(self.log_q)

    @property
    def global_log_weight(self) -> Tensor | float:
        r"""Global log weight :math:`\log p(w) - \log q(w)`, ``(S,)``; 0 without global sites."""
        return _total(self.global_log_p) - _total(self.global_log_q)

    @property
    def factor(self) -> Tensor | float:
        """Sum of the guide's factors of one datum, ``(S, K, B)``; 0 without."""
        return _total({name: each for name, each in self.factors.items() if each.dim() == 3})

    @property
    def global_factor(self) -> Tensor | float:
        """Sum of the guide's factors outside the plate, ``(S,)``; 0 without."""
        return _total({name: each for name, each in self.factors.items() if each.dim() == 1})

    @property
    def signal(self) -> Tensor:
        """What the ELBO averages for each datum: the log weight less the factors, ``(S, K, B)``."""
        return self.log_weight - self.factor

    @property
    def global_signal(self) -> Tensor | float:
        """What the ELBO averages besides: the same of the global sites, ``(S,)``; 0 without."""
        return self.global_log_weight - self.global_factor

    def log_q_total(self) -> Tensor:
        r"""Log density of the local latents under the guide, ``(S, K, B)``."""
        return _total(self.log_q)

    def log_likelihood(self) -> Tensor:
        r"""Log density of the observed sites, :math:`\log p(x \mid z)`, ``(S, K, B)``."""
        return _total({name: self.log_p[name] for name in self.observed})

    def kl(self, site: str) -> Tensor:
        """Monte-Carlo KL of one local latent, ``log q - log p``, ``(S, K, B)``."""
        return self.log_q[site] - self.log_p[site]

    def unit_kl(self, site: str) -> Tensor:
        """Monte-Carlo KL of each unit of one local latent, ``(S, K, B, *units)``.

        Units are those of the event, one for each step of any plate besides ``"data"``; weights and
        masks are in, so that the units add up to ``kl``.

        Raises:
            ProgramError: A density of the site does not factorise over units.
        """
        particles, rows = self.log_q[site].shape[1:]
        return torch.stack([_unit_kl(site, draw, particles, rows) for draw in self.latents[site]])


def _unit_kl(site: str, draw: Latent, num_particles: int, rows: int) -> Tensor:
    """Return the KL of each unit in one draw of the globals, ``(K, B, *units)``."""
    model, guide = draw.weights
    units = _per_unit(site, "guide", draw.posterior, draw.value, *guide) - _per_unit(
        site, "model", draw.prior, draw.value, *model
    )
    return by_datum(units, len(draw.posterior.event_shape), draw.plates, num_particles, rows)


def _total(terms: Mapping[str, Tensor]) -> Any:
    """Sum the terms of several sites; the float 0 where there is none."""
    return sum(terms.values()) if terms else 0.0


def _per_unit(
    site: str, side: str, distribution: Any, value: Tensor, scale: Any, mask: Any
) -> Tensor:
    base = getattr(distribution, "base_dist", None)
    factorised = hasattr(distribution, "reinterpreted_batch_ndims")
    if base is None or not factorised or base.event_shape:
        raise ProgramError(
            f"site {site!r}: the {side}'s {type(distribution).__name__} has no density per unit; "
            "use a factorised distribution (.to_event), or ask for the whole site"
        )
    event = (..., *(None,) * len(distribution.event_shape))
    scale, mask = (each[event] if isinstance(each, Tensor) else each for each in (scale, mask))
    return scale_and_mask(base.log_prob(value), scale, mask)


@dataclass
class Draw:
    """What one draw of the globals contributes, before stacking over S."""

    log_p: dict[str, Tensor] = field(default_factory=dict)
    log_q: dict[str, Tensor] = field(default_factory=dict)
    global_log_p: dict[str, Tensor] = field(default_factory=dict)
    global_log_q: dict[str, Tensor] = field(default_factory=dict)
    score: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Latent] = field(default_factory=dict)
    no_path: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    size: int = 0
    batch_size: int = 0
    factors: dict[str, Tensor] = field(default_factory=dict)
    factor_score: dict[str, Tensor] = field(default_factory=dict)


def stack(draws: list[Draw]) -> Terms:
    """Stack what S draws of the globals contribute."""
    first = draws[0]
    return Terms(
        log_p=_stack(draws, "log_p"),
        log_q=_stack(draws, "log_q"),
        global_log_p=_stack(draws, "global_log_p"),
        global_log_q=_stack(draws, "global_log_q"),
        score=_stack(draws, "score"),
        no_path=first.no_path,
        observed=first.observed,
        latents={name: [draw.latents[name] for draw in draws] for name in first.latents},
        size=first.size,
        batch_size=first.batch_size,
        factors=_stack(draws, "factors"),
        factor_score=_stack(draws, "factor_score"),
    )


def read(
    model: Trace,
    guide: Trace,
    num_particles: int = 1,
    tiles: int = 1,
    size: int | None = None,
) -> Draw:
    """Read the log densities of a pair of traces, per particle and datum.

    ``size`` is N where the caller knows it; else the plate's frame says so (B, if nothing
    subsamples it).
    """
    draw = Draw()
    # The particle dimension stands left of every plate; with tiles or one particle there is none.
    dim = -1 - nesting(model, guide)
    for name, site in sample_sites(model):
        frame = data_frame(site)
        if frame is None:
            draw.global_log_p[name] = _log_prob(name, site).sum()
            continue
        draw.log_p[name] = _per_datum(_log_prob(name, site), dim, num_particles, tiles)
        draw.batch_size = frame.size // tiles
        whole = frame.full_size if frame.full_size != frame.size else None
        draw.size = size or whole or draw.batch_size
        if site["is_observed"]:
            draw.observed += (name,)
        elif name in guide.nodes:
            twin = guide.nodes[name]
            plain = all(_is_plain(each) for each in (site, twin))
            draw.latents[name] = Latent(
                site["fn"],
                twin["fn"],
                site["value"],
                plain,
                ((_handler_scale(site), site["mask"]), (_handler_scale(twin), twin["mask"])),
                inner_plates(twin),
                _kl_weight(site, twin),
            )
    for name, site in sample_sites(guide):
        _read_guide_site(draw, name, site, dim, num_particles, tiles)
    return draw


def local_log_p(
    trace: Trace, num_plates: int, num_particles: int, tiles: int = 1
) -> dict[str, Tensor]:
    """Read the log densities of the sites of one datum, ``(K, B)`` each, from a model's trace."""
    return {
        name: _per_datum(_log_prob(name, site), -1 - num_plates, num_particles, tiles)
        for name, site in sample_sites(trace)
        if data_frame(site) is not None
    }


def local_log_q(
    trace: Trace, num_plates: int, num_particles: int, tiles: int = 1
) -> dict[str, Tensor]:
    """Read the log densities of the latents of one datum, ``(K, B)`` each, from a guide's trace."""
    return {
        name: _per_datum(_log_prob(name, site), -1 - num_plates, num_particles, tiles)
        for name, site in sample_sites(trace)
        if data_frame(site) is not None and not _is_factor(name, site)
    }


def _is_factor(name: str, site: Message) -> bool:
    """Return whether a site of the guide is no density of a latent.

    Raises:
        ProgramError: It may be one, and only densities were asked for.
    """
    if not site["is_observed"]:
        return False
    if type(site["fn"]).__name__ != "Unit" or not site["fn"].has_rsample:
        return True
    if site.get("unweighted"):
        raise ProgramError(
            f"site {name!r}: a factor of the guide with has_rsample=True, which may be a part of "
            "the density q or a term of the loss; a likelihood needs to know: give a density to "
            "its latent, as pyro.distributions.Delta(value, log_density=...), and a loss "
            "has_rsample=False"
        )
    return False


def _read_guide_site(
    draw: Draw, name: str, site: Message, dim: int, num_particles: int, tiles: int
) -> None:
    if site["infer"].get("_deterministic"):
        return
    parts = _call(name, site, site["fn"].score_parts)
    inside, factor = data_frame(site) is not None, _is_factor(name, site)

    def summed(log_prob: Tensor, scale: Any) -> Tensor:
        log_prob = scale_and_mask(log_prob, scale, site["mask"])
        return _per_datum(log_prob, dim, num_particles, tiles) if inside else log_prob.sum()

    densities = draw.log_q if inside else draw.global_log_q
    terms = draw.factors if factor else densities
    terms[name] = summed(parts.log_prob, _handler_scale(site))
    if is_identically_zero(parts.entropy_term) and not factor:
        draw.no_path += (name,)
    if not is_identically_zero(parts.score_function):
        scores = draw.factor_score if factor else draw.score
        scores[name] = summed(parts.score_function, 1.0)


def nesting(*traces: Trace) -> int:
    """Return the number of batch dimensions that plates use, at least 1."""
    dims = [
        frame.dim
        for trace in traces
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.dim is not None
    ]
    return max([1, *(-dim for dim in dims)])


def _handler_scale(site: Message) -> Any:
    """Return the site's scale without the factor N/B of its plate."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.name == PLATE and frame.full_size is not None and frame.full_size != frame.size:
            scale = scale / (frame.full_size / frame.size)
    return scale


def _kl_weight(*sites: Message) -> Any:
    """Return the one weight that `ScaleLatents` gave to both sites, None if they bear another."""
    weights = []
    for site in sites:
        unmarked = (1.0, site["scale"], site["scale"])
        weight, before, after = site.get("kl_weight", unmarked)
        # By identity: to look into a tensor would be a sync.
        if site["scale"] is not after or not _is_plain({**site, "scale": before}):
            return None
        weights.append(weight)
    first, second = weights
    if isinstance(first, Tensor):
        return first if first is second and first.dim() == 0 else None
    return first if not isinstance(second, Tensor) and first == second else None


def _is_plain(site: Message) -> bool:
    scale = _handler_scale(site)
    return site["mask"] is None and isinstance(scale, int | float) and abs(scale - 1) < 1e-9


def _log_prob(name: str, site: Message) -> Tensor:
    log_prob = _call(name, site, site["fn"].log_prob)
    return scale_and_mask(log_prob, _handler_scale(site), site["mask"])


def _call(name: str, site: Message, function: Callable[..., Any]) -> Any:
    try:
        return function(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ProgramError(f"site {name!r}: its value cannot be scored: {error}") from error


def _per_datum(log_prob: Tensor, dim: int, num_particles: int, tiles: int) -> Tensor:
    """Sum over nested plates and return ``(K, B)``."""
    missing = -dim - log_prob.dim()
    if missing > 0:
        log_prob = log_prob.reshape((1,) * missing + log_prob.shape)
    inner = tuple(range(dim + 1, -1))
    if inner:
        log_prob = log_prob.sum(inner)
    if tiles > 1:
        return log_prob.reshape(tiles, -1)
    return log_prob.expand(num_particles, log_prob.shape[-1])


def _stack(draws: list[Draw], name: str) -> dict[str, Tensor]:
    """Stack one dictionary of terms over S (a view for one draw)."""
    first = getattr(draws[0], name)
    if len(draws) == 1:
        return {site: term.unsqueeze(0) for site, term in first.items()}
    return {site: torch.stack([getattr(draw, name)[site] for draw in draws]) for site in first}
