"""Files made by hand to mislead, exhaust or run code, given to every reader of the library."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import pyro_vae as pv
from benchmarks.faults.children import Forked, Say, is_ours
from benchmarks.faults.memory import Peak
from benchmarks.faults.trials import Kind, Trial
from pyro_vae.cli.runs import open_run
from pyro_vae.storage import bundle
from pyro_vae.storage.bundle import FORMAT, read_bundle, serialise

_X = (torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_SLOW = 30.0  # seconds after which a reader counts as hanging
_SPARE = 2**25  # bytes beside 4 x the file: what an interpreter needs for its errors
_CANARY = "canary"

Make = Callable[[Path], bytes]


class _Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _program() -> pv.models.VAE:
    torch.manual_seed(1)
    return pv.models.VAE(4, 2, (3,))


def _fit(folder: Path, resume: bool) -> pv.Run:
    return pv.fit(
        _program(),
        _X,
        valid=_X[:4],
        epochs=2 + resume,
        batch_size=6,
        compile=False,
        progress=False,
        out=folder,
        resume=resume,
    )


# -- bytes -----------------------------------------------------------------------------------------


def _header(text: str | bytes, tail: bytes = b"") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data + tail


def _sealed(meta: str, tensors: str = "", tail: bytes = b"") -> bytes:
    """Return a file of ours with any text as its JSON, and the right hash."""
    named = {"format": FORMAT, "version": "1", "meta": meta, "sha256": "0" * 64}
    text = f'{{"__metadata__":{json.dumps(named)}{"," if tensors else ""}{tensors}}}'
    text = text.replace('"sha256": "', '"sha256":"')
    whole = _header(text, tail)
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def _torch_pickle(folder: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(_Payload(folder / _CANARY), stream)
    return stream.getvalue()


def _zip_bomb(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 2**28)
    return stream.getvalue()


def _tensor(shape: str, start: int, end: int, dtype: str = "F32") -> str:
    return f'"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


_BYTES: dict[str, Make] = {
    "empty": lambda f: b"",
    "seven bytes": lambda f: b"\0" * 7,
    "zeros": lambda f: b"\0" * 10**6,
    "pickle": lambda f: pickle.dumps(_Payload(f / _CANARY)),
    "torch.save": _torch_pickle,
    "zip bomb": _zip_bomb,
    "gzip bomb": lambda f: gzip.compress(b"\0" * 2**28),
    "script": lambda f: b"#!/bin/sh\ntouch canary\n",
    "brackets": lambda f: b"[" * 10**6,
    "header of 2^63 bytes": lambda f: struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64 - 1 bytes": lambda f: b"\xff" * 8 + b"{}",
    "header longer than the file": lambda f: struct.pack("<Q", 10**6) + b"{}",
    "header of no bytes": lambda f: struct.pack("<Q", 0),
    "header of words": lambda f: _header("these are no tensors"),
    "header not UTF-8": lambda f: _header(b'{"\xff\xfe": 1}'),
    "header with a mark": lambda f: _header("\ufeff{}"),
    "header a list": lambda f: _header("[1, 2]"),
    "header deep": lambda f: _header('{"a":' * 100_000),
    "header of many names": lambda f: _header(json.dumps({f"n{i}": 1 for i in range(10**5)})),
    "metadata null": lambda f: _header('{"__metadata__":null}'),
    "metadata of another": lambda f: _header('{"__metadata__":{"format":"pt"}}'),
    "metadata of a later version": lambda f: _header(
        f'{{"__metadata__":{{"format":"{FORMAT}","version":"99"}}}}'
    ),
    "no hash": lambda f: _header(
        f'{{"__metadata__":{{"format":"{FORMAT}","version":"1","meta":"{{}}"}}}}'
    ),
    "hash of another": lambda f: _sealed("{}").replace(b"{}", b"[]", 1),
    "JSON empty": lambda f: _sealed(""),
    "JSON a list": lambda f: _sealed("[]"),
    "JSON a number": lambda f: _sealed("1"),
    "JSON null": lambda f: _sealed("null"),
    "JSON deep": lambda f: _sealed('{"a":' * 200_000),
    "JSON deep and closed": lambda f: _sealed('{"a":' * 100 + "1" + "}" * 100),
    "JSON with NaN": lambda f: _sealed('{"a": NaN}'),
    "JSON with infinity": lambda f: _sealed('{"a": 1e400}'),
    "JSON with a long number": lambda f: _sealed('{"a": ' + "9" * 10_000 + "}"),
    "JSON with a name twice": lambda f: _sealed('{"a": 1, "a": 2}'),
    "JSON with half a letter": lambda f: _sealed('{"a": "\\ud800"}'),
    "JSON empty object": lambda f: _sealed("{}"),
    "unknown dtype": lambda f: _sealed("{}", _tensor("[1]", 0, 4, "OBJECT"), b"\0" * 4),
    "2^40 elements": lambda f: _sealed("{}", _tensor(f"[{2**40}]", 0, 2**42), b"\0" * 4),
    "shape overflows": lambda f: _sealed("{}", _tensor(f"[{2**33},{2**33}]", 0, 4), b"\0" * 4),
    "shape negative": lambda f: _sealed("{}", _tensor("[-1]", 0, 4), b"\0" * 4),
    "shape of many axes": lambda f: _sealed("{}", _tensor(str([1] * 1000), 0, 4), b"\0" * 4),
    "offsets backwards": lambda f: _sealed("{}", _tensor("[1]", 4, 0), b"\0" * 4),
    "offsets beyond": lambda f: _sealed("{}", _tensor("[1]", 0, 4)),
    "bytes behind": lambda f: _sealed("{}", _tensor("[1]", 0, 4), b"\0" * 9),
    "tensor of no axis": lambda f: _sealed("{}", _tensor("[]", 0, 4), b"\0" * 4),
}


def _not_a_file(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"device": "/dev/zero", "no target": "x", "loop": path.name}[kind])

    return make


_NO_FILES = {kind: _not_a_file(kind) for kind in ("folder", "pipe", "device", "no target", "loop")}

# -- what a sealed file asks for -------------------------------------------------------------------

_CONFIGS: dict[str, dict[str, Any]] = {
    "latents 10^12": {"config": {"data_dim": 4, "latent_dim": 10**12}},
    "latents 10^30": {"config": {"data_dim": 4, "latent_dim": 10**30}},
    "latents negative": {"config": {"data_dim": 4, "latent_dim": -2}},
    "latents words": {"config": {"data_dim": 4, "latent_dim": "two"}},
    "latents a list": {"config": {"data_dim": 4, "latent_dim": [2]}},
    "layers 10^9 wide": {"config": {"data_dim": 4, "latent_dim": 2, "hidden": [10**9]}},
    "layers 5,000": {"config": {"data_dim": 4, "latent_dim": 2, "hidden": [1] * 5000}},
    "layers of layers": {"config": {"data_dim": 4, "latent_dim": 2, "hidden": [[[3]]]}},
    "data 10^15": {"config": {"data_dim": 10**15, "latent_dim": 2}},
    "data of many axes": {"config": {"data_dim": [1] * 10**4, "latent_dim": 2}},
    "data of no axis": {"config": {"data_dim": [], "latent_dim": 2}},
    "an unknown argument": {"config": {"data_dim": 4, "latent_dim": 2, "code": "import os"}},
    "an attribute": {"config": {"data_dim": 4, "latent_dim": 2, "__class__": "x"}},
    "self": {"config": {"self": 1, "data_dim": 4, "latent_dim": 2}},
    "no argument": {"config": {}},
    "no configuration": {"config": None},
    "a class by path": {"program": "os.system", "config": {"command": "touch canary"}},
    "a class of Python's": {"program": "__import__", "config": {"name": "os"}},
    "a module": {"program": "networks", "config": {}},
    "a program of no file": {"program": "Program", "config": {}},
    "a program null": {"program": None},
    "a program a list": {"program": ["VAE"]},
    "another program": {"program": "DEF", "config": {"data_dim": 4, "latent_dims": [2]}},
    "a hundred layers of latents": {"program": "SBN", "config": {"latent_dims": [1] * 900}},
    "codes 10^12": {"program": "VQVAE", "config": {"data_dim": 4, "num_codes": 10**12}},
    "late names of Python's": {"late": ["__class__", "keys", "values"]},
    "late a number": {"late": 3},
    "late nested": {"late": [[["a"]]]},
    "an observation by path": {
        "config": {"data_dim": 4, "latent_dim": 2, "observation": "os.system"}
    },
    "an observation nested": {
        "config": {"data_dim": 4, "latent_dim": 2, "observation": {"kind": "Bernoulli", "x": 1}}
    },
    "an activation by path": {
        "config": {"data_dim": 4, "latent_dim": 2, "activation": "os.system"}
    },
    "a prior of 10^9 parts": {
        "config": {
            "data_dim": 4,
            "latent_dim": 2,
            "prior": {"kind": "Mixture", "components": 10**9},
        }
    },
}

_CHECKPOINTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "no optimizer": lambda t, m: m.pop("optimizers"),
    "optimizers null": lambda t, m: m.update(optimizers=[None]),
    "optimizers 10^4": lambda t, m: m.update(optimizers=m["optimizers"] * 10**4),
    "groups null": lambda t, m: m["optimizers"][0].update(groups=None),
    "groups twice": lambda t, m: m["optimizers"][0].update(groups=m["optimizers"][0]["groups"] * 2),
    "options null": lambda t, m: m["optimizers"][0]["groups"][0].update(options=None),
    "lr words": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(lr="fast"),
    "lr 10^300": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(lr=10**300),
    "betas short": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(betas=[0.9]),
    "epoch negative": lambda t, m: m.update(epoch=-1),
    "epoch 2^70": lambda t, m: m.update(epoch=2**70),
    "epoch words": lambda t, m: m.update(epoch="3"),
    "steps true": lambda t, m: m.update(steps=True),
    "history of integers": lambda t, m: t.update({"history.loss": torch.ones(2).long()}),
    "history of many axes": lambda t, m: t.update({"history.loss": torch.ones(1, 1).double()}),
    "history 10^5 rows": lambda t, m: t.update({"history.loss": torch.ones(10**5).double()}),
    "history in JSON": lambda t, m: m.update(history=[{"loss": 1.0}] * 10**5),
    "settings null": lambda t, m: m.update(settings=None),
    "settings of a list": lambda t, m: m.update(settings=[1]),
    "best a list": lambda t, m: m.update(best_elbo=[1]),
    "moment of no value": lambda t, m: _swap(t, "exp_avg", torch.zeros(0)),
    "moment of one value": lambda t, m: _swap(t, "exp_avg", torch.zeros(1)),
    "moment of integers": lambda t, m: _swap(t, "exp_avg", torch.zeros(3, dtype=torch.int64)),
    "moment of many axes": lambda t, m: _swap(t, "exp_avg_sq", torch.zeros([1] * 20)),
    "step of many": lambda t, m: _swap(t, "step", torch.ones(7)),
    "random state of one byte": lambda t, m: t.update({"rng.cpu": torch.zeros(1).byte()}),
    "random state of floats": lambda t, m: t.update({"rng.cpu": torch.zeros(5056)}),
    "random state of ones": lambda t, m: t.update({"rng.cpu": torch.ones(5056).byte()}),
    "NumPy's state infinite": lambda t, m: t.update(
        {"rng.numpy": torch.full((627,), 1e300, dtype=torch.float64)}
    ),
    "Python's state of no word": lambda t, m: t.update({"rng.python": torch.zeros(0)}),
    "best of another": lambda t, m: t.update({"best.alien": torch.zeros(2)}),
    "weights of another": lambda t, m: t.update({"program.alien": torch.zeros(2)}),
}


def _swap(tensors: dict[str, Any], entry: str, value: Any) -> None:
    key = next(key for key in tensors if f"/{entry}/" in key)
    tensors[key] = value


_JSON: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "deep": b'{"a":' * 10**5,
    "not UTF-8": b"\xff\xfe",
    "NaN": b'{"pid": NaN, "host": NaN, "data": NaN, "binarization": NaN, "seed": NaN}',
    "types": b'{"pid": [], "host": {}, "data": [], "binarization": 3, "seed": "x"}',
    "paths": b'{"pid": 1, "host": "../..", "data": "../../etc", "binarization": "", "seed": 0}',
    "long number": b'{"pid": ' + b"9" * 10**4 + b', "host": "vm"}',
    "negative": b'{"pid": -1, "host": "vm", "data": "digits", "binarization": "none", "seed": -1}',
}


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _claiming(shape: str) -> bytes:
    """Return an archive whose array claims a shape that it does not have."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode() + b"\0" * 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", array)
    return stream.getvalue()


