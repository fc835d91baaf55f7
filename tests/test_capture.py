"""No step waits for a GPU, and no graph holds what a CUDA graph cannot capture."""

from contextlib import suppress
from functools import partial

import programs
import pytest
import torch
from capturing import Capturing
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluation import likelihood
from pyro_vae.inference.graphs import density_graphs
from pyro_vae.inference.sampling.hmc import hmc_init, hmc_step, log_prob_and_grad
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.handlers import validation
from pyro_vae.program.passes import Verb
from pyro_vae.training import adam as adam_
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

STEPS = {
    "vae": ("vae", pv.ELBO),
    "layers": ("hierarchical", pv.ELBO),
    "convolutions": ("vae_conv", pv.ELBO),
    "importance weights": ("vae", lambda: pv.IWAE(3)),
    "a chain": ("dmm", pv.ELBO),
    "discrete": ("sbn", lambda: pv.VIMCO(2)),
    "summed out": ("m2", lambda: pv.SemiSupervised(1.0)),
    "buffers": ("regularised", pv.ELBO),
    "two updates": ("vae", lambda: pv.ReweightedWakeSleep(2, sleep=0.5)),
}


@pytest.fixture
def where(device, monkeypatch):
    """Return the GPU, if there is one, or what stands for it."""
    if device.type == "cuda":
        return device
    monkeypatch.setattr(adam_, "fused_adam_", fused_adam_on_meta)
    return torch.device("meta")


def fused_adam_on_meta(*lists, lr, **options):
    """Take the rate as a number: with one in a tensor PyTorch has no kernel for meta."""
    assert not isinstance(lr, torch.Tensor) or lr.is_meta
    torch._fused_adam_(*lists, lr=1.0 if isinstance(lr, torch.Tensor) else lr, **options)


def stepper_of(name, objective, where, mode, clip_norm=1.0):
    torch.manual_seed(0)
    made, data = programs.made(name, where, torch.float32, rows=12)
    program = pv.Program.of(made)
    program.read(data)
    program.train()
    stepper = Stepper(
        program, objective, adam(1e-2), clip_norm=clip_norm, size=12, compile=mode, steps=1000
    )
    stepper._deferred = True  # as on CUDA, which meta is not
    return stepper, data


def captured(stepper, data, steps=2):
    """Return what is found in steps that come after those which trace and compare."""
    with stepper.program.running(), validation(False), stepper.in_a_row():
        for _ in range(3):
            stepper.step(data, 0.3)
        with Capturing() as capturing:
            for _ in range(steps):
                stepper.step(data, 0.3)
    assert capturing.operators
    return capturing


# Those of updates and of sums take seconds to trace, and hold no other operators.
GRAPHS = sorted(set(STEPS) - {"two updates", "summed out"})


@pytest.mark.parametrize(("kind", "clip_norm"), [("vae", None), *((k, 1.0) for k in GRAPHS)])
def test_a_step_by_its_graph_is_on_the_device_alone(kind, clip_norm, where):
    """Row to weights: no wait, no copy, no tensor made on the host; given direct or clipped."""
    name, objective = STEPS[kind]
    stepper, data = stepper_of(name, objective(), where, "trace", clip_norm)
    capturing = captured(stepper, data)
    assert stepper.compiled == "graph"
    assert capturing.of("wait", "copy", "host") == []


# The losses of all programs are looked at in test_contract.
@pytest.mark.parametrize("kind", sorted(set(STEPS) - {"layers", "convolutions", "a chain"}))
def test_an_eager_step_does_not_wait_for_the_device(kind, where):
    """Plates of Pyro count their rows on the host, in tensors that stay there."""
    name, objective = STEPS[kind]
    stepper, data = stepper_of(name, objective(), where, False)
    assert captured(stepper, data, steps=1).of("wait", "copy") == []


def test_a_step_that_looks_at_its_loss_at_once_is_seen(where):
    stepper, data = stepper_of("vae", pv.ELBO(), where, "trace")
    captured(stepper, data)
    stepper._deferred = False
    with (
        stepper.program.running(),
        validation(False),
        Capturing() as capturing,
        pytest.raises(RuntimeError),
    ):
        stepper.step(data, 0.3)
    (found,) = capturing.of("wait")
    assert found.startswith("_local_scalar_dense at step.py:")


