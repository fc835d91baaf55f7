"""The one place where numbers are born: log p and log q, per site, per particle, per datum."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.enumeration import Group, MixedPrior, groups_of
from pyro_vae.program.densities.site_densities import (
    Layout,
    call,
    handler_scale,
    is_plain,
    kl_weight,
    log_prob,
)
from pyro_vae.program.handlers import (
    Message,
    data_frame,
    innermost,
    is_deterministic,
    sample_sites,
)
from pyro_vae.program.sites.masks import density_of_kept
from pyro_vae.program.sites.plates import by_datum, data_dim, inner_plates

# S draws of the globals, K particles of the locals, B data of the batch, N data of the data set.

_STACKED = ("log_p", "log_q", "global_log_p", "global_log_q", "score", "factors", "factor_score")


@dataclass(frozen=True)
class Latent:
    """One local latent in one draw: its prior, its posterior and its value, (K, B) | event.

    ``plain`` says that neither a weight nor a mask changes its log densities; ``weights`` holds
    both, ``(scale, mask)`` in the model and in the guide; ``plates`` are the dimensions of plates
    around it other than the data's, which has the dimension ``data``. ``kl_weight`` is β where
    nothing else weighs it (1 without), None where something does.
    """

    prior: Any
    posterior: Any
    value: Tensor
    plain: bool = True
    weights: tuple[tuple[Any, Any], tuple[Any, Any]] = ((1.0, None), (1.0, None))
    plates: tuple[int, ...] = ()
    data: int = -1
    kl_weight: Any = 1.0


@dataclass
class _Densities:
    """What one draw of the globals gives, and all of them: their meaning is told by `Terms`."""

    log_p: dict[str, Tensor] = field(default_factory=dict)
    log_q: dict[str, Tensor] = field(default_factory=dict)
    global_log_p: dict[str, Tensor] = field(default_factory=dict)
    global_log_q: dict[str, Tensor] = field(default_factory=dict)
    score: dict[str, Tensor] = field(default_factory=dict)
    no_path: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    size: int = 0
    batch_size: int = 0
    factors: dict[str, Tensor] = field(default_factory=dict)
    factor_score: dict[str, Tensor] = field(default_factory=dict)
    coupled: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    spanning: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Draw(_Densities):
    """What one draw of the globals contributes: terms without the dimension of S."""

    latents: dict[str, Latent] = field(default_factory=dict)


@dataclass
class Terms(_Densities):
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
        coupled: Discrete latents outside the plate that are summed out: the data share one sum,
            which is among the terms of the global sites.
        spanning: Sites outside the plate that depend on latents inside it: they are among the terms
            of the global sites too.
        carried: Latents that an auxiliary site of the guide has the density of, with its name.
        drawn: Names of the guide's sites, in the order of drawing.

    Discrete latents that the guide leaves out are summed out of the densities of the sites that
    depend on them: ``log_p`` has a latent's density under its own name, and one term for all that
    is observed, called for instance ``"x (y summed out)"``.
    """

    latents: dict[str, list[Latent]] = field(default_factory=dict)

    @property
    def log_weight(self) -> Tensor:
        r"""Local log weight :math:`\log p(x, z) - \log q(z \mid x)`, ``(S, K, B)``."""
        weight = _total(self.log_p) - _total(self.log_q)
        if isinstance(weight, Tensor):
            return weight
        total = next(iter(self.global_log_p.values()))  # all there is is in one sum over the data
        return total.new_zeros(len(total), 1, self.batch_size)

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
        r"""Log density of the observed sites, :math:`\log p(x \mid z)`, ``(S, K, B)``.

        Raises:
            ProgramError: A discrete latent of all data is summed out, which couples them.
        """
        if self.coupled:
            raise ProgramError(
                f"site {self.coupled[0]!r} is summed out for all data at once: they have one joint "
                "density, and none each"
            )
        return _total({name: self.log_p[name] for name in self.observed})

    def _require(self, site: str) -> None:
        if site not in self.latents:
            raise ProgramError(f"site: got {site!r}, expected one of {', '.join(self.latents)}")

    @typed
    def kl(self, site: str) -> Tensor:
        """Monte-Carlo KL of one local latent, ``log q - log p``, ``(S, K, B)``.

        The density of a transform of an auxiliary site is that of the site and the Jacobian.

        Raises:
            ProgramError: No such latent, or one auxiliary site carries several latents.
        """
        self._require(site)
        kl, carrier = self.log_q[site] - self.log_p[site], self.carried.get(site)
        if carrier is None:
            return kl
        several = [name for name, other in self.carried.items() if other == carrier]
        if len(several) > 1:
            raise ProgramError(
                f"site {carrier!r} of the guide draws {several} at once: they have one KL, and "
                "none each; use elbo, or AutoNormal"
            )
        return kl + self.log_q[carrier]

    def kls(self) -> dict[str, Tensor]:
        """Return the KL of each local latent, ``(S, K, B)``.

        Latents that one auxiliary site of the guide draws at once have one, under all their names:
        ``"a, b"``.
        """
        found: dict[str, Tensor] = {}
        for name in self.latents:
            carrier = self.carried.get(name)
            drawn = [n for n in self.latents if carrier and self.carried.get(n) == carrier]
            if len(drawn) < 2:
                found[name] = self.kl(name)
            elif carrier and name == drawn[0]:
                each = [self.log_q[other] - self.log_p[other] for other in drawn]
                found[", ".join(drawn)] = torch.stack(each).sum(0) + self.log_q[carrier]
        return found

    @typed
    def unit_kl(self, site: str) -> Tensor:
        """Monte-Carlo KL of each unit of one local latent, ``(S, K, B, *units)``.

        Units are those of the event, one for each step of any plate besides ``"data"``; weights and
        masks are in, so that the units add up to ``kl``.

        Raises:
            ProgramError: A density of the site does not factorise over units.
        """
        self._require(site)
        if site in self.carried:
            raise ProgramError(
                f"site {site!r}: a transform of {self.carried[site]!r}, which "
                "has no density per unit of it; ask for the whole site"
            )
        particles, rows = self.log_q[site].shape[1:]
        return torch.stack([_unit_kl(site, draw, particles, rows) for draw in self.latents[site]])


