"""Distributions that Pyro lacks. Shapes: batch | event."""

from pyro_vae.distributions.ar1 import AR1, FlatSequence
from pyro_vae.distributions.autoregressive_bernoulli import AutoregressiveBernoulli
from pyro_vae.distributions.autoregressive_bits import AutoregressiveBits
from pyro_vae.distributions.bag_of_words import BagOfWords
from pyro_vae.distributions.bernoulli_array import BernoulliArray
from pyro_vae.distributions.censored_normal import CensoredNormal
from pyro_vae.distributions.chain import Chain
from pyro_vae.distributions.code_sequence import CodeSequence
from pyro_vae.distributions.codebook_vectors import Quantised, StraightThrough, nearest
from pyro_vae.distributions.columns import Columns
from pyro_vae.distributions.discretised_logistic import DiscretisedLogistic
from pyro_vae.distributions.fixed_mixture import FixedMixture
from pyro_vae.distributions.flow_gaussian import FlowGaussian
from pyro_vae.distributions.given_label import GivenLabel
from pyro_vae.distributions.implicit import Implicit
from pyro_vae.distributions.incomplete import Incomplete
from pyro_vae.distributions.mixture import Mixture
from pyro_vae.distributions.no_prior import NoPrior
from pyro_vae.distributions.padded import Padded
from pyro_vae.distributions.recurrent_chain import RecurrentChain
from pyro_vae.distributions.sentence import Sentence
from pyro_vae.distributions.squared_error import SquaredError

__all__ = [
    "AR1",
    "AutoregressiveBernoulli",
    "AutoregressiveBits",
    "BagOfWords",
    "BernoulliArray",
    "CensoredNormal",
    "Chain",
    "CodeSequence",
    "Columns",
    "DiscretisedLogistic",
    "FixedMixture",
    "FlatSequence",
    "FlowGaussian",
    "GivenLabel",
    "Implicit",
    "Incomplete",
    "Mixture",
    "NoPrior",
    "Padded",
    "Quantised",
    "RecurrentChain",
    "Sentence",
    "SquaredError",
    "StraightThrough",
    "nearest",
]
