"""Discrete latents that the guide leaves out: summed exactly, for each particle and datum."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from opt_einsum import get_symbol
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.log_einsum import ExactLogRing
from pyro_vae.program.densities.site_densities import Layout, call, handler_scale
from pyro_vae.program.handlers import FAILURES, PLATE, Message, data_frame, sample_sites
from pyro_vae.program.sites.plates import data_dim

_PARTICLES = get_symbol(0)  # around every site: densities of two particles are never multiplied
MOST = 128  # values of an event, or of several latents together, that are run one by one
_NAMED = 3  # sites in a label
_SCOPE = ("_markov_scope", "_markov_depth")  # where Pyro's handler of steps writes


class OwnScope(Messenger):
    """Note in which steps of ``pyro.markov`` a site of the model stands.

    It stands inside all replays, which put the notes of the guide in their place.
    """

    def _pyro_sample(self, msg: Message) -> None:
        msg["own_scope"] = {key: msg["infer"][key] for key in _SCOPE if key in msg["infer"]}


class SumOut(EnumMessenger):
    """Give each discrete latent that has no value yet its whole support, in a dimension of its own.

    Whether the user has marked it so (``config_enumerate``) makes no difference.

    Arguments:
        first_available_dim: The first dimension that neither plates nor particles use.
        drawn: Whether the guide draws some of them, for messages.
    """

    def __init__(self, first_available_dim: int, drawn: bool = False) -> None:
        super().__init__(first_available_dim)
        self.reason = "discrete" if drawn else "not in the guide"
        self.otherwise = "use log_likelihood" if drawn else "let the guide draw it"
        self.names: list[str] = []

    def trace(self, model: Callable[..., Any], args: Any, kwargs: Any) -> Trace:
        """Run a model and return its trace.

        Raises:
            ProgramError: It does not run at all values of a latent at once; names the latents.
        """
        try:
            with self:
                return poutine.trace(model).get_trace(*args, **kwargs)
        except FAILURES as error:
            if not self.names or isinstance(error, ProgramError):
                raise
            raise ProgramError(
                f"site {_quoted(self.names)}: {self.reason}, hence summed out, and the model "
                "does not run at all of its values at once, which stand in a new dimension left of "
                f"all others ({str(error).splitlines()[0]}); write what uses it for such values, "
                f"as pyro.infer.config_enumerate asks, or {self.otherwise}"
            ) from error

    def _pyro_sample(self, msg: Message) -> None:
        done = msg["done"]
        left_out = not done and not msg["is_observed"] and can_be_summed(msg["fn"])
        reopen(msg)
        msg["infer"] |= {"enumerate": "parallel" if left_out else None, "num_samples": None}
        self.names += [msg["name"]] if left_out else []
        super()._pyro_sample(msg)
        msg["done"] = msg["done"] or done


class Reopened(Messenger):
    """Show the sites of a replay to Pyro's enumeration as sites of the model with given values."""

    def _pyro_sample(self, msg: Message) -> None:
        reopen(msg)


def reopen(msg: Message) -> None:
    """Let Pyro's enumeration note a replayed site among those in scope: it skips one that is done.

    The site keeps its value, and gets the steps of the model back in place of the guide's.
    """
    replaced = ("_dim_to_id", *_SCOPE) if "own_scope" in msg else ("_dim_to_id",)
    # A copy: a replay shares it with the guide's trace, which may be replayed again.
    msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in replaced}
    msg["infer"] |= msg.get("own_scope", {})
    msg["done"] = False


def can_be_summed(fn: Any) -> bool:
    """Return whether a distribution has finitely many values, which can be listed.

    Those of an event of several (``to_event``) are too many, and Pyro does not list them.
    """
    several = getattr(fn, "reinterpreted_batch_ndims", 0) > 0
    return bool(getattr(fn, "has_enumerate_support", False)) and not several


def can_be_listed(fn: Any) -> bool:
    """Return whether the values of a distribution are few: those of a small event count, too."""
    if can_be_summed(fn):
        return True
    base = fn.base_dist if hasattr(fn, "reinterpreted_batch_ndims") else None
    if base is None or base.event_shape or not getattr(base, "has_enumerate_support", False):
        return False
    return bool(len(base.enumerate_support(expand=False)) ** fn.event_shape.numel() <= MOST)


