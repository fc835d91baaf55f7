# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fast: handlers run once, tensors run many times
#
# A Pyro program is executed under *effect handlers*: each `pyro.sample` builds a message that
# travels through a stack of them. That is what lets one `model` be trained, replayed, conditioned
# and scored without being rewritten, and on a small network it takes longer than the arithmetic.
# But the handlers do the same thing at every step. This tutorial shows how `pv.fit` runs them once,
# what is left after that, what breaks it, and how to read the speed table of the docs.
#
# You should have seen tutorial 01. The full run takes two or three minutes on one CPU core.

# %%
import os
import statistics
import sys
import time
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
ROUNDS = 3 if SMOKE else 15  # rounds of interleaved blocks where steps are timed
BLOCK = 3 if SMOKE else 20  # steps per block
MODES = (False, "trace") if SMOKE else (False, "trace", True)  # True needs a C++ compiler
WIDTHS = (32, 64) if SMOKE else (32, 64, 128, 256, 512)
BLUE, RED, GREEN, GREY = "#332288", "#CC6677", "#117733", "#777777"

torch.set_num_threads(1)  # small steps get slower with more, most of all on a busy machine

# %% [markdown]
# ## 1. What a step does
#
# Here is a VAE, its loss, and the one function that matters: `CompiledLoss`. It runs model and
# guide under a tracer, which writes down every tensor operation, those of the backward pass
# included, and forgets everything else.

# %%
torch.manual_seed(0)
vae = pv.models.VAE(data_dim=64, latent_dim=8, hidden=(32,))
program = pv.Program.of(vae)
x = (torch.rand(64, 64) < 0.3).float()
program.read(x)  # looks at model and guide on one batch: which sites, which plate

loss = pv.CompiledLoss(pv.ELBO().per_datum, program, mode="trace")
with program.running():
    step = loss.prepare(x)
operations = [node for node in step.traced.graph.graph.nodes if node.op == "call_function"]
print(f"{len(operations)} tensor operations for loss and gradient; the first ones:\n")
print("\n".join(step.traced.graph.code.strip().splitlines()[1:9]))

# %% [markdown]
# No plate, no message, no distribution object, no autograd: a straight line of operations on
# tensors. The tracer alone would have left some 180 of them. What autograd leaves behind (views to
# the same shape, terms computed twice, constants) is taken out by rules that keep every bit, and
# the rest is called through PyTorch's own bindings.
#
# The numbers are the program's own. At equal noise they are *equal*, not close:

# %%
torch.manual_seed(1)
with program.running():
    eager = pv.ELBO().per_datum(program.joint(x))
eager.backward()
gradients = [p.grad.clone() for p in program.parameters()]

torch.manual_seed(1)
with program.running():
    traced, norm = loss.prepare(x).backward()  # sets .grad
print(f"eager {eager.item():.6f}, traced {traced.item():.6f} nats per datum")
assert torch.equal(eager.detach(), traced)
for gradient, parameter in zip(gradients, program.parameters(), strict=True):
    torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)

# %% [markdown]
# ## 2. What may change without a new graph
#
# Parameters, buffers, the batch and the KL weight β are *inputs* of the graph. So a schedule of β
# never makes a new one, noise is drawn anew at each call and follows the seed, and batch norm's
# running statistics move. A batch of another shape (the last one of an epoch) is a second graph:

# %%
with program.running():
    draws = [loss(x, beta=step / 10).item() for step in range(10)]
    print(f"ten values of β: {loss.num_graphs} graphs (one without a weight, one with)")
    loss(x[:40], beta=0.5)
    print(f"a ragged batch:  {loss.num_graphs} graphs")
assert len(set(draws)) == 10

# %% [markdown]
# ## 3. What it buys
#
# Times on a shared machine mean nothing one by one: a neighbour can make any of them ten times
# longer. So the variants take turns, block by block, and what is reported is the *median of the
# ratios within each round*. `Stepper` is what `pv.fit` runs at each step: loss and gradient, the
# check that all numbers are finite, Adam.