def _unit_kl(site: str, draw: Latent, num_particles: int, rows: int) -> Tensor:
    """Return the KL of each unit in one draw of the globals, ``(K, B, *units)``."""
    model, guide = draw.weights
    units = _per_unit(site, "guide", draw.posterior, draw.value, *guide) - _per_unit(
        site, "model", draw.prior, draw.value, *model
    )
    event = len(draw.posterior.event_shape)
    return by_datum(units, event, draw.plates, num_particles, rows, draw.data)


def _total(terms: Mapping[str, Tensor]) -> Any:
    """Sum the terms of several sites; the float 0 where there is none."""
    return sum(terms.values()) if terms else 0.0


def _per_unit(
    site: str, side: str, distribution: Any, value: Tensor, scale: Any, mask: Any
) -> Tensor:
    mixed = isinstance(distribution, MixedPrior)
    if not distribution.event_shape and not mixed:  # a scalar is its own unit
        return scale_and_mask(distribution.log_prob(value), scale, mask)
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


def stack(draws: list[Draw]) -> Terms:
    """Stack what S draws of the globals contribute."""
    first = draws[0]
    stacked: dict[str, Any] = {name: _stack(draws, name) for name in _STACKED}
    stacked["latents"] = {name: [draw.latents[name] for draw in draws] for name in first.latents}
    return Terms(**vars(first) | stacked)


def read(model: Trace, guide: Trace, layout: Layout, size: int | None = None) -> Draw:
    """Read the log densities of a pair of traces, per particle and datum.

    ``size`` is N where the caller knows it; else the plate's frame says so (B, if nothing
    subsamples it).
    """
    draw = Draw()
    groups = groups_of(model)
    summed = {name for group in groups for name in group.names}
    for name, site in sample_sites(model):
        frame = data_frame(site)
        if frame is not None:
            draw.batch_size = frame.size // layout.tiles
            whole = frame.full_size if _is_part(site) else None
            draw.size = size or whole or draw.batch_size
        if name not in summed:
            _read_model_site(draw, name, site, layout)
        if frame is not None and not site["is_observed"] and name in guide.nodes:
            draw.latents[name] = _latent(site, guide.nodes[name], name in summed)
    for group in groups:
        _read_group(draw, group, layout)
    for name in [name for name in draw.latents if name not in draw.log_p]:
        del draw.latents[name]  # its density is in a sum over all data
    for name, site in sample_sites(guide):
        _read_guide_site(draw, name, site, layout, model.nodes.get(name))
    return draw


def local_log_p(trace: Trace, layout: Layout) -> dict[str, Tensor]:
    """Read the log densities of the sites of one datum, ``(K, B)`` each, from a model's trace."""
    draw = Draw()
    groups = groups_of(trace)
    summed = {name for group in groups for name in group.names}
    for name, site in sample_sites(trace):
        if name not in summed and data_frame(site) is not None:
            _read_model_site(draw, name, site, layout)
    for group in groups:
        _read_group(draw, group, layout)
    return draw.log_p


