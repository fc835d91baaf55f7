"""Posteriors per datum: the guide's, and a fitted Gaussian's. Shapes: n draws, N data."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.inference.posterior.gaussians import Gaussians
from pyro_vae.inference.posterior.local_fits import Fitted
from pyro_vae.names import Answer
from pyro_vae.program import bounds
from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.densities.joining import Values, join_sites, single
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.looks.refusals import require_each, require_weights
from pyro_vae.program.passes import Pass, Passes, runs, scoring
from pyro_vae.program.sites.plates import inner_plates, of_datum
from pyro_vae.program.sites.roles import latent_names

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_ROWS_PER_PASS = 4096  # draws times data: bounds the memory
_ROWS_LOOKED_AT = 1024  # for the shapes of the sites
_MEAN_DRAWS = 64  # where a mean is an average over draws of the latents above
_TRANSFORMED_DRAWS = 1024  # where it is one over draws of the latent itself


class Posterior(Protocol):
    """What ``pv.infer`` returns: a distribution of the local latents of each datum."""

    def sample(self, n: int = 1) -> Values:
        """Draw n values of the latents of each datum, ``(n, N, ...)``."""
        ...

    @property
    def mean(self) -> Values:
        """The posterior means, ``(N, ...)``."""
        ...

    def log_prob(self, values: Any) -> Tensor:
        """Return the log density of latents ``(n, N, ...)``, ``(n, N)``, nats."""
        ...

    @typed
    def plot(self) -> "Figure":
        """Draw the posteriors."""
        ...


class PassPosterior(Answer):
    """What posteriors share that are asked pass by pass: each pass is all draws of some data.

    Arguments:
        passes: The data, checked; each question walks through them anew.
        held: Whether the globals are held elsewhere, and need no draws here.
    """

    _elsewhere: ClassVar = dict.fromkeys(("samples", "draws", "rsample"), "sample(n)")

    def __init__(self, passes: Passes, held: bool = False) -> None:
        self.program = passes.program
        self._data = passes
        self._batch = passes.batch
        self._held = held or not passes.sites.global_
        self._sites = passes.sites.local
        self._events: dict[str, torch.Size] = {}

    def __len__(self) -> int:
        return num_rows(self._batch)

    def __repr__(self) -> str:
        sites = ", ".join(self._sites)
        asked = ".mean, .sample(n), .log_prob(values), .log_weight(n)"
        return f"{type(self).__name__}({sites} of {len(self)} data: {asked})"

    @typed
    def sample(self, n: int = 1) -> Values:
        """Draw n values of the latents of each datum, ``(n, N, ...)``; a dict where several.

        Each of the n has a draw of the global latents of its own, which all data share.
        """
        return self._answer(positive("n", n), self._draw)

    @typed
    def log_weight(self, n: int = 1) -> Tensor:
        r"""Return :math:`\log p(x, z) - \log q(z)` at n draws per datum, ``(n, N)``, nats.

        Its mean over the draws estimates the ELBO, its log-mean-exp log p(x).
        """
        with self._walk(positive("n", n)) as passes:
            parts = [
                torch.cat([self._weigh(joint, piece, k) for joint, k in self._split(piece, n)])
                for piece in passes
            ]
        return torch.cat(parts, 1)

    def log_prob(self, values: Any) -> Tensor:
        """Return the log density of latents ``(n, N, ...)``, ``(n, N)``, nats."""
        given = self._named(values)
        n = {len(value) for value in given.values()}.pop()
        with self._walk(n) as passes:
            parts = [
                self._score(piece, {k: v[:, piece.rows] for k, v in given.items()})
                for piece in passes
            ]
        return torch.cat(parts, 1)

    def _draw(self, joint: Joint, piece: Pass, n: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def _weigh(self, joint: Joint, piece: Pass, n: int) -> Tensor:
        raise NotImplementedError

    def _score(self, piece: Pass, values: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _walk(self, n: int) -> Passes:
        """Return the passes of one question, at a draw of the globals for each of n draws."""
        rows = max(1, min(len(self), _ROWS_PER_PASS // n))
        return self._data.again(rows=rows, num_global_samples=1 if self._held else n)

    def _split(self, piece: Pass, n: int) -> list[tuple[Joint, int]]:
        """Return the pairs to ask on some data, and how many draws of each."""
        if not self._held:
            return [(joint, 1) for joint in piece.joints]
        if piece.sites.dependence.joined:
            return [(piece.joint, 1)] * n  # K particles share one value of such a site
        return [(piece.joint, k) for k in runs(n, piece.joint, piece, _ROWS_PER_PASS)]

    def _answer(self, n: int, draw: Callable[..., dict[str, Tensor]]) -> Values:
        pieces = []
        with self._walk(n) as passes:
            for piece in passes:
                drawn = [draw(joint, piece, k) for joint, k in self._split(piece, n)]
                pieces.append({name: torch.cat([d[name] for d in drawn]) for name in drawn[0]})
        return single(join_sites("infer", pieces, dim=1))

    def _named(self, values: Any) -> dict[str, Tensor]:
        """Return latents by site, checked.

        Raises:
            DataError: Not those of the program, or not ``(n, N, ...)``.
        """
        sites = self._sites
        given = dict(values) if isinstance(values, Mapping) else {sites[0]: values}
        if set(given) != set(sites):
            raise DataError(f"got values of {sorted(given)}, expected {sorted(sites)}")
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise DataError(f"site {name!r}: got {shown(value)}, expected a tensor")
        leading = {tuple(value.shape[:2]) for value in given.values()}
        if len(leading) != 1 or next(iter(leading))[1:] != (len(self),):
            raise DataError(
                f"got latents of leading shape {sorted(leading)}, expected (n, {len(self)}): n "
                "draws of each datum, as sample(n) returns them"
            )
        for name, event in self._events.items():
            if given[name].shape[2:] != event:
                raise DataError(
                    f"site {name!r}: got values of shape {tuple(given[name].shape)}, expected "
                    f"(n, {', '.join(map(str, (len(self), *event)))}), as sample(n) returns them"
                )
        return given

    @typed
    def plot(self) -> "Figure":
        """Draw the posterior means of all data in the plane."""
        from pyro_vae.plots import answers

        return answers.posterior_of_data(self)


class Amortised(PassPosterior):
    """The guide's own posterior: one pass through its networks.

    Arguments:
        passes: The data, checked.
    """

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes, held=bool(passes.program.held))
        first = bounds.passes(self.program, self._batch, _ROWS_LOOKED_AT)[0]
        _, guide = self.program.reader.look(first)
        drawn = dict(sample_sites(guide))
        self._sites = tuple(latent_names(guide))
        self._events = {
            name: of_datum(drawn[name], drawn[name]["value"], num_rows(first)).shape[2:]
            for name in self._sites
        }
        self._plates = {name: inner_plates(drawn[name]) for name in self._sites}
        latent = [
            name
            for name, site in drawn.items()
            if not site["is_observed"] and not site_is_subsample(site)
        ]
        self._alone = len(latent) == 1
        self._auxiliary = [name for name in latent if drawn[name]["infer"].get("is_auxiliary")]

    @property
    def mean(self) -> Values:
        r"""The posterior means, :math:`\mathbb{E}_q[z \mid x]`, ``(N, ...)``.

        Exact for one latent; below others (global and auxiliary ones too), an average of
        conditional means over draws.

        Raises:
            ProgramError: A latent's distribution has no mean.
        """
        values = self._answer(1 if self._alone else _MEAN_DRAWS, self._means)
        if isinstance(values, dict):
            return {name: value.mean(0) for name, value in values.items()}
        return values.mean(0)

    def _draw(self, joint: Joint, piece: Pass, n: int) -> dict[str, Tensor]:
        trace = joint.guide_trace(n)
        sites = dict(sample_sites(trace))
        return {
            name: of_datum(sites[name], sites[name]["value"], len(piece), n)
            for name in latent_names(trace)
        }

    def _means(self, joint: Joint, piece: Pass, n: int) -> dict[str, Tensor]:
        trace = joint.guide_trace(n)
        sites = dict(sample_sites(trace))
        return {
            name: of_datum(sites[name], self._mean(name, sites, piece), len(piece), n)
            for name in latent_names(trace)
        }

    @staticmethod
    def _mean(name: str, sites: dict[str, Any], piece: Pass) -> Tensor:
        """Return a latent's mean; that of the auxiliary site where it is the latent itself."""
        carrier = piece.sites.dependence.carried.get(name)
        if carrier is not None and torch.equal(sites[carrier]["value"], sites[name]["value"]):
            name = carrier
        return _mean(name, sites[name]["fn"])

    def _weigh(self, joint: Joint, piece: Pass, n: int) -> Tensor:
        require_each(piece.sites.dependence, "log_weight")
        require_weights(piece.sites.dependence, "log_weight")
        return joint.densities().terms(1, n).log_weight[0]

    def _score(self, piece: Pass, values: dict[str, Tensor]) -> Tensor:
        if piece.sites.global_:
            raise ProgramError(
                f"log_prob: site {piece.sites.global_[0]!r} is global, and q(z | x) an "
                "integral over it; ask program.terms for densities at one draw of it"
            )
        if self._auxiliary:
            raise ProgramError(
                f"log_prob: site {self._auxiliary[0]!r} is auxiliary in the guide, and q(z | x) an "
                "integral over it; use infer(..., how='local') for a posterior with a density"
            )
        joint = piece.joint.densities()
        n = len(next(iter(values.values())))
        placed = {name: joint.placed(value, self._plates[name]) for name, value in values.items()}
        return sum(joint.guide_log_q(placed, n, placed=True).values())  # type: ignore[return-value]


