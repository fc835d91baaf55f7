"""KL(q(w) || p(w)) of the global latents: nats that the data set pays once, whatever its size."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.inference.objectives.elbo import has_kl
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import Batch, dense, map_rows, num_rows
from pyro_vae.program.densities.site_densities import is_plain
from pyro_vae.program.densities.terms import Draw
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program

_DRAWS = 64  # of the globals, on two rows
_ROWS = 1 << 15  # times draws, where all rows must be looked at for each
_FEW = 2


class GlobalKL(NamedTuple):
    """KL by site, nats of the data set, and its standard error over the draws of the globals."""

    kl: dict[str, float]
    stderr: dict[str, float]


def kl_of_globals(program: Any, data: Any) -> GlobalKL:
    """Return the KL of each global latent of a program, also of one without a latent of a datum.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
    """
    with Program.of(program).passes(data, Verb("evaluate")) as passes:
        return global_kl(passes.program, passes.batch)


def global_kl(program: Program, batch: Batch) -> GlobalKL:
    r"""Estimate the KL of each global latent by draws from the guide.

    .. math:: \mathrm{KL}(w) = \mathbb{E}_{q}[\log q(w) - \log p(w \mid \cdot)]

    Where it may be, the integral over w itself is taken in closed form; without other latents that
    the prior of w depends on the value is exact then. Latents that one auxiliary site of the guide
    draws at once have one KL, under all their names. Call inside ``scoring``.

    Arguments:
        program: What is judged.
        batch: Its data, checked.
    """
    if not program.sites.global_:
        return GlobalKL({}, {})
    some, draws = _looked_at(program, batch)
    joint = program.joint(some)
    found: dict[str, list[Tensor]] = {}
    for _ in range(draws):
        model, guide = joint.traces()
        for name, value in _of_draw(joint.scored(model, guide, 1), model, guide).items():
            found.setdefault(name, []).append(value)
    values = {name: torch.stack(each).double() for name, each in found.items()}
    return GlobalKL(
        {name: each.mean().item() for name, each in values.items()},
        {name: (each.std() / math.sqrt(len(each))).item() for name, each in values.items()},
    )


def _looked_at(program: Program, batch: Batch) -> tuple[Batch, int]:
    """Return the rows to run on, and how often: few, but where what is drawn depends on them."""
    found = program.sites.dependence
    all_of_them = found.informed or found.following or found.spanning or program.sites.size
    if all_of_them or program.rows.are_fixed(batch):
        return dense(batch), max(_FEW, min(_DRAWS, _ROWS // num_rows(batch)))
    return map_rows(lambda leaf: leaf[:_FEW], batch), _DRAWS


def _of_draw(draw: Draw, model: Trace, guide: Trace) -> dict[str, Tensor]:
    """Return the KL of each global latent at one draw."""
    names = [
        name
        for name, site in sample_sites(model)
        if name in draw.global_log_p and name in draw.global_log_q and not site["is_observed"]
    ]
    found: dict[str, Tensor] = {}
    for drawn, auxiliary in _drawn_at_once(draw, names, guide).items():
        exact = _closed_form(drawn[0], auxiliary, names, model, guide) if len(drawn) == 1 else None
        log_q = sum(draw.global_log_q[name] for name in (*drawn, *auxiliary))
        estimate: Any = log_q - sum(draw.global_log_p[name] for name in drawn)
        found[", ".join(drawn)] = estimate if exact is None else exact
    return found


def _drawn_at_once(
    draw: Draw, names: list[str], guide: Trace
) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    """Return the latents, those together that have one density, with their auxiliary sites."""
    auxiliary = [name for name in draw.global_log_q if name not in draw.global_log_p]
    own = {name: f"{name}_unconstrained" for name in names}  # as Pyro's autoguides call it
    own = {name: site for name, site in own.items() if site in auxiliary}
    others = tuple(site for site in auxiliary if site not in own.values())
    rest = [name for name in names if name not in own]
    carried = [name for name in rest if checks.is_point_mass(guide.nodes[name]["fn"])] or rest
    together = tuple(carried) if others and carried else ()
    found: dict[tuple[str, ...], tuple[str, ...]] = {together: others} if together else {}
    for name in names:
        if name not in together:
            found[name,] = (own[name],) if name in own else ()
    return found


def _closed_form(
    name: str, auxiliary: tuple[str, ...], names: list[str], model: Trace, guide: Trace
) -> Tensor | None:
    """Return the integral over one latent, given the others; None where it is not that, or unknown.

    Those before it in the model are its possible parents: the guide must draw them before it too.
    """
    site: Any = model.nodes[name]
    twin: Any = guide.nodes[name]
    if auxiliary:  # the latent itself, where the guide moves it nowhere
        source: Any = guide.nodes[auxiliary[0]]
        if not torch.equal(source["value"].reshape(-1), twin["value"].reshape(-1)):
            return None
        twin = source
    drawn = list(guide.nodes)
    parents = names[: names.index(name)]
    before = all(drawn.index(parent) < drawn.index(name) for parent in parents)
    pair = twin["fn"], site["fn"]
    if not before or not is_plain(site) or not is_plain(twin) or not has_kl(*pair):
        return None
    return kl_divergence(*pair).sum()
