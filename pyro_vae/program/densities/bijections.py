"""Maps from the line to the supports of latents."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, identity_transform

from pyro_vae.errors import ProgramError
from pyro_vae.program import checks


class Wrapped(Transform):
    r"""Coordinates on the line for angles: :math:`u \mapsto (u + \pi) \bmod 2 \pi - \pi`.

    Locally a shift, so that it has no Jacobian; a chain that walks on over the end of the interval
    comes back at the other.
    """

    domain = constraints.real
    codomain = constraints.interval(-math.pi, math.pi)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped)

    def __hash__(self) -> int:
        return hash(Wrapped)

    def _call(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


def transform_of(site: str, fn: Any, support: Any = None) -> Transform:
    """Return the map from the line to the support of a latent; angles wrap around.

    Arguments:
        site: Its name.
        fn: Its distribution.
        support: Where the distribution does not say.

    Raises:
        ProgramError: There is no such map.
    """
    kind = checks.distribution_name(fn)
    if kind == "VonMises":  # whose support is the line, as torch has it
        return Wrapped()
    support = fn.support if support is None else support
    try:
        return _plain(biject_to(_unmixed(support)))
    except NotImplementedError:
        raise ProgramError(
            f"site {site!r}: the support of {kind} is {support}, to which "
            "torch.distributions.biject_to has no map, expected one: register it "
            "(torch.distributions.biject_to.register), or sample on another support and transform "
            "the draw"
        ) from None


def _unmixed(support: Any) -> Any:
    """Return the support that all components of a mixture share, in place of the mixture's own.

    Raises:
        NotImplementedError: Each has another.
    """
    if isinstance(support, constraints.independent):
        return constraints.independent(
            _unmixed(support.base_constraint), support.reinterpreted_batch_ndims
        )
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _unmixed(_of_one_component(support.base_constraint, -1 - support.event_dim))
    return support


def _of_one_component(support: Any, dim: int) -> Any:
    """Return a support whose bounds have no dimension of the components, along which all are equal.

    Raises:
        NotImplementedError: They are not.
    """
    one = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, constraints.Constraint):
            setattr(one, name, _of_one_component(bound, dim))
        elif isinstance(bound, Tensor) and bound.dim() >= -dim:
            first = bound.select(dim, 0)
            if not bool((bound == first.unsqueeze(dim)).all()):
                raise NotImplementedError
            setattr(one, name, first)
    return one


def _plain(transform: Transform) -> Transform:
    """Return the identity for a transform that does nothing: its Jacobian is skipped."""
    inner = transform
    while hasattr(inner, "base_transform"):
        inner = inner.base_transform
    return identity_transform if inner is identity_transform else transform
