"""Memory between blocks in use goes back to the system."""

import subprocess
import sys

import pytest

from pyro_vae import heap

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


# Each step makes and frees several blocks of 4 MB: 1,000 pages each, were they mapped anew.
STEPS = """
import resource
import pyro, torch
import pyro.distributions as dist
import pyro_vae as pv

def model(x):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc + z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))

def faults(*run):
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

found, x = [], torch.randn(16, 250_000)
program = pv.Program(model, guide)
pv.fit(program, x, epochs=6, batch_size=4, compile=False, callbacks=[faults], progress=False)
print((found[-1] - found[-3]) / 8)  # of a step
for _ in range(2):
    faults(pv.log_likelihood(program, x[:4], num_particles=1, progress=False))
print(found[-1] - found[-2])  # of a verb
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_blocks_of_a_step_serve_the_next():
    """The system clears no pages for a training step, nor for a pass of a verb, once they run."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    of_a_step, of_a_pass = map(float, done.stdout.split())
    assert of_a_step < 300 and of_a_pass < 300
