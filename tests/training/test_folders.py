"""Run folders: locks, faults of the disk and of side logs, and kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from forked import fork, forks

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.storage import checkpoint, events, lock
from pyro_vae.storage.atomic import host
from pyro_vae.storage.bundle import read_bundle
from pyro_vae.training import continuation
from pyro_vae.training.loader_workers import ended_workers_unheard

X = (torch.rand(40, 7, generator=torch.Generator().manual_seed(4)) > 0.4).float()
FAST = {"epochs": 4, "batch_size": 10, "compile": False, "progress": False}


def build(seed=1):
    torch.manual_seed(seed)
    return pv.models.VAE(7, 2, (5,))


def weights(program):
    return {k: v.clone() for k, v in program.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Watch:
    """A callback that keeps the weights of every epoch, and does something at one."""

    def __init__(self, at=None, do=None):
        self.at, self.do, self.seen, self.best = at, do, {}, 0

    def __call__(self, run):
        epoch = len(run.history["loss"])
        self.seen[epoch], self.best = weights(run.program), run.best_epoch
        if epoch == self.at:
            self.do()


# -- the lock --------------------------------------------------------------------------------------


def owner(folder, **changes):
    text = {"pid": os.getpid(), "host": host(), "start": lock.start_of(os.getpid()), "id": "a"}
    folder.mkdir(exist_ok=True)
    (folder / "lock.json").write_text(json.dumps({**text, **changes}))


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_folder_in_use_is_refused_by_the_name_of_its_owner(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner(tmp_path / "run", pid=child.pid, start=lock.start_of(child.pid))
        program = build()
        before = weights(program)
        for resume in (False, True):
            with pytest.raises(ConfigError, match=rf"in use by process {child.pid} on {host()}"):
                pv.fit(program, X, out=tmp_path / "run", resume=resume, **FAST)
        assert same(before, weights(program)) and len(list((tmp_path / "run").iterdir())) == 1
    finally:
        child.communicate(b"\n")


@pytest.mark.parametrize(
    "kind", ["dead", "given out again", "own", "old host", "before a restart", "damaged"]
)
def test_a_stale_lock_is_recovered(kind, tmp_path):
    folder = tmp_path / "run"
    changes = {
        "dead": {"pid": dead_pid()},
        "given out again": {"pid": 1, "start": "1"},
        "own": {},  # an interrupt ended a run of this process in the midst of giving it up
        "old host": {"host": "elsewhere"},
        "before a restart": {"processes": "others", "pid": 1},
        "damaged": {},
    }[kind]
    owner(folder, **changes)
    if kind == "damaged":
        (folder / "lock.json").write_text('{"pid": ')
    if kind in ("old host", "before a restart", "damaged"):
        old = time.time() - 2 * (lock.UNSEEN if kind == "before a restart" else lock.STALE)
        os.utime(folder / "lock.json", (old, old))
    pv.fit(build(), X, out=folder, **FAST)
    assert not (folder / "lock.json").exists() and not list(folder.glob(".*"))


def test_a_lock_that_is_being_written_holds(tmp_path):
    (tmp_path / "lock.json").write_bytes(b"\xff{")  # or damaged: an hour tells
    with pytest.raises(ConfigError, match="in use by another process"):
        pv.fit(build(), X, out=tmp_path, **FAST)
    assert (tmp_path / "lock.json").read_bytes() == b"\xff{"


def test_a_fresh_lock_of_another_host_holds(tmp_path):
    owner(tmp_path / "run", host="elsewhere", pid=1)
    with pytest.raises(ConfigError, match="in use by process 1 on elsewhere"):
        pv.fit(build(), X, out=tmp_path / "run", **FAST)


def test_a_fresh_lock_of_another_container_of_this_name_holds(tmp_path):
    """Its processes cannot be looked for here: of the same number there is none, or another."""
    for pid in (dead_pid(), os.getppid(), os.getpid()):
        owner(tmp_path / "run", processes="others", pid=pid)
        with pytest.raises(ConfigError, match=f"in use by process {pid} on {host()}"):
            pv.fit(build(), X, out=tmp_path / "run", **FAST)


def test_of_many_who_find_a_stale_lock_one_gets_it(tmp_path):
    owner(tmp_path, pid=dead_pid())
    got, refused = [], []

    def try_it():
        mine = lock.FolderLock(tmp_path)
        try:
            mine.acquire()
            got.append(mine)
        except ConfigError:
            refused.append(mine)

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 11
    got[0].release()
    assert not list(tmp_path.iterdir())


def test_the_lock_shows_signs_of_life_and_goes_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.0)
    beats = []

    def look():
        beats.append((tmp_path / "lock.json").stat().st_mtime)
        time.sleep(0.02)

    pv.fit(build(), X, out=tmp_path, callbacks=[lambda run: look()], **FAST)
    assert beats == sorted(set(beats)) and len(beats) == 4
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("beat", [0.0, 99.0])
def test_a_run_whose_folder_another_has_taken_writes_no_more(beat, tmp_path, monkeypatch):
    """As it may where a run shows no sign of life for an hour, in a callback say."""
    monkeypatch.setattr(lock, "BEAT", beat)
    pv.fit(build(), X, out=tmp_path, **{**FAST, "epochs": 1})
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    program, taken = build(), Watch(2, lambda: owner(tmp_path, host="elsewhere", pid=7))
    with (
        pytest.warns(UserWarning, match="was not saved") if not beat else nullcontext(),
        pytest.raises(ConfigError, match=r"out: process 7 on elsewhere has begun a run in"),
    ):
        pv.fit(program, X, out=tmp_path, resume=True, callbacks=[taken], **FAST)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == 7


def test_a_run_whose_folder_another_has_had_meanwhile_writes_no_more(tmp_path):
    """That one has ended: its lock is gone, and its checkpoint would be lost."""

    def take():
        (tmp_path / "lock.json").unlink()
        pv.fit(build(3), X, out=tmp_path, resume=True, **{**FAST, "epochs": 6})

    with pytest.raises(ConfigError, match="another run has begun and ended in"):
        pv.fit(build(), X, out=tmp_path, callbacks=[Watch(2, take)], **FAST)
    assert json.loads((tmp_path / "config.json").read_text())["fit"]["epochs"] == 6
    again = pv.fit(build(3), X, out=tmp_path, resume=True, **{**FAST, "epochs": 6})
    assert len(again.history["loss"]) == 6 and not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("every", [1, None])
def test_a_folder_that_is_emptied_meanwhile_is_written_anew(every, whole, tmp_path):
    """Weights, checkpoint, configuration, history and events: the run has them all."""
    out = tmp_path / "run"
    before = set()

    def empty():
        before.update(path.name for path in out.iterdir())
        shutil.rmtree(out)
        if not whole:
            out.mkdir()

    watch = [Watch(3, empty)]
    pv.fit(build(), X, out=out, callbacks=watch, checkpoint_every=every, **FAST)
    left = {path.name for path in out.iterdir()}
    assert left >= before - {lock.NAME, "checkpoint-before.safetensors"}
    assert {"config.json", "checkpoint.safetensors", "program.safetensors"} <= left
    assert len((out / "history.csv").read_text().splitlines()) == 5
    if "tensorboard" in left:
        (file,) = (out / "tensorboard").iterdir()
        assert file.read_bytes().count(b"seconds") == 4
    again = pv.fit(build(), X, out=out, resume=True, **{**FAST, "epochs": 5})
    assert len(again.history["loss"]) == 5


def test_a_lock_that_was_removed_is_taken_again(tmp_path):
    found = []

    def remove():
        (tmp_path / "lock.json").unlink()
        found.append(0)

    def look(run):
        found.append(json.loads((tmp_path / "lock.json").read_text())["pid"] if found else 0)

    watch = [look, Watch(2, remove)]
    pv.fit(build(), X, out=tmp_path, callbacks=watch, checkpoint_every=1, **FAST)
    assert found[-1] == os.getpid() and not (tmp_path / "lock.json").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 5


# -- the disk --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:tensorboard")
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("kind", ["a file", "unmounted", "point removed"])
def test_a_folder_that_goes_with_its_place_is_not_made_elsewhere(kind, back, tmp_path, monkeypatch):
    """Under the point where a disk was mounted a run was hidden once the disk was back."""
    disk, away = tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    (tmp_path / "other").mkdir()
    out = disk / "runs" / "new"  # whose parents a fresh run makes
    own, there = lock.device_of, []
    monkeypatch.setattr(lock, "device_of", lambda path: own(path) + (not there and path in at))
    at = {out, disk / "runs"}

    def leave():
        if kind == "a file":
            out.rename(away)
            out.write_text("mine")
            return
        disk.rename(away)
        at.clear()
        if kind == "unmounted":
            disk.mkdir()

    def come_back():
        if kind == "a file":
            out.unlink()
            away.rename(out)
            return
        if kind == "unmounted":
            disk.rmdir()  # nothing was made there
        away.rename(disk)
        at.update({out, disk / "runs"})

    watch = [Watch(2, leave), *([Watch(3, come_back)] if back else [])]
    told = "is a file now, expected a folder" if kind == "a file" else "has gone with its disk"
    program = build()
    expected = nullcontext() if back else pytest.raises(OSError, match=told)
    with expected, pytest.warns(UserWarning, match=told):
        pv.fit(program, X, out=out, callbacks=watch, checkpoint_every=1, **FAST)
    if not back:
        assert out.read_text() == "mine" if kind == "a file" else not out.exists()
        come_back()
    run = pv.fit(build(), X, out=out, resume=True, **FAST)
    assert len(run.history["loss"]) == 4


class Full(OSError):
    """A disk that is full."""


@pytest.mark.parametrize("fails", ["program", "checkpoint", "history"])
def test_a_failure_of_the_last_write_leaves_the_best_weights_and_shows_itself(
    fails, tmp_path, monkeypatch
):
    watch = Watch()

    def full(*args, **kwargs):
        raise Full(28, "No space left on device")

    target = {
        "program": (continuation, "save"),
        "checkpoint": (checkpoint, "write_bundle"),
        "history": (continuation.RunFolder, "write_history"),
    }[fails]
    monkeypatch.setattr(*target, full)
    program = build()
    hot = {**FAST, "epochs": 9, "lr": 0.3}
    with pytest.raises(Full):
        pv.fit(program, X, valid=1 - X[:9], out=tmp_path, callbacks=[watch], **hot)
    assert watch.best < 9  # it learns the opposite of what it is judged on
    assert same(weights(program), watch.seen[watch.best])
    if fails != "program":
        assert same(weights(pv.load(tmp_path)), watch.seen[watch.best])
    if fails != "checkpoint":
        assert (tmp_path / "checkpoint.safetensors").exists()


def test_a_checkpoint_that_cannot_be_written_on_the_way_is_a_warning(tmp_path, monkeypatch):
    """The disk is full after the second epoch; the run ends as if nothing had been."""
    straight, write = build(), checkpoint.write_bundle
    pv.fit(straight, X, **FAST)

    def full(*args, **kwargs):
        raise Full(28, "No space left on device")

    def fill(run):
        bad = len(run.history["loss"]) == 2
        monkeypatch.setattr(checkpoint, "write_bundle", full if bad else write)

    program = build()
    with pytest.warns(UserWarning, match="the checkpoint of epoch 2 was not written.*No space"):
        pv.fit(program, X, out=tmp_path, checkpoint_every=1, callbacks=[fill], **FAST)
    assert same(weights(program), weights(straight)) and same(
        weights(pv.load(tmp_path)), weights(straight)
    )
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == 4


def test_an_interrupt_in_the_last_write_leaves_the_best_weights(tmp_path, monkeypatch):
    watch = Watch()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_bundle", interrupted)
    program = build()
    hot = {**FAST, "epochs": 9, "lr": 0.3}
    with pytest.raises(KeyboardInterrupt):
        pv.fit(program, X, valid=1 - X[:9], out=tmp_path, callbacks=[watch], **hot)
    assert watch.best < 9 and same(weights(program), watch.seen[watch.best])
    assert same(weights(pv.load(tmp_path)), watch.seen[watch.best])


@pytest.mark.parametrize(
    ("owner", "name"), [(events.Events, "close"), (lock.FolderLock, "release")]
)
def test_an_interrupt_while_a_folder_is_left_does_not_keep_its_lock(
    tmp_path, monkeypatch, owner, name
):
    leave = getattr(owner, name)

    def interrupted_once(self):
        monkeypatch.setattr(owner, name, leave)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        pv.fit(build(), X, out=tmp_path, **FAST)
    assert not (tmp_path / lock.NAME).exists()
    assert pv.fit(build(), X, out=tmp_path, resume=True, **{**FAST, "epochs": 5}).steps == 20


@pytest.mark.parametrize("place", [continuation, checkpoint])
def test_an_interrupted_last_write_is_made_anew(tmp_path, monkeypatch, place):
    """Else the folder keeps the program of the run that this one goes on with."""
    name = "save" if place is continuation else "write_bundle"
    write = getattr(place, name)
    pv.fit(build(), X, out=tmp_path, **{**FAST, "epochs": 2})
    straight = build()
    pv.fit(straight, X, **FAST)

    def interrupted_once(*args, **kwargs):
        monkeypatch.setattr(place, name, write)
        raise KeyboardInterrupt

    def last(run):
        if len(run.history["loss"]) == 4:
            monkeypatch.setattr(place, name, interrupted_once)

    with pytest.raises(KeyboardInterrupt):
        pv.fit(build(), X, out=tmp_path, resume=True, callbacks=[last], **FAST)
    assert same(weights(pv.load(tmp_path)), weights(straight))
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == 4


@pytest.mark.parametrize("ends", [[KeyboardInterrupt, SystemExit], [ZeroDivisionError, SystemExit]])
def test_a_run_that_is_ended_more_than_once_is_written_down(tmp_path, monkeypatch, ends):
    """As by Slurm and by torchrun, or by torchrun where another process has died."""
    first, write = ends.pop(0), checkpoint.write_bundle
    ends.append(KeyboardInterrupt)

    def interrupted(*args, **kwargs):
        if ends:
            raise ends.pop(0)
        write(*args, **kwargs)

    def end():
        monkeypatch.setattr(checkpoint, "write_bundle", interrupted)
        raise first

    with pytest.raises(first):
        pv.fit(build(), X, out=tmp_path, callbacks=[Watch(3, end)], **FAST)
    assert not ends and not (tmp_path / lock.NAME).exists()
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == 3


def test_signals_that_come_at_once_end_a_run_once(tmp_path):
    """One after the other they broke into what follows a callback, and into the last writes."""
    sent = [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM]
    before = [signal.getsignal(number) for number in sent]

    def end():
        signal.pthread_sigmask(signal.SIG_BLOCK, sent)
        for number in sent:  # to this thread: another one of torch's would hear the first at once
            signal.raise_signal(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, sent)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pv.fit(build(), X, out=tmp_path, callbacks=[Watch(3, end)], **FAST)
    assert not (tmp_path / lock.NAME).exists()
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == 3
    assert [signal.getsignal(number) for number in sent] == before


@pytest.fixture
def handlers_of_a_terminal():
    """Hear SIGINT as in a terminal: a process that a shell started in its background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Deaf:
    """An object at whose end a signal comes: Python drops what is raised there."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize("kind", ["__del__", "weakref", "the last epoch"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_drops_ends_the_run_at_the_next_step(
    number, kind, tmp_path, handlers_of_a_terminal
):
    """In a ``__del__`` or a weak reference's callback; a second one came too soon to be heard."""
    hook = sys.unraisablehook

    def end():
        if kind == "weakref":
            target = Watch()
            heard = weakref.ref(target, lambda _: signal.raise_signal(number))
            del target
            assert heard() is None
        else:
            Deaf(number)

    at = 4 if kind == "the last epoch" else 3
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        pv.fit(build(), X, out=tmp_path, callbacks=[Watch(at, end)], **FAST)
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == at
    assert sys.unraisablehook is hook
    pv.fit(build(), X, out=tmp_path, resume=True, **FAST)  # nothing is left of it


