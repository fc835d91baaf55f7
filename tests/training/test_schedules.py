"""Schedules at their ends, in between, and against bad arguments."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from pyro_vae.errors import ConfigError
from pyro_vae.training import schedules
from pyro_vae.training.fingerprints import describe_schedule
from pyro_vae.training.schedule_arguments import values_at, warn_of_counts, warn_of_rates
from pyro_vae.training.schedules import as_schedule

GRID = [i / 200 for i in range(201)]


@pytest.mark.parametrize("over", [0.1, 0.3, 1.0])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.5, 4.0)])
@pytest.mark.parametrize("kind", [schedules.linear, schedules.cosine])
def test_ramps_go_from_end_to_end_and_stay(kind, start, end, over):
    schedule = kind(start, end, over=over)
    values = [schedule(t) for t in GRID]
    assert values[0] == start and values[-1] == pytest.approx(end, abs=1e-12)
    assert schedule(over / 2) == pytest.approx((start + end) / 2)
    steps = [(b - a) * math.copysign(1, end - start) for a, b in pairwise(values)]
    assert min(steps) > -1e-12
    assert all(schedule(t) == pytest.approx(end, abs=1e-12) for t in GRID if t >= over)


@pytest.mark.parametrize("centre", [0.2, 0.5])
def test_sigmoid_is_a_logistic_curve(centre):
    schedule = schedules.sigmoid(0.0, 2.0, centre=centre, width=0.05)
    assert schedule(centre) == 1.0
    for t in GRID:
        odds = schedule(t) / (2.0 - schedule(t))
        assert math.log(odds) == pytest.approx((t - centre) / 0.05, abs=1e-6)


@pytest.mark.parametrize("cycles", [1, 3, 4])
def test_cyclical_repeats(cycles):
    schedule = schedules.cyclical(0.0, 1.0, cycles=cycles, ramp=0.5)
    for cycle in range(cycles):
        start = cycle / cycles
        assert schedule(start) == pytest.approx(0.0, abs=1e-9)
        assert schedule(start + 0.25 / cycles) == pytest.approx(0.5)
        assert schedule(start + 0.75 / cycles) == 1.0
    assert schedule(1.0) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear(over=0.0),
        lambda: schedules.linear(over=1.5),
        lambda: schedules.cosine(over=-1),
        lambda: schedules.cosine(over=math.nan),
        lambda: schedules.sigmoid(width=0.0),
        lambda: schedules.cyclical(cycles=0),
        lambda: schedules.cyclical(ramp=2.0),
        lambda: as_schedule("beta", -0.1),
        lambda: as_schedule("beta", math.nan),
        lambda: as_schedule("beta", math.inf),
        lambda: as_schedule("beta", True),
        lambda: as_schedule("beta", "1"),
        lambda: as_schedule("beta", None),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ConfigError, match="got"):
        make()


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (lambda epoch: min(1.0, epoch / 10), r"of 'epoch', expected .* progress t.* t \* epochs"),
        (lambda global_step: 1.0, r"of 'global_step', .*t \* steps"),
        (lambda e: 0.95**e, "of 'e'"),
        (lambda epoch, step: 1.0, "of 2 arguments"),
        (lambda: 1.0, "of 0 arguments"),
    ],
)
def test_a_function_of_epochs_is_refused(schedule, said):
    with pytest.raises(ConfigError, match=said):
        as_schedule("beta", schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda t: t,
        lambda t: min(1.0, 2 * t),
        lambda progress: min(1.0, progress / 10),
        lambda t: 0.5 ** (3 * t),
        lambda x, epochs=9: x,
        lambda epoch_share: 1,
        lambda t: abs(math.sin(4 * math.pi * t)),
        partial(lambda t, n: t, n=2),
        math.exp,
    ],
)
def test_a_function_of_the_progress_is_taken(schedule, recwarn):
    assert as_schedule("beta", schedule)(0.25) == schedule(0.25)
    warn_of_counts("beta", schedule)
    warn_of_rates("lr_schedule", schedule)
    assert not recwarn.list


@pytest.mark.parametrize(
    "schedule",
    [
        lambda x: min(1.0, x / 10),
        lambda x: float(x >= 5),
        lambda t: min(1.0, t / 10),
        lambda t: 0.1 ** (t // 30),
        lambda t: 0.95**t,
    ],
)
def test_a_warm_up_that_no_run_ends_is_told(schedule):
    with pytest.warns(UserWarning, match=r"beta: .* and to [01] beyond it; .*t \* epochs"):
        warn_of_counts("beta", schedule)


@pytest.mark.parametrize("schedule", [lambda t: 1e-3 * (1 - t), lambda t: 1e-4 + 1e-3 * t, 1e-3])
def test_rates_in_place_of_factors_are_told(schedule):
    with pytest.warns(UserWarning, match=r"by which lr is multiplied, .* lambda t: rate\(t\) / lr"):
        warn_of_rates("lr_schedule", schedule)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5])
def test_a_number_is_a_constant(value):
    assert {as_schedule("beta", value)(t) for t in GRID} == {float(value)}


def test_a_narrow_sigmoid_overflows_nowhere():
    schedule = schedules.sigmoid(width=0.0005)
    assert (schedule(0.0), schedule(0.5), schedule(1.0)) == (0.0, 0.5, 1.0)


class Counting:
    """A schedule with a state of its own."""

    def __init__(self):
        self.calls = []

    def __call__(self, t):
        self.calls.append(t)
        return 1.0


TOLD = []


def test_looks_leave_the_state_of_a_schedule_as_it_is():
    """Else one that counts its calls is far on before the first step."""
    TOLD.clear()
    import math as inside

    kept, method, random = Counting(), Counting(), torch.get_rng_state()
    schedules_ = [
        kept,
        method.__call__,
        lambda t: kept(t) + inside.floor(t),
        partial(lambda held, t: held(t), method),
        lambda t: TOLD.append(t) or torch.rand(()).item(),
    ]
    for schedule in schedules_:
        warn_of_counts("beta", schedule)
        warn_of_rates("lr_schedule", schedule)
        assert isinstance(describe_schedule(schedule)["schedule"], list)
    assert not kept.calls and not method.calls and not TOLD
    assert torch.equal(torch.get_rng_state(), random)
    feed = (1.0 for _ in range(9))  # of which there is no copy: it is not looked at
    warn_of_counts("beta", lambda t: next(feed))
    assert describe_schedule(lambda t: next(feed)) and len([*feed]) == 9


class Uncopied(np.ndarray):
    def __deepcopy__(self, memo):
        raise AssertionError("a gigabyte, for some")


@pytest.mark.parametrize("kind", ["object", "method", "closure"])
def test_a_look_at_a_schedule_copies_what_it_counts_and_no_data(kind):
    class Holder:
        def __init__(self):
            self.data, self.calls = {"x": [np.zeros(1 << 18).view(Uncopied)]}, 0

        def beta(self, t):
            self.calls += 1
            return t * self.calls

        __call__ = beta

    holder = Holder()
    schedule = {"object": holder, "method": holder.beta, "closure": lambda t: holder.beta(t)}[kind]
    assert values_at(schedule, (1.0, 1.0)) == [1.0, 2.0]
    assert holder.calls == 0
