"""Effect handlers that weigh, enlarge and feed a program from outside."""

import copy
import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.contrib.mue.missingdatahmm import MissingDataDiscreteHMM
from pyro.distributions import Delta
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.nn.module import PyroModule, _Context
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.torch_private import storage_address

PLATE = "data"
Message = Any  # one site of a trace; Pyro types it by a TypedDict whose entries are all optional
_from_store = pyro.get_param_store().get_param  # what a pyro.param statement calls
# What a user's function may raise on rows that it was not written for.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
Beta = float | Tensor | Mapping[str, float | Tensor]


def data_frame(site: Message) -> CondIndepStackFrame | None:
    """Return the frame of the plate ``"data"`` around a site, or None: the site is global."""
    for frame in site["cond_indep_stack"]:  # asked for so often that a generator is too slow
        if frame.name == PLATE:
            return frame
    return None


def have_rows(traces: Iterable[Trace], rows: int) -> bool:
    """Return whether the plate of the data has so many rows around all sites that it holds."""
    frames = [data_frame(site) for trace in traces for _, site in sample_sites(trace)]
    return all(frame.size == rows for frame in frames if frame is not None)


def sample_sites(trace: Trace) -> list[tuple[str, Message]]:
    """Return the sample sites of a trace, by name, in the order of sampling."""
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]


def is_deterministic(site: Message) -> bool:
    """Return whether a site shows a computed value, and no density of it.

    Those of ``pyro.deterministic``, and those that a reparametrisation has emptied.
    """
    if site["infer"].get("_deterministic"):
        return True
    fn = site["fn"]
    masked = type(fn).__name__ == "MaskedDistribution" and fn._mask is False
    inner = fn.base_dist if masked else fn
    return _shows_itself(inner, site) and (masked or not torch.any(inner.log_density != 0))


def observes(site: Message) -> bool:
    """Return whether a site has an observed value: neither a factor nor a deterministic one."""
    return bool(
        site["is_observed"]
        and not is_deterministic(site)
        and type(site["fn"]).__name__ != "Unit"
        and not _shows_itself(site["fn"], site)
    )


def _shows_itself(fn: Any, site: Message) -> bool:
    """Return whether a site is given the very value that its point mass stands at."""
    infer = site["infer"]
    given = infer.get("obs") if infer.get("was_observed") else site["value"]
    if not (site["is_observed"] or infer.get("was_observed")):
        return False  # a latent of the guide
    if not (isinstance(fn, Delta) and isinstance(given, Tensor)):
        return False
    try:  # a plate may have expanded the point mass
        return _place(given) == _place(fn.v)
    except (NotImplementedError, RuntimeError):  # of tensors without memory
        return given is fn.v


def _place(value: Tensor) -> tuple[int, Any]:
    return storage_address(value), value.storage_offset()


def scoring_data(model: Trace) -> list[Message]:
    """Return the sites of a model that observe data; where none does in a plate, its factors do."""
    sites = [site for _, site in sample_sites(model) if not is_deterministic(site)]
    observed = [site for site in sites if observes(site)]
    factors = [site for site in sites if site["is_observed"] and not observes(site)]
    inside = next((each for each in (observed, factors) if any(map(_in_a_plate, each))), None)
    return inside or observed or factors


def _in_a_plate(site: Message) -> bool:
    return any(frame.dim is not None for frame in site["cond_indep_stack"])


def is_data(site: Message) -> bool:
    """Return whether a site of the model observes data: in the plate, neither factor nor value."""
    return observes(site) and data_frame(site) is not None


