"""Processes that torchrun starts anew join one another, and go on with the run."""

import os
import signal

import numpy as np
import torch
import torch.distributed as torch_dist
from forked import fork, forks, torchrun
from two_processes import Known, data, fit

STEPS = 3  # of an epoch


def process(rank, port, folder, killed):
    """Train in one of two processes as torchrun starts them; one may be killed in a step."""
    torch.set_num_threads(1)
    os.environ |= torchrun(rank, 2, port)
    seen = []

    def stumble(batch):
        seen.append(len(batch[0]))
        if len(seen) == 2 + STEPS + 2 and killed:  # two looks, then in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    kept = {"out": folder / "run", "resume": True, "checkpoint_every": 1}
    found = fit(Known(), data(24), transform=stumble, **kept)
    torch.save({**found, "own": len(seen) - 2}, folder / f"{rank}.pt")


@forks
def test_processes_that_torchrun_starts_anew_go_on_with_the_run(tmp_path):
    """Each finds in torchrun's store, which lives on, the addresses of the dead."""
    import lightning_fabric  # noqa: F401  once, not in each fork

    agent = torch_dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def started(killed):
        """Return the ends of two processes; once one is killed torchrun ends the other."""
        both = [fork(process, rank, agent.port, tmp_path, killed and rank == 1) for rank in (0, 1)]
        for child in both[::-1]:
            child.join(0 if killed and child is both[0] else 60)
            child.kill()
            child.join()
        return [child.exitcode for child in both]

    assert started(killed=True) == [-signal.SIGKILL] * 2
    assert started(killed=False) == [0, 0]
    alone = fit(Known(), data(24))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found["steps"] == alone["steps"] == 2 * STEPS and found["own"] == STEPS
        assert np.allclose(found["history"]["loss"], alone["history"]["loss"], 1e-12, 0)
