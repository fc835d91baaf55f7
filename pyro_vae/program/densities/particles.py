"""Whether a model takes K particles, or all values of a latent, in one pass: asked of itself."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import Batch, Part, arguments, map_rows, num_rows
from pyro_vae.program.checks import is_point_mass
from pyro_vae.program.densities.enumeration import can_be_listed, groups_of, listed
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.one_by_one import NotOneByOne
from pyro_vae.program.densities.site_densities import Layout
from pyro_vae.program.densities.terms import local_log_p, local_log_q
from pyro_vae.program.handlers import (
    FAILURES,
    Message,
    data_frame,
    sample_sites,
)
from pyro_vae.program.sites.numbered import forget_plates
from pyro_vae.program.sites.sites import Sites

_FEW = 3  # rows: what does not broadcast does not at few rows either
_TOLERANCE = 1e-3  # of log densities in float32: a wrong broadcast is off by nats


@dataclass(frozen=True)
class Subject:
    """Model and guide on a batch, as particles are tried with them.

    Try where the program runs on its own parameters, in eval mode, and unvalidated.

    Arguments:
        model, guide: The functions.
        batch: A batch that they run on.
        sites: Its sites.
        one_by_one: Whether latents are summed out by one value at a time.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    batch: Batch
    sites: Sites
    one_by_one: bool = False

    def joint(self, tiled: bool = False) -> Joint:
        """Return both; ``tiled`` copies the rows for each particle."""
        args, kwargs = arguments(self.batch)
        return Joint(
            self.model,
            self.guide,
            args,
            kwargs,
            num_plates=self.sites.num_plates,
            data_dim=self.sites.data_dim,
            one_by_one=self.one_by_one,
            tiled=tiled,
        )


def takes_particles(subject: Subject, parts: nn.Module) -> bool:
    """Compare one pass over K = 2 particles with two passes at the same values.

    Arguments:
        subject: Model and guide.
        parts: The modules of the program.
    """
    batch, sites = subject.batch, subject.sites
    try:
        if sites.size is None and num_rows(batch) > _FEW and not isinstance(batch, Part):
            few = replace(subject, batch=map_rows(lambda leaf: leaf[:_FEW], batch)).joint()
            if _runs(few):
                return _agree(few, sites)
            forget_plates(parts)
            # Weights that the program holds for each row of its data take no part of them.
        return _agree(subject.joint(), sites)
    finally:
        forget_plates(parts)


def takes_copies(subject: Subject, parts: nn.Module) -> bool:
    """Return whether model and guide take K copies of the rows: an argument may fix their number.

    Arguments:
        subject: Model and guide.
        parts: The modules of the program.
    """
    joint = subject.joint(tiled=True)
    try:
        traces = joint.traces(2)
    except FAILURES:
        return False
    finally:
        forget_plates(parts)
    rows = num_rows(subject.batch)
    frames = [data_frame(site) for trace in traces for _, site in sample_sites(trace)]
    return all(frame.size == 2 * rows for frame in frames if frame is not None)


def require_sums(subject: Subject, left_out: tuple[str, ...] = ()) -> None:
    """Compare the densities at all values of the latents summed out with those at one of each.

    At a draw, which rare values may make all alike, and at values that differ between neighbours.

    Arguments:
        subject: Model and guide.
        left_out: Latents of the guide that are summed out with those that it leaves out.

    Raises:
        ProgramError: They differ: what uses the values mixes them with each other.
    """
    joint, sites = subject.joint().summing(left_out), subject.sites
    if sites.size is not None:
        return  # each run draws other rows: there is nothing to compare
    for values in (nullcontext(), Scattered(0), Scattered(1)):
        with values:
            trace, latents = joint.sampled_traces()
        _require_equal_sums(joint, trace, latents, sites, left_out)


def _require_equal_sums(
    joint: Joint, trace: Trace, latents: Trace, sites: Sites, left_out: tuple[str, ...]
) -> None:
    drawn, layout = dict(sample_sites(trace)), Layout(sites.num_plates)
    for group in groups_of(joint.summed_trace(latents)):
        summed, plain = group.log_joint(drawn, layout), group.plain_log_joint(drawn, layout)
        if not bool(torch.isclose(summed, plain, _TOLERANCE, _TOLERANCE).all()):
            raise ProgramError(
                f"site {group.enumerated[0]!r}: "
                f"{'discrete' if left_out else 'not in the guide'}, hence summed out, and the "
                "model has another log density at all of its values at once than at one value: "
                f"something between it and {group.names[-1]!r} mixes dimensions left of the plates "
                "with each other (a sum, a mean, a reshape); let it work on the last dimensions "
                f"alone, or {'use log_likelihood' if left_out else 'let the guide draw the latent'}"
            )