class DrawnData(UnconditionMessenger):
    """Draw the observed sites anew; a chain without a length of its own gets that of the data.

    A value that a site only shows follows from the others: a plate may have expanded its point.

    Arguments:
        but: Sites that stay observed.

    Raises:
        ProgramError: A distribution has a density and no sampler; names the site.
    """

    def __init__(self, but: Collection[str] = ()) -> None:
        super().__init__()
        self._but = but
        self._drawing: Message | None = None

    def __exit__(self, kind: Any, error: Any, place: Any) -> None:
        super().__exit__(kind, error, place)
        if isinstance(error, NotImplementedError) and self._drawing is not None:
            site, self._drawing = self._drawing, None
            raise ProgramError(
                f"site {site['name']!r}: {type(innermost(site['fn'])).__name__} has no sampler, "
                "expected one to draw from; give the distribution a sample or rsample"
            ) from error

    def _pyro_post_sample(self, msg: Message) -> None:
        self._drawing = None

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self._but or (msg["is_observed"] and is_deterministic(msg)):
            return
        super()._pyro_sample(msg)
        self._drawing = msg
        if msg["infer"].get("was_observed") and is_open_chain(msg["fn"], msg["infer"]["obs"]):
            msg["value"] = _chain(msg["fn"], msg["infer"]["obs"].shape[-2])


def without_data(guide: Callable[..., Any]) -> Callable[..., Any]:
    """Return a guide whose observed sites nobody sees, where it is a messenger that runs the model.

    These are the data, of which Pyro's objectives take no density there either.
    """
    if not isinstance(poutine.unwrap(guide), GuideMessenger):
        return guide
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


class Replayed(ReplayMessenger):
    """Replay a guide; a messenger notes the prior of a site, which a replay would take off."""

    def _pyro_sample(self, msg: Message) -> None:
        noted = {key: msg["infer"][key] for key in ("prior",) if key in msg["infer"]}
        super()._pyro_sample(msg)
        if noted:
            msg["infer"] = {**msg["infer"], **noted}


class DrawnRows(Messenger):
    """Note the plates that draw some of their rows; one with all of them draws none."""

    def __init__(self) -> None:
        super().__init__()
        self.plates: dict[str, tuple[int, int]] = {}  # how many, of how many

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None:
            return  # rows that are given are no draw
        if msg["fn"].subsample_size is not None and msg["fn"].subsample_size < msg["fn"].size:
            self.plates[msg["name"]] = msg["fn"].subsample_size, msg["fn"].size


class WrittenSizes(Messenger):
    """Note the plates of a model that have a number written in, and the rows of the guide's plate.

    As Pyro does: where a plate of the guide has the same name, the model's takes over its rows.

    Arguments:
        sizes: By plate, what is found.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        # Rows that the guide draws, or the program names itself, are for the model to index.
        self._drawn: set[str] = set()
        self._met: set[str] = set()

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg):
            return
        name, fn, rows = msg["name"], msg["fn"], msg["value"]
        takes_all = fn.subsample_size in (None, fn.size)
        first, named = name not in self._met, rows is not None and len(rows) != fn.size
        self._met.add(name)
        if (rows is None and not takes_all) or (first and named):
            self._drawn.add(name)
        elif rows is not None and takes_all and name not in self._drawn and len(rows) != fn.size:
            self.sizes[name] = fn.size


class Observing(Messenger):
    """Observe given values in place of those that the model has.

    Arguments:
        values: By site, as a trace holds them; repeated where the rows are copies.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Message) -> None:
        value = self.values.get(msg["name"])
        if value is None:
            return
        frame = data_frame(msg)
        if frame is not None and frame.dim is not None:
            value = _repeated(value, frame.dim - msg["fn"].event_dim, frame.size)
        msg["value"] = value


def _repeated(value: Tensor, axis: int, rows: int) -> Tensor:
    """Return copies of a value beside each other; a lone datum may have no such dimension."""
    if value.dim() < -axis or value.shape[axis] == rows:
        return value
    copies = rows // value.shape[axis]
    return value.repeat([copies if d == axis else 1 for d in range(-value.dim(), 0)])


def is_open_chain(fn: Any, value: Tensor) -> bool:
    """Return whether a value has more steps than a Markov chain whose length is open says.

    Pyro writes the steps of a homogeneous chain as 1: ``event_shape = (1, A)``.
    """
    base = innermost(fn)
    open_ended = tuple(base.event_shape)
    if len(open_ended) < 2 or open_ended[0] != 1 or len(fn.event_shape) != len(open_ended):
        return False
    batch, rest = len(fn.batch_shape), len(open_ended) - 1
    return (
        value.dim() == batch + 1 + rest
        and value.shape[:batch] == fn.batch_shape
        and value.shape[batch + 1 :] == fn.event_shape[1:]
    )


