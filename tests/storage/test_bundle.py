"""The file format: exact round trips, and every fault ends in one CheckpointError."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pyro_vae.errors import CheckpointError, DeviceError
from pyro_vae.storage import bundle as files
from pyro_vae.storage import sealing
from pyro_vae.storage.bundle import atomic_write_text, check_state, read_bundle, write_bundle

META = {"config": {"latent_dim": 3, "name": "vαe"}, "epoch": 7, "lr": 1e-05, "note": None}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(12, dtype=torch.float64).reshape(3, 4) / 7,
        "steps": torch.tensor(5),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def tensor_path(folder: Path) -> Path:
    (path,) = folder.glob("model-*.safetensors")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path, "model", tensors(), META)
    return tmp_path


# -- What is written is what is read ---------------------------------------------------------------


def test_round_trip_is_exact(folder: Path) -> None:
    got, meta = read_bundle(folder, "model")
    assert same(got, tensors())
    assert meta == META


def test_file_name_and_json_state_the_hash(folder: Path) -> None:
    digest = hashlib.sha256(tensor_path(folder).read_bytes()).hexdigest()
    assert tensor_path(folder).name == f"model-{digest[:12]}.safetensors"
    assert json.loads((folder / "model.json").read_text())["tensors"]["sha256"] == digest


def test_no_tensors_and_no_meta(tmp_path: Path) -> None:
    write_bundle(tmp_path, "empty", {}, {})
    assert read_bundle(tmp_path, "empty") == ({}, {})


def test_tied_strided_conjugated_and_grad_tensors(tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z = torch.complex(base.detach(), base.detach() + 1)
    state = {
        "a": base,
        "tied": base,
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "conjugate": z.conj(),
        "negative": z.conj().imag,
    }
    write_bundle(tmp_path, "model", state, {})
    got, _ = read_bundle(tmp_path, "model")
    assert same(got, {k: v.detach() for k, v in state.items()})
    assert base.requires_grad and state["transposed"].stride() == (1, 6)
    got["a"].zero_()
    assert torch.equal(got["tied"], base)


def test_saving_again_leaves_one_pair_and_other_names_alone(folder: Path) -> None:
    write_bundle(folder, "model-extra", {"x": torch.ones(2)}, {})
    write_bundle(folder, "model", {"x": torch.zeros(2)}, {"epoch": 8})
    (folder / "model-notes.safetensors").write_bytes(b"the user's own")
    write_bundle(folder, "model", {"x": torch.zeros(3)}, {"epoch": 9})
    assert len(list(folder.iterdir())) == 5
    assert read_bundle(folder, "model")[1] == {"epoch": 9}
    assert torch.equal(read_bundle(folder, "model-extra")[0]["x"], torch.ones(2))


def test_equal_tensors_with_new_meta_keep_their_file(folder: Path) -> None:
    before = tensor_path(folder).name
    write_bundle(folder, "model", tensors(), {"epoch": 8})
    assert tensor_path(folder).name == before
    assert read_bundle(folder, "model")[1] == {"epoch": 8}


def test_left_overs_of_a_killed_writer_are_swept(folder: Path) -> None:
    stale = [".model.json.0a1b2c3d.tmp", f".model-{'a' * 12}.safetensors.0a1b2c3d.tmp"]
    stale.append(f"model-{'b' * 12}.safetensors")
    for name in stale:
        (folder / name).write_bytes(b"part")
    assert same(read_bundle(folder, "model")[0], tensors())
    write_bundle(folder, "model", tensors(), META)
    assert len(list(folder.iterdir())) == 2


def test_reader_survives_a_writer_between_its_two_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = files._read_bytes, []

    def overtaken(path: Path, limit: int) -> bytes:
        data = read(path, limit)
        calls.append(path)
        if len(calls) == 1:
            monkeypatch.setattr(files, "_read_bytes", read)
            write_bundle(folder, "model", {"x": torch.ones(1)}, {"epoch": 8})
            monkeypatch.setattr(files, "_read_bytes", overtaken)
        return data

    monkeypatch.setattr(files, "_read_bytes", overtaken)
    got, meta = read_bundle(folder, "model")
    assert meta == {"epoch": 8} and got.keys() == {"x"}


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_bundle(tmp_path, "model", tensors(), META)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_unusable_device_is_a_device_error(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"model\.json.*cuda:99.*use device='cpu'"):
        read_bundle(folder, "model", device="cuda:99")


# -- Hostile and damaged files ---------------------------------------------------------------------


class Payload:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def test_the_canary_sings(tmp_path: Path) -> None:
    """The payload is live: the tests below would notice an unpickler."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def adopt(folder: Path, payload: bytes) -> None:
    """Name hostile bytes in a valid, sealed JSON: only the tensor format can refuse them."""
    digest = hashlib.sha256(payload).hexdigest()
    file = f"model-{digest[:12]}.safetensors"
    (folder / file).write_bytes(payload)
    entry = {"file": file, "bytes": len(payload), "sha256": digest}
    reseal(folder, tensors=entry)


