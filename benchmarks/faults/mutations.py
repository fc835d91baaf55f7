"""Saved files with damage drawn at random, sealed again so that no hash refuses them."""

import copy
import hashlib
import json
import random
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.faults.memory import Peak
from benchmarks.faults.trials import Kind, Trial
from pyro_vae.cli.runs import read_settings
from pyro_vae.errors import PyroVaeError
from pyro_vae.program.program import Program
from pyro_vae.storage.bundle import read_bundle, serialise
from pyro_vae.storage.checkpoint import read_checkpoint
from pyro_vae.storage.lock import FolderLock
from pyro_vae.storage.save import state_modules

_X = (torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_WEIGHED = 25  # each so many trials the memory is looked at: it takes longer than a trial
_USED = 10  # each so many programs that could be loaded are used
_SPARE = 2**25  # bytes that an allocator may hold back, whatever the file
_EVENTS = ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "socket.connect")
_ran: list[str] = []  # what a file has made this process do, which none may


def _watch(event: str, arguments: Any) -> None:
    if event in _EVENTS:
        _ran.append(event)


class _Files:
    """A run folder whose files are damaged one at a time, and the readers of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.program = pv.models.VAE(4, 2, (3,))
        options = {"batch_size": 6, "progress": False, "compile": False, "valid": _X[:4]}
        self.made: list[torch.optim.Optimizer] = []

        def adam(parameters: Any) -> torch.optim.Optimizer:
            self.made.append(torch.optim.Adam(parameters, lr=0.01))
            return self.made[-1]

        pv.fit(self.program, _X, epochs=2, optimizer=adam, out=folder, **options)
        self.wrapped = Program.of(self.program)
        self.loaded, self.filled = 0, pv.models.VAE(4, 2, (3,))
        self.bundles = {
            name: read_bundle(folder, name, allow_nonfinite=True)
            for name in ("program", "checkpoint")
        }
        settings = {"data": "digits", "binarization": "none", "seed": 0, "hidden": [400], "lr": 0.1}
        (folder / "train.json").write_text(json.dumps(settings, indent=2))
        self.bytes = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.bytes["lock.json"] = b'{"pid": 99999999, "host": "vm", "start": "1", "id": "a"}'
        for path in folder.glob("checkpoint-before*"):
            path.unlink()  # else the older one stands in

    def load(self) -> None:
        program = pv.load(self.folder)
        self.loaded += 1
        if self.loaded % _USED == 0:
            pv.encode(program, _X)

    def fill(self) -> None:
        program = self.filled
        before = copy.deepcopy(program.state_dict())
        try:
            pv.load(self.folder, into=program)
        except PyroVaeError:
            for name, value in program.state_dict().items():
                if not torch.equal(value, before[name]):
                    raise AssertionError("a refused file has changed the program") from None
            raise

    def resume(self) -> None:
        modules = state_modules(self.wrapped, None)
        settings = self.bundles["checkpoint"][1]["settings"]
        before = {k: v.clone() for k, v in self.wrapped.state_dict().items()}
        optimizer = torch.optim.Adam(self.wrapped.parameters(), lr=0.01)
        random_state = torch.get_rng_state()
        try:
            read_checkpoint(self.folder, modules, [optimizer], settings, torch.device("cpu"))
            self._step(optimizer)
        except PyroVaeError:
            if any(not torch.equal(v, before[k]) for k, v in self.wrapped.state_dict().items()):
                raise AssertionError("a refused file has changed the program") from None
            if not torch.equal(random_state, torch.get_rng_state()):
                raise AssertionError("a refused file has changed the generator") from None
            raise
        finally:
            self.wrapped.load_state_dict(before)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the kernels see the state that was read: a wrong shape would be memory of others."""
        for parameter in self.wrapped.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    def settings(self) -> None:
        read_settings(self.folder)

    def lock(self) -> None:
        lock = FolderLock(self.folder)
        lock.acquire()
        lock.release()


_READERS: dict[str, tuple[str, Callable[[_Files], None]]] = {
    "load": ("program", _Files.load),
    "load into": ("program", _Files.fill),
    "resume": ("checkpoint", _Files.resume),
}
_TEXTS: dict[str, tuple[str, Callable[[_Files], None]]] = {
    "train.json": ("train.json", _Files.settings),
    "lock.json": ("lock.json", _Files.lock),
}


# -- damage ----------------------------------------------------------------------------------------


def _value(node: Any, rng: random.Random) -> Any:
    """Return what may stand in place of a JSON value."""
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            1,
            2**31,
            2**63,
            2**70,
            1e308,
            -0.0,
            0.5,
            "",
            "x" * 64,
            "\u202e\x00",
            "../../etc/passwd",
            "__class__",
            [],
            [[]],
            {},
            {"a": 1},
            [node],
            {"__reduce__": node},
            [0] * 1000,
        ]
    )


def _mutated(node: Any, rng: random.Random) -> Any:
    """Return JSON with one entry replaced, removed, doubled or renamed."""
    if isinstance(node, dict | list) and node and rng.random() < 0.85:
        changed = copy.copy(node)
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        what = rng.random()
        if what < 0.1:
            changed.pop(key)
        elif what < 0.2 and isinstance(changed, dict):
            changed[rng.choice(["", "keys", "__class__", "values", f"{key}.x"])] = changed.pop(key)
        elif what < 0.25 and isinstance(changed, list):
            changed.insert(key, node[key])
        else:
            changed[key] = _mutated(node[key], rng)
        return changed
    return _value(node, rng)