class Planted(nn.Module):
    """A VAE whose decoder does one thing more."""

    def __init__(self, odd):
        super().__init__()
        self.vae, self.odd = pv.models.VAE(6, 2, hidden=(4,)), odd

    def model(self, x):
        self.odd(x)
        return self.vae.model(x)

    def guide(self, x):
        return self.vae.guide(x)


FAULTS = {
    ".item()": ("wait", lambda x: x.sum().item()),
    "if": ("wait", lambda x: bool(x.sum() > 0)),
    ".tolist()": ("copy", lambda x: x.sum(0).tolist()),
    "mask": ("wait", lambda x: x[x > 0]),
    "write by a mask": ("wait", lambda x: x.clone().index_put_((x > 0,), x.sum())),
    "nonzero": ("wait", lambda x: x.nonzero()),
    "unique": ("wait", lambda x: x.unique()),
    "equal": ("wait", lambda x: torch.equal(x, x + 1)),
    "cholesky": ("wait", lambda x: torch.linalg.cholesky(torch.eye(2, device=x.device))),
    "synchronize": ("wait", lambda x: torch.cuda.synchronize()),
    ".cpu()": ("copy", lambda x: x.cpu()),
    ".to()": ("copy", lambda x: torch.zeros(3).to(x.device)),
    "torch.tensor on the device": ("copy", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
    "torch.tensor": ("host", lambda x: x * torch.tensor(2.0)),
    "a host tensor": ("host", lambda x: torch.arange(3)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_planted_is_found(fault, where):
    kind, odd = FAULTS[fault]
    x = torch.ones(12, 6, device=where)
    refused = suppress(RuntimeError, NotImplementedError)  # by meta, which has no values
    with Capturing() as capturing, refused:
        odd(x)
    assert capturing.of(kind), capturing.found


def test_particles_of_a_likelihood_do_not_wait(where):
    made, x = programs.made("vae", where, torch.float32, rows=12)
    verb = Verb("log_likelihood", prior=True, each=True, guide="weight")
    program = pv.Program.of(made)
    with (
        program.passes(x, verb, rows=12, num_global_samples=1) as passes,
        torch.no_grad(),
        Capturing() as capturing,
    ):
        passes.map(lambda piece: likelihood._fold(piece, 50, set()), progress=False)
    assert capturing.operators and capturing.of("wait", "copy") == []


def test_a_transition_of_hmc_is_on_the_device_alone(where):
    made, x = programs.made("vae", where, torch.float32, rows=12)
    program = pv.Program.of(made)
    program.eval()
    with program.running(), validation(False):
        log_joint = LogJoint(program, x)
        start = torch.zeros(3, 12, log_joint.dim, device=where)
        graph = density_graphs._trace(
            log_joint, x, lambda joint: partial(log_prob_and_grad, joint.log_joint), start, ()
        )
        density = density_graphs.TracedDensity(partial(density_graphs._run, graph, x))
        state = hmc_init(density, start)
        with Capturing() as capturing:
            hmc_step(state, density, torch.full((12,), 0.1, device=where), 4, jitter=0.2)
    assert capturing.operators and capturing.of("wait", "copy", "host") == []


DRAWS = {  # of a verb, by their number
    "refine": lambda made, x, n: pv.refine(
        made, x, pv.HMC(num_draws=4 + n, warmup=4, chains=2, num_leapfrog=1)
    ),
    "ais": lambda made, x, n: pv.ais(
        made, x, pv.AIS(num_temperatures=n, chains=2, num_leapfrog=1, pilot=4)
    ),
    "log_likelihood": lambda made, x, n: pv.log_likelihood(made, x, num_particles=600 * n),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of chains too short to mix
@pytest.mark.parametrize("verb", DRAWS)
def test_a_verb_does_not_wait_for_each_of_its_draws(verb, device):
    """It does for each pass, to look at rows and at what came out."""
    made, x = programs.made("vae", device, torch.float32, rows=12)
    counts, operators = [], []
    for draws in (4, 4, 16):  # the first call also looks at the program
        with Capturing(waits_alone=True) as capturing:
            DRAWS[verb](made, x, draws)
        counts.append(sum(kind == "wait" for kind, _ in capturing.found))
        operators.append(capturing.operators)
    assert operators[2] > operators[1] and 0 < counts[2] <= counts[1]
