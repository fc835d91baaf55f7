"""Networks whose output is a distribution, p(x | z) or q(z | x).

Each class wraps a network `net`: (*, input) -> (*, outputs) and returns a distribution with batch
(*) and, as event, one datum. Where a datum of shape (D,) or (C, H, W) needs several network outputs
per dimension, they lie side by side in the first dim, (width D,) or (width C, H, W), parameter by
parameter; `width(**options)` is that number, so that a program can size a network for any of them:

    decoder = Gaussian(MLP(20, widen((784,), Gaussian.width())))
"""

from typing import TYPE_CHECKING, NoReturn

from pyro_vae.conditionals.ar1_prior import AR1Prior
from pyro_vae.conditionals.column_kinds import Column
from pyro_vae.conditionals.continuous import Gaussian, IsotropicGaussian, Point, SquaredError
from pyro_vae.conditionals.discrete import Bernoulli, Categorical, DiscretisedLogistic
from pyro_vae.conditionals.experts import MixtureOfExperts, ProductOfExperts
from pyro_vae.conditionals.flows import InverseAutoregressiveFlow, PlanarFlow, SplineFlow
from pyro_vae.conditionals.imputation import LearnedConstant, SetEncoding, ZeroImputation
from pyro_vae.conditionals.made import MADE
from pyro_vae.conditionals.noise_fed import NoiseFed
from pyro_vae.conditionals.noncollapsing import (
    BatchNormGaussian,
    DeltaGaussian,
    FixedScaleGaussian,
)
from pyro_vae.conditionals.observations import (
    OBSERVATIONS,
    Observation,
    observation,
    observation_config,
)
from pyro_vae.conditionals.outputs import LOG_SCALE_LIMIT, bounded, widen
from pyro_vae.conditionals.posteriors import FullGaussian, LowRankGaussian
from pyro_vae.conditionals.priors import (
    FlowPrior,
    GaussianMixture,
    StandardNormal,
    VampPrior,
)
from pyro_vae.conditionals.states import Combiner, GatedTransition
from pyro_vae.distributions import AR1, Mixture
from pyro_vae.names import refuse as _refuse

__all__ = [
    "AR1",
    "LOG_SCALE_LIMIT",
    "MADE",
    "OBSERVATIONS",
    "AR1Prior",
    "BatchNormGaussian",
    "Bernoulli",
    "Categorical",
    "Column",
    "Combiner",
    "DeltaGaussian",
    "DiscretisedLogistic",
    "FixedScaleGaussian",
    "FlowPrior",
    "FullGaussian",
    "GatedTransition",
    "Gaussian",
    "GaussianMixture",
    "InverseAutoregressiveFlow",
    "IsotropicGaussian",
    "LearnedConstant",
    "LowRankGaussian",
    "Mixture",
    "MixtureOfExperts",
    "NoiseFed",
    "Observation",
    "PlanarFlow",
    "Point",
    "ProductOfExperts",
    "SetEncoding",
    "SplineFlow",
    "SquaredError",
    "StandardNormal",
    "VampPrior",
    "ZeroImputation",
    "bounded",
    "observation",
    "observation_config",
    "widen",
]


if not TYPE_CHECKING:  # as of the library itself

    def __getattr__(name: str) -> NoReturn:
        """Say what a conditional of another library is called here."""
        _refuse(__name__, name, __all__, {})
