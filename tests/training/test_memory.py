"""Memory of a step is kept for the next one, and that of a run is given back."""

import gc
import platform
import subprocess
import sys

import pytest
import torch

import pyro_vae as pv

FAULTS = """
import resource
import torch
from pyro_vae.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory(torch.device("cpu"))
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_taken_again_without_page_faults():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    if before < 1000:
        pytest.skip("few faults either way: huge pages, or another allocator")
    assert after < before / 100


def test_nothing_grows_from_one_run_of_a_program_to_the_next():
    program = pv.models.VAE(6, 2, hidden=(4,))
    counts = []
    for runs in (3, 5):
        for _ in range(runs):
            pv.fit(program, torch.ones(8, 6), max_steps=2, compile="trace", progress=False)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 5