def _chain(fn: Any, steps: int) -> Tensor | None:
    """Draw so many steps of an open chain; None where its class is left to say how."""
    if isinstance(fn, HiddenMarkovModel):
        of_length = copy.copy(fn)
        of_length._duration = steps
        return of_length.sample()
    base = innermost(fn)
    if isinstance(base, MissingDataDiscreteHMM):
        batch = fn.batch_shape
        # One chain each: expanded from outside, all would take the states of one.
        initial, transition, observation = (
            logits.expand(*batch, *logits.shape[-own:]).reshape(-1, *logits.shape[-own:])
            for logits, own in (
                (base.initial_logits, 1),
                (base.transition_logits, 2),
                (base.observation_logits, 2),
            )
        )
        chains = MissingDataDiscreteHMM(initial, transition, observation, validate_args=False)
        drawn = chains.sample(torch.Size((steps,)))
        return drawn.reshape(*batch, *drawn.shape[1:])
    return None


def innermost(fn: Any) -> Any:
    """Return what a distribution is behind ``to_event``, ``expand`` and ``mask``."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


def has_density_of_its_own(fn: Any) -> bool:
    """Return whether a point mass says of a density that its value was drawn from elsewhere.

    ``Delta(z, log_density=...)``, as a guide writes a draw of a flow: it differs from call to call.
    """
    inner = innermost(fn)
    return isinstance(inner, Delta) and bool(torch.any(inner.log_density != 0))


class DatasetSize(Messenger):
    """Scale the sites of the plate ``"data"`` by N/B: the minibatch stands for N data.

    A program that subsamples its plate itself has done so already, and is left alone.

    Arguments:
        size: N.
        rows: B.
        sums: Sites outside the plate that are sums over its rows: they are scaled likewise.
        done: Whether the program has scaled sites of the plate so itself: then as it has, no more.
    """

    def __init__(
        self, size: int, rows: int, sums: Container[str] = (), *, done: bool = False
    ) -> None:
        super().__init__()
        self.size, self.rows, self.sums, self.done = size, rows, sums, done

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.sums:
            msg["scale"] = msg["scale"] * (self.size / self.rows)
        frame = data_frame(msg)
        if frame is None or frame.full_size != frame.size:
            return
        msg["cond_indep_stack"] = tuple(
            f._replace(full_size=self.size) if f is frame else f for f in msg["cond_indep_stack"]
        )
        if not self.done:
            msg["scale"] = msg["scale"] * (self.size / frame.size)


class ScaledRows(Messenger):
    """Weigh all sites of the plate ``"data"``.

    Arguments:
        weight: One number.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Message) -> None:
        if data_frame(msg) is not None:
            msg["scale"] = msg["scale"] * self.weight


class ScaleLatents(Messenger):
    r"""Weigh the KL term of each local latent by β, in model and guide alike.

    .. math:: \log p(x \mid z) + \sum_l \beta_l\,[\log p(z_l) - \log q(z_l \mid x)]

    Arguments:
        beta: One weight for all local latents, or one per site name (others keep 1). A float, which
            may be 0 (``poutine.scale`` refuses that), or a tensor, so that a schedule needs no new
            trace.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
          (Higgins et al., 2017)
    """

    def __init__(self, beta: Beta) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"] or data_frame(msg) is None:
            return
        beta = self.beta.get(msg["name"], 1.0) if isinstance(self.beta, Mapping) else self.beta
        before = msg["scale"]
        msg["scale"] = beta * before
        # Not in "infer", which a replay copies from the guide's site into the model's.
        msg["kl_weight"] = (beta, before, msg["scale"])


