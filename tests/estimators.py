"""Small programs whose expectations are sums or quadratures, and what compares estimators to them.

A ``Toy`` is written twice: as a Pyro program, and as hand-written densities without Pyro. Its
parameters may carry a leading dimension of replicates, one per row of the batch: then one call of
an objective gives as many independent gradient samples as there are rows.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from oracles import LOG_2PI
from torch import Tensor, nn

from pyro_vae.program.densities.joint import Joint

Params = dict[str, Tensor]
Values = dict[str, Tensor]


def affine(h: Tensor, weight: Tensor) -> Tensor:
    """Return h @ weight, (..., B, L) by (L, D) or, replicated, (B, L, D)."""
    return (h.unsqueeze(-2) @ weight).squeeze(-2)


def bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    return (value * logits - nn.functional.softplus(logits)).sum(-1)


def normal(value: Tensor, loc: Tensor, log_scale: Tensor | float = 0.0) -> Tensor:
    log_scale = torch.as_tensor(log_scale, dtype=value.dtype)
    unit = (value - loc) * (-log_scale).exp()
    return (-0.5 * unit.square() - log_scale - 0.5 * LOG_2PI).sum(-1)


@dataclass(frozen=True)
class Toy:
    """z (or z2 -> z1) -> x with binary x, and a guide that may run in either direction.

    Arguments:
        bits: Bernoulli latents; else normal ones, with a non-linear decoder.
        sizes: Units of each latent in the model's order.
        guide: "top_down" draws in the model's order, "bottom_up" against it.
        data_dim: D.
    """

    bits: bool
    sizes: tuple[int, ...]
    guide_order: str = "top_down"
    data_dim: int = 3

    @property
    def names(self) -> list[str]:
        """Latents in the model's order: z1 stands next to x."""
        return [f"z{i}" for i in range(len(self.sizes), 0, -1)]

    @property
    def guide_names(self) -> list[str]:
        return self.names if self.guide_order == "top_down" else self.names[::-1]

    def params(self, seed: int) -> Params:
        """Draw parameters without replicates."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return 0.8 * torch.randn(*shape, generator=generator, dtype=torch.float64)

        size = dict(zip(self.names, self.sizes, strict=True))
        params: Params = {}
        for above, name in zip([None, *self.names], self.names, strict=False):
            params[f"p_{name}"] = draw(size[name])
            if above is not None:
                params[f"p_{name}_{above}"] = draw(size[above], size[name])
        params["p_x"] = draw(self.data_dim)
        params["p_x_z1"] = 1.5 * draw(size["z1"], self.data_dim)
        for before, name in zip([None, *self.guide_names], self.guide_names, strict=False):
            params[f"q_{name}"] = draw(size[name])
            params[f"q_{name}_x"] = draw(self.data_dim, size[name])
            if before is not None:
                params[f"q_{name}_{before}"] = draw(size[before], size[name])
            if not self.bits:
                params[f"q_{name}_scale"] = 0.4 * draw(size[name]) - 0.5
        return params

    def _feature(self, z: Tensor) -> Tensor:
        return z if self.bits else torch.tanh(1.5 * z) + 0.3 * z

    def prior(self, params: Params, name: str, z: Values) -> Tensor:
        """Return logits or loc of a latent (or of x) given the one above."""
        order = [*self.names, "x"]
        index = order.index(name)
        if index == 0:
            return params[f"p_{name}"]
        above = order[index - 1]
        return params[f"p_{name}"] + affine(self._feature(z[above]), params[f"p_{name}_{above}"])

    def posterior(self, params: Params, name: str, z: Values, x: Tensor) -> Tensor:
        """Return logits or loc of a latent of the guide."""
        index = self.guide_names.index(name)
        value = params[f"q_{name}"] + affine(x, params[f"q_{name}_x"])
        if index:
            before = self.guide_names[index - 1]
            value = value + affine(self._feature(z[before]), params[f"q_{name}_{before}"])
        return value

    # -- the Pyro program ------------------------------------------------------------------------

    def program(self, params: Params) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return model and guide with these parameters."""

        def law(value: Tensor, log_scale: Tensor | float = 0.0) -> Any:
            if self.bits:
                return dist.Bernoulli(logits=value).to_event(1)
            return dist.Normal(value, torch.as_tensor(log_scale, dtype=value.dtype).exp()).to_event(
                1
            )

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z: Values = {}
                for name in self.names:
                    z[name] = pyro.sample(name, law(self.prior(params, name, z)))
                logits = self.prior(params, "x", z)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z: Values = {}
                for name in self.guide_names:
                    scale = params.get(f"q_{name}_scale", 0.0)
                    z[name] = pyro.sample(name, law(self.posterior(params, name, z, x), scale))

        return model, guide

    # -- the same by hand ------------------------------------------------------------------------

    def log_p(self, params: Params, z: Values, x: Tensor) -> Tensor:
        density = bernoulli if self.bits else normal
        total = bernoulli(x, self.prior(params, "x", z))
        for name in self.names:
            total = total + density(z[name], self.prior(params, name, z))
        return total

    def log_q(self, params: Params, z: Values, x: Tensor) -> Tensor:
        total: Any = 0.0
        for name in self.guide_names:
            value = self.posterior(params, name, z, x)
            if self.bits:
                total = total + bernoulli(z[name], value)
            else:
                total = total + normal(z[name], value, params[f"q_{name}_scale"])
        return total

    def states(self) -> Values:
        """Return all states of the latents, (2^L, L) each."""
        return _split(binary_states(sum(self.sizes)), self.names, self.sizes)

    def draws(self, params: Params, x: Tensor, nodes: int = 24) -> tuple[Values, Tensor]:
        """Return points z and log masses (M,) that integrate over the guide, differentiably."""
        if self.bits:
            z = self.states()
            return z, self.log_q(params, z, x)
        eps, log_mass = gauss_hermite(sum(self.sizes), nodes)
        sizes = [dict(zip(self.names, self.sizes, strict=True))[n] for n in self.guide_names]
        noise = _split(eps, self.guide_names, sizes)
        z = {}
        for name in self.guide_names:
            scale = params[f"q_{name}_scale"].exp()
            z[name] = self.posterior(params, name, z, x) + scale * noise[name]
        return z, log_mass

    def log_weight(self, params: Params, x: Tensor, nodes: int = 24) -> tuple[Tensor, Tensor]:
        """Return log p - log q at the points that integrate over the guide, and log masses."""
        z, log_mass = self.draws(params, x, nodes)
        return self.log_p(params, z, x) - self.log_q(params, z, x), log_mass

    def evidence(self, params: Params, x: Tensor) -> Tensor:
        """Return log p(x): a sum over states, or quadrature over the prior."""
        z, log_mass = self.prior_draws(params)
        return (bernoulli(x, self.prior(params, "x", z)) + log_mass).logsumexp(0)

    def prior_draws(self, params: Params, nodes: int = 60) -> tuple[Values, Tensor]:
        """Return points z and log masses that integrate over the prior."""
        if self.bits:
            z = self.states()
            return z, sum(bernoulli(z[n], self.prior(params, n, z)) for n in self.names)
        eps, log_mass = gauss_hermite(sum(self.sizes), nodes)
        noise = _split(eps, self.names, self.sizes)
        z = {}
        for name in self.names:
            z[name] = self.prior(params, name, z) + noise[name]
        return z, log_mass