def _objects(folder: Path) -> bytes:
    return _npz(x=np.array([_Payload(folder / _CANARY)], dtype=object))


_ARCHIVES: dict[str, Make] = {
    "objects": _objects,
    "zip bomb": _zip_bomb,
    "claims 2^62": lambda f: _claiming(f"({2**62}, 2)"),
    "claims negative": lambda f: _claiming("(-1, 2)"),
    "claims code": lambda f: _claiming("(__import__('os').system('touch canary'),)"),
    "claims words": lambda f: _claiming("('a',)"),
    "no array": lambda f: _npz(),
    "another array": lambda f: _npz(y=np.zeros(3, np.uint8)),
    "floats": lambda f: _npz(x=np.zeros((3, 2))),
    "no row": lambda f: _npz(x=np.zeros((0, 2), np.uint8)),
    "truncated": lambda f: _npz(x=np.zeros((30, 2), np.uint8))[:-40],
}
_IDX: dict[str, Make] = {
    "no gzip": lambda f: b"\0\0\x08\x01\0\0\0\x01x",
    "bomb": lambda f: gzip.compress(b"\0" * 2**28),
    "bomb of declared size": lambda f: gzip.compress(b"\0\0\x08\x01\0\0\0\x01" + b"\0" * 2**28),
    "claims 2^32 x 2^32": lambda f: gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8 + b"x"),
    "rank 255": lambda f: gzip.compress(b"\0\0\x08\xff" + b"\0" * 1020),
    "rank 0": lambda f: gzip.compress(b"\0\0\x08\0"),
    "floats": lambda f: gzip.compress(b"\0\0\x0d\x01\0\0\0\x01" + b"\0" * 4),
    "truncated": lambda f: gzip.compress(b"\0\0\x08\x01\0\0\0\x40" + b"x" * 64)[:-12],
}

