"""The connection of torchrun's processes, which a restart makes anew."""

import atexit
import os
import secrets
import time
from datetime import timedelta

import torch
import torch.distributed as torch_dist

_PATIENCE = timedelta(minutes=30)  # until all processes are there: torch's own


def connect(kind: str) -> None:
    """Join the processes of torchrun in a default group, where they are told to share its store.

    That store lives on when torchrun starts them anew. The addresses of the dead processes are
    still in it, and torch (2.13) would connect the new ones to those.

    Arguments:
        kind: Of the devices, ``"cpu"`` or ``"cuda"``.
    """
    given = os.environ
    shared = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (shared and torch_dist.is_torchelastic_launched()):
        return
    rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    store = torch_dist.TCPStore(
        given["MASTER_ADDR"], int(given["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
    )
    apart = torch_dist.PrefixStore(_new_word(store, rank, size), store)
    if kind == "cuda":  # as Fabric does, which leaves a group that is there as it is
        own = torch.device(kind, int(given["LOCAL_RANK"]))
        torch_dist.init_process_group(
            "nccl", store=apart, rank=rank, world_size=size, device_id=own
        )
        atexit.register(_leave)
    else:
        torch_dist.init_process_group("gloo", store=apart, rank=rank, world_size=size)


def _leave() -> None:
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def _new_word(store: torch_dist.Store, rank: int, size: int) -> str:
    """Return a word of the first process that no process of an earlier start has.

    torchrun counts restarts on each machine for itself, hence its number serves no better. Here
    each process asks by a word of its own, which the first answers until it hears of it.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"pyro_vae/asked/{rank}", mine)
        word = store.get(f"pyro_vae/answered/{mine}").decode()  # waits for it
        store.set(f"pyro_vae/heard/{word}/{rank}", "")
        return word
    end = time.monotonic() + _PATIENCE.total_seconds()
    for other in range(1, size):
        while not store.check([f"pyro_vae/heard/{mine}/{other}"]):
            asked = store.get(f"pyro_vae/asked/{other}").decode()  # of a dead one, perhaps
            store.set(f"pyro_vae/answered/{asked}", mine)
            if time.monotonic() > end:
                raise TimeoutError(f"process {other} of {size} has not joined the run")
            time.sleep(0.01)
    return mine