def listed(fn: Any) -> Tensor:
    """Return all values of a distribution that ``can_be_listed``, ``(V, *ones, *event)``."""
    if can_be_summed(fn):
        return fn.enumerate_support(expand=False)
    each = fn.base_dist.enumerate_support(expand=False).flatten()
    values = torch.cartesian_prod(*[each] * fn.event_shape.numel())
    return values.reshape(-1, *(1,) * len(fn.batch_shape), *fn.event_shape)


def is_enumerated(site: Message) -> bool:
    """Return whether a site of a trace has its whole support as its value."""
    return site["infer"].get("_enumerate_dim") is not None


class MixedPrior:
    """The prior of a latent that depends on others which are summed out.

    Its density is known at the draw alone, and is in the terms: there is no closed form of a KL
    divergence, no density per unit and no moment.
    """

    def __init__(self, fn: Any) -> None:
        self.batch_shape, self.event_shape = fn.batch_shape, fn.event_shape
        self.support = fn.support


@dataclass(frozen=True)
class Group:
    """Sites that share latents which are summed out.

    Arguments:
        sites: By name, in the order of the model.
    """

    sites: Mapping[str, Message]

    @property
    def names(self) -> tuple[str, ...]:
        """All sites."""
        return tuple(self.sites)

    @property
    def enumerated(self) -> tuple[str, ...]:
        """The latents that are summed out."""
        return self._where(is_enumerated)

    @property
    def observed(self) -> tuple[str, ...]:
        """The observed sites that depend on them."""
        return self._where(lambda site: site["is_observed"])

    @property
    def latents(self) -> tuple[str, ...]:
        """The latents of the guide whose prior depends on them."""
        return self._where(lambda site: not site["is_observed"] and not is_enumerated(site))

    @property
    def local(self) -> bool:
        """Whether every site stands inside the data plate, so that each datum has its own sum."""
        return all(data_frame(site) is not None for site in self.sites.values())

    @property
    def label(self) -> str:
        """What the term of the observed sites is called (of all sites where data are coupled)."""
        rest = self.observed if self.local else (*self.latents, *self.observed)
        return f"{_listed(rest)} ({_listed(self.enumerated)} summed out)".strip()

    def require_local(self) -> None:
        """Refuse a sum that couples the data.

        Raises:
            ProgramError: Names the site, and says what to do.
        """
        if self.local:
            return
        name = next(n for n in self.enumerated if data_frame(self.sites[n]) is None)
        raise ProgramError(
            f"site {name!r} stands outside the plate of the data and is summed out: the data have "
            "one joint density, and none each; give the guide a distribution of it "
            f"(pyro.sample({name!r}, ...)), or ask for pv.elbo of all data in one batch"
        )

    def log_sum(self, layout: Layout, latents: tuple[str, ...] | None = None) -> Tensor:
        """Return the log of the sum over the enumerated latents, without weights.

        Arguments:
            layout: Of the trace.
            latents: Of the other sites, those whose densities are in it; None: all sites.

        Returns:
            ``(K, B)``; ``(K,)`` where the group is not local.
        """
        names = self.names if latents is None else (*self.enumerated, *latents)
        return self._contract(layout, names, {})

    def log_joint(self, drawn: Mapping[str, Message], layout: Layout) -> Tensor:
        """Return the log density of the group at one value of each of its enumerated latents.

        Found in the sum, by leaving out all others: ``(K, B)``, ``(K,)`` where it is not local.

        Arguments:
            drawn: Sites at one value each, by name.
            layout: Of the trace.
        """
        only = {
            name: _data_first_of(self.sites[name], _indicator(self.sites[name], drawn[name]))
            for name in self.enumerated
        }
        return self._contract(layout, self.names, only)

    def plain_log_joint(self, drawn: Mapping[str, Message], layout: Layout) -> Tensor:
        """Return the same as the sum of the sites' own densities in a trace at those values."""
        found = []
        for name in self.names:
            log_prob = log_density(name, drawn[name], name in self.enumerated)
            inside = self.local
            found.append(
                layout.per_datum(log_prob, data_dim(drawn[name])) if inside else log_prob.sum()
            )
        return torch.stack(found).sum(0)

    def posteriors(self, layout: Layout) -> dict[str, Tensor]:
        """Return p(y | x, z) of each enumerated latent, ``(K, B, *plates, support)``.

        A zero added to the log density of one value has the probability of that value as the
        derivative of the log of the sum.

        Raises:
            ProgramError: The sum couples the data.
        """
        self.require_local()
        with torch.enable_grad():
            zeros = {name: self._zeros(name, layout) for name in self.enumerated}
            total = self._contract(layout, self.names, zeros).sum()
            found = torch.autograd.grad(total, list(zeros.values()))
        if layout.tiles > 1:
            found = tuple(each.reshape(layout.tiles, -1, *each.shape[2:]) for each in found)
        return dict(zip(zeros, found, strict=True))

    def weigh(self, log_density: Tensor, layout: Layout, names: tuple[str, ...]) -> Tensor:
        """Return a part of the group's log density under the weights of its sites.

        Arguments:
            log_density: ``(K, B)``; any shape where the group is not local.
            layout: Of the trace.
            names: The sites that the part is the density of.

        Raises:
            ProgramError: The sites bear several weights, or one that is not the same for a whole
                datum: inside a sum of probabilities a weight has no meaning.
        """
        scale = _common(self.sites)
        marked = self.sites[names[0]]
        if "kl_weight" in marked and not marked["is_observed"]:
            scale = scale * marked["kl_weight"][0]
        if isinstance(scale, Tensor) and scale.dim():
            scale = layout.spread(_of_rows(scale, layout, self.sites))
        return log_density * scale

    def _where(self, keep: Callable[[Message], bool]) -> tuple[str, ...]:
        return tuple(name for name, site in self.sites.items() if keep(site))

    def _contract(self, layout: Layout, names: Iterable[str], more: Mapping[str, Tensor]) -> Tensor:
        """Multiply the densities of some sites and sum over the enumerated latents.

        Arguments:
            layout: Of the trace.
            names: The sites.
            more: Log factors of enumerated sites besides, ``(K, B, *plates, support)``.
        """
        symbols = _Symbols(self.sites, layout)
        tree: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
        sums: set[str] = set()
        log_probs = {n: log_density(n, self.sites[n], is_enumerated(self.sites[n])) for n in names}
        dtype = functools.reduce(torch.promote_types, [v.dtype for v in log_probs.values()])
        for name, log_prob in log_probs.items():
            site = self.sites[name]
            term = symbols.pack(name, site, log_prob.to(dtype))
            sums |= set(term._pyro_dims) - symbols.kept
            terms = tree.setdefault(symbols.plates_around(site), [])
            terms.append(term)
            if name in more:
                terms.append(symbols.pack_beside(site, more[name].to(dtype)))
        ring, data = ExactLogRing(), symbols.plates.get(PLATE, "")
        try:
            contracted = contract_tensor_tree(tree, sums, ring=ring)
        except NotImplementedError as error:
            raise ProgramError(
                f"site {_quoted(self.enumerated)}: not in the guide, and no sum over it is known, "
                "for what depends on it stands in plates that cross each other; let the guide draw "
                "it"
            ) from error
        total: Any = 0.0
        for around, terms in contracted.items():
            for term in terms:
                rest = around - {_PARTICLES, data} if self.local else around - {_PARTICLES}
                total = total + _grid(ring.product(term, rest), data)
        if not self.local:
            return total.flatten()
        frame: Any = data_frame(next(iter(self.sites.values())))
        return layout.spread(total.expand(-1, frame.size))

    def _zeros(self, name: str, layout: Layout) -> Tensor:
        site = self.sites[name]
        particles = layout.num_particles if layout.tiles == 1 else 1
        sizes = [frame.size for frame in _data_first(site)]
        like = log_density(name, site, summed=True)
        support = like.shape[site["infer"]["_enumerate_dim"]]
        return like.new_zeros(particles, *sizes, support, requires_grad=True)