class Unweighted(Messenger):
    """Take the weights of a program off, so that its sites have their own densities.

    A weight (``poutine.scale``: of a row, of a KL term, one that normalises the loss) tells what a
    term counts in training, and changes no probability. The factors N/B of plates stay, and so does
    the KL weight of ``ScaleLatents``, which whoever asks for it has put outside the program.
    """

    def _pyro_sample(self, msg: Message) -> None:
        scale: Any = 1.0
        for frame in msg["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                scale = scale * (frame.full_size / frame.size)
        if "kl_weight" in msg:
            beta, before = msg["kl_weight"][0], scale
            scale = beta * scale
            msg["kl_weight"] = (beta, before, scale)
        msg["scale"] = scale
        msg["unweighted"] = True


class Particles(Messenger):
    """Draw K values of every local latent at once, in a new batch dimension left of all plates.

    Only sites inside the plate ``"data"`` are enlarged; global sites keep one draw. The guide's
    networks see the batch once: their distributions are expanded, not their inputs.

    Arguments:
        num_particles: K.
        dim: Where the new dimension goes, counted from the right: ``-1 - nesting``.
    """

    def __init__(self, num_particles: int, dim: int = -2) -> None:
        super().__init__()
        self.num_particles = num_particles
        self.dim = dim

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"] or data_frame(msg) is None or site_is_subsample(msg):
            return
        if msg["infer"].get("_enumerate_dim") is not None:
            return  # it has all its values at once
        shape = msg["fn"].batch_shape
        if len(shape) < -self.dim:
            ones = (1,) * (-self.dim - 1 - len(shape))
            msg["fn"] = msg["fn"].expand(torch.Size((self.num_particles, *ones, *shape)))


class OwnParameters(Messenger):
    """Answer ``pyro.param`` from tensors at hand; the global store is neither read nor written.

    A ``PyroModule`` announces its own attributes as ``param`` messages too; it keeps those itself.

    Arguments:
        lookup: ``(name, initial value or None, constraint) -> constrained value``.
    """

    holds_parameters = True  # a program that asks may leave out its pyro.module statement

    def __init__(self, lookup: Callable[[str, Any, Any], Tensor]) -> None:
        super().__init__()
        self.lookup = lookup

    def _pyro_param(self, msg: Message) -> None:
        if msg["done"] or msg["value"] is not None or msg["fn"] != _from_store:
            return
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        constraint = msg["kwargs"].get("constraint", torch.distributions.constraints.real)
        msg["value"] = self.lookup(msg["name"], initial, constraint)
        msg["done"] = True


def parameter_of(value: Tensor) -> Tensor:
    """Return the parameter behind what a statement answers, which may be constrained."""
    reference = getattr(value, "unconstrained", None)
    leaf = None if reference is None else reference()
    return value if leaf is None else leaf


class StatedNames(Messenger):
    """Note under which name each parameter is announced first, by the parameters' ids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, str] = {}

    def _pyro_post_param(self, msg: Message) -> None:
        self.found.setdefault(id(parameter_of(msg["value"])), msg["name"])


class WantParameters(Messenger):
    """Mark a stock loss that takes gradients only where its traces hold ``param`` sites."""

    wants_parameters = True


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Switch Pyro's and torch's argument validation inside a block, and put all flags back."""
    with pyro.validation_enabled(enabled):
        yield


@contextmanager
def pyro_modules_at_home() -> Iterator[None]:
    """Let a ``PyroModule`` keep its own parameters inside a block, and open no store of its own.

    In Pyro's ``module_local_params`` mode alone, the statements of a model that an autoguide runs
    for its prototype would read a store of the guide, and be refused by validation.
    """
    kinds = ((_Context, "__enter__"), (_Context, "__exit__"), (PyroModule, _LOCAL_CHECK))
    before = [vars(kind)[name] for kind, name in kinds]
    for (kind, name), function in zip(kinds, (_enter, _leave, _accept), strict=True):
        setattr(kind, name, function)
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        for (kind, name), function in zip(kinds, before, strict=True):
            setattr(kind, name, function)


_LOCAL_CHECK = "_check_module_local_param_usage"


def _enter(context: _Context) -> None:
    context.active += 1
    context.used = True


def _leave(context: _Context, *_: Any) -> None:
    context.active -= 1
    if not context.active:
        context.cache.clear()


def _accept(module: PyroModule) -> None:
    return None


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take numbers nearer to zero than any normal one for zero inside a block, on this thread.

    The tails of mixtures and sigmoids are full of them, and CPUs count with them in microcode: a
    step under a VampPrior of 500 components took four times as long.
    """
    before = sys.float_info.min / 2 == 0.0  # nothing else tells how the flag stands
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
