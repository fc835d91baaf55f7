"""Programs of five other repositories that hold Pyro VAEs."""

import sys
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.gallery.loading import load
from benchmarks.gallery.subject import N, Published, Subject, binary, real


def plain_vae(path: Path) -> Subject:
    program = load(path, assign=()).VAE(z_dim=3, hidden_dim=8)
    return Subject(program.model, program.guide, binary(N, 1, 28, 28), N)


def cvae(path: Path) -> Subject:
    baseline = load(path.parent / "baseline.py").BaselineNet(5, 5)
    program = load(path).CVAE(2, 5, 5, baseline)
    images = binary(N, 28, 28)
    seen = images.clone()
    seen[:, 14:, :14] = -1.0
    return Subject(program.model, program.guide, (seen, images), N)


def causal_vae(path: Path) -> Subject:
    sys.path.insert(0, str(path.parent.parent))
    program = load(path).VAE(3, 2, 2, 6, 2, functional.elu, False).double()
    x = torch.cat([real(N, 2), binary(N, 3)], -1).double()
    data = ((x, binary(N).double(), real(N).double()),)  # one argument that is a triple
    return Subject(program.model, program.guide, data, N)


def names_vae(path: Path) -> Subject:
    sys.path.insert(0, str(path.parent.parent))
    program = load(path).FormatVAE(4, 3, 4)
    return Subject(program.model, program.guide, (["ann", "bob", "eve", "joe"],), 4)


ROWS = [
    Published("SwordShieldMouse/vae-pyro", "SwordShieldMouse/vae-pyro/architectures.py", plain_vae),
    Published("shenkev/Pyro-Tutorial", "shenkev/Pyro-Tutorial/7_VAE.py", plain_vae),
    Published("ucals/cvae", "ucals/cvae/src/cvae.py", cvae),
    Published("kim-hyunsu/CEVAE-pyro", "kim-hyunsu/CEVAE-pyro/model/vae.py", causal_vae),
    Published(
        "jason-yoo-108/FormatSSVAE",
        "jason-yoo-108/FormatSSVAE/FormatSSVAE/vae.py",
        names_vae,
    ),
]
