"""Networks whose output is a distribution, p(x | z) or q(z | x).

Each class wraps a network `net`: (*, input) -> (*, outputs) and returns a distribution with batch
(*) and, as event, one datum. Where a datum of shape (D,) or (C, H, W) needs several network outputs
per dimension, they lie side by side in the first dim, (width D,) or (width C, H, W), parameter by
parameter; `width(**options)` is that number, so that a program can size a network for any of them:

    decoder = Gaussian(MLP(20, widen((784,), Gaussian.width())))
"""

from pyro_vae.conditionals.continuous import Gaussian, IsotropicGaussian, Point, SquaredError
from pyro_vae.conditionals.discrete import Bernoulli, Categorical, DiscretisedLogistic
from pyro_vae.conditionals.observations import (
    OBSERVATIONS,
    Observation,
    observation,
    observation_config,
)
from pyro_vae.conditionals.outputs import LOG_SCALE_LIMIT, bounded, widen

__all__ = [
    "LOG_SCALE_LIMIT",
    "OBSERVATIONS",
    "Bernoulli",
    "Categorical",
    "DiscretisedLogistic",
    "Gaussian",
    "IsotropicGaussian",
    "Observation",
    "Point",
    "SquaredError",
    "bounded",
    "observation",
    "observation_config",
    "widen",
]
