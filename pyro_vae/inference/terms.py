"""The one place where numbers are born: log p and log q, per site, per particle, per datum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.inference.batch import repeat_rows, replace_arguments
from pyro_vae.inference.handlers import PLATE, Message, Particles, data_frame

# S draws of the globals, K particles of the locals, B data of the batch, N data of the data set.


@dataclass(frozen=True)
class Latent:
    """One local latent in one draw: its prior, its posterior and its value, (K, B) | event.

    ``plain`` says that neither a weight nor a mask changes its log densities.
    """

    prior: Any
    posterior: Any
    value: Tensor
    plain: bool = True


@dataclass(frozen=True)
class Terms:
    """Log densities of a model and a guide at draws from the guide, in nats.

    Weights of handlers (KL weight, masks) are in; the factor N/B is not: it is ``size`` over
    ``batch_size``.

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

    @property
    def log_weight(self) -> Tensor:
        r"""Local log weight :math:`\log p(x, z) - \log q(z \mid x)`, ``(S, K, B)``."""
        return _total(self.log_p) - _total(self.log_q)

    @property
    def global_log_weight(self) -> Tensor | float:
        r"""Global log weight :math:`\log p(w) - \log q(w)`, ``(S,)``; 0 without global sites."""
        return _total(self.global_log_p) - _total(self.global_log_q)

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
        """Monte-Carlo KL of each unit of one local latent, ``(S, K, B, *event)``.

        Raises:
            ProgramError: A density of the site does not factorise over units.
        """
        units = torch.stack(
            [
                _per_unit(site, "guide", draw.posterior, draw.value)
                - _per_unit(site, "model", draw.prior, draw.value)
                for draw in self.latents[site]
            ]
        )
        # One particle has no dimension of its own, and tiles stand in the rows.
        event = units.shape[units.dim() - len(self.latents[site][0].posterior.event_shape) :]
        lead = self.log_q[site].shape
        if units.numel() != lead.numel() * event.numel():
            raise ProgramError(f"site {site!r}: stands in a second plate; ask for the whole site")
        return units.reshape(*lead, *event)


def _total(terms: Mapping[str, Tensor]) -> Any:
    """Sum the terms of several sites; the float 0 where there is none."""
    return sum(terms.values()) if terms else 0.0


def _per_unit(site: str, side: str, distribution: Any, value: Tensor) -> Tensor:
    base = getattr(distribution, "base_dist", None)
    if not hasattr(distribution, "reinterpreted_batch_ndims") or base is None:
        raise ProgramError(
            f"site {site!r}: the {side}'s {type(distribution).__name__} has no density per unit; "
            "use a factorised distribution (.to_event), or ask for the whole site"
        )
    return base.log_prob(value)


@dataclass
class _Draw:
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


@dataclass(frozen=True)
class Leaf:
    """One latent's value in one draw: as the guide drew it, and cut off from the guide."""

    site: str
    attached: Tensor
    cut: Tensor


