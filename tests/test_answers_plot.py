"""Answers that a figure exists for draw it: ``.plot()`` is the function of `plots`."""

import numpy as np
import torch

import pyro_vae as pv


def test_a_run_draws_its_history():
    history = {"epoch": np.arange(3.0), "loss": np.array([3.0, 2.0, 1.0])}
    run = pv.Run(None, history, 3, 3, torch.device("cpu"))
    lines = [line for axes in run.plot().axes for line in axes.lines]
    assert [3.0, 2.0, 1.0] in [line.get_ydata().tolist() for line in lines]


def test_a_diagnosis_and_gaps_draw_themselves():
    vae = pv.models.VAE(4, 2, (3,))
    x = torch.ones(30, 4)
    found = pv.diagnose(vae, x)
    assert len(found.plot().axes) == len(pv.plots.diagnosis(found).axes)
    row = torch.tensor([1.0, 2.0])
    gaps = pv.Gaps(row, row - 1, row - 2, row / 9, row / 9, row / 9, "a", {"a": row}, row)
    assert len(gaps.plot().axes) == len(pv.plots.gaps(gaps).axes)