# -- the readers -----------------------------------------------------------------------------------

_LOADS: dict[str, Callable[[Path], Any]] = {
    "load": lambda folder: pv.load(folder),
    "load into": lambda folder: pv.load(folder, into=_program()),
}


def _resume(folder: Path) -> Any:
    return _fit(folder, resume=True)


def _files() -> Iterator[tuple[str, str, Callable[[Path], Path], Callable[[Path], Any]]]:
    """Yield group, name, what puts the file into a run folder, and what reads it."""
    for group, reader in (*_LOADS.items(), ("resume", _resume)):
        file = f"{'checkpoint' if group == 'resume' else 'program'}.safetensors"
        for name, make in _BYTES.items():
            yield group, name, _writer(file, make), reader
        for name, put in _NO_FILES.items():
            yield group, name, _placer(file, put), reader
    for name, changes in _CONFIGS.items():
        yield "configuration", name, _forger("program", _changing(changes)), _LOADS["load"]
    for name, change in _CHECKPOINTS.items():
        yield "checkpoint", name, _forger("checkpoint", change), _resume
    for name, data in _JSON.items():
        for file, reader in (
            ("lock.json", _resume),
            ("config.json", _resume),
            ("train.json", lambda folder: open_run(str(folder), "cpu")),
        ):
            yield file, name, _writer(file, lambda f, data=data: data), reader
    for name, make in _ARCHIVES.items():
        yield (
            "npz",
            name,
            _writer("x.npz", make),
            lambda folder: pv.data.read_npz(folder / "x.npz", {"x": (np.uint8, (2,))}),
        )
    for name, make in _IDX.items():
        yield "idx", name, _writer("x.gz", make), lambda folder: pv.data.read_idx(folder / "x.gz")