class Joint:
    """A model and a guide on one batch: what every objective and every estimator asks for terms.

    Arguments:
        model, guide: Pyro functions of ``*args, **kwargs``, handlers included.
        tiled: Whether K particles need K copies of the batch's rows (a model that does not accept
            an extra batch dimension); slower, same numbers.
        num_plates: Batch dimensions used by plates; None looks once, which costs one more trace.
        size: The data that a summed log density of the pair covers (B, or N under a scale).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        tiled: bool = False,
        num_plates: int | None = None,
        size: int | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.tiled = tiled
        self._num_plates = num_plates
        self._size = size

    @property
    def size(self) -> int:
        """The data that a summed log density covers: B, or N where a handler scales by N/B."""
        if self._size is None:
            raise ProgramError("this pair of functions was not told how many data it covers")
        return self._size

    @property
    def num_plates(self) -> int:
        """Batch dimensions used by plates, at least 1."""
        if self._num_plates is None:
            with torch.no_grad(), torch.random.fork_rng(_cuda_devices(self.args, self.kwargs)):
                self._num_plates = nesting(*self.traces())
        return self._num_plates

    def terms(self, num_samples: int = 1, num_particles: int = 1) -> Terms:
        """Draw S sets of globals and K particles of the locals, and return their log densities."""
        return stack([self._draw(num_particles) for _ in range(num_samples)])

    def leaf_terms(self, num_samples: int = 1, num_particles: int = 1) -> tuple[Terms, list[Leaf]]:
        """Return the terms at draws cut off from the guide, and the draws, attached and cut off.

        The terms' gradient stops at each leaf: what flows into a guide's parameters through its
        sampler is left to the caller, who multiplies a leaf's gradient with the attached value.
        """
        draws, leaves = [], []
        for _ in range(num_samples):
            guide = self._run(num_particles, lambda args, kwargs: self._sample(args, kwargs))
            cut, found = _cut(guide)
            leaves += found
            draws.append(self._read_at(cut, num_particles))
        return stack(draws), leaves

    def model_log_p(self, values: Mapping[str, Tensor], num_particles: int) -> dict[str, Tensor]:
        """Return log p of the sites of one datum at given latents, ``(K, B)`` each."""
        trace = self._as_trace(values, num_particles)
        model = self._run(num_particles, lambda args, kwargs: self._score_model(trace, args, kwargs))
        return self._local(model, num_particles)

    def guide_log_q(self, values: Mapping[str, Tensor], num_particles: int) -> dict[str, Tensor]:
        """Return log q of the sites of one datum at given latents, ``(K, B)`` each."""
        trace = self._as_trace(values, num_particles)

        def run(args: Any, kwargs: Any) -> Trace:
            guide = poutine.trace(poutine.replay(self.guide, trace=trace))
            return prune_subsample_sites(guide.get_trace(*args, **kwargs))

        return self._local(self._run(num_particles, run), num_particles)

    def guide_values(self, num_particles: int) -> dict[str, Tensor]:
        """Draw the local latents from the guide, ``(K, ..., B) | event`` (or K·B rows, tiled)."""
        return _local_values(self._run(num_particles, self._sample))

    def prior_values(self, num_particles: int) -> dict[str, Tensor]:
        """Draw the local latents from the prior, ``(K, ..., B) | event`` (or K·B rows, tiled)."""

        def run(args: Any, kwargs: Any) -> Trace:
            return poutine.trace(self.model).get_trace(*args, **kwargs)

        return _local_values(self._run(num_particles, run))

    def fixing(self, values: Mapping[str, Tensor]) -> "Joint":
        """Return the pair with some latents held at given values."""
        fixed = Trace()
        for name, value in values.items():
            _put(fixed, name, value)
        return Joint(
            poutine.replay(self.model, trace=fixed),
            poutine.replay(self.guide, trace=fixed),
            self.args,
            self.kwargs,
            tiled=self.tiled,
            num_plates=self._num_plates,
            size=self._size,
        )

    def _as_trace(self, values: Mapping[str, Tensor], num_particles: int) -> Trace:
        """Return values ``(K, B) | event`` as a trace to replay (as K·B rows where tiled)."""
        trace = Trace()
        for name, value in values.items():
            if num_particles == 1:
                value = value[0]
            elif self.tiled:
                value = value.flatten(0, 1)
            _put(trace, name, value)
        return trace

    def _local(self, trace: Trace, num_particles: int) -> dict[str, Tensor]:
        tiles = num_particles if self.tiled else 1
        return local_log_p(trace, self.num_plates, num_particles, tiles)

    def dream_log_q(self) -> Tensor:
        """Return log q of latents at data that both come from the model, ``(B,)``."""
        with torch.no_grad():
            dream = poutine.trace(poutine.uncondition(self.model))
            model = dream.get_trace(*self.args, **self.kwargs)
        values = {
            name: site["value"] for name, site in _sites(model) if site["infer"].get("was_observed")
        }
        args, kwargs = replace_arguments(self.model, self.args, self.kwargs, values)
        guide = poutine.trace(poutine.replay(self.guide, trace=model)).get_trace(*args, **kwargs)
        return stack([read(model, prune_subsample_sites(guide))]).log_q_total()[0, 0]

    def traces(self, num_particles: int = 1) -> tuple[Trace, Trace]:
        """Return the traces ``(model, guide)`` of one draw, the model replayed at the guide's."""

        def both(args: Any, kwargs: Any) -> tuple[Trace, Trace]:
            guide = self._sample(args, kwargs)
            return self._score_model(guide, args, kwargs), prune_subsample_sites(guide)

        return self._run(num_particles, both)

    def _run(self, num_particles: int, function: Callable[[Any, Any], Any]) -> Any:
        """Call a function of the arguments in such a way that latents take K values."""
        if num_particles == 1:
            return function(self.args, self.kwargs)
        if self.tiled:
            return function(
                repeat_rows(self.args, num_particles), repeat_rows(self.kwargs, num_particles)
            )
        with Particles(num_particles, -1 - self.num_plates):
            return function(self.args, self.kwargs)

    def _sample(self, args: Any, kwargs: Any) -> Trace:
        return poutine.trace(self.guide).get_trace(*args, **kwargs)

    def _score_model(self, values: Trace, args: Any, kwargs: Any) -> Trace:
        model = poutine.replay(self.model, trace=values)
        return prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))

    def _read_at(self, values: Trace, num_particles: int) -> _Draw:
        """Score model and guide at the values of a trace."""

        def both(args: Any, kwargs: Any) -> tuple[Trace, Trace]:
            guide = poutine.trace(poutine.replay(self.guide, trace=values))
            scored = prune_subsample_sites(guide.get_trace(*args, **kwargs))
            return self._score_model(values, args, kwargs), scored

        model, guide = self._run(num_particles, both)
        return read(model, guide, num_particles, num_particles if self.tiled else 1)

    def _draw(self, num_particles: int) -> _Draw:
        model, guide = self.traces(num_particles)
        return read(model, guide, num_particles, num_particles if self.tiled else 1)


