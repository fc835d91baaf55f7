"""Data sets by name: exact values of small made-up files, explicit binarization, hostile files."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import sources
from pyro_vae.errors import DataError

REAL = Path(os.environ.get("PYRO_VAE_DATA", ""))
GENERATOR = np.random.default_rng(0)
MNIST = {
    "x_train": GENERATOR.integers(0, 256, (24, 28, 28), dtype=np.uint8),
    "y_train": GENERATOR.integers(0, 10, 24, dtype=np.uint8),
    "x_test": GENERATOR.integers(0, 256, (6, 28, 28), dtype=np.uint8),
    "y_test": GENERATOR.integers(0, 10, 6, dtype=np.uint8),
}
STATIC = {
    **{
        f"x_{split}": GENERATOR.integers(0, 2, (n, 28, 28), dtype=np.uint8)
        for split, n in (("train", 8), ("valid", 4), ("test", 40))
    },
    "y_train": np.zeros(8, np.uint8),
    "y_valid": np.zeros(4, np.uint8),
    "y_test": np.repeat(np.arange(10, dtype=np.uint8), 4),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small files under the names of the real ones."""
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **MNIST)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "mnist_static.npz", **STATIC)  # type: ignore[arg-type]
    return tmp_path


# -- Values ----------------------------------------------------------------------------------------


def test_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    d = data.load("digits")
    assert (len(d.train), len(d.valid), len(d.test)) == (1297, 250, 250)
    assert d.shape == (1, 8, 8) and d.binarization is None and d.transform is None
    assert {x.dtype for x in (d.train, d.valid, d.test)} == {torch.float32}
    got = np.concatenate([d.train, d.valid, d.test]) * 16
    labels = np.concatenate([d.labels[split] for split in ("train", "valid", "test")])
    bunch = load_digits()
    ours, theirs = (
        rows[np.lexsort(rows.T)]
        for rows in (
            np.column_stack([got, labels]),
            np.column_stack([bunch.data, bunch.target]),
        )
    )
    np.testing.assert_array_equal(ours, theirs)


def test_digits_splits_hold_every_class_and_do_not_move_with_the_seed() -> None:
    a, b = data.load("digits", seed=0), data.load("digits", seed=1)
    assert torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
    assert all(len(a.labels[split].unique()) == 10 for split in ("train", "valid", "test"))


def test_mnist_values_and_the_last_twelfth_for_validation(folder: Path) -> None:
    d = data.load("mnist")
    assert (len(d.train), len(d.valid), len(d.test)) == (22, 2, 6)
    rows = MNIST["x_train"].reshape(24, 784) / np.float32(255)
    np.testing.assert_array_equal(torch.cat([d.train, d.valid]), rows)
    np.testing.assert_array_equal(d.test, MNIST["x_test"].reshape(6, 784) / np.float32(255))
    np.testing.assert_array_equal(
        torch.cat([d.labels["train"], d.labels["valid"]]), MNIST["y_train"]
    )
    assert d.labels["test"].dtype is torch.int64


def test_images_undo_the_flattening(folder: Path) -> None:
    d = data.load("mnist")
    assert d.images(d.test).shape == (6, 1, 28, 28)
    np.testing.assert_array_equal(d.images(d.test)[:, 0] * 255, MNIST["x_test"])
    assert d.images(d.test.expand(3, 6, 784)).shape == (3, 6, 1, 28, 28)
    with pytest.raises(DataError, match=r"rows have 784 pixels, got shape \(6, 28, 28\)"):
        d.images(torch.zeros(6, 28, 28))


def test_static_file_is_read_as_published_with_its_test_set_shuffled(folder: Path) -> None:
    d = data.load("mnist_static")
    assert d.binarization == "static" and d.transform is None
    assert torch.equal(d.train, torch.from_numpy(STATIC["x_train"]).flatten(1).float())
    assert torch.equal(d.valid, torch.from_numpy(STATIC["x_valid"]).flatten(1).float())
    assert not torch.equal(d.labels["test"], d.labels["test"].sort().values)
    rows = {(bytes(x), int(y)) for x, y in zip(STATIC["x_test"], STATIC["y_test"], strict=True)}
    got = zip(d.test.to(torch.uint8).numpy(), d.labels["test"], strict=True)
    assert {(bytes(x), int(y)) for x, y in got} == rows
    assert torch.equal(d.test, data.load("mnist_static", seed=5, binarization="static").test)