def _writer(file: str, make: Make) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        (folder / file).write_bytes(make(folder))
        return folder / file

    return put


def _placer(file: str, make: Callable[[Path], None]) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        make(folder / file)
        return folder / file

    return put


def _forger(name: str, change: Callable[[Any, Any], Any]) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        tensors, meta = read_bundle(folder, name, allow_nonfinite=True)
        change(tensors, meta)
        path = folder / f"{name}.safetensors"
        with mock.patch.object(bundle, "SPARE_BYTES", 10**10):  # a stranger's writer has no bound
            path.write_bytes(serialise(tensors, meta, name, allow_nonfinite=True))
        return path

    return put


def _changing(changes: dict[str, Any]) -> Callable[[Any, Any], Any]:
    return lambda tensors, meta: meta.update(changes)


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        sound = Path(home) / "sound"
        _fit(sound, resume=False)
        (sound / "checkpoint-before.safetensors").unlink(missing_ok=True)
        (sound / "train.json").write_text("{}")
        kept = {path.name: path.read_bytes() for path in sound.iterdir() if path.is_file()}
        for number, (group, name, put, reader) in enumerate(_files()):
            if number >= first:
                folder = Path(home) / str(number)
                folder.mkdir()
                for file, data in kept.items():
                    (folder / file).write_bytes(data)
                yield _read(group, name, folder, put, reader)