def reseal(folder: Path, **changes: Any) -> None:
    body = json.loads((folder / "model.json").read_text())
    del body["sha256"]
    (folder / "model.json").write_text(sealing.seal({**body, **changes}))


def header(text: str | bytes, tail: bytes = b"") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data + tail


def torch_pickle(folder: Path) -> bytes:
    torch.save(Payload(folder / "canary"), folder / "x.pt")
    return (folder / "x.pt").read_bytes()


F32 = '"dtype":"F32","shape"'
HOSTILE_TENSORS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda folder: pickle.dumps(Payload(folder / "canary")),
    "torch.save": torch_pickle,
    "empty": lambda _: b"",
    "seven bytes": lambda _: b"\0" * 7,
    "zeros": lambda _: b"\0" * 4096,
    "junk": lambda _: bytes(range(256)) * 16,
    "text": lambda _: b"these are not tensors\n" * 100,
    "zip": lambda _: b"PK\x03\x04" + b"\0" * 100,
    "header of 2^63 bytes": lambda _: struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64 - 1 bytes": lambda _: b"\xff" * 8 + b"{}",
    "header longer than the file": lambda _: struct.pack("<Q", 1000) + b"{}",
    "header no JSON": lambda _: header("{{{{"),
    "header not UTF-8": lambda _: header(b'{"\xff\xfe": 1}'),
    "header a list": lambda _: header("[1, 2]"),
    "header deep": lambda _: header('{"a":' * 100_000),
    "unknown dtype": lambda _: header(
        '{"a":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "2^40 elements": lambda _: header(
        f'{{"a":{{{F32}:[{2**40}],"data_offsets":[0,{2**42}]}}}}', b"\0" * 4
    ),
    "shape overflows": lambda _: header(
        f'{{"a":{{{F32}:[{2**33},{2**33}],"data_offsets":[0,4]}}}}', b"\0" * 4
    ),
    "negative shape": lambda _: header(f'{{"a":{{{F32}:[-1],"data_offsets":[0,4]}}}}', b"\0" * 4),
    "offsets backwards": lambda _: header(f'{{"a":{{{F32}:[1],"data_offsets":[4,0]}}}}', b"\0" * 4),
    "offsets overlap": lambda _: header(
        f'{{"a":{{{F32}:[1],"data_offsets":[0,4]}},"b":{{{F32}:[1],"data_offsets":[2,6]}}}}',
        b"\0" * 6,
    ),
    "offsets beyond": lambda _: header(f'{{"a":{{{F32}:[1],"data_offsets":[0,4]}}}}'),
    "trailing bytes": lambda _: header(f'{{"a":{{{F32}:[1],"data_offsets":[0,4]}}}}', b"\0" * 9),
    "shape and bytes disagree": lambda _: header(
        f'{{"a":{{{F32}:[2],"data_offsets":[0,4]}}}}', b"\0" * 4
    ),
    "NaN weights": lambda _: safetensors.torch.save({"a": torch.tensor([1.0, float("nan")])}),
    "infinite weights": lambda _: safetensors.torch.save({"a": torch.tensor([float("inf")])}),
}


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
@pytest.mark.parametrize("hash_agrees", [True, False])
def test_hostile_tensor_file_is_refused(folder: Path, kind: str, hash_agrees: bool) -> None:
    payload = HOSTILE_TENSORS[kind](folder)
    if hash_agrees:
        adopt(folder, payload)
    else:
        tensor_path(folder).write_bytes(payload)
    with pytest.raises(CheckpointError, match="safetensors") as caught:
        read_bundle(folder, "model")
    assert "\n" not in str(caught.value)
    assert not (folder / "canary").exists()


