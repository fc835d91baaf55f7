"""Posterior collapse, measured: KL per site and unit, active units, information."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation.codebook_usage import CodeUsage, ValueUsage
from pyro_vae.evaluation.diagnosis import Diagnosis
from pyro_vae.evaluation.global_kl import GlobalKL, global_kl
from pyro_vae.evaluation.marginals import (
    add_conditional,
    add_marginal,
    below_others,
    prior_variances,
)
from pyro_vae.evaluation.moments import Moments, Said
from pyro_vae.inference.objectives.elbo import analytic_sites
from pyro_vae.inference.posterior.information import (
    FEW_ROWS,
    Information,
    information,
    is_plain,
)
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import cuda_devices
from pyro_vae.program.batches.streams import SpreadRows
from pyro_vae.program.densities.enumeration import MixedPrior
from pyro_vae.program.densities.points import points_of, tell_of_points
from pyro_vae.program.densities.terms import Latent, Terms
from pyro_vae.program.handlers import is_data, sample_sites
from pyro_vae.program.judged import Judged
from pyro_vae.program.passes import Pass, Verb
from pyro_vae.program.program import Program
from pyro_vae.program.sites.masks import is_masked
from pyro_vae.program.sites.plates import data_dim

_LOOKED_AT = 2048  # rows, at least, where the data have so many
_MOST_ROWS = 10_000  # behind the aggregate posterior of Gaussians
_VERB = Verb(
    "diagnose",
    prior=True,
    local="there is no latent that could collapse; use elbo or log_likelihood",
    guide="posterior",
)


@typed
def diagnose(
    program: Any,
    data: Any,
    *,
    num_particles: int = 1,
    probes: int = 1000,
    rows: int | None = None,
    batch_size: int = 1024,
    progress: bool = True,
) -> Diagnosis:
    r"""Look for posterior collapse: what each latent tells of the data, and what may help.

    The KL is estimated at draws from the guide; random numbers come from torch's global generator.
    Global latents are held at one draw from the guide, also where z comes from the prior; their own
    KL is that of the data set, once, and a mean over more draws.
    ``print(pv.diagnose(program, x).report())`` is the way to read it, ``pv.plots.diagnosis`` to see
    it.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come:
            of a long stream rows from all over it are held, 128 MiB of them at most.
        num_particles: Draws per datum behind the KL estimates.
        probes: Draws of z behind the mutual information.
        rows: Data that the aggregate posterior is made of, at most; None: 10,000, or 500 of a guide
            that is no factorised Gaussian, which is run on pairs of 100 probes and so many data.
        batch_size: Particles times rows in any pass of model or guide; bounds the memory.
        progress: Show a progress bar of what takes more than two seconds.

    Raises:
        DataError: Data that the program cannot take.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
        | ELBO surgery (Hoffman & Johnson, 2016)
        | Don't Blame the ELBO! (Lucas et al., 2019), arXiv:1911.02469
    """
    particles = positive("num_particles", num_particles)
    most = _MOST_ROWS if rows is None else positive("rows", rows)
    limits = {"probes": positive("probes", probes), "rows": most}
    limits["rows_of_pairs"] = FEW_ROWS if rows is None else most
    limits["batch_size"] = positive("batch_size", batch_size)
    sums = _Sums()
    rows_at_once = limits["batch_size"]
    passes = Program.of(program).passes(data, _VERB, rows=rows_at_once, particles=particles)
    batch = passes.beginning(_LOOKED_AT)
    held = SpreadRows(passes.rows_held(max(limits["rows"], _LOOKED_AT)))
    long = passes.goes_on
    met: set[str] = set()  # latents of the passes
    with passes, _same_sites(met):
        scales: dict[str, Tensor] = {}
        for piece in passes.watched(progress):
            terms = piece.joint.terms(1, particles)
            _require_same(met, terms)
            if not sums.rows:
                first = Judged(passes.program, batch, piece.globals_, rows_at_once)
                tell_of_points("diagnose", points_of(terms, passes.sites.dependence))
                scales = prior_variances(first, terms)
                sums.note(piece, terms)
            sums.add(terms, scales)
            sums.add_prior(piece, terms)
            sums.add_others(piece, terms)
            sums.add_summed(piece, particles)
            if long:
                held.add(piece.batch)
        if long:
            batch = held.joined()
            del held
        judged = Judged(passes.program, batch, piece.globals_, rows_at_once)
        if below_others(terms):
            add_marginal(sums.moments, judged, below_others(terms), scales)
        found = information(passes.program, batch, **limits, held=piece.globals_)
        shared = global_kl(passes.program, batch)  # last, and the other draws are as without it
    return sums.result(found, shared)


def _require_same(met: set[str], terms: Terms) -> None:
    """Note the latents of a pass; refuse others than those of the passes before."""
    drawn = set(terms.log_q)
    if met and drawn != met:
        raise _other_sites(min(drawn ^ met))
    met.update(drawn)


@contextmanager
def _same_sites(met: set[str]) -> Iterator[None]:
    """Refuse a program whose latents come and go: a diagnosis looks at parts of the rows.

    Raises:
        ProgramError: Names a site that some rows have and others lack.
    """
    try:
        yield
    except KeyError as error:
        (site,) = error.args
        if site not in met:
            raise
        raise _other_sites(site) from None


def _other_sites(site: str) -> ProgramError:
    return ProgramError(
        f"diagnose: site {site!r} is drawn for some rows and not for others (sequences of "
        "other lengths, say), and a diagnosis compares all; give the steps an event dimension "
        "with a mask, or data of one structure"
    )


class _Sums:
    """Running sums over the data, so that the memory does not grow with them."""

    def __init__(self) -> None:
        self.rows = 0
        self.others = 0  # of them, those that have met the code of another
        self.sums: dict[tuple[str, str], Tensor] = {}  # (quantity, site)
        self.facts: dict[str, Any] = {}
        self.masked: set[str] = set()  # of the latents that are summed out
        self.moments = Moments()

    def add(self, terms: Terms, scales: Mapping[str, Tensor]) -> None:
        """Add what the guide's draws tell."""
        self.rows += terms.batch_size
        self._put("reconstruction", "", terms.log_likelihood().mean((0, 1)).sum())
        conditional = below_others(terms)
        for name, value in terms.kls().items():
            kl = value.mean((0, 1)).double()
            self._put("kl", name, kl.sum())
            self._put("square", name, kl.square().sum())
        for name, (latent, *_) in terms.latents.items():
            try:
                units = terms.unit_kl(name)
                self._put("unit_kl", name, units.flatten(0, 1).mean(0).sum(0))
            except ProgramError:
                pass  # no density per unit: the site's KL stands alone
            self._put_present(name, latent, terms)
            if name not in conditional:
                add_conditional(self.moments, name, latent, scales.get(name), terms)
            counts = _code_counts(latent)
            if counts is not None:
                self._put("codes", name, counts)

    def _put_present(self, name: str, latent: Latent, terms: Terms) -> None:
        """Add how many data have each unit of a latent, and any of it: others are masked."""
        particles, rows = terms.log_q[name].shape[1:]
        # The mask of a prior that is summed over may move with what is summed out: the guide's.
        side = int(isinstance(latent.prior, MixedPrior))
        fn = latent.posterior if side else latent.prior
        said = Said(fn, latent.weights[side][1], latent.plates, latent.data)
        kept = said.kept(name, particles, rows, latent.value.device)
        if kept is None:
            kept = torch.ones(rows, dtype=torch.bool)
        self._put("units_there", name, kept.double().sum(0).cpu())
        self._put("there", name, kept.reshape(rows, -1).any(1).double().sum().cpu())

    def add_prior(self, piece: Pass, terms: Terms) -> None:
        """Add the reconstruction from codes of the prior."""
        joint = piece.joint
        trace = poutine.trace(joint.model).get_trace(*joint.args, **joint.kwargs)
        sites = dict(sample_sites(trace))
        # What the guide leaves out is summed out here too, and not drawn with the others.
        latents = {name: sites[name]["value"] for name in terms.latents}
        log_p = joint.fixing(latents).model_log_p({}, 1)
        told = sum(value.double() for name, value in log_p.items() if name not in latents)
        assert isinstance(told, Tensor)  # a program observes something
        self._put_reconstruction("prior", told[0], terms)
        if "observed" not in self.facts:
            names = [name for name, site in sites.items() if is_data(site)]
            self.facts["observed"] = {name: _kind(sites[name]["fn"]) for name in names}
        self.masked |= {name for name in piece.sites.enumerated if is_masked(sites[name])}

    def add_others(self, piece: Pass, terms: Terms) -> None:
        """Add the reconstruction of each datum from the code of another, of the same pass."""
        rows, joint = terms.batch_size, piece.joint
        if rows < 2:
            return
        with torch.random.fork_rng(cuda_devices(piece.batch)):  # other draws are as without it
            sites = dict(sample_sites(joint.guide_trace(1)))
            order = torch.randperm(rows)
        other = torch.empty_like(order).index_copy(0, order, order.roll(1))  # no datum is its own
        codes = {}
        for name in terms.latents:
            value, event = sites[name]["value"], len(sites[name]["fn"].event_shape)
            codes[name] = value.index_select(data_dim(sites[name]) - event, other.to(value.device))
        log_p = joint.fixing(codes).model_log_p({}, 1)
        told = sum(value.double() for name, value in log_p.items() if name not in codes)
        assert isinstance(told, Tensor)  # a program observes something
        self.others += rows
        self._put_reconstruction("other", told[0], terms)

    def _put_reconstruction(self, code: str, told: Tensor, terms: Terms) -> None:
        """Add what another code than a datum's own reconstructs, ``(B,)``, and what that gains."""
        gain = terms.log_likelihood().double().mean((0, 1)) - told
        self._put("reconstruction", code, told.sum())
        self._put("gain", code, gain.sum())
        self._put("gain_square", code, gain.square().sum())

    def add_summed(self, piece: Pass, particles: int) -> None:
        """Add what is known of the latents that are summed out, at draws of the guide."""
        names = [n for n in piece.sites.enumerated if n not in self.masked]
        if not names or piece.joint.alone:
            return
        joint = piece.joint.densities()
        try:
            with torch.random.fork_rng(cuda_devices(piece.batch)):  # other draws are as without it
                found = joint.posteriors_at(joint.guide_trace(particles), particles)
        except ProgramError:  # one sum for all data
            return
        for name in names:
            each = found[name].double().flatten(0, -2)
            self._put("shares", name, each.sum(0))
            self._put("entropy", name, torch.special.entr(each).sum())

    def _summed(self) -> dict[str, ValueUsage]:
        found = {}
        for name, total in self._of("shares").items():
            count, shares = total.sum(), total / total.sum()
            information = torch.special.entr(shares).sum() - self.sums["entropy", name] / count
            found[name] = ValueUsage(shares.cpu(), information.item())
        return found

    def note(self, piece: Pass, terms: Terms) -> None:
        """Note of what kind the latents are."""
        latents = {name: draws[0] for name, draws in terms.latents.items()}
        paths = {name: name not in terms.score for name in latents}
        sites = piece.sites
        alone = not sites.global_ and sites.num_plates == 1 and set(terms.log_q) == set(latents)
        self.facts |= {
            "kinds": {name: _kind(latent.posterior) for name, latent in latents.items()},
            "reparametrised": paths,
            "closed_form": tuple(analytic_sites(terms)) if all(paths.values()) else (),
            "weighted": tuple(name for name, latent in latents.items() if not is_plain(latent)),
            "refinable": alone
            and all(paths.values())
            and not any(checks.is_discrete(latent.prior) for latent in latents.values()),
        }

    def _put(self, quantity: str, site: str, value: Tensor) -> None:
        key = (quantity, site)
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def _of(self, quantity: str) -> dict[str, Tensor]:
        return {site: value for (kind, site), value in self.sums.items() if kind == quantity}

    def result(self, found: Information | None, shared: GlobalKL) -> Diagnosis:
        """Return the means."""
        n = self.rows
        kl = self._of("kl")
        spread = {
            name: (square / n - (kl[name] / n).square()).clamp(min=0) / max(1, n - 1)
            for name, square in self._of("square").items()
        }
        return Diagnosis(
            kl={name: (value / n).item() for name, value in kl.items()},
            unit_kl={name: (value / n).cpu() for name, value in self._of("unit_kl").items()},
            variance=self._in_order(self.moments.variance()),
            reconstruction=(self.sums["reconstruction", ""] / n).item(),
            kl_stderr={name: value.sqrt().item() for name, value in spread.items()},
            prior_reconstruction=(self.sums["reconstruction", "prior"] / n).item(),
            other_reconstruction=self._other(),
            gain_stderr=self._gain_stderr(),
            posterior_variance=self._in_order(self.moments.spread()),
            histogram=self._in_order(self.moments.histogram()),
            summed=self._summed(),
            codes={name: CodeUsage(value.cpu()) for name, value in self._of("codes").items()},
            information=found,
            rows=n,
            share={name: value.item() / n for name, value in self._of("there").items()},
            unit_share={name: value / n for name, value in self._of("units_there").items()},
            global_kl=shared.kl,
            global_kl_stderr=shared.stderr,
            **self.facts,
        )

    def _other(self) -> float:
        total = self.sums.get(("reconstruction", "other"))
        return math.nan if total is None else (total / self.others).item()

    def _gain_stderr(self) -> dict[str, float]:
        """Return the standard error over the data of what their own codes gain over others."""
        found = {}
        for code, square in self._of("gain_square").items():
            n = self.others if code == "other" else self.rows
            spread = square / n - (self.sums["gain", code] / n).square()
            found[code] = (spread.clamp(min=0) / (n - 1)).sqrt().item() if n > 1 else math.nan
        return found

    def _in_order(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return figures of sites in the order of the model, which a plot's colours follow."""
        return {name: found[name] for name in self.facts["kinds"] if name in found}


def _kind(fn: Any) -> str:
    """Return the name of a distribution, that of the base of a factorised or masked one."""
    while hasattr(fn, "reinterpreted_batch_ndims") or hasattr(fn, "_mask"):
        fn = fn.base_dist
    return type(fn).__name__


def _code_counts(latent: Any) -> Tensor | None:
    """Return how often each code of a discrete latent was drawn, ``(K,)``; None for others."""
    base = latent.posterior
    if hasattr(base, "numbers"):  # a vector-quantised latent
        codes = base.numbers(latent.value).flatten()
        return torch.bincount(codes, minlength=base.num_codes)
    while not hasattr(base, "logits") and getattr(base, "base_dist", None) is not None:
        base = base.base_dist
    name, value = type(base).__name__, latent.value
    if name.startswith("OneHotCategorical"):
        value = value.argmax(-1)
    elif not name.startswith("Categorical"):
        return None
    codes = value.long().flatten()
    return codes.new_zeros(base.logits.shape[-1]).index_add(0, codes, torch.ones_like(codes))
