"""The memory of a run is given back."""

import gc

import torch

import pyro_vae as pv


def test_nothing_grows_from_one_run_of_a_program_to_the_next():
    program = pv.models.VAE(6, 2, hidden=(4,))
    counts = []
    for runs in (3, 5):
        for _ in range(runs):
            pv.fit(program, torch.ones(8, 6), max_steps=2, compile="trace", progress=False)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 5