def _split(points: Tensor, names: list[str], sizes: Any) -> Values:
    return dict(zip(names, points.split(list(sizes), -1), strict=True))


def binary_states(bits: int) -> Tensor:
    """Return all rows of so many bits, (2^bits, bits)."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=bits)), dtype=torch.float64)


def gauss_hermite(dims: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes (nodes^dims, dims) and log weights of the standard normal law."""
    point, weight = np.polynomial.hermite_e.hermegauss(nodes)
    log_weight = torch.from_numpy(weight / math.sqrt(2 * math.pi)).log()
    grid = torch.cartesian_prod(*[torch.from_numpy(point)] * dims).reshape(-1, dims)
    mass = torch.cartesian_prod(*[log_weight] * dims).reshape(-1, dims).sum(-1)
    return grid, mass


# -- expectations of K draws ---------------------------------------------------------------------


def tuples(values: Tensor, count: int) -> Tensor:
    """Return all K-tuples of M values, (K, M^K)."""
    return torch.stack([g.reshape(-1) for g in torch.meshgrid(*[values] * count, indexing="ij")])


def expected(
    log_weight: Tensor, log_mass: Tensor, count: int, bound: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of ``bound(K log weights)``, over all K-tuples."""
    mass = tuples(log_mass, count).sum(0).exp()
    value = bound(tuples(log_weight, count))
    mean = (mass * value).sum()
    return mean, (mass * (value - mean).square()).sum().detach()


def mean_bound(log_weight: Tensor) -> Tensor:
    return log_weight.mean(0)


def iwae_bound(log_weight: Tensor) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def renyi_bound(alpha: float) -> Callable[[Tensor], Tensor]:
    def bound(log_weight: Tensor) -> Tensor:
        return iwae_bound((1 - alpha) * log_weight) / (1 - alpha)

    return bound


# -- comparing -----------------------------------------------------------------------------------


def replicate(params: Params, rows: int) -> Params:
    """Return one copy of the parameters per row, leaves of the graph."""
    return {
        name: p.detach().expand(rows, *p.shape).clone().requires_grad_()
        for name, p in params.items()
    }


def row_gradients(
    objective: Any, build: Callable[[Params], tuple[Any, Any]], params: Params, x: Tensor, rows: int
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch of R equal rows, and R gradients of minus the loss per row."""
    copies = replicate(params, rows)
    model, guide = build(copies)
    loss, size = objective.loss_of_joint(
        Joint(model, guide, (x.expand(rows, *x.shape),), num_plates=1, size=rows)
    )
    assert size == rows
    (-loss * rows).backward()
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.flatten(1)
        for name, p in copies.items()
    }
    return loss.item(), grads


def largest_z(samples: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the largest |z| of the means of R samples over all parameters and coordinates.

    A coordinate without variance must agree to 1e-9, else its |z| is infinite.
    """
    worst = 0.0
    for name, sample in samples.items():
        gap = (sample.mean(0) - exact[name].flatten()).abs()
        error = sample.std(0) / math.sqrt(len(sample))
        noisy = error > 1e-12
        if (gap[~noisy] > 1e-9).any() or not gap.isfinite().all():
            return math.inf
        if noisy.any():
            worst = max(worst, (gap[noisy] / error[noisy]).max().item())
    return worst


def gradient(value: Tensor, params: Params) -> dict[str, Tensor]:
    """Return d value / d parameter, zero where there is none."""
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(params.items(), grads, strict=True)
    }


def leaves(params: Params) -> Params:
    return {name: p.detach().clone().requires_grad_() for name, p in params.items()}
