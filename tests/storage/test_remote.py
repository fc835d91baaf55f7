"""Run folders at an address: whole at any moment, gone on with, locked, or refused."""

import json
import os
import shutil
from contextlib import suppress

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.storage.atomic import host
from pyro_vae.storage.lock import start_of
from pyro_vae.storage.remote import RemoteFolder, _sealed

X = (torch.rand(30, 7, generator=torch.Generator().manual_seed(4)) > 0.4).float()
FAST = {"batch_size": 10, "compile": False, "progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def empty():
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def build():
    torch.manual_seed(1)
    return pv.models.VAE(7, 2, (5,))


def fit(program=None, **options):
    return pv.fit(program or build(), X, **{**FAST, "epochs": 2, **options})


def test_a_run_at_an_address_goes_on_and_is_loaded():
    whole, out = fit(), "memory://bucket/run"
    first = fit(out=out, epochs=1, valid=X[:5])
    again = fit(out=out, resume=True, valid=X[:5])
    assert first.folder == again.folder == out
    np.testing.assert_array_equal(whole.history["loss"], again.history["loss"])
    loaded = pv.load(out)
    for name, value in again.program.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    store = fsspec.filesystem("memory")
    assert not store.exists("/bucket/run/lock.json")
    assert len(store.glob("/bucket/run/list-*")) == 2  # older ones are gone, with what they held
    with pytest.raises(ConfigError, match="out: memory://bucket/run holds another run"):
        fit(out=out)


def test_a_program_is_saved_beside_what_is_there(tmp_path):
    program, out = build(), f"file://{tmp_path}/saved"
    fit(out=out, epochs=1)
    assert pv.save(program, out) == out
    assert torch.equal(next(pv.load(out).parameters()), next(program.parameters()))
    fit(out=out, resume=True)  # the checkpoint is there still
    with pytest.raises(CheckpointError, match=r"elsewhere: holds no saved program"):
        pv.load(f"file://{tmp_path}/elsewhere")


class Failing:
    """A store whose n-th write, or removal, fails half-way."""

    def __init__(self, store, at):
        self.store, self.left = store, at

    def __getattr__(self, name):
        own = getattr(self.store, name)
        return own if name not in ("pipe_file", "put_file", "rm_file") else self.counted(name, own)

    def counted(self, name, own):
        def call(*arguments):
            self.left -= 1
            if self.left:
                return own(*arguments)
            if name == "pipe_file":
                own(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif name == "put_file":
                self.store.pipe_file(arguments[1], b"half")
            raise ConnectionError("gone")

        return call


def write(folder, home, word, at=0):
    """Write two files that say the word, into a store that may fail."""
    for name in ("a.txt", "b/c.txt"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(f"{name} {word}")
    remote = RemoteFolder("out", folder)
    remote._store = Failing(remote._store, at)
    with suppress(OSError):
        remote.write(home, tidy=True)
    return remote._store.left


def found(folder, into):
    into.mkdir()
    RemoteFolder("out", folder).read(into)
    return {path.read_text() for path in into.rglob("*.txt")}


def test_a_folder_is_old_or_new_wherever_a_write_ends(tmp_path):
    """Also after a third one, whose writer knows nothing of the failure."""
    words = {word: {f"a.txt {word}", f"b/c.txt {word}"} for word in ("one", "two", "three")}
    home, seen, at, left = tmp_path / "home", [], 0, 0
    home.mkdir()
    while left <= 0:
        at += 1
        folder = f"file://{tmp_path}/{at}"
        write(folder, home, "zero")
        write(folder, home, "one")
        left = write(folder, home, "two", at)
        seen.append(found(folder, tmp_path / f"{at}-found"))
        write(folder, home, "three")
        assert found(folder, tmp_path / f"{at}-again") == words["three"]
    assert seen[:3] == [words["one"]] * 3  # two contents and the list
    assert seen[3:] == [words["two"]] * (at - 3) and at > 4


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"files": 3, "sha256": ""}', b"\xff"])
def test_a_damaged_list_gives_way_to_the_one_before(damage, tmp_path):
    folder = f"file://{tmp_path}/run"
    home = tmp_path / "home"
    home.mkdir()
    write(folder, home, "one")
    (tmp_path / "run" / "list-00000007.json").write_bytes(damage)
    assert found(folder, tmp_path / "found") == {"a.txt one", "b/c.txt one"}
    (tmp_path / "run" / "list-00000001.json").unlink()
    with pytest.raises(CheckpointError, match="none of its lists of files is whole"):
        found(folder, tmp_path / "again")


def test_a_damaged_content_gives_way_to_the_list_before(tmp_path):
    folder, home = f"file://{tmp_path}/run", tmp_path / "home"
    home.mkdir()
    write(folder, home, "one")
    old = {path.name for path in (tmp_path / "run" / "files").iterdir()}
    write(folder, home, "two")
    new = next(p for p in (tmp_path / "run" / "files").iterdir() if p.name not in old)
    new.write_text("a.txt tw")
    assert found(folder, tmp_path / "found") == {"a.txt one", "b/c.txt one"}


@pytest.mark.parametrize(
    "name", ["../a.txt", "/a.txt", "b/../../a.txt", ".a", "c:\\a", "lock.json"]
)
def test_a_strangers_list_writes_nowhere_else(name, tmp_path):
    folder = tmp_path / "run"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / ("0" * 64)).write_text("mine")
    (folder / "list-00000001.json").write_bytes(_sealed({name: "0" * 64}))
    with pytest.raises(CheckpointError, match="none of its lists"):
        found(f"file://{folder}", tmp_path / "found")


def lock(**changes):
    mine = {"pid": os.getppid(), "host": host(), "start": start_of(os.getppid()), "id": "b"}
    text = json.dumps({**mine, "beat": 0, **changes})
    fsspec.filesystem("memory").pipe_file("/bucket/run/lock.json", text.encode())


def test_a_second_run_is_refused_and_a_dead_one_is_not_waited_for():
    out = "memory://bucket/run"
    lock()
    with pytest.raises(ConfigError, match=rf"in use by process {os.getppid()} on"):
        fit(out=out)
    lock(start="another process of that number")
    assert fit(out=out).steps == 6


def test_a_run_whose_folder_is_taken_stops():
    """Both may find no lock, where they begin within the same moment."""
    taken = [lambda run: lock()]
    with (
        pytest.warns(UserWarning, match="the ended run was not saved"),
        pytest.raises(ConfigError, match="has begun a run in memory://bucket/run as well") as told,
    ):
        fit(out="memory://bucket/run", callbacks=taken, checkpoint_every=1)
    home = str(told.value).partition("its files are in ")[2]
    assert os.listdir(home)  # what was trained is not lost with the place
    shutil.rmtree(home)


def test_a_run_whose_folder_another_has_had_meanwhile_writes_no_more():
    """That one has ended: its lock is gone, and its checkpoint would be lost."""
    store, out = fsspec.filesystem("memory"), "memory://bucket/run"

    def remove(run):
        if run.history["epoch"][-1] % 2 == 0:
            store.rm_file("/bucket/run/lock.json")

    def take(run):
        remove(run)
        fit(out=out, resume=True, epochs=6)

    fit(out=out, callbacks=[remove], checkpoint_every=1, epochs=3)  # by hand: it goes on
    assert not store.exists("/bucket/run/lock.json")
    with pytest.raises(ConfigError, match="another run has begun and ended in"):
        fit(out=out, resume=True, callbacks=[take], epochs=4)
    assert len(fit(out=out, resume=True, epochs=6).history["loss"]) == 6


def test_a_store_that_fails_is_a_warning_on_the_way_and_an_error_in_the_end(monkeypatch):
    def fail(run):
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", None)

    with (
        pytest.warns(UserWarning, match=r"\d was not written \(memory://bucket/run cannot be"),
        pytest.raises(OSError, match="its files are in ") as told,
    ):
        fit(out="memory://bucket/run", callbacks=[fail], checkpoint_every=1)
    home = str(told.value).partition("its files are in ")[2]
    assert pv.load(home).config == build().config  # nothing is lost
    shutil.rmtree(home)
    monkeypatch.undo()
    assert fit(out="memory://bucket/run", resume=True).steps == 6  # from the first step's list


@pytest.mark.parametrize("out", ["nosuch://bucket/run", "s3://bucket/run"])
def test_what_cannot_be_opened_is_refused_in_a_sentence(out):
    with pytest.raises(ConfigError, match=r"out: got '.*', which cannot be opened \("):
        fit(out=out)


def test_a_file_named_after_a_host_is_of_a_list_that_is_read(tmp_path):
    (tmp_path / "events.out.gpu-node-1").write_text("of TensorBoard")
    RemoteFolder("out", "memory://bucket/run").write(tmp_path)
    RemoteFolder("out", "memory://bucket/run").read(again := tmp_path / "again")
    assert (again / "events.out.gpu-node-1").read_text() == "of TensorBoard"


def test_a_run_goes_on_past_a_list_that_was_never_finished():
    out = "memory://bucket/run"
    fit(out=out, epochs=1)
    store = fsspec.filesystem("memory")
    newest = max(store.glob("/bucket/run/list-*.json"))
    store.pipe_file(newest.replace(newest[-13:-5], "00000099"), store.cat_file(newest)[:20])
    assert fit(out=out, resume=True).steps == fit().steps