class LocalPosterior(PassPosterior):
    """A Gaussian per datum in unconstrained coordinates, as ``infer(how="local")`` fits it.

    Arguments:
        passes: The data that it was fitted to.
        fitted: The Gaussians, their steps and the globals that they are conditional on.
    """

    def __init__(self, passes: Passes, fitted: Fitted) -> None:
        super().__init__(passes, held=True)
        self.gaussians = fitted.gaussians
        self.steps = fitted.steps
        self._globals = fitted.globals_
        with scoring(self.program):
            first = self._density(bounds.passes(self.program, self._batch, 1)[0])
        self._slots = {slot.name: slot for slot in first.slots}
        self._sites = tuple(self._slots)
        self._events = {name: slot.event for name, slot in self._slots.items()}

    @property
    def mean(self) -> Values:
        """The posterior means, ``(N, ...)``: exact on the real line, else over 1024 draws."""
        if all(slot.plain for slot in self._slots.values()):
            return single(
                {
                    name: self.gaussians.loc[:, slot.columns].reshape(len(self), *slot.event)
                    for name, slot in self._slots.items()
                }
            )
        drawn = self.sample(_TRANSFORMED_DRAWS)
        if isinstance(drawn, dict):
            return {name: value.mean(0) for name, value in drawn.items()}
        return drawn.mean(0)

    def _density(self, batch: Batch) -> LogJoint:
        return LogJoint(self.program, batch, self._globals)

    def _noise(self, rows: slice, n: int) -> tuple[Gaussians, Tensor]:
        q = self.gaussians.at(rows)
        return q, q.standard_noise(n)

    def _draw(self, joint: Joint, piece: Pass, n: int) -> dict[str, Tensor]:
        q, noise = self._noise(piece.rows, n)
        return self._density(piece.batch).unpack(q.place(noise))

    def _weigh(self, joint: Joint, piece: Pass, n: int) -> Tensor:
        q, noise = self._noise(piece.rows, n)
        # The Jacobian is in both densities.
        return self._density(piece.batch).log_joint(q.place(noise)) - q.log_prob(noise)

    def _score(self, piece: Pass, values: dict[str, Tensor]) -> Tensor:
        density = self._density(piece.batch)
        q = self.gaussians.at(piece.rows)
        u = density.pack(values, len(next(iter(values.values()))))
        return q.log_prob(q.noise(u)) - density.log_jacobian(u) - density.log_masked(u)


def _mean(name: str, fn: Any) -> Tensor:
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError):
        mean = None
    if mean is None or bool(mean.isnan().all()):
        raise ProgramError(
            f"site {name!r}: {type(fn).__name__} has no known mean; average .sample(n), or count it"
        )
    return mean
