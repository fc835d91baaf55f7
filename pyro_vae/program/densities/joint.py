"""A model and a guide on one batch, run as objectives and estimators ask for it."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Categorical
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.errors import ProgramError, PyroVaeError
from pyro_vae.program.batches.batch import cuda_devices, repeat_rows
from pyro_vae.program.checks import require_pair
from pyro_vae.program.densities.enumeration import (
    OwnScope,
    Reopened,
    SumOut,
    can_be_listed,
    groups_of,
    listed,
)
from pyro_vae.program.densities.one_by_one import summed_one_by_one
from pyro_vae.program.densities.site_densities import Layout
from pyro_vae.program.densities.terms import (
    Draw,
    Terms,
    local_log_p,
    local_log_q,
    nesting,
    read,
    stack,
)
from pyro_vae.program.handlers import (
    DrawnData,
    Observing,
    Particles,
    Replayed,
    Unweighted,
    data_frame,
    is_data,
    sample_sites,
)
from pyro_vae.program.sites.masks import require_unmasked, with_all_drawn
from pyro_vae.program.sites.observed import replaced_by_name
from pyro_vae.program.sites.plates import by_plates, data_dim, inner_plates


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
        data_dim: The dimension of the data plate; looked up in the same way.
        sums_out: Whether the guide may leave out discrete latents of the model; False spares the
            handler that gives them their supports.
        size: The data that a summed log density of the pair covers (B, or N under a scale).
        alone: Whether the model takes one particle at a time: neither a dimension nor copies.
        replace: Puts values of observed sites into arguments, ``Sites.replace``.
        spanning: Sites outside the plate of the data that depend on latents inside it: particles
            are then drawn one after another.
        following: Global latents that the guide draws given latents inside it: so are they then,
            each with its own.
        carried: Latents that an auxiliary site of the guide has the density of, with its name.
        redrawn: Latents of which the guide has a density at its own draws alone.
        one_by_one: Whether the model takes the values of latents summed out one at a time.
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
        data_dim: int | None = None,
        sums_out: bool = True,
        size: int | None = None,
        alone: bool = False,
        replace: Callable[..., Any] | None = None,
        spanning: tuple[str, ...] = (),
        following: tuple[str, ...] = (),
        carried: Mapping[str, str] | None = None,
        redrawn: tuple[str, ...] = (),
        one_by_one: bool = False,
    ) -> None:
        self.model = OwnScope()(model) if sums_out else model
        self.guide = guide
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.tiled = tiled
        self._num_plates = num_plates
        self._data_dim = data_dim
        self._sums_out = sums_out
        self._left_out: frozenset[str] = frozenset()  # latents of the guide that are summed out too
        self._size = size
        self.alone = alone
        self._replace = replace
        self.spanning = spanning
        self.following = following
        self._carried = dict(carried or {})
        self._redrawn = redrawn
        self._value_by_value = one_by_one
        self._scores = False  # whether densities are asked for, and no loss
        self._held: frozenset[str] = frozenset()  # whose notes (auxiliary) a replay has taken off

    @property
    def size(self) -> int:
        """The data that a summed log density covers: B, or N where a handler scales by N/B."""
        if self._size is None:
            raise ProgramError("this pair of functions was not told how many data it covers")
        return self._size

    @property
    def num_plates(self) -> int:
        """Batch dimensions used by plates, at least 1."""
        return self._look()[0] if self._num_plates is None else self._num_plates

    @property
    def data_dim(self) -> int:
        """The batch dimension of the data plate, counted from the right."""
        return self._look()[1] if self._data_dim is None else self._data_dim

    def _look(self) -> tuple[int, int]:
        devices = cuda_devices([*self.args, *self.kwargs.values()])
        with torch.no_grad(), torch.random.fork_rng(devices):
            model, guide = self.sampled_traces()
        local = [site for _, site in sample_sites(model) if data_frame(site) is not None]
        self._num_plates = nesting(model, guide)
        self._data_dim = data_dim(local[0]) if local else -1
        return self._num_plates, self._data_dim

    def terms(self, num_global_samples: int = 1, num_particles: int = 1) -> Terms:
        """Draw S sets of globals and K particles of the locals, and return their log densities.

        Where a site outside the plate depends on latents inside it, each particle has its own
        density there: the terms are then of ``(S K, 1, B)``.
        """
        draws = []
        for _ in range(num_global_samples):  # no comprehension: few frames lie above a user's own
            if (self.spanning or self.following) and num_particles > 1:
                draws += self._one_by_one(num_particles)
            else:
                draws.append(self.scored(*self.traces(num_particles), num_particles))
        return stack(draws)

    def leaf_terms(
        self, num_global_samples: int = 1, num_particles: int = 1
    ) -> tuple[Terms, list[Leaf]]:
        """Return the terms at draws cut off from the guide, and the draws, attached and cut off.

        The terms' gradient stops at each leaf: what flows into a guide's parameters through its
        sampler is left to the caller, who multiplies a leaf's gradient with the attached value.
        """
        draws, leaves = [], []
        for _ in range(num_global_samples):
            cut, found = _cut(self.guide_trace(num_particles))
            leaves += found
            draws.append(self._read_at(cut, num_particles))
        return stack(draws), leaves

    def cut_traces(self, num_particles: int = 1) -> tuple[Trace, Trace, list[Leaf]]:
        """Return traces ``(model, guide)`` of one draw and its values, attached and cut off.

        The guide runs once and keeps its graph; the model is scored at the cut values, so that its
        graph ends there.
        """
        with self._taking(num_particles) as (args, kwargs):
            guide = self._sample(args, kwargs)
            cut, leaves = _cut(guide)
            model = self._score_model(cut, args, kwargs, num_particles)
            return model, prune_subsample_sites(guide), leaves

    def model_log_p(
        self, values: Mapping[str, Tensor], num_particles: int, *, placed: bool = False
    ) -> dict[str, Tensor]:
        """Return log p of the sites of one datum at given latents, ``(K, B)`` each.

        Arguments:
            values: By site, ``(K, B) | event``, or as ``placed`` returns them.
            num_particles: K.
            placed: Whether they are as a trace holds them.
        """
        model = self.model_trace(values, num_particles, placed=placed)
        return local_log_p(model, self._layout(num_particles))

    def model_trace(
        self, values: Mapping[str, Tensor], num_particles: int, *, placed: bool = False
    ) -> Trace:
        """Return the trace of the model at given latents, as ``model_log_p`` reads it."""
        return self.summed_trace(self._as_trace(values, num_particles, placed), num_particles)

    def guide_log_q(
        self, values: Mapping[str, Tensor], num_particles: int, *, placed: bool = False
    ) -> dict[str, Tensor]:
        """Return log q of the sites of one datum at given latents, ``(K, B)`` each.

        Arguments:
            values: As for ``model_log_p``.
            num_particles: K.
            placed: Whether they are as a trace holds them.
        """
        self._require_density_anywhere()
        trace = self._as_trace(values, num_particles, placed)
        with self._taking(num_particles) as (args, kwargs):
            guide = poutine.trace(Replayed(trace=trace)(self.guide))
            scored = prune_subsample_sites(guide.get_trace(*args, **kwargs))
        return local_log_q(scored, self._layout(num_particles))

    def posteriors_at(self, latents: Trace, num_particles: int = 1) -> dict[str, Tensor]:
        r"""Return :math:`p(y \mid x, z)` of each discrete latent that the guide leaves out.

        Other such latents are summed out of it. Weights are off, as in ``densities``.

        Arguments:
            latents: A trace of the guide, or its values (``trace_of``).
            num_particles: K.

        Returns:
            Probabilities by site, ``(K, B, *plates, support)``, plates besides the data's left to
            right, values in the order of ``enumerate_support``.

        Raises:
            ProgramError: A latent stands outside the plate of the data.
        """
        found: dict[str, Tensor] = {}
        for group in groups_of(self.summed_trace(latents, num_particles)):
            found |= group.posteriors(self._layout(num_particles))
        return found

    def summed_trace(self, latents: Trace, num_particles: int = 1) -> Trace:
        """Return the model's trace at the guide's latents and all values of those left out."""
        with self._taking(num_particles) as (args, kwargs):
            return self._score_model(latents, args, kwargs, num_particles)

    def with_discrete(self, latents: Trace) -> Trace:
        """Return latents of a trace of the guide with one draw, given them, of what it leaves out.

        The draw is from :math:`p(y \\mid x, z)`, of all such latents together.
        """
        if self._value_by_value:
            return self._drawn_in_turn(latents.copy())
        values = _latent_values(latents)
        given = config_enumerate(poutine.condition(Reopened()(self.model), data=values))
        drawn = infer_discrete(given, first_available_dim=-2 - self.num_plates, temperature=1)
        try:
            trace = poutine.trace(drawn).get_trace(*self.args, **self.kwargs)
        except ValueError as error:
            if isinstance(error, PyroVaeError):
                raise
            return self._drawn_in_turn(latents.copy())  # units of a datum that no plate holds
        complete = latents.copy()
        for name, site in sample_sites(prune_subsample_sites(trace)):
            if not site["is_observed"]:
                _put(complete, name, site["value"])
        return complete

    def _drawn_in_turn(self, latents: Trace) -> Trace:
        """Draw each latent that is summed out given those before it: the others stay summed out."""
        while groups := groups_of(self.summed_trace(latents)):
            probabilities = groups[0].posteriors(self._layout(1))
            name = groups[0].enumerated[0]
            site: Any = groups[0].sites[name]
            picks = Categorical(probabilities[name]).sample()
            plates = inner_plates(site)
            support = listed(site["fn"])
            values = support.reshape(len(support), *site["fn"].event_shape)[picks]
            _put(latents, name, self.placed(values, plates))
        return latents

    def placed(self, value: Tensor, plates: tuple[int, ...] = ()) -> Tensor:
        """Return a latent's values ``(K, B, *plates | event)`` as a trace holds them.

        Arguments:
            value: For each particle, datum and unit.
            plates: The dimensions of the site's second plates, as ``inner_plates`` says.
        """
        own = max(-dim for dim in (self.data_dim, *plates))
        one = len(value) == 1
        depth = own if one or self.tiled else self.num_plates
        event_dim = value.dim() - 2 - len(plates)
        value = by_plates(value, event_dim, plates, depth, self.data_dim)
        if one:
            return value[0]
        if not self.tiled:
            return value
        axis = depth + self.data_dim  # of the data among the plates: the copies are more of them
        return value.movedim(0, axis).flatten(axis, axis + 1)

    def guide_values(self, num_particles: int) -> dict[str, Tensor]:
        """Draw the local latents from the guide, ``(K, ..., B) | event`` (or K·B rows, tiled)."""
        return _local_values(self.guide_trace(num_particles))

    def guide_trace(self, num_particles: int) -> Trace:
        """Return the trace of the guide at K values of its local latents."""
        with self._taking(num_particles) as (args, kwargs):
            return self._sample(args, kwargs)

    def prior_values(self, num_particles: int) -> dict[str, Tensor]:
        """Draw the local latents from the prior, ``(K, ..., B) | event`` (or K·B rows, tiled)."""
        with self._taking(num_particles) as (args, kwargs):
            return _local_values(poutine.trace(self.model).get_trace(*args, **kwargs))

    def global_values(self) -> dict[str, Tensor]:
        """Draw the global latents from the guide."""
        with torch.no_grad():
            guide = prune_subsample_sites(self._sample(self.args, self.kwargs))
        return {
            name: site["value"]
            for name, site in sample_sites(guide)
            if data_frame(site) is None and not site["is_observed"]
        }

    def fixing(self, values: Mapping[str, Tensor]) -> "Joint":
        """Return the pair with some latents held at given values."""
        fixed = trace_of(values)
        other = self._with(
            poutine.replay(self.model, trace=fixed), Replayed(trace=fixed)(self.guide)
        )
        other._held = self._held | set(values)
        return other

    def observing(self, values: Mapping[str, Tensor]) -> "Joint":
        """Return the pair with other data at some observed sites, whatever the arguments hold.

        Arguments:
            values: By site, as a trace of one particle holds them.
        """
        return self._with(Observing(values)(self.model), self.guide) if values else self

    def densities(self) -> "Joint":
        r"""Return the pair as the two probability densities that it is, whatever its loss.

        Weights that a program puts on its terms (``poutine.scale``) are off, and the guide's
        factors count nowhere: what likelihoods and posteriors are made of. Masks stay, and so do
        the factors of the model, which are a part of its density.
        """
        other = self._with(Unweighted()(self.model), Unweighted()(self.guide))
        other._scores = True
        return other

    def summing(self, names: Iterable[str], *, one_by_one: bool = False) -> "Joint":
        """Return the pair with some discrete latents of the guide summed out of the model.

        The guide draws them still, and what else it draws may depend on them.

        Arguments:
            names: The latents.
            one_by_one: Whether the model takes one of their values at a time.
        """
        left_out = frozenset(names)
        if not left_out:
            return self
        other = self._with(self.model if self._sums_out else OwnScope()(self.model), self.guide)
        other._sums_out, other._left_out = True, left_out
        other._value_by_value = self._value_by_value or one_by_one
        return other

    def _with(self, model: Callable[..., Any], guide: Callable[..., Any]) -> "Joint":
        """Return a pair of functions on the same batch, read in the same way."""
        other = copy.copy(self)
        other.model, other.guide = model, guide
        return other

    def _as_trace(self, values: Mapping[str, Tensor], num_particles: int, placed: bool) -> Trace:
        """Return values ``(K, B) | event`` as a trace to replay (as K·B rows where tiled)."""
        trace = Trace()
        for name, value in values.items():
            if not placed:
                tiled = num_particles > 1 and self.tiled
                value = value.flatten(0, 1) if tiled else value[0] if num_particles == 1 else value
            _put(trace, name, value)
        return trace

    def _layout(self, num_particles: int) -> Layout:
        return Layout(self.num_plates, num_particles, num_particles if self.tiled else 1)

    def dream_log_q(self) -> Tensor:
        """Return log q of latents at data that both come from the model, ``(B,)``."""
        self._require_density_anywhere()
        with torch.no_grad():
            dream = poutine.trace(DrawnData()(self.model))
            model = dream.get_trace(*self.args, **self.kwargs)
        values = {
            name: site["value"]
            for name, site in sample_sites(model)
            if site["infer"].get("was_observed") and is_data({**site, "is_observed": True})
        }
        if self._replace is None:  # a bare pair, under stock SVI: sites go by their names
            args, kwargs = replaced_by_name(self.model, self.args, self.kwargs, values)
        else:
            args, kwargs = self._replace(self.args, self.kwargs, values)
        guide = poutine.trace(Replayed(trace=model)(self.guide)).get_trace(*args, **kwargs)
        guide = prune_subsample_sites(guide)
        drawn = stack([read(model, guide, Layout(nesting(model, guide)))])
        total: Any = drawn.log_q_total()
        # Nothing is left to a guide whose latents are all summed out.
        return total[0, 0] if isinstance(total, Tensor) else torch.zeros(drawn.batch_size)

    def traces(self, num_particles: int = 1) -> tuple[Trace, Trace]:
        """Return the traces ``(model, guide)`` of one draw, the model replayed at the guide's.

        Discrete latents that the guide leaves out have their whole supports as values.
        """
        with self._taking(num_particles) as (args, kwargs):
            guide = self._sample(args, kwargs)
            model = self._score_model(guide, args, kwargs, num_particles)
            if self._replace is not None and not self._sums_out:
                _require_all_given(model, guide)
            return model, prune_subsample_sites(guide)

    def prior_trace(self) -> Trace:
        """Return the trace of the model at latents of its own: from the prior, not of the data."""
        trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return prune_subsample_sites(trace)

    def model_terms(self, model: Trace, guide: Trace, without: Collection[str] = ()) -> Terms:
        """Return the log densities of the model at one draw of the guide, whose own stay unasked.

        Arguments:
            model, guide: As ``traces`` returns them; of the guide its factors count.
            without: Latents whose log densities under the model stay unasked too.
        """
        require_pair(model, guide, self._held)
        drawn = [name for name, site in sample_sites(guide) if not site["is_observed"]]
        scored, factors = _without(model, without), _without(guide, drawn)
        return stack([read(scored, factors, self._layout(1), self._size)])

    def sampled_traces(self) -> tuple[Trace, Trace]:
        """Return the same of one particle, latents that the guide leaves out drawn as well."""
        guide = self._sample(self.args, self.kwargs)
        model = poutine.trace(poutine.replay(self.model, trace=guide))
        drawn = prune_subsample_sites(model.get_trace(*self.args, **self.kwargs))
        return drawn, prune_subsample_sites(guide)

    @contextmanager
    def _taking(self, num_particles: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Yield arguments on which, inside, the latents of model and guide take K values."""
        if num_particles == 1:
            yield self.args, self.kwargs
            return
        if self.alone:
            raise ProgramError(
                "K > 1 particles: the model takes no extra batch dimension, nor copies of its rows "
                "(it draws some of them itself, or an argument fixes their number); write it for "
                "such a dimension, or give the plate 'data' all rows of its batch: len(x)"
            )
        if self.tiled:
            yield repeat_rows(self.args, self.kwargs, num_particles)
            return
        with Particles(num_particles, -1 - self.num_plates):
            yield self.args, self.kwargs

    def _sample(self, args: Any, kwargs: Any) -> Trace:
        return poutine.trace(self.guide).get_trace(*args, **kwargs)

    def _score_model(self, values: Trace, args: Any, kwargs: Any, num_particles: int) -> Trace:
        if self._left_out:
            values = values.copy()
            for name in self._left_out & set(values.nodes):
                values.remove_node(name)
        model = poutine.replay(self.model, trace=values)
        if self._value_by_value and self._sums_out:
            many = num_particles > 1 and not self.tiled
            particles = Particles(num_particles, -1 - self.num_plates) if many else None
            trace = summed_one_by_one(
                model, args, kwargs, -2 - self.num_plates, particles, as_drawn=self._scores
            )
        elif self._sums_out:  # in dimensions left of the particles'
            summing = SumOut(-2 - self.num_plates, drawn=bool(self._left_out))
            trace = summing.trace(model, args, kwargs)
            trace = with_all_drawn(trace, self.num_plates + 1) if self._scores else trace
        else:
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        return prune_subsample_sites(trace)

    def _read_at(self, values: Trace, num_particles: int) -> Draw:
        """Score model and guide at the values of a trace."""
        self._require_density_anywhere()
        with self._taking(num_particles) as (args, kwargs):
            guide = poutine.trace(Replayed(trace=values)(self.guide))
            scored = prune_subsample_sites(guide.get_trace(*args, **kwargs))
            model = self._score_model(values, args, kwargs, num_particles)
        return self.scored(model, scored, num_particles)

    def _one_by_one(self, num_particles: int) -> list[Draw]:
        """Return K draws of the locals at one of the globals, each with densities of its own."""
        model, guide = self.traces()
        shared = {
            name: site["value"]
            for name, site in sample_sites(guide)
            if data_frame(site) is None and name in model.nodes and not site["is_observed"]
            if name not in self.following
        }
        held = self.fixing(shared) if shared else self
        others = [held.scored(*held.traces(), 1) for _ in range(num_particles - 1)]
        return [self.scored(model, guide, 1), *others]

    def scored(self, model: Trace, guide: Trace, num_particles: int) -> Draw:
        """Read the log densities of a pair of traces of this joint."""
        require_pair(model, guide, self._held)
        for name, carrier in self._carried.items():
            if model.nodes[name].get("unweighted"):
                require_unmasked(name, carrier, model.nodes[name])
        draw = read(model, guide, self._layout(num_particles), self._size)
        draw.spanning, draw.carried = self.spanning, self._carried
        return draw

    def _require_density_anywhere(self) -> None:
        """Refuse a guide that knows the density of a latent at its own draws alone.

        Raises:
            ProgramError: Names the site.
        """
        for name in self._redrawn:
            raise ProgramError(
                f"site {name!r}: the guide draws it itself and shows Delta(z, log_density=...), "
                "whose density is known at that draw alone, and is asked for at a draw held fixed; "
                "let the site draw it (a TransformedDistribution), or use pv.ELBO or pv.IWAE"
            )


