"""Buffers of processes that train together: what steps add to them is that of all rows."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError
from pyro_vae.torch_private import BatchNorm, version_of

_GONE = ""  # in the place of a digest
_LOOKED_AT = 2**16  # numbers of a buffer that are compared though nothing tells of a change


class Processes(Protocol):
    """The processes, and what of a batch this one has."""

    rank: int
    size: int

    @property
    def part_of_all(self) -> tuple[int, int]:
        """Rows of the batch that this process answers for, and those of all."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of each value over the processes."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in some process."""

    def gather(self, mine: bytes) -> list[bytes]:
        """Return what each process gives, by rank."""


@dataclass(frozen=True, eq=False)
class _Buffer:
    """A place for a buffer, with the shape that it has in all processes."""

    path: str
    part: nn.Module
    name: str
    shape: torch.Size | None

    def now(self) -> Tensor | None:
        """Return the tensor that is there, if it has this shape."""
        found = self.part._buffers.get(self.name)
        return found if found is not None and found.shape == self.shape else None


class SharedBuffers:
    r"""The buffers of a program in several processes, each of which moves them by its own rows.

    Steps that differ are averaged by rows,

    .. math:: b \leftarrow b + \sum_r \frac{B_r}{B}\, \Delta_r b

    so that running statistics, and codebooks that move by a running mean, are those of all rows.
    (``DistributedDataParallel`` gives all processes those of the first.) Constants, and steps that
    are whole numbers and equal, keep their bits. One that counts its own rows counts their mean.

    A queue of rows, which a pointer beside it leads round, has no mean: all processes get the rows
    of the first, and a warning says so where they differ.

    A buffer whose shape follows the batch is a cache of its process, and left alone. Counts of
    batch norm are made equal where some have come in more parts. One that comes
    within the run joins in where it is equal in all; one that differs is refused, and so are whole
    numbers and flags that differ, of which there is no mean.

    Arguments:
        modules: All that is trained, by name, equal in all processes.
        processes: Those that train together.
    """

    def __init__(self, modules: Mapping[str, nn.Module], processes: Processes) -> None:
        self._modules, self._processes = modules, processes
        self._averaged: list[_Buffer] = []
        self._equal: list[_Buffer] = []  # of whole numbers and flags
        self._met: dict[tuple[nn.Module, str], None] = {}
        self._moving: list[_Buffer] | None = None
        self._queues: list[_Buffer] = []  # of rows, one after another; found where they move
        self._before: dict[_Buffer, tuple[Tensor, int]] = {}  # those that have not moved
        for buffer, tensor in self._new():
            self._take_in(buffer, tensor)

    def begin(self) -> None:
        """Begin an epoch: those that move are looked for anew, as parts are thawed or join in."""
        self._moving = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Average what the block adds to the buffers.

        Raises:
            ConfigError: One has come within the run, and is another in each process.
        """
        first = self._moving is None
        watched = self._averaged if self._moving is None else self._moving
        before = _copies(watched) if first else _finite_copies(watched)
        places = [e for e in self._equal if e.shape is not None and e.shape.numel() == 1]
        pointers = _copies(places) if first else {}
        yield
        if first:
            self._moving = self._find_moving(watched, before, pointers)
            # Whole: one that began to move within the epoch before is another in each process.
            before = {each: torch.zeros_like(before[each]) for each in self._moving}
            watched = self._moving
        self._average(watched, before, self._processes.part_of_all)
        self._keep_queues()
        if first:
            self._moving = [*watched, *self._join()]
            self._note_unmoved()

    def settle(self) -> None:
        """Make equal what has come, or begun to move, since the first step of the epoch.

        Raises:
            ConfigError: Of what differs there is no mean.
        """
        if self._moving is None:
            return
        self._join()
        if not (self._averaged or self._equal):
            return
        found = [each for each in self._averaged if self._may_have_moved(each)]
        texts = self._told([*found, *self._equal])
        if len(set(texts)) == 1:
            return
        told = [json.loads(text) for text in texts]
        apart = {name for each in told for name in each if len({o.get(name) for o in told}) > 1}
        apart -= {name for each in told for name, text in each.items() if text == _GONE}
        # Counts of batches, which come in more parts where there are more rows: of no weight.
        counts = [each for each in self._equal if each.path in apart and _counts_batches(each)]
        whole = [each.path for each in self._equal if each.path in apart and each not in counts]
        self._refuse(whole, _WHOLE)
        late = [*(each for each in self._averaged if each.path in apart), *counts]
        zeros = {each: torch.zeros_like(_there(each)) for each in late}
        self._average(late, zeros, (1, self._processes.size))

    def _new(self) -> Iterator[tuple[_Buffer, Tensor]]:
        """Yield the buffers that nobody has met."""
        for prefix, module in self._modules.items():
            for path, part in module.named_modules(prefix=prefix):
                for name, tensor in part._buffers.items():
                    if tensor is not None and (part, name) not in self._met:
                        place = f"{path}.{name}".removeprefix("program.parts.")
                        yield _Buffer(place, part, name, tensor.shape), tensor

    def _take_in(self, buffer: _Buffer, tensor: Tensor) -> None:
        self._met[buffer.part, buffer.name] = None
        (self._averaged if tensor.is_floating_point() else self._equal).append(buffer)

    def _join(self) -> list[_Buffer]:
        """Take in what has come, where it is equal in all processes; return what is averaged."""
        new = dict(self._new())
        if not self._processes.any(bool(new)):
            return []
        own = {each.path: [list(t.shape), str(t.dtype), digest(t)] for each, t in new.items()}
        found = [json.loads(t) for t in self._processes.gather(json.dumps(own).encode())]
        every = sorted({path for each in found for path in each})
        caches = {p for p in every if len({str(e[p][0]) for e in found if p in e}) > 1}
        apart = [p for p in every if any(each.get(p) != found[0].get(p) for each in found)]
        self._refuse([path for path in apart if path not in caches], _COME)
        before = len(self._averaged)
        for buffer, tensor in sorted(new.items(), key=lambda pair: pair[0].path):
            self._met[buffer.part, buffer.name] = None
            if buffer.path not in caches:
                self._take_in(buffer, tensor)
        return self._averaged[before:]

    def _find_moving(
        self,
        watched: Sequence[_Buffer],
        before: Mapping[_Buffer, Tensor],
        pointers: Mapping[_Buffer, Tensor],
    ) -> list[_Buffer]:
        """Return what the first step has moved, in any process; forget what follows the batch."""
        if not watched:
            return []
        now = [each.now() for each in watched]
        gone = [tensor is None for tensor in now]
        moved = [
            t is not None and not torch.equal(t, before[each])
            for each, t in zip(watched, now, strict=True)
        ]
        queued = [
            m and any(_leads(p, was, each, before[each]) for p, was in pointers.items())
            for each, m in zip(watched, moved, strict=True)
        ]
        flags = torch.tensor([gone, moved, queued], dtype=torch.float64)
        found = self._processes.sum(flags).tolist()
        self._averaged = [each for each, count in zip(watched, found[0], strict=True) if not count]
        pairs = list(zip(watched, *found, strict=True))
        new = [each for each, _, _, in_queue in pairs if in_queue and each not in self._queues]
        self._queues += new
        self._tell_of_queues(new)
        taken = set(self._queues)
        moves = [each for each, gone_in, moved_in, _ in pairs if moved_in and not gone_in]
        return [each for each in moves if each not in taken]

    def _keep_queues(self) -> None:
        """Give all processes the rows of the first, to the bit."""
        zeros = {each: torch.zeros_like(_there(each)) for each in self._queues}
        self._average(self._queues, zeros, (int(self._processes.rank == 0), 1))

    def _tell_of_queues(self, queues: Sequence[_Buffer]) -> None:
        if not queues:
            return
        texts = [json.loads(text) for text in self._told(queues)]
        apart = [e.path for e in queues if len({text[e.path] for text in texts}) > 1]
        if apart and self._processes.rank == 0:
            others = f" (and {len(apart) - 1} others)" if len(apart) > 1 else ""
            warnings.warn(
                f"devices: buffer {apart[0]!r}{others} is a queue of rows, which each of "
                f"{self._processes.size} processes fills with its own: all keep those of process "
                "0, as under DistributedDataParallel; to keep the rows of all, gather them before "
                "they are written (torch.distributed.all_gather), and move the pointer by as many",
                stacklevel=of_user(),
            )

    def _average(
        self,
        watched: Sequence[_Buffer],
        before: Mapping[_Buffer, Tensor],
        share: tuple[int, int],
    ) -> None:
        """Add the mean of the steps, where the shape is what it was in all processes.

        Sums of the steps of rows, over all rows: equal whole numbers are what they were.
        """
        if not watched:
            return
        rows, every = share
        now = [each.now() for each in watched]
        old = [before[each] for each in watched]
        pairs = list(zip(now, old, strict=True))
        there = torch.tensor([float(new is not None) for new in now], dtype=torch.float64)
        steps = [torch.zeros_like(o) if n is None else n - o for n, o in pairs]
        flat = [there.to(old[0].device), *(step.double().reshape(-1) for step in steps)]
        sent = torch.cat(flat)
        # Of no rows: what is not finite must not count either.
        sent = sent.mul_(rows) if rows else sent.zero_()
        found = self._processes.sum(sent) / every
        kept, *means = found.split([len(watched), *(tensor.numel() for tensor in old)])
        with torch.no_grad():
            for (new, was), whole, mean in zip(pairs, kept, means, strict=True):
                if new is not None:
                    new.copy_(torch.where(whole == 1, was + mean.view(was.shape), new))

    def _note_unmoved(self) -> None:
        known = set(self._moving or ())
        unmoved = (each for each in self._averaged if each not in known)
        self._before = {
            each: (t, version_of(t)) for each in unmoved if (t := each.now()) is not None
        }

    def _may_have_moved(self, buffer: _Buffer) -> bool:
        if buffer not in self._before:
            return False
        now, (before, version) = buffer.now(), self._before[buffer]
        return not (now is before and version_of(now) == version and now.numel() > _LOOKED_AT)

    def _told(self, buffers: Sequence[_Buffer]) -> list[str]:
        """Return digests of buffers of all processes, as text; of what has another shape, none."""
        own = {e.path: _GONE if (now := e.now()) is None else digest(now) for e in buffers}
        return [each.decode() for each in self._processes.gather(json.dumps(own).encode())]

    def _refuse(self, paths: Sequence[str], reason: str) -> None:
        if not paths:
            return
        others = f" (and {len(paths) - 1} others)" if len(paths) > 1 else ""
        raise ConfigError(
            f"the {self._processes.size} processes disagree: buffer {paths[0]!r}{others} "
            + reason.format(name=paths[0].rpartition(".")[2])
        )