def _read(
    group: str,
    name: str,
    folder: Path,
    put: Callable[[Path], Path],
    reader: Callable[[Path], Any],
) -> Trial:
    path = put(folder)
    size = path.stat().st_size if path.is_file() else 0

    def action(say: Say) -> None:
        os.chdir(folder)  # where the canary of a command would appear
        peak = Peak()
        try:
            reader(folder)
        finally:
            say(f"grown {peak.grown()}")

    start, child = time.monotonic(), Forked(action)
    if not child.wait(_SLOW):
        return Trial(group, "raw", f"{name}: hung for {time.monotonic() - start:.0f} s")
    grown = max(
        (int(line.split()[1]) for line in child.lines if line.startswith("grown")), default=0
    )
    if (folder / _CANARY).exists():
        return Trial(group, "raw", f"{name}: its code ran")
    if grown > 4 * size + _SPARE:
        return Trial(group, "raw", f"{name}: {grown:,} bytes for a file of {size:,}")
    if child.code is not None and child.code < 0:
        return Trial(group, "raw", f"{name}: crashed by signal {-child.code}")
    if child.error is not None and not is_ours(child.error):
        return Trial(group, "raw", f"{name}: {child.error}")
    return Trial(group, "ok" if child.error is None else "ours", name)


HOSTILE = Kind(
    name="files",
    unit="files made by hand",
    target=sum(1 for _ in _files()),
    how="each file is put into a sound run folder and read in a process of its own; raw: an error "
    "of another library, a crash, a hang of 30 s, code that runs, or memory beyond 4 x the file "
    "and 32 MiB; ok: it was read, or not needed",
    trials=_trials,
)
