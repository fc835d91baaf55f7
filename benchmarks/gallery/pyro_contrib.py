"""The programs that Pyro's wheel ships: built from the installed package, no checkout needed."""

from pathlib import Path

import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.contrib.cevae import CEVAE, TraceCausalEffect_ELBO
from pyro.contrib.mue.models import FactorMuE, ProfileHMM
from pyro.nn import PyroSample

from benchmarks.gallery.subject import (
    NO_CODE,
    N,
    Published,
    Subject,
    binary,
    one_hot,
    real,
)


def cevae(_: Path | None = None) -> Subject:
    program = CEVAE(feature_dim=4, latent_dim=2, hidden_dim=6, num_layers=2)
    data = {"x": real(N, 4), "t": binary(N), "y": binary(N, p=0.6)}
    return Subject(program.model, program.guide, data, N, objective=TraceCausalEffect_ELBO)


def _sequences() -> torch.Tensor:
    return one_hot(8 * 3, 4).reshape(8, 3, 4)


def profile_hmm(_: Path | None = None) -> Subject:
    program = ProfileHMM(latent_seq_length=3, alphabet_length=4, indel_prior_bias=2.0)
    return Subject(program.model, program.guide, (_sequences(), torch.tensor(1.0)), 8)


def factor_mue(_: Path | None = None) -> Subject:
    program = FactorMuE(
        data_length=3, alphabet_length=4, z_dim=2, latent_seq_length=3, indel_prior_bias=2.0
    )
    data = _sequences(), torch.tensor(1.0), torch.tensor(1.0)
    return Subject(program.model, program.guide, data, 8)


def sparse_gp(_: Path | None = None) -> Subject:
    start = real(6, 2)
    base = gp.models.SparseGPRegression(
        start,
        real(3, 6),
        gp.kernels.RBF(input_dim=2, lengthscale=torch.ones(2)),
        start[:3].clone(),
        noise=torch.tensor(0.1),
        jitter=1e-4,
    )
    base.X = PyroSample(dist.Normal(start, 0.1).to_event())
    base.autoguide("X", dist.Normal)
    return Subject(base.model, base.guide, (), 1, joint=True)


def gplvm(_: Path | None = None) -> Subject:
    start = real(6, 2)
    base = gp.models.SparseGPRegression(
        start,
        real(3, 6),
        gp.kernels.RBF(input_dim=2, lengthscale=torch.ones(2)),
        start[:3].clone(),
        noise=torch.tensor(0.1),
        jitter=1e-4,
    )
    program = gp.models.GPLVM(base)
    return Subject(program.model, program.guide, (), 1, joint=True)


ROWS = [
    Published("contrib.cevae", "", cevae),
    Published("contrib.mue ProfileHMM", "", profile_hmm, NO_CODE),
    Published("contrib.mue FactorMuE", "", factor_mue),
    Published("contrib.gp SparseGPRegression", "", sparse_gp, NO_CODE),
    Published("contrib.gp GPLVM", "", gplvm, NO_CODE),
]