# %%
def stepper(width, mode):
    """Return a function that takes one training step of a 64-width-8 VAE."""
    torch.manual_seed(0)
    program = pv.Program.of(pv.models.VAE(64, 8, hidden=(width,)))
    program.read(x)
    steps = Stepper(program, pv.ELBO(), adam(1e-3), clip_norm=None, size=10_000, compile=mode)

    def block(times):
        with program.running(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's imports
            for _ in range(times):
                steps.step(x, None)

    block(3)  # traces, and compiles where asked to
    return block


def seconds(block):
    start = time.process_time()
    block(BLOCK)
    return (time.process_time() - start) / BLOCK


def compare(width):
    """Return microseconds of an eager step, and each mode's ratio to it."""
    blocks = {mode: stepper(width, mode) for mode in MODES}
    rounds = [{mode: seconds(block) for mode, block in blocks.items()} for _ in range(ROUNDS)]
    micro = 1e6 * statistics.median(r[False] for r in rounds)
    return micro, {m: statistics.median(r[m] / r[False] for r in rounds) for m in MODES}


table = {width: compare(width) for width in WIDTHS}
for width, (micro, ratios) in table.items():
    print(f"width {width:4d}: eager {micro:6.0f} µs", end="")
    print("".join(f", {mode!s:5s} x {ratio:.2f}" for mode, ratio in ratios.items()))

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for mode, colour in zip(MODES, (GREY, BLUE, RED), strict=False):
    name = {False: "False: handlers at each step", "trace": '"trace"', True: "True: compiled"}[mode]
    axis.plot(WIDTHS, [table[w][0] * table[w][1][mode] for w in WIDTHS], "o-", c=colour, label=name)
axis.set(xscale="log", yscale="log", xlabel="width of the hidden layers", ylabel="µs per step")
axis.set_xticks(WIDTHS, WIDTHS)
axis.minorticks_off()
figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
axis.set_title("One training step of a 64-width-8 VAE, batch 64", loc="left")
plt.show()

# %% [markdown]
# The gap between the lines is what handlers cost: about constant, so it counts where networks are
# small or layers many, and fades where matrix products take the time. That is how to read the table
# in the docs: look at the column of matrix products first. A program that spends nine tenths of
# its step in them cannot get much faster than it is, by any library.
#
# ## 4. What breaks it
#
# A tracer sees tensors, not Python. A program that *decides by a value* cannot be written down as a
# straight line:


# %%
class Clipped(nn.Module):
    """A VAE whose author looked at a number."""

    def __init__(self):
        super().__init__()
        self.code, self.rate = nn.Linear(64, 16), nn.Linear(8, 64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.rate(z)).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.code(x).chunk(2, -1)
        if log_scale.max() > 3:  # a value decides
            log_scale = log_scale.clamp(max=3)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    run = pv.fit(Clipped(), x, epochs=3, batch_size=32, compile="trace", progress=False)
print(caught[0].message)

# %% [markdown]
# It trained all the same, step by step, and one warning names the line. The cure is nearly always
# to let the tensor decide: here `clamp` alone, elsewhere `torch.where`. The usual suspects:
#
# | breaks the trace | write instead |
# |---|---|
# | `if value.max() > 3:` | `torch.where`, `clamp` |
# | `value.item()`, `float(value)`, `print(value)` | keep the tensor; look at it in a callback |
# | `one_hot(labels)` | `one_hot(labels, num_classes=10)` |
# | `x[mask]` | `torch.where(mask, x, 0)`, `poutine.mask` |
# | `random.random()`, NumPy's noise, a counter in Python | `torch.rand`; a buffer |
# | `x.numpy()`, a look-up in a NumPy table | a buffer, `table[rows]` |
#
# The last two lines are the ones to remember. What does not come from torch is a constant to the
# tracer, with no error to say so. That is why a graph is used only after a comparison: its loss,
# every gradient and every buffer that it writes to are those of the program at equal noise, on
# other rows and other weights, on the next batch, and again at steps ever further apart. Where the
# two disagree, or the graph raises an error, the program runs eagerly, and `run.compiled` says why.
#
# ## 5. Which mode
#
# | `compile=` | first step | then | take it |
# |---|---|---|---|
# | `False` | at once | handlers at each step | to debug: `print` works |
# | `"trace"` | some 0.2 s | the graph | bit-identical runs |
# | `True` | 5 to 60 s | the graph, compiled | long runs, sweeps (the compiler's cache is on disk) |
# | `"auto"` | at once | traced; compiled in the background where it pays | the default |
#
# `"auto"` traces, times the first steps, and where a minute or more is to go, starts *another
# process* that compiles the graph into the compiler's cache while training goes on. Once it is
# ready, both graphs take turns for a few blocks, and the faster one stays.

# %%
for mode in ("trace", "auto"):
    torch.manual_seed(0)
    vae = pv.models.VAE(64, 8, hidden=(32,))
    run = pv.fit(vae, x.repeat(8, 1), epochs=20, batch_size=64, compile=mode, progress=False)
    print(f"{mode!s:6s} loss {run.history['loss'][-1]:.6f} after {run.steps} steps")

# %% [markdown]
# A short run never waits for a compiler, so both are the same to the last bit. Two more switches
# belong here, each one argument of `pv.fit`: `precision="bf16-mixed"` runs the networks in
# bfloat16 and keeps densities and parameters in float32 (it pays on GPUs and on CPUs with matrix
# units), and `torchrun --nproc-per-node=8 train.py` runs an unchanged script on eight devices,
# whatever the mode.
#
# **To try:** raise `batch` to 1024 in section 3: where do the lines meet? Put a `print` into a
# model and count how often it speaks under each mode. Replace `torch.rand` by NumPy's in a
# program of yours, trace it, and read the warning.
