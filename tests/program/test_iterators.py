"""Programs that draw on iterators: steps see what the steps of a plain loop of stock SVI see."""

import itertools
import queue
import random
import warnings

import numpy as np
import pyro
import pytest
import torch
from fed_by_iterators import EPOCHS, KINDS, STEPS, B, Fed, N, X, fed_by, filled, in_lines
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv
from pyro_vae.program.memory.iterators import exchanged
from pyro_vae.program.memory.noise import Noise
from pyro_vae.program.memory.own_state import OwnState


def plain(program, steps):
    """Return what the steps of a plain loop see."""
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 1e-9}), Trace_ELBO())
    for _ in range(steps):
        svi.step(X[:B])
    return program.seen


def kinds_of(program):
    return {name: type(home.it) for name, home in program.homes.items()}


def test_steps_see_what_those_of_a_plain_loop_see():
    """And the program has its own iterators after training: theirs goes on from here."""
    one, two = Fed(KINDS), Fed(KINDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(one, X, epochs=EPOCHS, batch_size=B, progress=False, compile=False)
    seen = plain(two, STEPS + 2)
    assert kinds_of(one) == kinds_of(two)
    assert {name: [step[name] for step in one.seen] for name in KINDS} == {
        name: [step[name] for step in seen[:STEPS]] for name in KINDS
    }
    assert plain(one, 2) == seen
    for home in (*one.homes.values(), *two.homes.values()):
        getattr(getattr(home.it, "__self__", home.it), "close", int)()


DEEP = {
    "in a list": (lambda _: {"all": [itertools.count(1)]}, lambda p: next(p.it["all"][0])),
    "bound": (lambda home: in_lines(home).readline, lambda p: len(p.it())),
    "queue": (lambda _: [(filled(queue.SimpleQueue()), 0)], lambda p: p.it[0][0].get(timeout=9)),
}


def test_steps_after_a_trace_that_fails_see_what_those_of_a_plain_loop_see():
    """The trace draws inside a look of its own, within which others begin and end."""
    one, two = Fed(DEEP), Fed(DEEP)
    with pytest.warns(UserWarning, match="runs eagerly"):
        pv.fit(one, X, epochs=EPOCHS, batch_size=B, progress=False, compile="trace")
    assert one.seen[-STEPS:] == plain(two, STEPS)
    for home in (one.homes["bound"], two.homes["bound"]):
        home.it.__self__.close()


def test_a_weight_that_an_iterator_gives_detached_is_written_to_by_no_draw():
    """It shares the memory of the weight, which a buffer that comes once more would put back."""

    def weights(program):
        while True:
            yield program.w.detach()

    program, seen = fed_by(weights, lambda home: 0 * next(home.it).item()), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
        see = lambda run: seen.append(program.w.item())  # noqa: E731
        pv.fit(
            program,
            X[:B],
            epochs=STEPS,
            batch_size=B,
            optimizer=optimizer,
            callbacks=[see],
            progress=False,
            compile=False,
        )
    ways = [X[:B].mean().item() + (1 - X[:B].mean().item()) * 0.95 ** (n + 1) for n in range(STEPS)]
    assert seen == pytest.approx(ways)


NOISES = {
    "torch": lambda: torch.randn(()).item(),
    "numpy": lambda: np.random.standard_normal(),  # noqa: NPY002
    "python": lambda: random.gauss(0.0, 1.0),
}


def noisy():
    made = {name: (lambda _, draw=draw: iter(draw, None)) for name, draw in NOISES.items()}
    return Fed({name: (make, lambda home: next(home.it)) for name, make in made.items()})


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def test_steps_have_noise_of_their_own():
    """Looks run under fixed seeds: of these no value comes to a step, and none comes twice."""
    programs, outside = [noisy() for _ in range(3)], []
    for program, seed in zip(programs, (5, 5, 6), strict=True):
        seeded(seed)
        for rows in (X, X[: N // 2]):
            pv.fit(program, rows, epochs=1, batch_size=B, progress=False, compile=False)
        outside.append([draw() for draw in NOISES.values()])
    for seed in (0, 1):
        seeded(seed)
        outside += [[draw() for draw in NOISES.values()] for _ in range(50)]
    seen = [[list(step.values()) for step in program.seen] for program in programs]
    assert seen[0] == seen[1]
    one_by_one = [each for step in (*seen[0], *seen[2], *outside[1:]) for each in step]
    assert len(set(one_by_one)) == len(one_by_one) == 3 * (2 * (N + N // 2) // B + 102)


def test_noise_that_looks_draw_ahead_is_distributed_as_that_of_steps():
    """Mean, variance, correlations: |z| > 5 of one of 12 is a false alarm in 140,000 runs."""
    seeded(0)
    program, values = noisy(), []
    state = OwnState(program.model, noise=Noise())
    for _ in range(400):
        with state.kept():
            seeded(0)
            assert [next(home.it) for home in program.homes.values()]
        values.append([next(home.it) for home in program.homes.values()])
        state.release()
    z = torch.tensor(values, dtype=torch.float64)
    sums = z, (z**2 - 1) / 2**0.5, z[1:] * z[:-1], z * z.roll(1, 1)
    assert max((each.sum(0).abs() / len(each) ** 0.5).max().item() for each in sums) < 5


class WithAMethodOfNamedTuples:
    """A class of a user's, and ours of parameters, may have one of this name too."""

    def _make(self):
        raise AssertionError("nobody asks")


def test_only_a_named_tuple_is_taken_for_one():
    value = WithAMethodOfNamedTuples()
    assert exchanged(value, lambda each: each) is value