def groups_of(model: Trace) -> list[Group]:
    """Return the groups of a model's sites that share enumerated latents."""
    groups: list[tuple[frozenset[int], list[str]]] = []
    sites = dict(sample_sites(model))
    for name, site in sites.items():
        ids = _enumerated_ids(site)
        if not ids:
            continue
        joined = [group for group in groups if group[0] & ids]
        names = [n for _, members in joined for n in members]
        groups = [group for group in groups if not group[0] & ids]
        groups.append((ids.union(*(own for own, _ in joined)), [*names, name]))
    return [Group({n: site for n, site in sites.items() if n in names}) for _, names in groups]


class _Symbols:
    """The letters of the dimensions of a group's log densities: particles, plates, latents."""

    def __init__(self, sites: Mapping[str, Message], layout: Layout) -> None:
        self.layout = layout
        names = dict.fromkeys(f.name for site in sites.values() for f in _plates(site))
        self.plates = {name: get_symbol(2 + 2 * place) for place, name in enumerate(names)}
        self.kept = {_PARTICLES, *self.plates.values()}

    def plates_around(self, site: Message) -> frozenset[str]:
        return frozenset({_PARTICLES, *(self.plates[frame.name] for frame in _plates(site))})

    def pack(self, name: str, site: Message, value: Tensor) -> Any:
        """Return a log density with its dimensions named, those of size 1 left out."""
        dims = {dim: _symbol(id_) for dim, id_ in site["infer"]["_dim_to_id"].items()}
        dims |= {frame.dim: self.plates[frame.name] for frame in _plates(site)}
        dims[-1 - self.layout.num_plates] = _PARTICLES
        try:
            return packed.pack(value, dims)
        except ValueError as error:
            raise _in_no_plate(name, value.shape) from error

    def pack_beside(self, site: Message, value: Tensor) -> Any:
        """Return a factor ``(K, B, *plates, support)`` of an enumerated site in the same way."""
        own = _symbol(site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]])
        plates = [self.plates[frame.name] for frame in _data_first(site)]
        dims = {place - value.dim(): s for place, s in enumerate((_PARTICLES, *plates, own))}
        return packed.pack(value, dims)


