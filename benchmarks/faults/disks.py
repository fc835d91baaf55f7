"""Disks that fill or become read-only in the midst of a run, and checkpoints that are cut off."""

import errno
import os
import random
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.faults.children import Forked, Say, is_ours
from benchmarks.faults.trials import Kind, Trial

_X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_CALLS = ("open", "fsync", "replace", "mkdir", "link", "unlink", "listdir", "utime")
_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT)


def _program() -> pv.models.VAE:
    torch.manual_seed(1)
    return pv.models.VAE(6, 2, (5,))


def _fit(folder: Path | None, program: Any = None) -> pv.Run:
    every = None if folder is None else 1
    return pv.fit(
        program if program is not None else _program(),
        _X,
        valid=1 - _X[:8],
        epochs=4,
        batch_size=12,
        lr=0.05,
        compile=False,
        progress=False,
        out=folder,
        checkpoint_every=every,
        resume=folder is not None,
    )


class _Failing:
    """System calls on a folder that fail from one on, for a while or for good."""

    def __init__(self, folder: Path, start: int, length: int, code: int) -> None:
        self.folder, self.start, self.stop, self.code = str(folder), start, start + length, code
        self.calls = 0
        self.failed = False

    def __call__(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if args and (isinstance(args[0], int) or os.fspath(args[0]).startswith(self.folder)):
                self.calls += 1
                if self.start <= self.calls < self.stop:
                    self.failed = True
                    raise OSError(self.code, os.strerror(self.code), str(args[0]))
            return original(*args, **options)

        return call

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before = {name: getattr(os, name) for name in _CALLS}
        for name, original in before.items():
            setattr(os, name, self(original))
        try:
            yield
        finally:
            for name, original in before.items():
                setattr(os, name, original)


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    straight = _fit(None)
    with tempfile.TemporaryDirectory() as home:
        counting = _Failing(Path(home), 10**9, 0, 0)
        with counting.at_work():
            _fit(Path(home) / "whole")
        for number in range(first, 10**9):
            rng, folder = random.Random(f"{seed}/{number}"), Path(home) / str(number)
            what = rng.choice(["calls", "calls", "limit", "cut"])
            if what == "calls":
                length = rng.choice([1, 1, 10**9])
                failing = _Failing(
                    folder, rng.randint(1, counting.calls), length, rng.choice(_ERRORS)
                )
                yield _failing_calls(folder, failing, straight)
            elif what == "limit":
                yield _limited(folder, rng.randint(1, 12_000), straight)
            else:
                yield _cut(folder, Path(home) / "whole", rng, straight)
            shutil.rmtree(folder, ignore_errors=True)


def _failing_calls(folder: Path, failing: _Failing, straight: pv.Run) -> Trial:
    name = errno.errorcode[failing.code]
    group = f"{name}, {'once' if failing.stop - failing.start == 1 else 'for good'}"
    place, program, told = f"call {failing.start}", _program(), False
    with failing.at_work():
        try:
            _fit(folder, program)
        except (OSError, pv.errors.PyroVaeError):
            told = True
        except BaseException as error:
            return Trial(group, "raw", f"{place}: {type(error).__name__}: {error}")
    return _go_on(group, place, folder, straight, "ours" if told else "ok")


def _go_on(group: str, place: str, folder: Path, straight: pv.Run, verdict: Any) -> Trial:
    """Let the run go on where the disk is sound again, and compare it with the straight one."""
    again, expected = _program(), straight.program.state_dict()
    try:
        run = _fit(folder, again)
    except pv.errors.ConfigError as error:  # there was room for the program, not for a checkpoint
        if verdict == "ours" and "no checkpoint to go on from" in str(error):
            return Trial(group, "ours" if _same(pv.load(folder), expected) else "wrong", place)
        return Trial(group, "lost", f"{place}: {error}")
    except Exception as error:
        return Trial(group, "lost", f"{place}: {type(error).__name__}: {error}")
    if run.history["loss"].tolist() != straight.history["loss"].tolist():
        return Trial(group, "wrong", f"{place}: the losses differ")
    if not _same(again, expected) or not _same(pv.load(folder), expected):
        return Trial(group, "wrong", f"{place}: the weights differ")
    return Trial(group, verdict)


def _same(program: Any, expected: dict[str, torch.Tensor]) -> bool:
    state = program.state_dict()
    return all(torch.equal(value, state[name]) for name, value in expected.items())


def _limited(folder: Path, size: int, straight: pv.Run) -> Trial:
    """Let the kernel refuse what a file holds beyond a size: a part has been written by then."""

    def action(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        _fit(folder)

    child = Forked(action)
    if not child.wait(60):
        return Trial("files that end early", "raw", f"{size} bytes: hung")
    told = child.error is not None
    if child.code not in (0, 1) or (
        told and not is_ours(child.error) and "OSError" not in str(child.error)
    ):
        return Trial("files that end early", "raw", f"{size} bytes: {child.error}")
    verdict = "ours" if told else "ok"
    return _go_on("files that end early", f"{size} bytes", folder, straight, verdict)


def _cut(folder: Path, whole: Path, rng: random.Random, straight: pv.Run) -> Trial:
    """Cut off the newer checkpoint of a finished run: the older one is gone on with."""
    shutil.copytree(whole, folder)
    path = folder / "checkpoint.safetensors"
    data = path.read_bytes()
    cut = rng.randrange(len(data))
    path.write_bytes(data[:cut] if rng.random() < 0.5 else data[:cut] + bytes(len(data) - cut))
    if path.read_bytes() == data:
        return Trial("cut checkpoints", "ok")
    return _go_on("cut checkpoints", f"byte {cut}", folder, straight, "ok")


DISKS = Kind(
    name="disks",
    unit="disks that fail in a run",
    target=600,
    how="system calls of a run on its folder fail from one on, once or for good (no space, "
    "read-only, no permission, I/O error, quota); or the kernel refuses files beyond a size; or "
    "the newer checkpoint is cut off or ends in zeros. Then the run goes on in the same folder and "
    "is compared bit by bit with a straight one. Ours: OSError or an error of the library",
    trials=_trials,
)