def local_log_q(trace: Trace, layout: Layout) -> dict[str, Tensor]:
    """Read the log densities of the latents of one datum, ``(K, B)`` each, from a guide's trace."""
    return {
        name: layout.per_datum(log_prob(name, site), data_dim(site))
        for name, site in sample_sites(trace)
        if data_frame(site) is not None and not _is_factor(name, site)
    }


def _read_model_site(draw: Draw, name: str, site: Message, layout: Layout) -> None:
    _require_density(name, site)
    frame, density = data_frame(site), log_prob(name, site)
    if frame is None:
        draw.global_log_p[name] = density.sum()
        return
    draw.log_p[name] = layout.per_datum(density, data_dim(site))
    if site["is_observed"]:
        draw.observed += (name,)


def _require_density(name: str, site: Message) -> None:
    """Refuse a prior that has draws alone to whoever asks for its density.

    Raises:
        ProgramError: Names the site, and what does with draws.
    """
    if not getattr(innermost(site["fn"]), "has_density", True):
        what = "data are" if site["is_observed"] else "prior is"
        ways = (
            "observe a distribution that has one"
            if site["is_observed"]
            else "train by pv.AAE, pv.WAE or pv.AVB(critic, contrast='prior'), which do with draws "
            "of the prior, and judge by pv.aggregated_posterior and pv.feature_distances; nobody "
            "knows the likelihood or the ELBO of such a model"
        )
        raise ProgramError(f"site {name!r}: the {what} implicit, with draws and no density; {ways}")


def _read_group(draw: Draw, group: Group, layout: Layout) -> None:
    """Read the sites that share latents which are summed out.

    Their density is split by the chain rule: each latent given those before it, then all that is
    observed.
    """
    if not group.local:
        if any(site.get("unweighted") or _is_part(site) for site in group.sites.values()):
            group.require_local()
        # The particles of all data are one draw here: the mean over them is the ELBO's.
        total = group.weigh(group.log_sum(layout).mean(), layout, group.names)
        draw.global_log_p[group.label] = total
        draw.coupled += group.enumerated
        return
    known: Tensor | float = 0.0
    for place, name in enumerate(group.latents):
        total = group.log_sum(layout, group.latents[: place + 1])
        draw.log_p[name] = group.weigh(total - known, layout, (name,))
        known = total
    if group.observed:
        total = group.log_sum(layout)
        draw.log_p[group.label] = group.weigh(total - known, layout, group.observed)
        draw.observed += (group.label,)


def _is_part(site: Message) -> bool:
    """Return whether the data of a site stand for those of a larger set."""
    frame = data_frame(site)
    return frame is not None and frame.full_size != frame.size


def _latent(site: Message, twin: Message, summed: bool) -> Latent:
    weights = ((handler_scale(site), site["mask"]), (handler_scale(twin), twin["mask"]))
    return Latent(
        prior=MixedPrior(site["fn"]) if summed else site["fn"],
        posterior=twin["fn"],
        value=site["value"],
        plain=is_plain(site) and is_plain(twin),
        weights=weights,
        plates=inner_plates(twin),
        data=data_dim(twin),
        kl_weight=kl_weight(site, twin),
    )


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
    draw: Draw, name: str, site: Message, layout: Layout, twin: Message | None
) -> None:
    if is_deterministic(site):
        return
    draw.drawn += (name,)
    parts = call(name, site, site["fn"].score_parts)
    frame, factor = data_frame(site), _is_factor(name, site)

    def summed(density: Tensor, scale: Any) -> Tensor:
        density = scale_and_mask(density, scale, site["mask"])
        return density.sum() if frame is None else layout.per_datum(density, data_dim(site))

    densities = draw.global_log_q if frame is None else draw.log_q
    terms = draw.factors if factor else densities
    density = parts.log_prob
    if site.get("unweighted") and twin is not None and not factor:
        density = density_of_kept(name, density, site, twin)
    terms[name] = summed(density, handler_scale(site))
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


def _stack(draws: list[Draw], name: str) -> dict[str, Tensor]:
    """Stack one dictionary of terms over S (a view for one draw)."""
    first = getattr(draws[0], name)
    if len(draws) == 1:
        return {site: term.unsqueeze(0) for site, term in first.items()}
    return {site: torch.stack([getattr(draw, name)[site] for draw in draws]) for site in first}