def _mutated_tensors(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    key = rng.choice(list(tensors))
    value = tensors[key]
    changed = dict(tensors)
    what = rng.randrange(9)
    if what == 0:
        changed.pop(key)
    elif what == 1:
        changed[rng.choice(["", "values.keys", "__class__", f"{key}.x"])] = changed.pop(key)
    elif what == 2:
        other = rng.choice(list(tensors))
        changed[key], changed[other] = tensors[other], value
    else:
        changed[key] = [
            lambda: value.flatten()[:-1].clone(),
            lambda: torch.zeros(0),
            lambda: value.double() if value.is_floating_point() else value.float(),
            lambda: value[None].clone(),
            lambda: torch.full_like(value, 200),
            lambda: torch.zeros(3, 1, 2, dtype=torch.bool),
        ][what - 3]()
    return changed


def _mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    what = rng.randrange(5)
    if what == 0:
        return data[:place]
    if what == 1:
        return data[:place] + rng.randbytes(rng.randint(1, 16)) + data[place:]
    if what == 2:
        return data[:place] + data[place + rng.randint(1, 16) :]
    if what == 3:
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    return data[:place] + data[rng.randrange(len(data)) :]


def _mutated_header(data: bytes, rng: random.Random) -> bytes:
    """Return a file whose safetensors header is another, with the right hash of the whole."""
    (length,) = struct.unpack("<Q", data[:8])
    head, tail = json.loads(data[8 : 8 + length]), data[8 + length :]
    changed = _mutated(head, rng)
    if isinstance(changed, dict) and isinstance(changed.get("__metadata__"), dict):
        changed["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(changed, separators=(",", ":"), ensure_ascii=False)
    whole = text.encode(errors="surrogatepass")
    whole = struct.pack("<Q", len(whole)) + whole + (tail if rng.random() < 0.8 else tail[:-3])
    digest = hashlib.sha256(whole).hexdigest()
    return whole.replace(b"0" * 64, digest.encode(), 1)


# -- the trials ------------------------------------------------------------------------------------


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    sys.addaudithook(_watch)
    with tempfile.TemporaryDirectory() as home:
        files = _Files(Path(home))
        _ran.clear()
        for number in range(first, 10**9):
            yield _trial(files, random.Random(f"{seed}/{number}"), number)


def _trial(files: _Files, rng: random.Random, number: int) -> Trial:
    if rng.random() < 0.1:
        group = rng.choice(list(_TEXTS))
        name, reader = _TEXTS[group]
        data = _mutated_bytes(files.bytes[name], rng)
        if rng.random() < 0.5:
            data = json.dumps(_mutated(json.loads(files.bytes[name]), rng)).encode()
        path = files.folder / name
    else:
        group = rng.choice(list(_READERS))
        name, reader = _READERS[group]
        path = files.folder / f"{name}.safetensors"
        data = _damage(files, name, path, rng)
    path.write_bytes(data)
    return _outcome(files, group, reader, len(data), number)


def _damage(files: _Files, name: str, path: Path, rng: random.Random) -> bytes:
    """Return a bundle with damage: mostly sealed, so that it is read beyond its hash."""
    sound = files.bytes[path.name]
    kind = rng.random()
    if kind < 0.15:
        return _mutated_bytes(sound, rng)
    if kind < 0.35:
        return _mutated_header(sound, rng)
    tensors, meta = files.bundles[name]
    if kind < 0.6:
        tensors = _mutated_tensors(tensors, rng)
    else:
        meta = _mutated(meta, rng)
    try:
        return serialise(tensors, meta, name, allow_nonfinite=True)
    except PyroVaeError:  # even the writer refuses it
        return _mutated_bytes(sound, rng)


def _outcome(
    files: _Files, group: str, reader: Callable[[_Files], None], size: int, number: int
) -> Trial:
    peak = Peak() if number % _WEIGHED == 0 else None
    try:
        reader(files)
        trial = Trial(group, "ok")
    except PyroVaeError:
        trial = Trial(group, "ours")
    except AssertionError as error:
        trial = Trial(group, "wrong", str(error))
    except Exception as error:
        trial = Trial(group, "raw", f"{type(error).__name__}: {error}")
    if _ran:
        trial = Trial(group, "raw", f"it made this process run {_ran}")
        _ran.clear()
    if peak is not None and peak.grown() > 4 * size + _SPARE:
        trial = Trial(group, "raw", f"{peak.grown()} bytes for a file of {size}")
    return trial


MUTATIONS = Kind(
    name="mutations",
    unit="damaged files",
    target=100_000,
    how="a program, a checkpoint and the JSON beside them with one damage drawn at random (in "
    "bytes, in the safetensors header, in the JSON, in a tensor), most of them sealed with the "
    "right hash, through pv.load, pv.load(into=), the reader of checkpoints and a step of its "
    "optimizer, the settings of the command line, and the lock; raw: an error of another "
    "library, code that runs, or memory beyond 4 x the file and 32 MiB; wrong: a refused file has "
    "changed something",
    trials=_trials,
)