def test_an_interrupt_while_the_state_is_copied_loses_no_epoch(tmp_path, monkeypatch):
    take = checkpoint.Checkpoint.take

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(checkpoint.Checkpoint, "take", take)
        raise KeyboardInterrupt

    def end():
        monkeypatch.setattr(checkpoint.Checkpoint, "take", interrupted)

    with pytest.raises(KeyboardInterrupt):
        pv.fit(build(), X, out=tmp_path, callbacks=[Watch(3, end)], **FAST)
    assert read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)[1]["epoch"] == 3


def test_the_first_error_is_the_one_that_is_shown(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise Full(28, "No space left on device")

    def broken():
        monkeypatch.setattr(checkpoint, "write_bundle", full)
        raise ZeroDivisionError("mine")

    watch = Watch(3, broken)
    program = build()
    with (
        pytest.warns(UserWarning, match="out: the ended run was not saved.*No space"),
        pytest.raises(ZeroDivisionError, match="mine"),
    ):
        pv.fit(program, X, valid=X[:9], out=tmp_path, callbacks=[watch], **FAST)
    assert same(weights(program), watch.seen[watch.best])


class Odd(torch.optim.SGD):
    """An optimizer with a state that no file can hold, from its second step on."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = {object()}


def test_what_cannot_be_saved_is_found_at_the_first_step(tmp_path):
    calls = []

    def transform(x):
        calls.append(1)
        return x

    settings = {**FAST, "transform": transform, "optimizer": lambda ps: Odd(ps, lr=0.1)}
    with pytest.raises(CheckpointError, match="its 'history' is a set, which a checkpoint cannot"):
        pv.fit(build(), X, out=tmp_path / "run", **settings)
    assert len(calls) == 2  # one to look at, one step
    assert not (tmp_path / "run").exists()
    pv.fit(build(), X, **settings)  # without a folder nothing is in the way


def test_a_rate_in_a_tensor_is_saved_and_resumed(tmp_path):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=torch.tensor(0.02))

    settings = {**FAST, "optimizer": adam}
    whole = pv.fit(build(), X, **settings)
    pv.fit(build(), X, out=tmp_path, **{**settings, "epochs": 2})
    again = pv.fit(build(), X, out=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(whole.history["loss"], again.history["loss"])


@pytest.mark.parametrize("out", ["s3:/bucket/run", "hf://a/run", "", 3])
def test_what_is_no_folder_of_this_machine_is_refused_in_a_sentence(out):
    with pytest.raises(ConfigError, match=r"out: got .*, expected (a folder|the path|text)"):
        pv.fit(build(), X, out=out, **FAST)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pv.fit(build(), X, out="~/runs/a", **FAST).folder == tmp_path / "runs" / "a"
    assert (tmp_path / "runs" / "a" / "config.json").exists()


# -- side logs -------------------------------------------------------------------------------------


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_events(tmp_path):
    run = pv.fit(build(), X, valid=X[:7], out=tmp_path, **FAST)
    found = scalars(tmp_path)
    assert found.keys() == run.history.keys()
    steps, values = zip(*found["valid_elbo"], strict=True)
    assert steps == (1, 2, 3, 4)
    np.testing.assert_allclose(values, run.history["valid_elbo"], rtol=1e-6)


def test_a_side_log_that_fails_is_a_warning(tmp_path, monkeypatch):
    def fail(self, step, row):
        raise RuntimeError("socket closed")

    monkeypatch.setattr(events.Events, "_write", fail)
    plain = pv.fit(build(), X, **FAST)
    with pytest.warns(UserWarning, match="tensorboard: no more events.*socket closed") as caught:
        run = pv.fit(build(), X, out=tmp_path, **FAST)
    assert sum("tensorboard" in str(each.message) for each in caught) == 1
    np.testing.assert_array_equal(run.history["loss"], plain.history["loss"])


def test_a_run_starts_no_thread_for_its_log(tmp_path):
    counts = []
    pv.fit(
        build(),
        X,
        out=tmp_path,
        callbacks=[lambda r: counts.append(threading.active_count())],
        **FAST,
    )
    assert set(counts) == {threading.active_count()}


# -- kills -----------------------------------------------------------------------------------------


def train_for_ever(folder, out):
    options = {**FAST, "epochs": 10**6, "checkpoint_every": 1, "resume": True}

    def tell(run):
        os.write(out, b"%d\n" % run.steps)  # no value: a true one would stop the run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where it was killed between two renames
        pv.fit(build(), X, out=folder, callbacks=[tell], **options)


@forks
def test_a_killed_run_goes_on_in_the_same_folder(tmp_path):
    """SIGKILL twice: the lock of the dead is recovered, and the epochs that were kept are equal."""
    folder, reached = tmp_path / "run", []
    for _ in range(2):
        ours, theirs = os.pipe()
        child = fork(train_for_ever, folder, theirs)
        os.close(theirs)
        with open(ours) as steps:
            reached += [int(steps.readline()) for _ in range(6)]
            child.kill()
            child.join()
        assert (folder / "lock.json").exists()
    assert reached[6] > 4 * 3  # the second went on from a checkpoint
    epochs = 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where it was killed between two renames
        run = pv.fit(build(), X, out=folder, resume=True, **{**FAST, "epochs": epochs})
    whole = pv.fit(build(), X, **{**FAST, "epochs": len(run.history["loss"])})
    np.testing.assert_array_equal(run.history["loss"], whole.history["loss"])
    assert not (folder / "lock.json").exists()


def test_a_worker_that_ends_breaks_into_no_last_write():
    """A signal to all processes ends the workers too, at which torch's handler raises."""

    def raises(number, frame):
        raise RuntimeError("a worker is killed")

    before = signal.signal(signal.SIGCHLD, raises)
    try:
        with ended_workers_unheard():
            os.kill(os.getpid(), signal.SIGCHLD)
        with pytest.raises(RuntimeError, match="a worker is killed"):
            os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)
