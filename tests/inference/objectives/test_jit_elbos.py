"""Pyro's Jit losses train as the classes that they speed up."""

import programs
import pyro.infer
import pytest
import torch

import pyro_vae as pv

KINDS = ["Trace", "TraceMeanField", "TraceGraph", "TraceEnum"]


def weights(kind, **options):
    torch.manual_seed(0)
    vae = pv.models.VAE(6, 2, hidden=(8,))
    objective = getattr(pyro.infer, kind)(**options)
    pv.fit(vae, programs.binary(32), objective=objective, epochs=2, batch_size=16, progress=False)
    return [p.detach().clone() for p in vae.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_jit_loss_trains_as_its_plain_class(kind):
    options = {"max_plate_nesting": 1} if kind == "TraceEnum" else {"num_particles": 3}
    plain = weights(f"{kind}_ELBO", **options)
    jit = weights(f"Jit{kind}_ELBO", ignore_jit_warnings=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain, jit, strict=True))


def test_its_particles_count():
    one, three = (weights("JitTrace_ELBO", num_particles=k) for k in (1, 3))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
