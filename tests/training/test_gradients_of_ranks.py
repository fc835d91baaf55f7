"""Four processes take the steps of one, and a run goes on in other numbers of them."""

import pytest
import torch
from forked import connected, forks
from two_processes import Known, data, fit

from benchmarks import gradients_of_ranks

# With global latents and ragged ends each; the benchmark has all six.
CASES = ("accumulation", "sharded stream, ragged", "sparse rows")
NEAR = {"rtol": 1e-12, "atol": 1e-12}


@forks
def test_gradients_of_four_processes_are_those_of_one(tmp_path):
    alone = gradients_of_ranks.of_one(4, CASES)  # first: what is loaded on first use is loaded once
    found = connected(4, lambda rank: gradients_of_ranks.of_rank(rank, 4, CASES), tmp_path)
    far = gradients_of_ranks.differences(found, alone)
    assert [len(alone[name]) for name in far] == [3, 4, 3]
    assert max(far.values()) < 1e-12, far


@forks
def test_a_run_goes_on_in_other_numbers_of_processes(tmp_path):
    """Of two, then one, then three: where no noise is drawn the weights are those of one alone."""

    def part(epochs):
        def train(rank):
            return fit(Known(), data(30), epochs=epochs, out=tmp_path / "run", resume=True)

        return train

    (tmp_path / "three").mkdir()
    alone = fit(Known(), data(30), epochs=3)
    connected(2, part(1), tmp_path)
    part(2)(0)
    last = connected(3, part(3), tmp_path / "three")[2]
    assert last["steps"] == alone["steps"] == 12
    for name, value in alone["state"].items():
        new, old = (torch.tensor(x, dtype=torch.float64) for x in (last["state"][name], value))
        torch.testing.assert_close(new, old, **NEAR)
    assert last["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=1e-12)
