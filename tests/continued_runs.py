"""Data, settings and weights of runs that are stopped and go on."""

import torch

import pyro_vae as pv

X = torch.rand(48, 5, generator=torch.Generator().manual_seed(3))
BASE = {"epochs": 1, "batch_size": 16, "compile": False, "progress": False, "lr": 1e-3}


def weights(program):
    """Return a copy of all that a program would save."""
    return {k: v.clone() for k, v in pv.Program.of(program).state_dict().items()}


def same(a, b):
    """Return whether two of these are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