def _in_no_plate(name: str, shape: torch.Size) -> ProgramError:
    return ProgramError(
        f"site {name!r}: got a log density of shape {tuple(shape)}, with a dimension that is "
        "neither a plate nor a latent summed out; put the site into a plate, or make the dimension "
        "one of its event (.to_event)"
    )


def _symbol(id_: int) -> str:
    """Return the letter of an enumerated latent, of which Pyro has a number."""
    return get_symbol(1 + 2 * id_)


def _enumerated_ids(site: Message) -> frozenset[int]:
    """Return the enumerated latents that a site's density depends on, by Pyro's numbers."""
    ids = site["infer"].get("_dim_to_id")
    if not ids:
        return frozenset()
    shape = _shape_of(site)
    return frozenset(id_ for dim, id_ in ids.items() if len(shape) >= -dim and shape[dim] > 1)


def _shape_of(site: Message) -> torch.Size:
    """Return the shape of a site's log density."""
    if "at_all" in site:
        return site["at_all"].shape
    fn, value = site["fn"], site["value"]
    shapes = [fn.batch_shape, value.shape[: value.dim() - fn.event_dim]]
    if isinstance(site["mask"], Tensor) and not is_enumerated(site):  # as in log_density
        shapes.append(site["mask"].shape)
    return torch.broadcast_shapes(*shapes)


def summed_around(model: Trace, name: str) -> dict[str, int]:
    """Return the enumerated latents that a site's distribution depends on, each with its dimension.

    Raises:
        ProgramError: The model takes their values one at a time: the site shows one of them alone.
    """
    site: Any = model.nodes[name]
    ids, shape = site["infer"].get("_dim_to_id", {}), site["fn"].batch_shape
    if "at_all" in site:
        raise ProgramError(
            f"site {name!r}: its distribution is known at one value at a time of what is summed "
            "out; let the guide draw the latent"
        )
    own = {
        each["infer"]["_dim_to_id"][each["infer"]["_enumerate_dim"]]: latent
        for latent, each in sample_sites(model)
        if is_enumerated(each)
    }
    there = {dim: id_ for dim, id_ in ids.items() if len(shape) >= -dim and shape[dim] > 1}
    return {own[id_]: dim for dim, id_ in there.items() if id_ in own}