def test_static_file_without_labels(folder: Path) -> None:
    arrays: dict[str, Any] = {k: v for k, v in STATIC.items() if k[0] == "x"}
    np.savez(folder / "mnist_static.npz", **arrays)
    assert data.load("mnist_static").labels == {}


# -- Binarization ----------------------------------------------------------------------------------


def test_threshold_is_at_one_half(folder: Path) -> None:
    d = data.load("mnist", binarization="threshold")
    np.testing.assert_array_equal(d.test, MNIST["x_test"].reshape(6, 784) >= 128)
    assert d.test.dtype is torch.float32 and d.transform is None


def test_static_draw_is_fixed_by_its_seed(folder: Path) -> None:
    a, b, c = (data.load("mnist", binarization="static", seed=s) for s in (3, 3, 4))
    for split in ("train", "valid", "test"):
        x = getattr(a, split)
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(x, getattr(b, split)) and not torch.equal(x, getattr(c, split))
    assert a.transform is None and a.seed == 3


def test_dynamic_keeps_grey_for_training_only(folder: Path) -> None:
    grey = data.load("mnist")
    static = data.load("mnist", binarization="static", seed=3)
    d = data.load("mnist", binarization="dynamic", seed=3)
    assert torch.equal(d.train, grey.train)
    assert torch.equal(d.valid, static.valid) and torch.equal(d.test, static.test)
    assert d.transform is not None
    torch.manual_seed(0)
    first, second = d.transform(d.train), d.transform(d.train)
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)


