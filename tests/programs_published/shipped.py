"""Programs that Pyro ships."""

from collections.abc import Callable

import pyro.contrib.gp as gp
import torch
from pyro.contrib.cevae import CEVAE
from pyro.contrib.mue.models import FactorMuE, ProfileHMM
from torch import Tensor

from programs_published.pair import N, Pair, rows_of_two


def causal() -> Pair:
    """``pyro.contrib.cevae``: keywords, observed sites in the guide, plates with a subsample."""
    program = CEVAE(feature_dim=3, latent_dim=2, hidden_dim=4, num_layers=2)
    x = torch.cat([rows_of_two(), rows_of_two()[:, :1] ** 2], -1)
    data = {"x": x, "t": (torch.arange(N) % 2).float(), "y": (torch.arange(N) % 3 > 0).float()}
    # Both parts call a network y0_nn: stock Pyro's store holds one of them under the two names.
    return Pair(program.model, program.guide, data, weighted=True, hidden=True)


def _letters() -> Tensor:
    return torch.eye(3)[torch.arange(N * 3).reshape(N, 3) % 5 % 3]


def profile() -> Pair:
    """``pyro.contrib.mue``: globals alone, a hidden Markov model as one distribution."""
    program = ProfileHMM(latent_seq_length=3, alphabet_length=3, indel_prior_bias=2.0)
    return Pair(program.model, program.guide, (_letters(), torch.tensor(1.0)), code=None)


def factor_sequences() -> Pair:
    """``pyro.contrib.mue``: globals, a local latent, two weights that are no rows."""
    program = FactorMuE(
        data_length=3, alphabet_length=3, z_dim=2, latent_seq_length=3, indel_prior_bias=2.0
    )
    data = _letters(), torch.tensor(1.0), torch.tensor(1.0)
    return Pair(program.model, program.guide, data, code="latent")


def latent_inputs() -> Pair:
    """``pyro.contrib.gp``: a GPLVM, which holds its data and has no plate."""
    kernel = gp.kernels.RBF(2, lengthscale=torch.ones(2))
    x = rows_of_two()
    base = gp.models.SparseGPRegression(x, x.t().contiguous(), kernel, x[:3].clone())
    program = gp.models.GPLVM(base)
    return Pair(program.model, program.guide, (), rows=1, code=None, whole=True)


def inducing_points() -> Pair:
    """``pyro.contrib.gp``: a variational sparse Gaussian process."""
    x = rows_of_two()
    program = gp.models.VariationalSparseGP(
        x, x[:, 0].sin(), gp.kernels.RBF(2), x[:3].clone(), likelihood=gp.likelihoods.Gaussian()
    )
    return Pair(program.model, program.guide, (), rows=1, code=None, whole=True)


PAIRS: dict[str, Callable[[], Pair]] = {
    "causal": causal,
    "profile": profile,
    "factor_sequences": factor_sequences,
    "latent_inputs": latent_inputs,
    "inducing_points": inducing_points,
}