def _put(trace: Trace, name: str, value: Tensor) -> None:
    trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})


def _cut(guide: Trace) -> tuple[Trace, list[Leaf]]:
    """Return a copy of a guide's trace whose latent values are leaves of the graph."""
    cut = guide.copy()
    leaves = []
    for name, site in guide.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        value = site["value"].detach()
        if value.is_floating_point():
            value = value.requires_grad_()
        cut.nodes[name] = {**site, "value": value}
        leaves.append(Leaf(name, site["value"], value))
    return cut, leaves


def stack(draws: list[_Draw]) -> Terms:
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
    )


def read(model: Trace, guide: Trace, num_particles: int = 1, tiles: int = 1) -> _Draw:
    """Read the log densities of a pair of traces, per particle and datum."""
    draw = _Draw()
    # The particle dimension stands left of every plate; with tiles or one particle there is none.
    dim = -1 - nesting(model, guide)
    for name, site in _sites(model):
        frame = data_frame(site)
        if frame is None:
            draw.global_log_p[name] = _log_prob(name, site).sum()
            continue
        draw.log_p[name] = _per_datum(_log_prob(name, site), dim, num_particles, tiles)
        draw.batch_size = frame.size // tiles
        draw.size = frame.full_size if frame.full_size != frame.size else draw.batch_size
        if site["is_observed"]:
            draw.observed += (name,)
        elif name in guide.nodes:
            twin = guide.nodes[name]
            plain = all(_is_plain(each) for each in (site, twin))
            draw.latents[name] = Latent(site["fn"], twin["fn"], site["value"], plain)
    for name, site in _sites(guide):
        if not site["is_observed"]:
            _read_guide_site(draw, name, site, dim, num_particles, tiles)
    return draw


def _local_values(trace: Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in _sites(prune_subsample_sites(trace))
        if data_frame(site) is not None and not site["is_observed"]
    }


def local_log_p(
    trace: Trace, num_plates: int, num_particles: int, tiles: int = 1
) -> dict[str, Tensor]:
    """Read the log densities of the sites of one datum, ``(K, B)`` each, from one trace."""
    return {
        name: _per_datum(_log_prob(name, site), -1 - num_plates, num_particles, tiles)
        for name, site in _sites(trace)
        if data_frame(site) is not None
    }


def _read_guide_site(
    draw: _Draw, name: str, site: Message, dim: int, num_particles: int, tiles: int
) -> None:
    parts = _call(name, site, site["fn"].score_parts)
    log_prob = scale_and_mask(parts.log_prob, _handler_scale(site), site["mask"])
    if data_frame(site) is None:
        draw.global_log_q[name] = log_prob.sum()
    else:
        draw.log_q[name] = _per_datum(log_prob, dim, num_particles, tiles)
    if is_identically_zero(parts.entropy_term):
        draw.no_path += (name,)
    if not is_identically_zero(parts.score_function):
        score = scale_and_mask(parts.score_function, 1.0, site["mask"])
        draw.score[name] = (
            score.sum()
            if data_frame(site) is None
            else _per_datum(score, dim, num_particles, tiles)
        )


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


def _sites(trace: Trace) -> list[tuple[str, Message]]:
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]


def _handler_scale(site: Message) -> Any:
    """Return the site's scale without the factor N/B of its plate."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.name == PLATE and frame.full_size is not None and frame.full_size != frame.size:
            scale = scale / (frame.full_size / frame.size)
    return scale


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


def _stack(draws: list[_Draw], name: str) -> dict[str, Tensor]:
    """Stack one dictionary of terms over S (a view for one draw)."""
    first = getattr(draws[0], name)
    if len(draws) == 1:
        return {site: term.unsqueeze(0) for site, term in first.items()}
    return {site: torch.stack([getattr(draw, name)[site] for draw in draws]) for site in first}


def _cuda_devices(args: Any, kwargs: Mapping[str, Any]) -> list[torch.device]:
    leaves = [*args, *kwargs.values()]
    return list({leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda})