class Scattered(Messenger):
    """Give discrete latents values that differ between neighbours, along rows and along plates.

    Arguments:
        seed: 0: the sum of an element's places, modulo the values; else at random.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(seed) if seed else None

    def _pyro_sample(self, msg: Message) -> None:
        if msg["done"] or msg["is_observed"] or not can_be_listed(msg["fn"]):
            return
        values, shape = listed(msg["fn"]), tuple(msg["fn"].batch_shape)
        if self.random is None:
            axes = torch.meshgrid(*map(torch.arange, shape), indexing="ij") if shape else ()
            places = sum(axes, torch.zeros(shape, dtype=torch.int64)) % len(values)
        else:
            places = torch.randint(len(values), shape, generator=self.random)
        flat = values.reshape(len(values), *msg["fn"].event_shape)
        msg["value"], msg["done"] = flat[places.to(flat.device)], True


def sums_one_by_one(subject: Subject, left_out: tuple[str, ...] = ()) -> bool:
    """Return whether the model takes one value at a time of the latents that are summed out.

    Arguments:
        subject: Model and guide.
        left_out: As of ``require_sums``.

    Raises:
        ProgramError: It does not take them all at once, nor one by one.
    """
    by_one = replace(subject, one_by_one=True)
    if set(left_out) & set(subject.sites.events):  # Pyro lists no values of such
        require_sums(by_one, left_out)
        return True
    try:
        require_sums(subject, left_out)
    except ProgramError as at_once:
        try:
            require_sums(by_one, left_out)
        except NotOneByOne as error:
            raise ProgramError(f"{at_once}; nor does it one by one: {error}") from error
        except FAILURES:
            raise at_once from None
        return True
    return False


def _runs(joint: Joint) -> bool:
    """Return whether a program runs, and can be scored, on a part of its batch."""
    try:
        joint.terms()
    except FAILURES:
        return False
    return True


def _agree(joint: Joint, sites: Sites) -> bool:
    try:
        model_of_one, _ = joint.traces()
        one = dict(sample_sites(model_of_one))
        two, guide_of_two = joint.traces(2)
        together = local_log_p(two, Layout(sites.num_plates, 2))
        if _draws_once(guide_of_two, sites):
            return False
        if sites.size is not None:
            return True  # each pass draws other rows: there is nothing to compare
        drawn = {name: site["value"] for name, site in sample_sites(two)}
        for k in range(2):
            # Sites may come and go with the values of a batch: those of these rows.
            values = {name: drawn[name] for name in sites.global_ if name in drawn} | {
                name: drawn[name][k].reshape(one[name]["value"].shape)
                for name in sites.local
                if name in drawn
            }
            alone = joint.fixing(values).model_log_p({}, 1)
            if not _close(together, alone, k):
                return False
        return _guides_agree(joint, guide_of_two, sites)
    except FAILURES:
        return False


def _draws_once(two: Trace, sites: Sites) -> bool:
    """Return whether the guide makes one draw for two particles, which is another at each run.

    As ``pyro.sample("z", Delta(z, log_density=...))`` of a flow, which has the rows of the data.
    """
    drawn = {name: two.nodes[name] for name in sites.dependence.redrawn if name in two.nodes}
    inside: Any = [site for site in drawn.values() if data_frame(site) is not None]
    return any(torch.equal(*site["value"]) for site in inside)


def _guides_agree(joint: Joint, two: Trace, sites: Sites) -> bool:
    """Compare what the guide says of two particles with what it says of each alone.

    Where a point mass stands may differ in the last digit: its density says nothing.
    """
    drawn = {n: s for n, s in sample_sites(two) if not s["is_observed"]}
    points = [name for name, site in drawn.items() if is_point_mass(site["fn"])]
    try:
        together = local_log_q(two, Layout(sites.num_plates, 2))
        for k in range(2):
            values = {
                name: site["value"][k] if data_frame(site) is not None else site["value"]
                for name, site in drawn.items()
            }
            alone = joint.fixing(values).guide_log_q({}, 1)
            if not _close(together, {n: q for n, q in alone.items() if n not in points}, k):
                return False
    except ProgramError:
        return True  # a flow without an inverse scores its own draws alone
    return True


def _close(together: Mapping[str, Tensor], alone: Mapping[str, Tensor], k: int) -> bool:
    """Return whether densities of one particle are those that it has beside another."""
    return all(
        bool(torch.isclose(together[name][k], each[0], _TOLERANCE, _TOLERANCE).all())
        for name, each in alone.items()
    )
