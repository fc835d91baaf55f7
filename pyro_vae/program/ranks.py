"""Processes that answer a verb together: each makes some passes, and all get the whole answer."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.device import seeded
from pyro_vae.errors import DataError
from pyro_vae.torch_private import pytree

T = TypeVar("T")


class Ranks(Protocol):
    """The processes, and the way from one to all."""

    rank: int
    size: int
    device: torch.device

    def gather(self, mine: bytes) -> list[bytes]:
        """Return what each process gives, by rank."""


_now: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def ranks() -> Ranks | None:
    """Return the processes that share the passes of verbs, or None."""
    return _now.get()


@contextmanager
def sharing(among: Ranks | None) -> Iterator[None]:
    """Share the passes of the verbs inside this block; None: each process makes its own."""
    token = _now.set(among)
    try:
        yield
    finally:
        _now.reset(token)


def require_equal(among: Ranks, facts: dict[str, str]) -> None:
    """Refuse processes that ask different things: their parts would make no whole.

    Raises:
        DataError: In all processes; names what differs.
    """
    found = [json.loads(each) for each in among.gather(json.dumps(facts).encode())]
    if any(each != found[0] for each in found[1:]):
        names = [name for name in facts if len({each.get(name) for each in found}) > 1]
        raise DataError(
            f"across_ranks: the {among.size} processes differ in {', '.join(names)}; give all of "
            "them the same program and the same data (each makes some of the passes)"
        )


def shared_out(
    among: Ranks, pieces: Iterator[Any], function: Callable[[Any], T], *, lead: bool
) -> list[T]:
    """Return a function of each piece, in their order, as one process would.

    The first draws from the generator as it stands; each of the others from a seed of its own, so
    that the numbers do not depend on how many processes there are.

    Arguments:
        among: The processes; all see the same pieces.
        pieces: As they come; making one may draw.
        function: Of a piece.
        lead: Whether the others build on what the first piece leaves behind: all make it then.

    Raises:
        DataError: The processes have other numbers of pieces.
    """
    mine: dict[str, T] = {}
    begun = hashlib.sha256(take_state(among.device)).digest()
    index = 0
    while True:
        seed = np.random.SeedSequence([*begun, index]).generate_state(1)[0]
        noise = seeded(among.device, int(seed)) if index else nullcontext()
        with noise, sharing(None):
            piece = next(pieces, None)
            if piece is None:
                break
            if index % among.size == among.rank or (lead and index == 0):
                mine[str(index)] = function(piece)
        index += 1
    # One list of three: what a process has seen, where its generator stands, what it has made.
    given = [index, torch.frombuffer(bytearray(take_state(among.device)), dtype=torch.uint8), mine]
    found = [unpacked(each, among.device) for each in among.gather(packed(given))]
    counts = [count for count, _, _ in found]
    if len(set(counts)) > 1:
        raise DataError(
            f"across_ranks: the processes were given {counts} passes by rank, expected the same "
            "data in all"
        )
    put_state(found[0][1].cpu().numpy().tobytes(), among.device)
    made = {place: value for _, _, some in found for place, value in some.items()}
    return [made[str(place)] for place in range(index)]


def packed(value: Any) -> bytes:
    """Return containers of tensors and numbers as bytes, which nothing has to be run to read."""
    leaves, spec = pytree.tree_flatten(value)
    tensors = {
        str(place): leaf.detach().cpu().contiguous().clone()
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor)
    }
    others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    head = json.dumps([pytree.treespec_dumps(spec), others]).encode()
    return len(head).to_bytes(8, "little") + head + save(tensors)


def unpacked(text: bytes, device: torch.device) -> Any:
    """Return what ``packed`` was given, its tensors on a device."""
    end = 8 + int.from_bytes(text[:8], "little")
    spec, leaves = json.loads(text[8:end])
    for place, tensor in load(text[end:]).items():
        leaves[int(place)] = tensor.to(device)
    return pytree.tree_unflatten(leaves, pytree.treespec_loads(spec))


def take_state(device: torch.device) -> bytes:
    """Return the state of the generators of the CPU and of one device."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return b"".join(part.numpy().tobytes() for part in parts)


def put_state(state: bytes, device: torch.device) -> None:
    """Set what ``take_state`` has returned."""
    cpu = torch.get_rng_state().numel()
    torch.set_rng_state(torch.frombuffer(bytearray(state[:cpu]), dtype=torch.uint8))
    if device.type == "cuda":
        rest = torch.frombuffer(bytearray(state[cpu:]), dtype=torch.uint8)
        torch.cuda.set_rng_state(rest, device)
