"""Memory between blocks in use goes back to the system."""

import subprocess
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae import heap
from pyro_vae.program import passes
from pyro_vae.training import step

# Blocks on glibc's heap, each with a small one behind it that stays; then all but one are freed.
GAPS = """
import ctypes
from pyro_vae import heap
c = ctypes.CDLL(None)
assert c.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before, blocks = heap.resident(), []
for _ in range(32):
    blocks.append(c.malloc(16 << 20))
    c.memset(blocks[-1], 1, 16 << 20)
    c.malloc(1 << 12)
for block in blocks[:-1]:
    c.free(block)
freed = heap.resident() - before
heap.release()
print(freed, heap.resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_gaps_between_blocks_in_use_are_given_back():
    """Of 512 MiB all but 16 are freed, and stay resident until they are released."""
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    freed, released = map(float, done.stdout.split())
    assert freed > 400 and released < 100


def test_what_grows_is_looked_at_less_often(monkeypatch):
    """A process that needs the memory is not asked at each batch to give it back."""
    asked = []
    sizes = iter(range(0, 100_000, 100))
    monkeypatch.setattr(heap, "resident", lambda: next(sizes))
    monkeypatch.setattr(heap, "release", lambda: asked.append(1))
    assert list(heap.released(range(30))) == list(range(30))
    assert 3 <= len(asked) <= 12


# Each step makes and frees four blocks of 4 MB: 4,000 pages, were they the system's each time.
STEPS = """
import resource, statistics, torch
from pyro_vae import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1_000_000) for _ in range(4)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def of_a_step():
    return statistics.median(faults() for _ in range(9))

heap.keep_freed_blocks()
print(of_a_step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_blocks_of_a_step_serve_the_next():
    """The system clears no pages for them: else 3,900, where none so large was freed."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


def test_training_and_verbs_keep_the_blocks(monkeypatch):
    asked = []
    for module in (step, passes):
        monkeypatch.setattr(module, "keep_freed_blocks", lambda m=module: asked.append(m))
    program, x = pv.models.LinearVAE(3, latent_dim=2), torch.randn(8, 3)
    pv.fit(program, x, epochs=1)
    assert step in asked
    asked.clear()
    pv.elbo(program, x)
    assert asked == [passes]