def _require_all_given(model: Trace, values: Trace) -> None:
    """Refuse a latent that a program of other sites would draw from its prior without a word.

    Raises:
        ProgramError: Names the site.
    """
    for name, site in sample_sites(model):
        if not site["is_observed"] and name not in values.nodes and can_be_listed(site["fn"]):
            raise ProgramError(
                f"site {name!r}: latent for these rows, and observed in rows of the same shapes "
                "that the program was read with; give what decides it (labels that are missing) as "
                "None or as a flag, which is read anew, or ask in a program made anew"
            )


def _without(trace: Trace, names: Iterable[str]) -> Trace:
    """Return a trace that lacks some of its sites."""
    rest = trace.copy()
    for name in names:
        rest.remove_node(name)
    return rest


def _latent_values(trace: Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in sample_sites(trace)
        if not site["is_observed"] and not site_is_subsample(site)
    }


def trace_of(values: Mapping[str, Tensor]) -> Trace:
    """Return latents by site as a trace to replay."""
    trace = Trace()
    for name, value in values.items():
        _put(trace, name, value)
    return trace


def _put(trace: Trace, name: str, value: Tensor) -> None:
    # A value alone: no distribution drew it.
    trace.add_node(
        name, name=name, type="sample", fn=None, value=value, is_observed=False, infer={}
    )


def _cut(guide: Trace) -> tuple[Trace, list[Leaf]]:
    """Return a copy of a guide's trace whose latent values are leaves of the graph."""
    cut = guide.copy()
    leaves = []
    for name, site in sample_sites(guide):
        if site["is_observed"] or site_is_subsample(site):
            continue
        value = site["value"].detach()
        if value.is_floating_point():
            value = value.requires_grad_()
        cut.nodes[name] = {**site, "value": value}
        leaves.append(Leaf(name, site["value"], value))
    return cut, leaves


def _local_values(trace: Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in sample_sites(prune_subsample_sites(trace))
        if data_frame(site) is not None and not site["is_observed"]
    }