def test_draws_have_the_grey_level_as_their_mean() -> None:
    """The sum of 1797 x 64 pixels has a known variance: |z| < 5 fails for 6 seeds in 10^7."""
    grey, drawn = data.load("digits"), data.load("digits", binarization="static")
    p = torch.cat([grey.train, grey.valid, grey.test]).double()
    x = torch.cat([drawn.train, drawn.valid, drawn.test]).double()
    z = (x - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(z) < 5
    assert torch.equal(x[p == 0], p[p == 0]) and torch.equal(x[p == 1], p[p == 1])


@pytest.mark.parametrize("binarization", [None, "static", "dynamic", "threshold"])
def test_global_random_state_is_left_alone(binarization: str | None) -> None:
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    first = data.load("digits", binarization=binarization)
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.dumps(np.random.get_state()) == numpy_before  # noqa: NPY002
    torch.manual_seed(8)
    assert torch.equal(first.test, data.load("digits", binarization=binarization).test)


def test_repr_is_one_line_without_data() -> None:
    text = repr(data.load("digits", binarization="dynamic"))
    assert (
        text
        == "Splits('digits', train=1297, valid=250, test=250, (1, 8, 8), binarization='dynamic')"
    )


# -- Wrong arguments -------------------------------------------------------------------------------


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(DataError, match="'mnst'; choose one of digits, mnist, mnist_static, fash"):
        data.load("mnst")


@pytest.mark.parametrize("name", ["../mnist", "", "mnist.npz", "/etc/passwd"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(DataError, match="unknown data set"):
        data.load(name)


def test_unknown_binarization_lists_the_known() -> None:
    with pytest.raises(DataError, match="'binary'; choose None or static, dynamic, threshold"):
        data.load("digits", binarization="binary")


@pytest.mark.parametrize("binarization", ["dynamic", "threshold"])
def test_static_file_cannot_be_binarised_again(folder: Path, binarization: str) -> None:
    with pytest.raises(DataError, match="binary as published"):
        data.load("mnist_static", binarization=binarization)


# -- Hostile files ---------------------------------------------------------------------------------


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def npz(**changes: Any) -> bytes:
    arrays = {k: v for k, v in {**MNIST, **changes}.items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def members(**changes: bytes) -> bytes:
    """An .npz whose members are given byte for byte; a key may be any file name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in MNIST.items():
            member = io.BytesIO()
            np.save(member, value)
            archive.writestr(f"{key}.npy", changes.pop(key, member.getvalue()))
        for name, content in changes.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(header: str, tail: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + tail


def objects(folder: Path) -> bytes:
    array = np.empty((24, 28, 28), object)
    array[:] = 0
    array[0, 0, 0] = Payload(folder / "canary")
    return npz(x_train=array)


def truncated(_: Path) -> bytes:
    whole = npz()
    return whole[: len(whole) // 2]


def flipped(_: Path) -> bytes:
    whole = bytearray(npz())
    whole[5000] ^= 1
    return bytes(whole)


def repeated(_: Path) -> bytes:
    buffer = io.BytesIO(npz())
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x_train.npy", b"second")
    return buffer.getvalue()


CLAIM = "{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, 28, 28), }}"
X = MNIST["x_train"]
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "not a sound .npz"),
    "junk": (lambda _: bytes(range(256)) * 8, "not a sound .npz"),
    "pickle": (lambda folder: pickle.dumps(Payload(folder / "canary")), "not a sound .npz"),
    "truncated": (truncated, "not a sound .npz"),
    "flipped bit": (flipped, "not a sound .npz .*CRC"),
    "object array": (objects, "x_train is object"),
    "pickle as member": (
        lambda folder: members(x_train=pickle.dumps(Payload(folder / "canary"))),
        "not a sound .npz",
    ),
    "no train": (lambda _: npz(x_train=None), "no array x_train; it has x_test, y_test, y_train"),
    "nothing": (lambda _: npz(x_train=None, x_test=None, y_train=None, y_test=None), "no array"),
    "floats": (lambda _: npz(x_train=X / 255), "x_train is float64"),
    "flattened": (lambda _: npz(x_train=X.reshape(24, 784)), r"expected uint8 \(N, 28, 28\)"),
    "channels last": (lambda _: npz(x_train=X[..., None]), r"\(24, 28, 28, 1\)"),
    "one image": (lambda _: npz(x_train=X[0]), r"\(28, 28\)"),
    "no rows": (lambda _: npz(x_test=X[:0], y_test=MNIST["y_test"][:0]), "x_test is empty"),
    "few rows": (
        lambda _: npz(x_train=X[:11], y_train=MNIST["y_train"][:11]),
        "11 training rows, expected at least 12",
    ),
    "lengths": (lambda _: npz(y_train=MNIST["y_train"][:5]), "24 rows in x_train, but 5 in"),
    "one-hot labels": (
        lambda _: npz(y_train=np.eye(24, dtype=np.uint8)),
        r"expected integer \(N\)",
    ),
    "float labels": (lambda _: npz(y_train=np.ones(24)), "y_train is float64"),
    "traversal": (lambda _: members(**{"../../x.npy": b"x"}), "strange or repeated member"),
    "absolute": (lambda _: members(**{"/etc/x.npy": b"x"}), "strange or repeated member"),
    "not an array": (lambda _: members(**{"run.py": b"x"}), "strange or repeated member"),
    "repeated": (repeated, "strange or repeated member 'x_train.npy'"),
    "header claims 2^40 rows": (lambda _: members(x_train=npy(CLAIM.format(2**40))), "claims"),
    "header claims -1 rows": (lambda _: members(x_train=npy(CLAIM.format(-1))), "empty"),
    "header claims less": (
        lambda _: members(x_train=npy(CLAIM.format(12), b"\0" * 784 * 24)),
        "claims shape",
    ),
    "header runs code": (lambda _: members(x_train=npy("__import__('os')")), "not a sound .npz"),
    "header deep": (lambda _: members(x_train=npy("(" * 110)), "not a sound .npz"),
    "unknown version": (
        lambda _: members(x_train=npy(CLAIM.format(12), version=(9, 0))),
        "npy version",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused(folder: Path, kind: str) -> None:
    make, message = HOSTILE[kind]
    content = make(folder)
    (folder / "mnist.npz").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load("mnist")
    assert "mnist.npz" in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "canary").exists()


def test_made_up_members_are_read_when_they_are_sound(folder: Path) -> None:
    """The control of the test above."""
    (folder / "mnist.npz").write_bytes(members())
    assert len(data.load("mnist").train) == 22
    (folder / "mnist.npz").write_bytes(members(x_train=npy(CLAIM.format(24), X.tobytes())))
    np.testing.assert_array_equal(data.load("mnist").train[0] * 255, X[0].ravel())


def test_zip_bomb_is_refused_by_its_declared_size(folder: Path) -> None:
    """64 MB of zeros in 64 kB; the limit is lowered, so that nothing large is ever made."""
    path = folder / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((2**26,), np.uint8))
    assert path.stat().st_size < 2**17
    with pytest.raises(DataError, match=r"unpacks to .* more than the 1000000 allowed"):
        data.read_npz(path, {"x": (np.uint8, ())}, max_bytes=1_000_000)
    assert data.read_npz(path, {"x": (np.uint8, ())})["x"].sum() == 0


def test_zip_directory_that_declares_too_little_is_refused(folder: Path) -> None:
    content = bytearray(members())
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 24, 128 + 28 * 28)
    (folder / "mnist.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"claims shape|Bad CRC"):
        data.load("mnist")


def test_values_above_one_in_the_static_file(folder: Path) -> None:
    arrays: dict[str, Any] = {**STATIC, "x_valid": STATIC["x_valid"] * 255}
    np.savez(folder / "mnist_static.npz", **arrays)
    with pytest.raises(DataError, match="x_valid has values above 1"):
        data.load("mnist_static")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "device", "dangling link"])
@pytest.mark.timeout(20)
def test_what_is_not_a_file_is_refused_without_a_hang(folder: Path, kind: str) -> None:
    path = folder / "mnist.npz"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(DataError, match=r"mnist\.npz: (not a regular file|cannot be read)"):
        data.load("mnist")


# -- Where the files are ---------------------------------------------------------------------------


def test_root_comes_before_the_environment(folder: Path) -> None:
    (folder / "other").mkdir()
    np.savez(folder / "other" / "mnist.npz", **{**MNIST, "x_test": MNIST["x_test"] // 2})  # type: ignore[arg-type]
    assert data.load("mnist").test.max() > 0.9
    assert data.load("mnist", root=folder / "other").test.max() < 0.6


def test_a_wrong_folder_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"root is '.*missing', which is not a folder"):
        data.load("mnist", root=folder / "missing")
    monkeypatch.setenv("PYRO_VAE_DATA", str(folder / "mnist.npz"))
    with pytest.raises(DataError, match=r"\$PYRO_VAE_DATA is '.*mnist.npz', which is not a folder"):
        data.load("mnist")


def packed(content: bytes) -> bytes:
    """Return bytes compressed without the time: in a test's name it would tell workers apart."""
    return gzip.compress(content, mtime=0)


def gz_idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return packed(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def amat(array: np.ndarray) -> bytes:
    return b"".join(b" ".join(b"%d" % p for p in row.ravel()) + b"\n" for row in array)


REMOTE = {
    "mnist": {"mnist.npz": npz()},
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": gz_idx(MNIST["x_train"]),
        "train-labels-idx1-ubyte.gz": gz_idx(MNIST["y_train"]),
        "t10k-images-idx3-ubyte.gz": gz_idx(MNIST["x_test"]),
        "t10k-labels-idx1-ubyte.gz": gz_idx(MNIST["y_test"]),
    },
    "mnist_static": {
        f"binarized_mnist_{split}.amat": amat(STATIC[f"x_{split}"])
        for split in ("train", "valid", "test")
    },
}


class Remote(http.server.BaseHTTPRequestHandler):
    """Serves `REMOTE` on the loopback."""

    asked: list[str]

    def do_GET(self) -> None:
        _, name, file = self.path.split("/")
        self.asked.append(file)
        content = REMOTE[name].get(file)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The download table with small files, their hashes, and a local address; an empty cache."""
    handler = type("Handler", (Remote,), {"asked": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    for name, served in REMOTE.items():
        assert served.keys() == sources._DOWNLOADS[name].files.keys()
        small = sources._Remote(
            f"http://127.0.0.1:{server.server_port}/{name}/",
            {file: hashlib.sha256(content).hexdigest() for file, content in served.items()},
            sources._DOWNLOADS[name].arrays,
        )
        monkeypatch.setitem(sources._DOWNLOADS, name, small)
    yield handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", list(REMOTE))
def test_download_is_checked_converted_and_cached(
    name: str, remote: list[str], tmp_path: Path
) -> None:
    d = data.load(name)
    if name == "mnist_static":
        assert torch.equal(d.train, torch.from_numpy(STATIC["x_train"]).flatten(1).float())
        assert d.labels == {}
    else:
        np.testing.assert_array_equal(d.images(d.test)[:, 0] * 255, MNIST["x_test"])
        np.testing.assert_array_equal(d.labels["test"], MNIST["y_test"])
    assert sorted(remote) == sorted(REMOTE[name])
    assert torch.equal(data.load(name).test, d.test)
    assert len(remote) == len(REMOTE[name])  # the second time it came from the cache
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [f"{name}.npz"]


def test_download_goes_to_the_root(remote: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    data.load("mnist", root=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["mnist.npz"]
    assert not (tmp_path / "cache").exists()


# A refused connection leaves a socket to the collector inside requests.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["hash", "404", "refused"])
def test_failed_download_names_the_url_and_the_variable(
    fault: str, remote: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sources._DOWNLOADS["mnist"]
    base, file, digest = good.base, "mnist.npz", good.files["mnist.npz"]
    if fault == "hash":
        digest = "0" * 64
    elif fault == "404":
        file = "absent.npz"
    else:
        base = "http://127.0.0.1:9/mnist/"
    monkeypatch.setitem(sources._DOWNLOADS, "mnist", sources._Remote(base, {file: digest}))
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    message = str(caught.value)
    del caught
    gc.collect()
    for part in ("mnist: could not be downloaded", base + file, "PYRO_VAE_DATA", "put mnist.npz"):
        assert part in message
    assert "\n" not in message
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


IDX = gzip.decompress(gz_idx(MNIST["x_test"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"no gzip", "not a sound gzip"),
        (packed(IDX)[:-9], "not a sound gzip"),
        (packed(IDX)[:-8] + b"\0" * 8, "not a sound gzip"),
        (packed(b"\0\0\x09" + IDX[3:]), "not an IDX file of bytes"),
        (packed(IDX[::-1]), "not an IDX file of bytes"),
        (packed(IDX[:3] + b"\x00" + IDX[4:]), "not an IDX file of bytes"),
        (packed(IDX[:3] + b"\xff" + IDX[4:]), "not an IDX file of bytes"),
        (packed(IDX[:10]), "do not hold the declared sizes"),
        (packed(IDX[:-1]), "do not hold the declared sizes"),
        (packed(IDX + b"\0"), "do not hold the declared sizes"),
        (packed(b"\0\0\x08\x03" + b"\x80\0\0\0" * 3), "above 1000000 bytes"),
        (packed(b"\0\0\x08\x01" + b"\0" * 10_000_000), "more than 0 bytes"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.read_idx(tmp_path / "x.gz", max_bytes=1_000_000)


def test_idx_round_trip(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gz_idx(MNIST["x_test"]))
    np.testing.assert_array_equal(data.read_idx(tmp_path / "x.gz"), MNIST["x_test"])


# -- The real sets ---------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.skipif(
    not (REAL / "mnist_static.npz").is_file(), reason="$PYRO_VAE_DATA has no mnist_static.npz"
)
def test_real_static_file_is_the_published_one() -> None:
    """The text that the download would bring, rebuilt from the arrays, has the published hash."""
    for (_, digest), split in zip(
        sources._DOWNLOADS["mnist_static"].files.items(), ("train", "valid", "test"), strict=True
    ):
        x = data.read_npz(REAL / "mnist_static.npz", {f"x_{split}": (np.uint8, (28, 28))})
        rows = x[f"x_{split}"].reshape(-1, 784)
        text = np.full((len(rows), 2 * 784), ord(" "), np.uint8)
        text[:, ::2] = rows + ord("0")
        text[:, -1] = ord("\n")
        assert hashlib.sha256(text.tobytes()).hexdigest() == digest
    d = data.load("mnist_static")
    assert (len(d.train), len(d.valid), len(d.test)) == (50_000, 10_000, 10_000)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_grey_sets_have_their_sizes(name: str) -> None:
    if not (REAL / f"{name}.npz").is_file():
        pytest.skip(f"$PYRO_VAE_DATA has no {name}.npz")
    d = data.load(name)
    assert (len(d.train), len(d.valid), len(d.test)) == (55_000, 5_000, 10_000)
    assert (d.train.min(), d.train.max()) == (0, 1)
    assert d.labels["test"].bincount().numel() == 10
