"""The file format: exact round trips, and every fault ends in one CheckpointError."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from forked import fork, forks

from pyro_vae.errors import CheckpointError, DeviceError
from pyro_vae.storage import bundle as files
from pyro_vae.storage.atomic import atomic_write_text, host
from pyro_vae.storage.bundle import check_state, read_bundle, write_bundle

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


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors' bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data):
        raise ValueError
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def sealed(head: dict[str, Any], tail: bytes) -> bytes:
    """Put a file together and seal it: the hash of the whole with zeros in its place."""
    head["__metadata__"]["sha256"] = "0" * 64
    data = header(json.dumps(head, separators=(",", ":")), tail)
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest.encode(), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path, "model", tensors(), META)
    return tmp_path


# -- What is written is what is read ---------------------------------------------------------------


def test_round_trip_is_exact(folder: Path) -> None:
    got, meta = read_bundle(folder, "model")
    assert same(got, tensors())
    assert meta == META


def test_the_file_states_the_hash_of_itself_with_zeros_in_its_place(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    stated = split(data)[0]["__metadata__"]["sha256"]
    blank = data.replace(stated.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == stated


def test_any_safetensors_reader_opens_it(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert same(safetensors.torch.load_file(path), tensors())
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["meta"]) == META


def test_equal_contents_are_equal_bytes(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    write_bundle(folder, "model", tensors(), META)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_meta_that_looks_like_the_seal_is_only_text(tmp_path: Path) -> None:
    meta = {"sha256": "0" * 64, "a": '"sha256":"' + "0" * 64 + '"'}
    write_bundle(tmp_path, "model", {'"sha256":"' + "0" * 64 + '"': torch.ones(1)}, meta)
    assert read_bundle(tmp_path, "model")[1] == meta


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


def test_saving_again_leaves_one_file_and_other_names_alone(folder: Path) -> None:
    write_bundle(folder, "model-extra", {"x": torch.ones(2)}, {})
    write_bundle(folder, "model", {"x": torch.zeros(2)}, {"epoch": 8})
    (folder / "model-notes.safetensors").write_bytes(b"the user's own")
    write_bundle(folder, "model", {"x": torch.zeros(3)}, {"epoch": 9})
    assert len(list(folder.iterdir())) == 3
    assert read_bundle(folder, "model")[1] == {"epoch": 9}
    assert torch.equal(read_bundle(folder, "model-extra")[0]["x"], torch.ones(2))


def test_the_file_before_is_kept_under_the_name_asked_for(folder: Path) -> None:
    for epoch in (8, 9):
        write_bundle(folder, "model", {"x": torch.zeros(2)}, {"epoch": epoch}, previous="older")
    assert read_bundle(folder, "model")[1] == {"epoch": 9}
    assert read_bundle(folder, "older")[1] == {"epoch": 8}
    assert len(list(folder.iterdir())) == 2


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_left_overs_of_a_killed_writer_are_swept_and_those_of_a_living_one_kept(
    folder: Path,
) -> None:
    stale = folder / f".model.safetensors.{host()}-{dead_process()}-0a1b2c3d.tmp"
    living = folder / f".model.safetensors.{host()}-{os.getppid()}-0a1b2c3d.tmp"
    elsewhere = folder / f".model.safetensors.not-{host()}-{dead_process()}-0a1b2c3d.tmp"
    for path in (stale, living, elsewhere):
        path.write_bytes(b"part")
    assert same(read_bundle(folder, "model")[0], tensors())
    write_bundle(folder, "model", tensors(), META)
    assert {*folder.iterdir()} == {living, elsewhere, folder / "model.safetensors"}


def write_often(folder: Path, size: int) -> None:
    for _ in range(60):
        write_bundle(folder, "model", {"x": torch.full((size,), float(size))}, {"writer": size})


@forks
def test_two_processes_that_write_leave_one_whole_file(tmp_path: Path) -> None:
    children = [fork(write_often, tmp_path, size) for size in (3000, 50_000)]
    while not (tmp_path / "model.safetensors").exists():
        time.sleep(0.01)
    while any(child.is_alive() for child in children):
        got, meta = read_bundle(tmp_path, "model")
        size = meta["writer"]
        assert torch.equal(got["x"], torch.full((size,), float(size)))
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_two_files_of_a_development_version_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"format": "pyro_vae bundle", "version": 1}')
    (tmp_path / "model-0123456789ab.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.json beside it is of a development version"):
        read_bundle(tmp_path, "model")


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_bundle(tmp_path, "model", tensors(), META)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_unusable_device_is_a_device_error(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"model\.safetensors.*cuda:99.*use device='cpu'"):
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
    "65 axes": lambda _: header(f'{{"a":{{{F32}:{[1] * 65},"data_offsets":[0,4]}}}}', b"\0" * 4),
    "NaN weights": lambda _: safetensors.torch.save({"a": torch.tensor([1.0, float("nan")])}),
    "infinite weights": lambda _: safetensors.torch.save({"a": torch.tensor([float("inf")])}),
}


def with_meta(payload: bytes) -> bytes:
    """Give hostile tensors valid metadata and a valid hash: only the tensor format can refuse."""
    try:
        head, tail = split(payload)
    except (struct.error, ValueError, RecursionError):
        return payload
    if not isinstance(head, dict):
        return payload
    named = {"format": files.FORMAT, "version": "1", "meta": "{}"}
    return sealed({"__metadata__": named, **head}, tail)


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
@pytest.mark.parametrize("hash_agrees", [True, False])
def test_hostile_tensor_file_is_refused(folder: Path, kind: str, hash_agrees: bool) -> None:
    payload = HOSTILE_TENSORS[kind](folder)
    (folder / "model.safetensors").write_bytes(with_meta(payload) if hash_agrees else payload)
    with pytest.raises(CheckpointError, match="safetensors") as caught:
        read_bundle(folder, "model")
    assert "\n" not in str(caught.value)
    assert not (folder / "canary").exists()


def test_sealed_bytes_are_read_when_they_are_sound(folder: Path) -> None:
    """The control of the test above: its metadata are accepted, so the tensors were refused."""
    payload = with_meta(safetensors.torch.save({"a": torch.ones(1)}))
    (folder / "model.safetensors").write_bytes(payload)
    assert torch.equal(read_bundle(folder, "model")[0]["a"], torch.ones(1))


HOSTILE_META: dict[str, tuple[Any, str]] = {
    "empty": ("", "not valid JSON"),
    "list": ("[]", "its JSON is no object"),
    "number": ("1", "its JSON is no object"),
    "deep": ('{"a":' * 40_000, "not valid JSON"),
    "deeper": ('{"a":' * 200_000, "far more memory than the file"),
    "deep list": ("[" * 1_000_000, "far more memory than the file"),
    "40 levels": ('{"a":' * 40 + "1" + "}" * 40, "nested deeper than 32"),
    "NaN": ('{"a": NaN}', "NaN is not JSON"),
    "repeated key": ('{"a": 1, "a": 2}', "given twice"),
    "long number": ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
}


def test_much_json_is_not_read_where_tensors_are_few(folder: Path) -> None:
    """Python takes up to 26 times its bytes; beside tensors of some times its size that is little.

    What may be written can be read, to the byte.
    """
    for count in (0, 1000, 10_000):
        with mock.patch("pyro_vae.storage.bundle.SPARE_BYTES", 2**30):
            write_bundle(folder, "model", {"a": torch.ones(count).byte()}, {"a": [{}] * 100})
        size = (folder / "model.safetensors").stat().st_size
        for spare in range(0, 40_000, 1111):
            with mock.patch("pyro_vae.storage.bundle.SPARE_BYTES", spare):
                try:
                    write_bundle(
                        folder, "other", {"a": torch.ones(count).byte()}, {"a": [{}] * 100}
                    )
                except CheckpointError:
                    with pytest.raises(CheckpointError, match="far more memory"):
                        read_bundle(folder, "model")
                    assert 2 * size + spare < 40_000
                else:
                    assert len(read_bundle(folder, "model")[1]["a"]) == 100


@pytest.mark.parametrize(
    "words", [["word"] * 10**5, ["\u8bcd\u5178"] * 60_000], ids=["latin", "chinese"]
)
def test_a_large_vocabulary_is_held(tmp_path: Path, words: list[str]) -> None:
    write_bundle(tmp_path, "model", {"a": torch.ones(3)}, {"words": words})
    assert read_bundle(tmp_path, "model")[1]["words"] == words


@pytest.mark.parametrize("kind", HOSTILE_META)
def test_hostile_json_is_refused(folder: Path, kind: str) -> None:
    text, message = HOSTILE_META[kind]
    head, tail = split((folder / "model.safetensors").read_bytes())
    head["__metadata__"]["meta"] = text
    (folder / "model.safetensors").write_bytes(sealed(head, tail))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bundle(folder, "model")
    assert "model.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a file of this library"),
        ([], "not a file of this library"),
        ({"format": "pt"}, "not a file of this library"),
        ({"version": None}, "version None"),
        ({"version": "2"}, "version '2', this pyro_vae reads 1"),
        ({"version": 1}, "version 1, this"),
        ({"meta": None}, "not valid JSON"),
        ({"meta": 3}, "no object"),
    ],
)
def test_malformed_metadata_are_refused(folder: Path, metadata: Any, message: str) -> None:
    head, tail = split((folder / "model.safetensors").read_bytes())
    if isinstance(metadata, dict):
        head["__metadata__"].update(metadata)
        data = sealed(head, tail)
    else:
        data = header(json.dumps({**head, "__metadata__": metadata}), tail)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_bundle(folder, "model")


def test_truncated_at_every_hundredth(folder: Path) -> None:
    path = folder / "model.safetensors"
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


def test_any_flipped_bit_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="model"):
            read_bundle(folder, "model")


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no such file"):
        read_bundle(folder, "other")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        read_bundle(folder / "nowhere", "model")


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
@pytest.mark.timeout(20)
def test_what_is_not_a_file_is_refused_without_a_hang(folder: Path, kind: str) -> None:
    replace_by(kind, folder / "model.safetensors")
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
        ({}, {"a": json.loads("[" * 40 + "]" * 40)}, "nested deeper than 32"),
        ({}, [1], "must be a dict"),
        ({"a": torch.ones(3)}, {"a": [{}] * 10**5}, "keep long lists of numbers as tensors"),
    ],
)
def test_unholdable_values_leave_the_old_file(
    folder: Path, state: Any, meta: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_bundle(folder, "model", state, meta)
    assert len(list(folder.iterdir())) == 1
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
def test_a_failing_system_call_leaves_a_good_file(
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
        # One rename, two syncs, two opened: a later failure never comes.
        happens = number < (1 if call == "replace" else 2)
        with pytest.raises(OSError, match="No space left") if happens else contextlib.nullcontext():
            write_bundle(folder, "model", {"x": torch.ones(2)}, {"epoch": 8})
    got, meta = read_bundle(folder, "model")
    assert (same(got, tensors()) and meta == META) or (got.keys() == {"x"} and meta["epoch"] == 8)
    assert len(list(folder.iterdir())) == 1


def save_forever(folder: Path, step: int, acknowledge: int) -> None:
    while True:
        step += 1
        write_bundle(folder, "model", {"x": torch.full((20_000,), float(step))}, {"step": step})
        os.write(acknowledge, b"%d " % step)


@forks
def test_kill_9_loses_at_most_the_save_under_way(tmp_path: Path) -> None:
    """Fifty kills at drawn moments: the file on disk is whole and no older than the last save."""
    write_bundle(tmp_path, "model", {"x": torch.zeros(20_000)}, {"step": 0})
    step = 0
    for delay in torch.rand(50, generator=torch.Generator().manual_seed(0)).mul(0.04).tolist():
        out, acknowledge = os.pipe()
        child = fork(save_forever, tmp_path, step, acknowledge)
        first = os.read(out, 1)  # however busy the machine is, the child has begun to save
        time.sleep(delay)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        os.close(acknowledge)
        with open(out) as stream:
            last = max(map(int, (first.decode() + stream.read()).split()))
        got, meta = read_bundle(tmp_path, "model")
        step = meta["step"]
        assert last <= step <= last + 1, (last, meta)
        assert torch.equal(got["x"], torch.full((20_000,), float(step)))
    assert step >= 50  # they were killed in the middle of saving, not before it
    write_bundle(tmp_path, "model", tensors(), {})
    assert len(list(tmp_path.iterdir())) == 1


def save_with_a_small_disk(folder: Path, limit: int, numbers: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError, match="File too large"):
        write_bundle(folder, "model", {"x": torch.ones(numbers)}, {"a": "b" * 5000})


@forks
@pytest.mark.parametrize(("limit", "numbers"), [(1000, 10_000), (4000, 10)])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    folder: Path, limit: int, numbers: int
) -> None:
    """The limit stops the file inside the header in both cases."""
    child = fork(save_with_a_small_disk, folder, limit, numbers)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert len(list(folder.iterdir())) == 1
    got, meta = read_bundle(folder, "model")
    assert same(got, tensors()) and meta == META


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with a good file that this process may read and not write, even when run as root."""
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
    assert len(list(read_only.iterdir())) == 1


def test_no_permission_to_read_is_a_checkpoint_error(read_only: Path) -> None:
    if os.geteuid() == 65534:
        os.seteuid(0)
        (read_only / "model.safetensors").chmod(0)
        os.seteuid(65534)
    else:
        (read_only / "model.safetensors").chmod(0)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: cannot be read \(Permission denied"
    ):
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
