"""Posteriors per datum: the guide's, and a fitted Gaussian's. Shapes: n draws, N data."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.arguments import positive
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.inference.posterior.gaussians import Gaussians
from pyro_vae.inference.posterior.local_fits import Fitted
from pyro_vae.program.batch import Batch, chunks, map_batch, num_rows
from pyro_vae.program.bounds import scoring
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.log_joint import LogJoint
from pyro_vae.program.program import Program

_ROWS_PER_PASS = 4096  # draws times data: bounds the memory
_MEAN_DRAWS = 64  # where a mean is an average over draws of the latents above
_TRANSFORMED_DRAWS = 1024  # where it is one over draws of the latent itself
Values = Tensor | dict[str, Tensor]  # one local latent: its tensor; several: by name


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


class PassPosterior:
    """What posteriors share that are asked pass by pass: each pass is all draws of some data."""

    def __init__(self, program: Program, batch: Batch) -> None:
        self.program = program
        self._batch = batch
        self._events: dict[str, torch.Size] = {}

    def __len__(self) -> int:
        return num_rows(self._batch)

    def sample(self, n: int = 1) -> Values:
        """Draw n values of the latents of each datum, ``(n, N, ...)``; a dict where several."""
        return self._answer(positive("n", n), self._draw)

    def log_weight(self, n: int = 1) -> Tensor:
        r"""Return :math:`\log p(x, z) - \log q(z)` at n draws per datum, ``(n, N)``, nats.

        Its mean over the draws estimates the ELBO, its log-mean-exp log p(x).
        """
        with scoring(self.program):
            parts = [
                torch.cat([self._weigh(piece, rows, k) for k in split])
                for piece, rows, split in self._passes(positive("n", n))
            ]
        return torch.cat(parts, 1)

    def log_prob(self, values: Any) -> Tensor:
        """Return the log density of latents ``(n, N, ...)``, ``(n, N)``, nats."""
        given = self._named(values)
        n = {len(value) for value in given.values()}.pop()
        with scoring(self.program):
            parts = [
                self._score(piece, rows, {k: v[:, rows] for k, v in given.items()})
                for piece, rows, _ in self._passes(n)
            ]
        return torch.cat(parts, 1)

    def _draw(self, batch: Batch, rows: slice, n: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def _weigh(self, batch: Batch, rows: slice, n: int) -> Tensor:
        raise NotImplementedError

    def _score(self, batch: Batch, rows: slice, values: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _passes(self, n: int) -> Iterator[tuple[Batch, slice, list[int]]]:
        """Yield pieces of the data, their rows, and the draws per pass."""
        width = max(1, min(len(self), _ROWS_PER_PASS // n))
        most = max(1, _ROWS_PER_PASS // width)
        split = [min(most, n - start) for start in range(0, n, most)]
        for start, piece in zip(
            range(0, len(self), width), chunks(self._batch, width), strict=True
        ):
            yield piece, slice(start, start + width), split

    def _answer(self, n: int, draw: Callable[..., dict[str, Tensor]]) -> Values:
        pieces = []
        with scoring(self.program):
            for piece, rows, split in self._passes(n):
                drawn = [draw(piece, rows, k) for k in split]
                pieces.append({name: torch.cat([d[name] for d in drawn]) for name in drawn[0]})
        return _single({name: torch.cat([p[name] for p in pieces], 1) for name in pieces[0]})

    def _named(self, values: Any) -> dict[str, Tensor]:
        """Return latents by site, checked.

        Raises:
            DataError: Not those of the program, or not ``(n, N, ...)``.
        """
        sites = self.program.sites.local
        given = dict(values) if isinstance(values, Mapping) else {sites[0]: values}
        if set(given) != set(sites):
            raise DataError(f"got values of {sorted(given)}, expected {sorted(sites)}")
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


class Amortised(PassPosterior):
    """The guide's own posterior: one pass through its networks.

    Arguments:
        program: Checked against the batch.
        batch: One row per datum.
    """

    def __init__(self, program: Program, batch: Batch) -> None:
        super().__init__(program, batch)
        if program.sites.num_plates > 1:
            raise ProgramError(
                "infer: the program has plates nested in 'data'; give its latents an event "
                "dimension in place of the plate (.to_event)"
            )
        if program.sites.enumerated and not program.sites.local:
            raise ProgramError(
                f"infer: site {program.sites.enumerated[0]!r} is summed out, and the guide draws "
                "no latent of a datum; pv.encode has the probabilities of its values"
            )
        _, guide = program.look(map_batch(lambda leaf: leaf[:1], batch))
        drawn = dict(sample_sites(guide))
        self._events = {name: drawn[name]["fn"].event_shape for name in program.sites.local}
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
        if self.program.sites.global_:  # one draw of them per pass
            passes = [self._answer(1, self._means) for _ in range(_MEAN_DRAWS)]
            values = _concatenated(passes)
        else:
            values = self._answer(1 if self._alone else _MEAN_DRAWS, self._means)
        if isinstance(values, dict):
            return {name: value.mean(0) for name, value in values.items()}
        return values.mean(0)

    def _draw(self, batch: Batch, rows: slice, n: int) -> dict[str, Tensor]:
        values = self.program.joint(batch).guide_values(n)
        return {
            name: values[name].reshape(n, num_rows(batch), *event)
            for name, event in self._events.items()
        }

    def _means(self, batch: Batch, rows: slice, n: int) -> dict[str, Tensor]:
        sites = dict(sample_sites(self.program.joint(batch).guide_trace(n)))
        return {
            name: _mean(name, sites[name]["fn"]).reshape(n, num_rows(batch), *event)
            for name, event in self._events.items()
        }

    def _weigh(self, batch: Batch, rows: slice, n: int) -> Tensor:
        return self.program.joint(batch).densities().terms(1, n).log_weight[0]

    def _score(self, batch: Batch, rows: slice, values: dict[str, Tensor]) -> Tensor:
        if self.program.sites.global_:
            raise ProgramError(
                f"log_prob: site {self.program.sites.global_[0]!r} is global, and q(z | x) an "
                "integral over it; ask program.terms for densities at one draw of it"
            )
        if self._auxiliary:
            raise ProgramError(
                f"log_prob: site {self._auxiliary[0]!r} is auxiliary in the guide, and q(z | x) an "
                "integral over it; use infer(..., how='local') for a posterior with a density"
            )
        n = len(next(iter(values.values())))
        return sum(self.program.joint(batch).densities().guide_log_q(values, n).values())  # type: ignore[return-value]


class LocalPosterior(PassPosterior):
    """A Gaussian per datum in unconstrained coordinates, as ``infer(how="local")`` fits it.

    Arguments:
        program, batch: What it was fitted to.
        fitted: The Gaussians, their steps and the globals that they are conditional on.
    """

    def __init__(self, program: Program, batch: Batch, fitted: Fitted) -> None:
        super().__init__(program, batch)
        self.gaussians = fitted.gaussians
        self.steps = fitted.steps
        self._globals = fitted.globals_
        with scoring(program):
            self._slots = {slot.name: slot for slot in self._density(batch).slots}
        self._events = {name: slot.event for name, slot in self._slots.items()}

    @property
    def mean(self) -> Values:
        """The posterior means, ``(N, ...)``: exact on the real line, else over 1024 draws."""
        if all(slot.plain for slot in self._slots.values()):
            return _single(
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
        return q, torch.randn((n, *q.loc.shape), dtype=q.loc.dtype, device=q.loc.device)

    def _draw(self, batch: Batch, rows: slice, n: int) -> dict[str, Tensor]:
        q, noise = self._noise(rows, n)
        return self._density(batch).unpack(q.place(noise))

    def _weigh(self, batch: Batch, rows: slice, n: int) -> Tensor:
        q, noise = self._noise(rows, n)
        # The Jacobian is in both densities.
        return self._density(batch).log_joint(q.place(noise)) - q.log_prob(noise)

    def _score(self, batch: Batch, rows: slice, values: dict[str, Tensor]) -> Tensor:
        density = self._density(batch)
        q = self.gaussians.at(rows)
        u = density.pack(values, len(next(iter(values.values()))))
        return q.log_prob(q.noise(u)) - density.log_jacobian(u)


def _single(values: dict[str, Tensor]) -> Values:
    return next(iter(values.values())) if len(values) == 1 else values


def _concatenated(parts: list[Any]) -> Values:
    """Return the draws of several passes over the same data as one."""
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


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