def _leads(pointer: _Buffer, before: Tensor, queue: _Buffer, rows: Tensor) -> bool:
    """Return whether a step wrote those rows of a queue that a pointer has passed, and no others.

    Arguments:
        pointer: A place in the same module, with the number that it held before.
        queue: What may be led by it, with the rows that it held before.
    """
    after, now = pointer.now(), queue.now()
    if pointer.part is not queue.part or after is None or now is None:
        return False
    start, end = int(before), int(after)
    for dim, size in enumerate(rows.shape):
        passed = torch.zeros(size, dtype=torch.bool)
        passed[[place % size for place in range(start, start + (end - start) % size)]] = True
        written = (now != rows).movedim(dim, 0).flatten(1).any(1) if rows.dim() > 1 else now != rows
        if passed.any() and torch.equal(written.cpu(), passed):
            return True
    return False


def digest(tensor: Tensor) -> str:
    """Return a text that no other values, shape or type have."""
    flat = tensor.detach().cpu().contiguous().flatten()
    found = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


_COME = (
    "has come within the run and is another in each (or not in all), of which there is no mean; "
    "register it before pv.fit, as register_buffer({name!r}, torch.zeros(...)) in __init__, and "
    "what each step adds is averaged; or keep what belongs to a batch in a plain attribute"
)
_WHOLE = (
    "holds whole numbers or flags, moves by the rows of one process and is another in each, of "
    "which there is no mean; keep floats, which are averaged, or what all processes count alike; "
    "or keep what belongs to a batch in a plain attribute"
)


def _counts_batches(buffer: _Buffer) -> bool:
    return isinstance(buffer.part, BatchNorm) and buffer.name == "num_batches_tracked"


def _copies(buffers: Sequence[_Buffer]) -> dict[_Buffer, Tensor]:
    return {each: _there(each).clone() for each in buffers}


def _finite_copies(buffers: Sequence[_Buffer]) -> dict[_Buffer, Tensor]:
    """Return copies with zeros for what is infinite: nothing is added to that, it is averaged."""
    return {each: _there(each).nan_to_num(0.0, 0.0, 0.0) for each in buffers}


def _there(buffer: _Buffer) -> Tensor:
    """Return what is there, or zeros in the place of what has another shape now."""
    now = buffer.now()
    if now is not None:
        return now
    device = next((t.device for t in buffer.part._buffers.values() if t is not None), None)
    return torch.zeros(buffer.shape or (), device=device)
