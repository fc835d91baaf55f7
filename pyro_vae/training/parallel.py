"""The processes that train together: who they are, which rows are theirs, and what they share."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from pyro_vae.arguments import counted, positive, shown
from pyro_vae.device import resolve_device
from pyro_vae.errors import ConfigError, DeviceError, ProcessError
from pyro_vae.extras import extra
from pyro_vae.program.batches.batch import Batch, map_rows, named_leaves, num_rows
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.torch_private import default_store
from pyro_vae.training.equal_parameters import require_equal_parameters
from pyro_vae.training.shared_buffers import SharedBuffers, digest
from pyro_vae.training.torchrun import connect

# What averages tensors over processes, in place; whether this one had rows that count.
Reduce = Callable[[list[Tensor]], bool]
Devices = int | Literal["auto"]
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # what Open MPI and MPICH tell a process
_MEETING = 30.0  # seconds for all to come to where an epoch has ended early
_AGAIN = 60.0  # seconds for all to begin another run after one that has failed
_WORD = timedelta(seconds=5)  # for the word of a process that has just failed


class World:
    """One process that trains alone: every method is that of a group of one, and costs nothing.

    Arguments:
        device: Where this process trains.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch that all processes hold."""
        return batch

    def own(self, batch: Batch) -> Batch:
        """Return a batch that is this process's already, as large as those of the others."""
        return batch

    def part(self, batch: Batch | None) -> bool:
        """Weigh a batch of this process's own, of any size, None: none; return whether any has."""
        return batch is not None

    def same(self, batch: Batch) -> bool:
        """Return whether all processes hold this batch."""
        return True

    def rows(self, batch: Batch) -> float:
        """Return how many data of the whole batch this process answers for."""
        return num_rows(batch)

    def seed(self, seed: int, *words: int) -> int:
        """Return a seed for noise that no other process draws."""
        return seed

    def reseed(self, seed: int, *words: int) -> None:
        """Start an epoch's noise anew where a checkpoint cannot hold every process's generator."""

    def guarded(self) -> AbstractContextManager[None]:
        """Tell the other processes of an error in the block, and end with theirs."""
        return nullcontext()

    def start(self, modules: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> None:
        """Begin with equal weights, on equal terms."""

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Require facts to be equal in all processes."""

    def reducing(self, dtype: torch.dtype | None) -> Reduce | None:
        """Return what replaces a loss, and its gradients after it, by those of the whole batch.

        Arguments:
            dtype: In which the gradients are sent and summed; None: their own.

        Raises:
            ConfigError: Another type than one of these.
        """
        if dtype not in (None, torch.bfloat16, torch.float32):
            raise ConfigError(
                f"reduce_dtype: got {shown(dtype)}, expected None, torch.bfloat16 or torch.float32"
            )
        return None

    def together(self) -> AbstractContextManager[None]:
        """Make the buffers that the block moves equal again on leaving it."""
        return nullcontext()

    def settle(self) -> None:
        """Make equal, at the end of an epoch, what began to move within it; compare parameters."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of each value over the processes."""
        return values

    def mean(self, value: float) -> float:
        """Return the mean over all rows of the batch last shared out, of this process's mean."""
        return value

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in some process."""
        return flag

    def gather(self, mine: bytes) -> list[bytes]:
        """Return what each process gives, by rank."""
        return [mine]

    def meet(self, slowest: float) -> bool:
        """Return whether all processes come here, of which some may be at a collective instead.

        Arguments:
            slowest: Seconds that one has taken for a batch: they wait ten times as long.
        """
        return True

    def wait(self) -> None:
        """Wait until all processes are here."""


class Group(World):
    r"""Several processes, each with a device, that take the steps of one.

    Of a batch of B rows process r has :math:`B_r`, equal but for a remainder. Its gradient is that
    of a mean over its rows; the step follows

    .. math:: g = \sum_r \frac{B_r}{B}\, g_r

    which is the gradient of the whole batch. All processes get the same bits, hence take the same
    step. A batch with fewer than two rows for each (batch norm needs two) is not dealt out: all
    take it whole, with noise of their own, at equal weights.

    Arguments:
        device: That of this process.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.size = torch_dist.get_rank(), torch_dist.get_world_size()
        self._lines = _Lines.open()
        self._share, self._total = (1, self.size), 0
        self._modules: Mapping[str, nn.Module] = {}
        self._buffers = SharedBuffers({}, self)

    @property
    def part_of_all(self) -> tuple[int, int]:
        """Rows of the batch that this process answers for, and those of all."""
        return self._share

    @property
    def _weight(self) -> float:
        return self._share[0] / self._share[1]

    def share(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch that all processes hold."""
        total = num_rows(batch)
        if total < 2 * self.size:
            self._share, self._total = (1, self.size), total
            return batch
        start, stop = self.rank * total // self.size, (self.rank + 1) * total // self.size
        self._share, self._total = (stop - start, total), total
        return map_rows(lambda leaf: _range(leaf, start, stop), batch)

    def own(self, batch: Batch) -> Batch:
        """Return the batch, with the weight that it has among equals."""
        self._share, self._total = (1, self.size), self.size * num_rows(batch)
        return batch

    def part(self, batch: Batch | None) -> bool:
        """Give a batch the weight that its rows have among those of all processes: none, 0."""
        counts = torch.zeros(self.size, dtype=torch.float64)
        counts[self.rank] = 0 if batch is None else num_rows(batch)
        counts = self.sum(counts)
        self._total = int(counts.sum())
        self._share = int(counts[self.rank]), max(1, self._total)
        return self._total > 0

    def same(self, batch: Batch) -> bool:
        """Return whether all processes hold this batch, to the bit."""
        told = {name: digest(leaf) for name, leaf in named_leaves(batch)}
        return len(set(self._gather(json.dumps(told)))) == 1

    def rows(self, batch: Batch) -> float:
        """Return the share of the whole batch's rows that this process answers for."""
        return self._weight * self._total

    def seed(self, seed: int, *words: int) -> int:
        """Return a seed of this process's own: equal ones would give every rank the same z."""
        # Never 0 at the end: numpy's seed sequences do not tell [1] from [1, 0].
        return int(np.random.SeedSequence([seed, *words, self.rank + 1]).generate_state(1)[0])

    def reseed(self, seed: int, *words: int) -> None:
        """Seed this process's noise for one epoch, so that a resumed run draws the same.

        Buffers that move are looked for anew: a part may have been thawed, a critic have joined in.
        """
        self._buffers.begin()
        number = self.seed(seed, *words)
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Tell the other processes of an error in the block, and end with theirs.

        Raises:
            ProcessError: Another process has failed; names it and its error.
        """
        try:
            yield
        except BaseException as error:
            self._lines.close(self.rank, error)
            raise

    def start(self, modules: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> None:
        """Check that the processes are at one, and give all of them the weights of the first.

        Arguments:
            modules: What is trained, with its state.
            facts: What must be equal in all processes, by name, as JSON holds it.

        Raises:
            ConfigError: They differ; in all processes.
        """
        self.agree(facts)
        self._require_one_make(modules)
        with torch.no_grad():
            for tensor in _tensors(modules):
                sent = tensor.contiguous()
                own = sent.clone()
                self._lines.call(torch_dist.broadcast, sent, src=0)
                if not torch.equal(own, sent):  # expanded ones cannot be written to
                    tensor.copy_(sent)
        self._modules, self._buffers = modules, SharedBuffers(modules, self)

    def _require_one_make(self, modules: Mapping[str, nn.Module]) -> None:
        """Require parameters and buffers of one order, shape and type, before any is sent.

        Raises:
            ConfigError: They differ; in all processes.
        """
        own = json.dumps(_make(modules))
        if len(set(self.gather(hashlib.sha256(own.encode()).digest()))) == 1:
            return
        lines = list(_disagreements([json.loads(text) for text in self._gather(own)]))
        others = f" (and {len(lines) - 1} others)" if len(lines) > 1 else ""
        raise ConfigError(
            f"the {self.size} processes disagree: parameter or buffer {lines[0]}{others}; make the "
            "program of the same parts in one order in all (a set has another order in each "
            "process: sort it), or build it before pv.fit on the same data"
        )

    def reducing(self, dtype: torch.dtype | None) -> Reduce | None:
        """Return what averages a loss and its gradients over the processes."""
        super().reducing(dtype)

        def reduce(tensors: list[Tensor]) -> bool:
            self.reduce(tensors[:1])
            return self.reduce(tensors[1:], dtype)

        return self.reduce if dtype is None else reduce

    def reduce(self, tensors: list[Tensor], dtype: torch.dtype | None = None) -> bool:
        """Replace losses and gradients by those of the whole batch, in one collective.

        Arguments:
            tensors: They, of this process's rows.
            dtype: In which they are sent and summed; None: their own.

        Returns:
            Whether this process has rows of the batch.
        """
        # Not fabric.all_reduce: it puts a barrier before each sum.
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        # Of no rows: what is not finite must not count either.
        flat = (flat.mul_(self._weight) if self._weight else flat.zero_()).to(dtype)
        self._lines.call(torch_dist.all_reduce, flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.detach().copy_(piece.view(tensor.shape))
        return self._weight > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Average what the block adds to the buffers, by rows."""
        with self._buffers.averaged():
            yield

    def settle(self) -> None:
        """Make equal the buffers that have begun to move within the epoch; compare parameters."""
        self._buffers.settle()
        require_equal_parameters(self._modules, self)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of each value over the processes."""
        total = values.detach().to(self.device, copy=True)
        self._lines.call(torch_dist.all_reduce, total)
        return total

    def mean(self, value: float) -> float:
        """Return the mean over all rows, as the same number in all processes."""
        return self.sum(torch.tensor(self._weight * value, dtype=torch.float64)).item()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in some process."""
        return bool(self.sum(torch.tensor(float(flag), dtype=torch.float64)) > 0)

    def meet(self, slowest: float) -> bool:
        """Return whether all processes come here within half a minute, or ten batches' time."""
        return self._lines.meet(self.size, max(_MEETING, 10 * slowest))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Require facts to be equal in all processes.

        Raises:
            ConfigError: They differ; in all processes.
        """
        found = [json.loads(text) for text in self._gather(json.dumps(facts))]
        lines = list(_disagreements(found))
        if lines:
            raise ConfigError(
                f"the {self.size} processes disagree: {'; '.join(lines[:12])}; run one script on "
                "the same data in all, with out= on a file system that all share"
            )

    def _gather(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank."""
        return [each.decode() for each in self.gather(text.encode())]

    def gather(self, mine: bytes) -> list[bytes]:
        """Return what each process gives, by rank."""
        own = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        self._lines.call(torch_dist.all_gather, sizes, torch.full_like(sizes[0], len(own)))
        longest = max(int(size) for size in sizes)
        found = [own.new_zeros(longest) for _ in sizes]
        padded = nn.functional.pad(own, (0, longest - len(own)))
        self._lines.call(torch_dist.all_gather, found, padded)
        pairs = zip(found, sizes, strict=True)
        return [each[: int(size)].cpu().numpy().tobytes() for each, size in pairs]


class _Lines:
    """The connections of a group: one process that fails closes its own, and so ends the others.

    They are apart from the default group's, which stays usable: the next run opens new ones.
    """

    _now: "_Lines | None" = None
    _opened = 0
    _failure: str | None = None  # of the run before

    def __init__(self) -> None:
        _Lines._opened += 1
        self._key = f"pyro_vae/error/{_Lines._opened}"
        self._met = 0
        # The one place, public or not, where a process can leave word for another.
        self._store = default_store()
        if _Lines._failure is not None:
            self._require_all(f"pyro_vae/again/{_Lines._opened}")
        try:
            self.group = torch_dist.new_group()  # which waits for the others, half an hour
        except RuntimeError as error:  # one that has failed at once has closed its own meanwhile
            reason = self._reason()
            if reason is None:
                raise
            _Lines._failure = reason
            raise ProcessError(reason) from error
        _Lines._failure = None

    @classmethod
    def open(cls) -> "_Lines":
        """Return the connections there are, or new ones."""
        if cls._now is None or not torch_dist.is_initialized():
            cls._now = cls()
        return cls._now

    def _require_all(self, place: str) -> None:
        """Wait for all processes of a run that has failed: one that has died comes to no other.

        Raises:
            ProcessError: Some have not come within a minute.
        """
        size, end = torch_dist.get_world_size(), time.monotonic() + _AGAIN
        given_up, came = f"{place}/given up", 1
        try:
            came = self._store.add(place, 1)
            while came < size and not self._store.check([given_up]) and time.monotonic() < end:
                time.sleep(0.01)
                came = self._store.add(place, 0)
            if came == size and not self._store.check([given_up]):
                return
            self._store.set(given_up, "")  # one that comes too late waits for nobody
        except RuntimeError:  # the store is gone with its process
            pass
        raise ProcessError(
            f"not all {size} processes have begun another run within {_AGAIN:.0f} s, after one "
            f"that has failed ({_Lines._failure}); start all of them anew"
        )

    def call(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Run a collective.

        Raises:
            ProcessError: Another process has failed, or is gone.
        """
        try:
            collective(*arguments, **options, group=self.group)
        except RuntimeError as error:
            raise ProcessError(self._reason() or f"another process is gone ({error})") from error

    def meet(self, size: int, seconds: float) -> bool:
        """Return whether so many processes come here; those that are at a collective do not.

        Raises:
            ProcessError: Another process has failed meanwhile.
        """
        self._met += 1
        place, end = f"{self._key}/{self._met}", time.monotonic() + seconds
        self._store.add(place, 1)
        while self._store.add(place, 0) < size:
            if self._store.check([self._key]):
                raise ProcessError(self._reason() or "another process is gone")
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def close(self, rank: int, error: BaseException) -> None:
        """Leave word of an error, and end whoever waits for this process."""
        if _Lines._now is not self:
            return
        _Lines._now = None
        word = f"process {rank}: {type(error).__name__}: {error}"
        _Lines._failure = str(error) if isinstance(error, ProcessError) else word
        with suppress(RuntimeError):  # the store may be gone with its process
            if not isinstance(error, ProcessError) and not self._store.check([self._key]):
                self._store.set(self._key, word)
        with suppress(RuntimeError, ValueError):
            torch_dist.destroy_process_group(self.group)
        self.group = None

    def _reason(self) -> str | None:
        with suppress(RuntimeError):
            self._store.wait([self._key], _WORD)
            return self._store.get(self._key).decode(errors="replace")
        return None


def _disagreements(found: list[Any], name: str = "") -> Iterator[str]:
    """Yield one line for each entry in which the processes differ."""
    if all(isinstance(each, dict) for each in found):
        for key in dict.fromkeys(key for each in found for key in each):
            inner = f"{name}.{key}" if name else key
            yield from _disagreements([each.get(key) for each in found], inner)
    elif all(isinstance(each, list) for each in found) and len({len(each) for each in found}) == 1:
        for index, entries in enumerate(zip(*found, strict=True)):
            yield from _disagreements(list(entries), f"{name}[{index}]")
    elif any(each != found[0] for each in found[1:]):
        yield f"{name} is {found} by rank"


def join(devices: Devices, device: str | torch.device) -> World:
    """Return this process alone, or the group that it is started in or starts.

    Arguments:
        devices: ``"auto"``: the processes that torchrun or srun started, else one. A number: the
            processes of this machine; where none were started, Fabric runs the script once in each;
            1 is this process alone, also beside others of a Slurm or MPI job.
        device: As for ``resolve_device``; of a group without a number, each takes its own.

    Raises:
        ConfigError: Not a number, other than what was started, or no script to run again.
        DeviceError: Fewer CUDA devices than processes.
    """
    wanted = devices if devices == "auto" else positive("devices", devices)
    by_torch = torch_dist.is_available() and (
        torch_dist.is_torchelastic_launched() or torch_dist.is_initialized()
    )
    if wanted == 1 and not by_torch:
        return World(resolve_device(device))
    nodes, here = _started()
    if wanted not in ("auto", here) and (nodes, here) != (1, 1):
        raise ConfigError(
            f"devices: got {wanted}, this script was started in {counted(here, 'process')} per "
            "machine; leave devices out"
        )
    local = here if wanted == "auto" else int(wanted)
    if nodes * local == 1:
        return World(resolve_device(device))
    return Group(_launch(_kind(device, local), local, nodes))


def _started() -> tuple[int, int]:
    """Return the number of machines and of processes on each that run this script."""
    if torch_dist.is_available() and torch_dist.is_torchelastic_launched():
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return world // local, local
    by_slurm = _started_by_slurm()
    if by_slurm is not None:
        return by_slurm
    if torch_dist.is_available() and torch_dist.is_initialized():
        return 1, torch_dist.get_world_size()
    size = max(int(os.environ.get(name, "1")) for name in _MPI)
    if size > 1:
        raise ConfigError(
            f"devices: this script was started by MPI in {size} processes, which pv.fit does not "
            "join; start it by torchrun or srun, or pass devices=1 to train in each alone"
        )
    return 1, 1


def _started_by_slurm() -> tuple[int, int] | None:
    """Return the numbers of machines and of processes on each of a Slurm step, or None.

    Raises:
        ConfigError: A job of several tasks whose script no srun has started, or of other numbers
            of tasks on its machines.
    """
    given = os.environ
    tasks = int(given.get("SLURM_STEP_NUM_TASKS") or given.get("SLURM_NTASKS") or 1)
    if tasks == 1 or given.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if not {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"} & given.keys():
        raise ConfigError(
            f"devices: this is a Slurm job of {tasks} tasks, and no srun has started the script in "
            "each; start it by `srun python ...`, or pass devices=1 to train in this process alone"
        )
    nodes = int(given.get("SLURM_STEP_NUM_NODES") or given.get("SLURM_NNODES") or 1)
    if tasks % nodes:
        raise ConfigError(
            f"devices: srun has started {counted(tasks, 'process')} on "
            f"{counted(nodes, 'machine')}, expected as many on "
            "each; pass --ntasks-per-node to sbatch"
        )
    # What Fabric's environment of Slurm reads; srun sets the second only where it was asked for.
    given.setdefault("SLURM_NTASKS", str(tasks))
    given.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
    return nodes, tasks // nodes


def _kind(device: str | torch.device, processes: int) -> str:
    found = resolve_device(device)
    if found.index is not None and found.type == "cuda":
        raise DeviceError(
            f"device: got {str(device)!r} for {processes} processes, each of which takes its own; "
            "pass 'cuda' or 'auto', and choose by CUDA_VISIBLE_DEVICES"
        )
    count = torch.cuda.device_count() if found.type == "cuda" else math.inf
    if processes > count:
        raise DeviceError(
            f"devices: got {processes} processes, this machine has "
            f"{counted(count, 'CUDA device')}; start "
            "fewer, or pass device='cpu'"
        )
    return found.type


def _launch(kind: str, local: int, nodes: int) -> torch.device:
    """Start the processes where nobody has, connect them, and return this one's device."""
    import __main__

    if torch_dist.is_initialized():  # by the user: to launch would run the script once more in each
        place = int(os.environ.get("LOCAL_RANK", torch_dist.get_rank() % local))
        return torch.device(kind, place) if kind == "cuda" else torch.device(kind)
    started = {"LOCAL_RANK", "SLURM_LOCALID"} & os.environ.keys()
    if not started and not hasattr(__main__, "__file__"):
        raise ConfigError(
            f"devices: got {local}, which runs the script once per device, and there is no script; "
            "put the code into a file (a notebook has one process)"
        )
    # Here, not at the top: importing it takes longer than a small run.
    with extra("devices", "devices"):
        from lightning_fabric import Fabric

    connect(kind)
    fabric: Any = Fabric(accelerator=kind, devices=local, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return fabric.device


def _make(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return place, shape and type of each parameter and buffer, by name."""
    found = {
        f"{prefix}.{name}".removeprefix(
            "program.parts."
        ): f"{tuple(tensor.shape)} of {tensor.dtype}"
        for prefix, module in modules.items()
        for each in (module.named_parameters(), module.named_buffers())
        for name, tensor in each
    }
    return {name: f"number {place}, {kind}" for place, (name, kind) in enumerate(found.items())}


def _tensors(modules: Mapping[str, nn.Module]) -> Iterator[Tensor]:
    for module in modules.values():
        yield from module.parameters()
        yield from module.buffers()


def _range(leaf: Tensor | SparseRows, start: int, stop: int) -> Any:
    """Return a range of rows; sparse ones stay sparse, as they may be a whole data set."""
    return leaf.part(start, stop) if isinstance(leaf, SparseRows) else leaf[start:stop]