def test_adopted_bytes_are_read_when_they_are_sound(folder: Path) -> None:
    """The control of the test above: its JSON is accepted, so the tensors were what was refused."""
    adopt(folder, safetensors.torch.save({"a": torch.ones(1)}))
    assert torch.equal(read_bundle(folder, "model")[0]["a"], torch.ones(1))


HOSTILE_JSON: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "pickle": (lambda folder: pickle.dumps(Payload(folder / "canary")), "not valid JSON"),
    "empty": (lambda _: b"", "not valid JSON"),
    "not UTF-8": (lambda _: b"\xff\xfe{}", "not valid JSON"),
    "list": (lambda _: b"[]", "not a file of this library"),
    "number": (lambda _: b"1", "not a file of this library"),
    "other program": (lambda _: b'{"model_type": "bert"}', "not a file of this library"),
    "deep": (lambda _: b'{"a":' * 200_000, "not valid JSON"),
    "deep list": (lambda _: b"[" * 1_000_000, "not valid JSON"),
    "NaN": (lambda _: b'{"a": NaN}', "NaN is not JSON"),
    "repeated key": (lambda _: b'{"a": 1, "a": 2}', "given twice"),
    "long number": (lambda _: b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "no version": (lambda _: b'{"format": "pyro_vae bundle"}', "version None is unknown"),
    "version true": (
        lambda _: b'{"format": "pyro_vae bundle", "version": true}',
        "mismatch",
    ),
    "surrogate": (
        lambda _: b'{"format": "pyro_vae bundle", "version": 1, "a": "\\ud800"}',
        "mismatch",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json_is_refused(folder: Path, kind: str) -> None:
    make, message = HOSTILE_JSON[kind]
    (folder / "model.json").write_bytes(make(folder))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bundle(folder, "model")
    assert "model.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "file",
    [
        "../model-000000000000.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "model-000000000000.safetensors",
        "model.json",
        "",
        None,
        3,
        ["x"],
    ],
)
def test_json_can_only_name_the_file_of_its_hash(folder: Path, file: Any) -> None:
    entry = json.loads((folder / "model.json").read_text())["tensors"]
    reseal(folder, tensors={**entry, "file": file})
    with pytest.raises(CheckpointError, match=r"names the tensor file .* expected 'model-"):
        read_bundle(folder, "model")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"sha256": "0" * 64, "bytes": -1},
        {"sha256": "0" * 64, "bytes": 2**70},
        {"sha256": "0" * 64, "bytes": True},
        {"sha256": "../" + "0" * 61, "bytes": 3},
        {"sha256": "0" * 64 + "\n", "bytes": 3},
    ],
)
def test_malformed_tensor_record_is_refused(folder: Path, entry: Any) -> None:
    reseal(folder, tensors=entry)
    with pytest.raises(CheckpointError, match="malformed"):
        read_bundle(folder, "model")


def test_newer_version_is_named(folder: Path) -> None:
    reseal(folder, version=sealing.VERSION + 1)
    with pytest.raises(CheckpointError, match="format version 2, this pyro_vae reads up to 1"):
        read_bundle(folder, "model")


@pytest.mark.parametrize("which", ["json", "tensors"])
def test_truncated_at_every_hundredth(folder: Path, which: str) -> None:
    path = folder / "model.json" if which == "json" else tensor_path(folder)
    whole = path.read_bytes()
    for cut in range(100):
        path.write_bytes(whole[: len(whole) * cut // 100])
        with pytest.raises(CheckpointError, match=path.name):
            read_bundle(folder, "model")
    path.write_bytes(whole + b"\n")
    with pytest.raises(CheckpointError, match=path.name):
        read_bundle(folder, "model")
    path.write_bytes(whole)
    assert same(read_bundle(folder, "model")[0], tensors())


@pytest.mark.parametrize("which", ["json", "tensors"])
def test_any_flipped_bit_is_noticed(folder: Path, which: str) -> None:
    path = folder / "model.json" if which == "json" else tensor_path(folder)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8) if which == "json" else (position % 8,):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="model"):
                read_bundle(folder, "model")


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.json: no such file"):
        read_bundle(folder, "other")
    with pytest.raises(CheckpointError, match=r"model\.json: no such file"):
        read_bundle(folder / "nowhere", "model")
    path = tensor_path(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name}: no such file"):
        read_bundle(folder, "model")


def replace_by(kind: str, path: Path) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        target = {"device": "/dev/zero", "dangling link": "nowhere", "loop": path.name}
        path.symlink_to(target[kind])


