"""Encoders and decoders leave as graphs of tensors: ``torch.export``, and back from a file."""

import warnings

import pyro
import pytest
import torch
from torch import nn

import pyro_vae as pv

C = pv.conditionals
POSTERIORS = {
    "gaussian": (C.Gaussian, lambda q: (q.base_dist.loc, q.base_dist.scale)),
    "fixed scale": (C.FixedScaleGaussian, lambda q: (q.base_dist.loc, q.base_dist.scale)),
    "delta": (C.DeltaGaussian, lambda q: (q.base_dist.loc, q.base_dist.scale)),
    "batch norm": (C.BatchNormGaussian, lambda q: (q.base_dist.loc, q.base_dist.scale)),
    "full": (C.FullGaussian, lambda q: (q.loc, q.scale_tril)),
    "low rank": (C.LowRankGaussian, lambda q: (q.loc, q.cov_factor)),
}


class Parts(nn.Module):
    """What a distribution holds, as tensors."""

    def __init__(self, net, parts):
        super().__init__()
        self.net, self.parts = net, parts

    def forward(self, x):
        return self.parts(self.net(x))


def exported(net, x, tmp_path=None):
    rows = torch.export.Dim("rows", min=2)
    with pyro.validation_enabled(True):
        program = torch.export.export(
            net.eval(), (x,), dynamic_shapes=((rows, *[None] * (x.dim() - 1)),)
        )
    return program


@pytest.mark.parametrize("kind", POSTERIORS)
def test_an_encoder_is_exported_with_validation_on(kind):
    posterior, parts = POSTERIORS[kind]
    vae = pv.models.VAE(6, 2, (4,), posterior=posterior)
    net, other = Parts(vae.encoder, parts), torch.rand(7, 6).round()
    graph = exported(net, torch.rand(5, 6)).module()
    with torch.no_grad():
        for found, expected in zip(graph(other), net(other), strict=True):
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(graph(other)[0], pv.encode(vae, other))


def test_images_travel_through_a_file(tmp_path):
    vae = pv.models.VAE((1, 8, 8), 2, network="conv")
    encoder = Parts(vae.encoder, POSTERIORS["gaussian"][1])
    decoder = Parts(vae.decoder, lambda p: (p.mean,))
    x = torch.rand(3, 1, 8, 8)
    for name, net, given in (("encoder", encoder, x), ("decoder", decoder, torch.randn(3, 2))):
        torch.export.save(exported(net, given), tmp_path / f"{name}.pt2")
        graph = torch.export.load(tmp_path / f"{name}.pt2").module()
        with torch.no_grad():
            torch.testing.assert_close(graph(given)[0], net(given)[0])


def test_a_traced_encoder_gives_the_codes():
    vae = pv.models.VAE(6, 2, (4,))
    encoder, x = Parts(vae.encoder, POSTERIORS["gaussian"][1]).eval(), torch.rand(5, 6).round()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and branches on validation
        graph = torch.jit.trace(encoder, x)
    torch.testing.assert_close(graph(x)[0], pv.encode(vae, x))


def test_an_encoder_outside_of_an_export_is_validated():
    encoder = pv.models.VAE(6, 2, (4,)).encoder
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="loc"):
        encoder(torch.full((2, 6), torch.nan))
