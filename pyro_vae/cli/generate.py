"""``pyro-vae generate``."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.cli.datasets import kind_of
from pyro_vae.cli.report import say
from pyro_vae.cli.runs import open_run
from pyro_vae.errors import ConfigError
from pyro_vae.storage.atomic import atomic_write_bytes


def generate(run: str, n: int = 64, mean: bool = True, seed: int = 0, device: str = "auto") -> None:
    """Draw images from a trained model: samples.png and samples.npz in its run folder.

    Arguments:
        run: run folder.
        n: number of images.
        mean: the means of p(x | z); false draws from it.
        seed: of the draws.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = open_run(run, device)
    if kind_of(settings["model"]) != "images":
        raise ConfigError(f"generate: {settings['model']} draws no images; use pyro_vae.generate")
    torch.manual_seed(seed)
    drawn: Any = pv.generate(program, n, mean=mean)
    shape = (1, 8, 8) if settings["data"] == "digits" else (1, 28, 28)
    images = drawn.cpu().reshape(n, *shape)
    folder = Path(run)
    pv.plots.save(pv.plots.samples(images, title=sample_title(n, mean)), folder / "samples.png")
    _write_npz(folder / "samples.npz", images)
    say(f"written to {folder / 'samples.png'} and {folder / 'samples.npz'}")


def sample_title(n: int, mean: bool) -> str:
    """Return the title of a figure of draws."""
    return f"{n} draws from the prior" + (", decoded to E[x | z]" if mean else "")


def _write_npz(path: Path, images: torch.Tensor) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy())
    atomic_write_bytes(path, buffer.getvalue())