@pytest.mark.parametrize("kind", ["folder", "FIFO", "device", "dangling link", "loop"])
@pytest.mark.parametrize("which", ["json", "tensors"])
@pytest.mark.timeout(20)
def test_what_is_not_a_file_is_refused_without_a_hang(folder: Path, which: str, kind: str) -> None:
    path = folder / "model.json" if which == "json" else tensor_path(folder)
    replace_by(kind, path)
    with pytest.raises(CheckpointError, match=r"not a regular file|no such file|cannot be read"):
        read_bundle(folder, "model")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "a\0b", "a b", None, 3])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot name a bundle"):
        write_bundle(tmp_path, name, {}, {})
    with pytest.raises(CheckpointError, match="cannot name a bundle"):
        read_bundle(tmp_path, name)


# -- What cannot be written ------------------------------------------------------------------------

NAN = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("state", "meta", "message"),
    [
        ({"a": NAN}, {}, "NaN or infinite values in 'a'"),
        ({"a": NAN / 0 + 1j}, {}, "NaN or infinite"),
        ({"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}, {}, "NaN or infinite"),
        ({"a": 1.0}, {}, "'a' is float, not a tensor"),
        ({"__metadata__": torch.ones(1)}, {}, "cannot name a tensor"),
        ({3: torch.ones(1)}, {}, "cannot name a tensor"),
        ({"a": torch.ones(2, device="meta")}, {}, "'a' is on the meta device"),
        ({"a": torch.eye(2).to_sparse()}, {}, "'a' is torch.sparse_coo"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, {}, "safetensors cannot hold this"),
        ({}, {"a": float("nan")}, "meta is not plain JSON"),
        ({}, {"a": {1, 2}}, "meta is not plain JSON"),
        ({}, {"a": torch.ones(1)}, "meta is not plain JSON"),
        ({}, {"a": "\ud800"}, "meta is not plain JSON"),
        ({}, {"a": [{1: 2}]}, "string keys"),
        ({}, [1], "must be a dict"),
    ],
)
def test_unholdable_values_leave_the_old_pair(
    folder: Path, state: Any, meta: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_bundle(folder, "model", state, meta)
    assert len(list(folder.iterdir())) == 2
    assert same(read_bundle(folder, "model")[0], tensors())


def test_nonfinite_values_on_request(tmp_path: Path) -> None:
    write_bundle(tmp_path, "model", {"a": NAN}, {}, allow_nonfinite=True)
    with pytest.raises(CheckpointError, match="NaN or infinite values in 'a'"):
        read_bundle(tmp_path, "model")
    got, _ = read_bundle(tmp_path, "model", allow_nonfinite=True)
    assert torch.equal(got["a"].isnan(), NAN.isnan())


def test_check_state_lists_every_misfit() -> None:
    expected = {
        "w": torch.ones(2, 3),
        "b": torch.ones(2),
        "n": torch.tensor(1),
        "f": torch.ones(1),
    }
    check_state(expected, {**expected, "f": torch.ones(1, dtype=torch.float64)}, "here")
    got = {"w": torch.ones(3, 2), "extra": torch.ones(1), "n": torch.tensor(True), "f": NAN[:1]}
    with pytest.raises(CheckpointError) as caught:
        check_state(expected, got, "model.json")
    for part in (
        "model.json: ",
        "missing 'b'",
        "unexpected 'extra'",
        "'w' has shape (3, 2), expected (2, 3)",
        "'n' is torch.bool, expected torch.int64",
    ):
        assert part in str(caught.value)
    assert "'f'" not in str(caught.value)


def test_check_state_message_stays_short() -> None:
    with pytest.raises(CheckpointError, match="and 88 more") as caught:
        check_state({f"t{i}": NAN for i in range(100)}, {}, "here")
    assert len(str(caught.value)) < 500


# -- Faults while writing --------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", range(4))
def test_a_failing_system_call_leaves_a_good_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    real, count = getattr(os, call), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == number + 1:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        # Two renames: a third failure never comes, and the new pair is written.
        happens = number < (2 if call == "replace" else 4)
        with pytest.raises(OSError, match="No space left") if happens else contextlib.nullcontext():
            write_bundle(folder, "model", {"x": torch.ones(2)}, {"epoch": 8})
    got, meta = read_bundle(folder, "model")
    assert (same(got, tensors()) and meta == META) or (got.keys() == {"x"} and meta["epoch"] == 8)
    assert len(list(folder.iterdir())) == 2


def run_child(code: str, *args: object) -> subprocess.Popen[bytes]:
    root = Path(files.__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )


KILL_WHILE_SAVING = """
import os, signal, sys, time
import torch
from pyro_vae.storage.bundle import read_bundle, write_bundle

def save_forever(folder, step, acknowledge):
    while True:
        step += 1
        tensors = {"x": torch.full((20_000,), float(step))}
        write_bundle(folder, "model", tensors, {"step": step})
        os.write(acknowledge, b"%d " % step)

folder = sys.argv[1]
for delay in map(float, sys.argv[2:]):
    start = read_bundle(folder, "model")[1]["step"]
    out, acknowledge = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, start, acknowledge)
    first = os.read(out, 1)  # however busy the machine is, the child has begun to save
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(acknowledge)
    with open(out) as stream:
        last = max(map(int, (first.decode() + stream.read()).split()))
    tensors, meta = read_bundle(folder, "model")
    assert last <= meta["step"] <= last + 1, (last, meta)
    assert torch.equal(tensors["x"], torch.full((20_000,), float(meta["step"])))
    print(meta["step"], flush=True)
"""


def test_kill_9_loses_at_most_the_save_under_way(tmp_path: Path) -> None:
    """Fifty kills at drawn moments: the pair on disk is whole and no older than the last save."""
    write_bundle(tmp_path, "model", {"x": torch.zeros(20_000)}, {"step": 0})
    delays = torch.rand(50, generator=torch.Generator().manual_seed(0)).mul(0.04).tolist()
    child = run_child(KILL_WHILE_SAVING, tmp_path, *delays)
    steps = [int(step) for step in child.communicate(timeout=120)[0].split()]
    assert child.returncode == 0 and len(steps) == 50
    assert steps[-1] >= 50  # they were killed in the middle of saving, not before it
    write_bundle(tmp_path, "model", tensors(), {})
    assert len(list(tmp_path.iterdir())) == 2


SAVE_WITH_A_SMALL_DISK = """
import resource, signal, sys, torch
from pyro_vae.storage.bundle import write_bundle
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_bundle(sys.argv[1], "model", {"x": torch.ones(int(sys.argv[3]))}, {"a": "b" * 5000})
except OSError as error:
    print("OSError", error.errno)
"""


@pytest.mark.parametrize(("limit", "numbers"), [(1000, 10_000), (4000, 10)])
def test_a_full_disk_is_an_error_and_leaves_the_old_pair(
    folder: Path, limit: int, numbers: int
) -> None:
    """The limit stops the tensor file in the first case and the JSON in the second."""
    out, _ = run_child(SAVE_WITH_A_SMALL_DISK, folder, limit, numbers).communicate(timeout=60)
    assert out.split()[0] == b"OSError"
    assert len(list(folder.iterdir())) == 2
    got, meta = read_bundle(folder, "model")
    assert same(got, tensors()) and meta == META


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with a good pair that this process may read and not write, even when run as root."""
    folder = Path(tempfile.mkdtemp())
    write_bundle(folder, "model", tensors(), META)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_read_only_folder_is_an_error_and_stays_readable(read_only: Path) -> None:
    with pytest.raises(PermissionError):
        write_bundle(read_only, "model", {"x": torch.ones(1)}, {})
    got, meta = read_bundle(read_only, "model")
    assert same(got, tensors()) and meta == META
    assert len(list(read_only.iterdir())) == 2


def test_no_permission_to_read_is_a_checkpoint_error(read_only: Path) -> None:
    if os.geteuid() == 65534:
        os.seteuid(0)
        (read_only / "model.json").chmod(0)
        os.seteuid(65534)
    else:
        (read_only / "model.json").chmod(0)
    with pytest.raises(CheckpointError, match=r"model\.json: cannot be read \(Permission denied"):
        read_bundle(read_only, "model")


def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError):
        write_bundle(tmp_path / "run", "model", tensors(), META)
    assert (tmp_path / "run").read_text() == "mine"


def test_atomic_write_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    atomic_write_text(path, "old α\n")
    atomic_write_text(path, "new α\n")
    assert path.read_bytes() == "new α\n".encode()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            atomic_write_text(path, "third")
    assert path.read_bytes() == "new α\n".encode()
    assert list(tmp_path.iterdir()) == [path]
