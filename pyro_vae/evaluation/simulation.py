"""Data drawn from a model that may read the argument which it observes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.evaluation.site_values import known_mean
from pyro_vae.program.batches.batch import Batch, arguments, cuda_devices, map_rows
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import FAILURES, sample_sites
from pyro_vae.program.passes import Pass
from pyro_vae.program.program import Program
from pyro_vae.program.sites.roles import observed_names

_VALUES_ASKED = 3
Draw = Callable[[Callable[..., Any]], Callable[..., Any]]  # handlers that draw what is observed


def simulated(program: Program, piece: Pass, draw: Draw) -> tuple[Trace, Batch]:
    r"""Return a trace of the model with its observed sites drawn, and the rows that it ran on.

    A decoder of sequences may read the steps before from its argument, so that a first draw depends
    on the rows that were given. It is written into the argument and made again from the same random
    numbers until it stands:

    .. math:: x^{(r+1)} = f(x^{(r)}, \epsilon), \quad x = \lim x^{(r)}

    Step t stands after t rounds: these are the draws that a loop over the steps makes. A model that
    reads nothing of it is run twice, and no number changes. Rounds end where none brings a further
    value to rest. From the third on they begin from one state of what the program keeps from call
    to call: a scale that counts calls never stands.

    Arguments:
        program: Of the model.
        piece: Rows that give the other inputs.
        draw: Frees the observed sites of a model.

    Raises:
        ProgramError: The draws do not come to rest.
    """
    devices = cuda_devices(piece.batch)
    start = _random_state(devices)
    trace = _run(piece.joint, draw)
    bindings = piece.sites.bindings
    names = [name for name in observed_names(trace) if name in bindings]
    if not names or any(bindings[name].computed for name in names):
        return trace, piece.batch
    values = values_at(trace, names)
    rounds = left = 2 + sum(value.numel() for value in values.values()) // len(piece)
    most, least = 0, -1  # values at rest; of rounds from one state at least
    alike: Callable[[], AbstractContextManager[None]] = nullcontext
    while left:

        def run(values: Mapping[str, Tensor] = values) -> Trace:
            _set_random_state(start, devices)
            return _run(_on(program, piece, program.replace(piece.batch, dict(values))), draw)

        with alike():
            trace = run()
        again = values_at(trace, names)
        standing = torch.cat([_same(again[name], values[name]) for name in names])
        if standing.all():
            batch = program.replace(piece.batch, values)
            return (trace if alike is nullcontext else run()), batch  # and the program goes on
        # Of a model that reads what comes before, in any order, each round brings one to rest.
        if int(standing.sum()) < min(least, rounds - 2):
            break
        # Such draws may come to rest at nothing: counts whose total dwindles to 0.
        if least < 0 and _reads_itself(program, run, values):
            break
        alike, least = program.reader.runs.memory_kept, least + 1
        # A sampler that uses up a number of random numbers of its own moves the rows behind it.
        stand = int(standing.int().cumprod(0).sum())
        most, left = max(most, stand), rounds if stand > most else left - 1
        values = again
    raise ProgramError(
        f"site {names[0]!r}: its distribution depends on its own value, got draws that do not come "
        "to rest, expected a model that reads of the argument it observes what comes "
        "before; give what else it reads of the data (a total, say) as an argument of its own"
    )


def _reads_itself(
    program: Program, run: Callable[..., Trace], values: Mapping[str, Tensor]
) -> bool:
    """Return whether the mean of a value moves with that value, as with a total of all.

    Asked of a few values of each site, that of the largest mean among them: of counts beside their
    total it moves by the largest share.

    Arguments:
        program: Of the model.
        run: The model on rows with some values written in, at the same random numbers.
        values: By site.
    """

    def mean_of(name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        with program.reader.runs.memory_kept():
            site: Any = run(values).nodes[name]
        return known_mean(site["fn"])

    for name, value in values.items():
        mean = mean_of(name, values)
        if mean is None or mean.shape != value.shape:
            continue
        places = torch.linspace(0, value.numel() - 1, _VALUES_ASKED).long().tolist()
        for place in [int(mean.argmax()), *places]:
            other = value.clone()
            other.view(-1)[place] += value.abs().max().to(value.dtype) + 1
            try:
                after: Any = mean_of(name, {**values, name: other})
                moved = (after - mean).abs()
            except FAILURES:
                break  # it takes no such value
            if bool(moved.view(-1)[place] > 1e-4 * moved.max()):  # a convolution is off by rounding
                return True
    return False


def require_unread(program: Program, piece: Pass, draw: Draw) -> None:
    """Refuse a site that observes what the model computes from rows, and depends on these rows too.

    A draw cannot be written back there, so that the next step would be told the steps of the data.
    What the observed value is made of is read from its gradient, and moved between two draws of the
    same random numbers.

    Raises:
        ProgramError: The draws move.
    """
    bindings = piece.sites.bindings
    names = [n for n in piece.sites.observed if n not in bindings or bindings[n].computed]
    if not names:
        return
    devices = cuda_devices(piece.batch)
    with torch.random.fork_rng(devices):
        moved = _behind_computed(piece, names)
    if moved is None:
        return
    name, batch = moved
    found = []
    for rows in (piece.batch, batch):
        with torch.random.fork_rng(devices), program.reader.runs.memory_kept():
            found.append(values_at(_run(_on(program, piece, rows), draw), [name])[name])
    if not bool(_same(*found).all()):
        raise ProgramError(
            f"site {name!r}: observes a value that the model computes from its argument, and its "
            "distribution depends on that argument as well, so that drawn data cannot take the "
            "place of the given ones; observe the argument itself (transform the data before), or "
            "name an argument that has the value: Program(..., observed=)"
        )


def _behind_computed(piece: Pass, names: list[str]) -> tuple[str, Batch] | None:
    """Return a site whose observed value is computed, and rows with all behind that value moved.

    None where no gradient tells: whole numbers, data that the program holds, values from NumPy.
    """
    leaves: list[Tensor] = []

    def leaf(each: Tensor) -> Tensor:
        if not each.is_floating_point():
            return each
        leaves.append(each.detach().clone().requires_grad_())
        return leaves[-1]

    args, kwargs = arguments(map_rows(leaf, piece.batch))
    try:
        with torch.enable_grad():
            trace = poutine.trace(piece.joint.model).get_trace(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        return None
    if not leaves:
        return None
    for name in [name for name in names if name in trace.nodes]:
        value: Any = trace.nodes[name]["value"]
        if not value.requires_grad:
            continue
        # Weights of their own for each element: a sum of them may stand still.
        weights = torch.linspace(1, 2, value.numel(), device=value.device).reshape(value.shape)
        with torch.enable_grad():
            grads = torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True)
        shifts = iter([torch.zeros(()) if grad is None else (grad != 0) for grad in grads])

        def moved(each: Tensor, shifts: Iterator[Tensor] = shifts) -> Tensor:
            return each + next(shifts).to(each) if each.is_floating_point() else each

        return name, map_rows(moved, piece.batch)
    return None


def require_observed(program: Program, piece: Pass, values: Mapping[str, Tensor]) -> Batch:
    """Return rows with drawn values written into them, which the model is seen to observe.

    Raises:
        ProgramError: It observes something else: a value that it computes from its argument.
    """
    batch = program.replace(piece.batch, dict(values))
    joint = _on(program, piece, batch)
    found = dict(sample_sites(poutine.trace(joint.model).get_trace(*joint.args, **joint.kwargs)))
    for name, value in values.items():
        if not torch.allclose(found[name]["value"].to(value), value, 1e-4, 1e-5, equal_nan=True):
            raise ProgramError(
                f"site {name!r}: observes a value that the model computes from its argument, so "
                "that drawn data cannot be written back; observe the argument itself (transform "
                "the data before), or name an argument that has the value: Program(..., observed=)"
            )
    return batch


def _on(program: Program, piece: Pass, batch: Batch) -> Joint:
    joint = program.joint(batch)
    return joint.fixing(piece.globals_) if piece.globals_ else joint


def _run(joint: Joint, draw: Draw) -> Trace:
    return poutine.trace(draw(joint.model)).get_trace(*joint.args, **joint.kwargs)


def values_at(trace: Trace, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the values of some sites."""
    sites = dict(sample_sites(trace))
    return {name: sites[name]["value"] for name in names}


def _same(first: Tensor, second: Tensor) -> Tensor:
    """Return which values of two rounds agree, in the order of drawing.

    Up to rounding: a length may be summed from its means.
    """
    if first.shape != second.shape:
        return torch.zeros(1, dtype=torch.bool, device=first.device)
    return torch.isclose(first, second, 1e-5, 1e-6, equal_nan=True).flatten()


def _random_state(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]


def _set_random_state(state: list[Tensor], devices: list[torch.device]) -> None:
    torch.set_rng_state(state[0])
    for device, each in zip(devices, state[1:], strict=True):
        torch.cuda.set_rng_state(each, device)