def log_density(name: str, site: Message, summed: bool) -> Tensor:
    """Return the log density of a site, without weights, and without a mask where it is summed."""
    if "at_all" in site:  # as the model said at each value alone
        return site["at_all"]
    if not summed:
        return scale_and_mask(call(name, site, site["fn"].log_prob), 1.0, site["mask"])
    # A mask on what is summed would count its values in place of summing their probabilities.
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return call(name, site, fn.log_prob)


def _plates(site: Message) -> list[Any]:
    """Return the plates around a site, units of a datum right of it that no plate holds among them.

    These stand beside each other, as in a plate of that dimension.
    """
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if data_frame(site) is None:
        return frames
    shape, known = _shape_of(site), {frame.dim for frame in frames}
    right = range(max(data_dim(site) + 1, -len(shape)), 0)
    loose = [dim for dim in right if dim not in known and shape[dim] > 1]
    return frames + [CondIndepStackFrame(str(dim), dim, shape[dim], 0) for dim in loose]


def _data_first(site: Message) -> list[Any]:
    return sorted(_plates(site), key=lambda frame: (frame.name != PLATE, frame.dim))


def _indicator(site: Message, drawn: Message) -> Tensor:
    """Return 0 at the drawn values of an enumerated site and minus infinity at all others.

    In the layout of the drawn value's batch, ``(*batch, support)``.
    """
    support, value = listed(site["fn"]), drawn["value"]
    same = support == value
    event = tuple(range(same.dim() - site["fn"].event_dim, same.dim()))
    same = same.all(event) if event else same
    nothing = torch.zeros(same.shape, device=same.device)
    return nothing.masked_fill(~same, -torch.inf).movedim(0, -1)


def _data_first_of(site: Message, value: Tensor) -> Tensor:
    """Return ``(*batch, support)`` as ``(1, *plates, support)``, the data's plate first."""
    dims = [frame.dim - 1 for frame in _data_first(site)]
    depth = max([value.dim(), *(-dim for dim in dims)])
    value = value.reshape((1,) * (depth - value.dim()) + value.shape)
    rest = [dim for dim in range(-depth, -1) if dim not in dims]
    if any(value.shape[dim] > 1 for dim in rest):
        raise _in_no_plate(site["name"], value.shape[:-1])
    return value.permute(*rest, *dims, -1).reshape(1, *(value.shape[dim] for dim in (*dims, -1)))


def _grid(term: Any, data: str) -> Tensor:
    """Return a packed term of particles and data alone as ``(K or 1, B or 1)``."""
    order = [symbol for symbol in (_PARTICLES, data) if symbol and symbol in term._pyro_dims]
    value: Tensor = term.permute([term._pyro_dims.index(symbol) for symbol in order])
    if _PARTICLES not in order:
        value = value.unsqueeze(0)
    return value if data in order[-1:] else value.unsqueeze(-1)


def _common(sites: Mapping[str, Message]) -> Any:
    """Return the one weight that all sites bear, that of ``ScaleLatents`` left out.

    Raises:
        ProgramError: Names the sites.
    """
    scales = {}
    for name, site in sites.items():
        before = site["kl_weight"][1] if "kl_weight" in site else site["scale"]
        scales[name] = handler_scale({**site, "scale": before})
    first, *rest = scales
    for name in rest:
        if not _equal(scales[first], scales[name]):
            raise ProgramError(
                f"sites {first!r} and {name!r} stand under different poutine.scale weights and "
                "share a latent that is summed out: inside a sum of probabilities a weight has no "
                f"meaning; weigh all of {_listed(tuple(scales))} alike"
            )
    return scales[first]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _of_rows(scale: Tensor, layout: Layout, sites: Mapping[str, Message]) -> Tensor:
    """Return a weight of each datum, ``(1, B)``."""
    frame: Any = data_frame(next(iter(sites.values())))
    sizes = {dim: scale.shape[dim] for dim in range(-scale.dim(), 0) if dim != frame.dim}
    if any(size > 1 for size in sizes.values()):
        raise ProgramError(
            f"sites {_listed(tuple(sites))} share a latent that is summed out, and a poutine.scale "
            f"weight of shape {tuple(scale.shape)}, expected one weight for each datum"
        )
    return scale.reshape(1, -1).expand(1, frame.size)


def _quoted(names: Iterable[str]) -> str:
    return _listed(tuple(repr(name) for name in names))


def _listed(names: tuple[str, ...]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]}"
