"""Verbs over the processes of torchrun or Slurm: each makes some passes, all get the answer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_vae.arguments import typed
from pyro_vae.program.ranks import put_state, sharing, take_state
from pyro_vae.training.parallel import join


@contextmanager
@typed
def across_ranks(device: str | torch.device = "auto") -> Iterator[None]:
    """Have the processes of torchrun or srun answer the verbs inside this block together.

    Call it in all processes, with the same program and the same data in each; every one of them
    gets the whole answer. ``elbo``, ``log_likelihood``, ``fitted_log_likelihood``, ``ais``,
    ``refine``, ``gaps``, ``encode``, ``reconstruct``, ``classify`` and ``impute`` deal out their
    passes; other verbs are answered by each process alone, alike. A stream is read by all.

    Noise is that of the first process, and each pass but the first draws from a seed of its own:
    the numbers are the same on any number of processes, one too. Outside such a block a verb
    belongs to the process that calls it (``if run.rank == 0: pv.elbo(...)``).

    Arguments:
        device: As for ``fit``: where the processes are that this call connects.

    Raises:
        DataError: The processes were given other data, weights or arguments.
        ProcessError: Another process has failed; names it and its error.
    """
    world = join("auto", device)
    own = take_state(world.device)
    with world.guarded(), sharing(world):
        put_state(world.gather(own)[0], world.device)
        yield
    if world.rank:
        put_state(own, world.device)
