"""Where the files of a data set are: a folder, the cache, or a download of known SHA-256."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.readers import Arrays, read_idx
from pyro_vae.errors import DataError
from pyro_vae.extras import extra
from pyro_vae.storage.atomic import atomic_write_bytes

ENVIRONMENT = "PYRO_VAE_DATA"


def folder_of(root: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of data files that was given, or is in the environment; None: neither.

    Raises:
        DataError: There is no such folder.
    """
    folder = root if root is not None else os.environ.get(ENVIRONMENT)
    if not folder:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        source = "root" if root is not None else f"${ENVIRONMENT}"
        raise DataError(f"{source} is {str(path)!r}, which is not a folder; correct it")
    return path


def locate(name: str, root: str | os.PathLike[str] | None, suffix: str = ".npz") -> Path:
    """Return the file of a data set: from the folder, the cache or a download."""
    folder = folder_of(root)
    # A dangling link or a folder of that name is reported, not passed over.
    if folder is not None and os.path.lexists(folder / f"{name}{suffix}"):
        return folder / f"{name}{suffix}"
    with extra("data", f"{name}: the cache"):
        import pooch  # only those without the files need it

    cache = Path(root).expanduser() if root is not None else Path(pooch.os_cache("pyro_vae"))
    path = cache / f"{name}{suffix}"
    return path if os.path.lexists(path) else _download(name, path)


def _download(name: str, path: Path) -> Path:
    import pooch

    if name not in _DOWNLOADS:
        raise DataError(
            f"{name}: got no {path.name}, and no download of known hash exists; put the file into "
            f"a folder and set {ENVIRONMENT} to it"
        )
    download = _DOWNLOADS[name]
    parts = []
    for file, digest in download.files.items():
        url = f"{download.base}{file}"
        try:
            # pooch checks the hash before the file gets its name.
            part = pooch.retrieve(url, f"sha256:{digest}", fname=f"{name}-{file}", path=path.parent)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{name}: could not be downloaded from {url} ({reason}); "
                f"put {name}.npz into a folder and set {ENVIRONMENT} to it"
            ) from None
        parts.append(Path(part))
    if download.arrays is None:
        os.replace(parts[0], path)
        return path
    buffer = io.BytesIO()
    columns: dict[str, Any] = dict(download.arrays(parts))
    np.savez_compressed(buffer, **columns)
    atomic_write_bytes(path, buffer.getvalue())
    for part in parts:
        part.unlink()
    return path


def _idx_arrays(parts: list[Path]) -> Arrays:
    """Return images and labels in LeCun's IDX format, in the order of the download."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    return {k: read_idx(p) for k, p in zip(keys, parts, strict=True)}


def _amat_arrays(parts: list[Path]) -> Arrays:
    """Return images from lines of 784 digits 0 or 1 between single spaces, in download order."""
    keys = ("x_train", "x_valid", "x_test")
    text = {
        k: np.fromfile(p, np.uint8).reshape(-1, 2 * 784) for k, p in zip(keys, parts, strict=True)
    }
    return {k: (t[:, ::2] - ord("0")).reshape(-1, 28, 28) for k, t in text.items()}


@dataclass(frozen=True)
class _Remote:
    base: str
    files: dict[str, str]  # by file name, its SHA-256
    arrays: Callable[[list[Path]], Arrays] | None = None  # None: the file is the .npz itself


_DOWNLOADS = {
    # The hash is the one that Keras checks for the same file.
    "mnist": _Remote(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        {"mnist.npz": "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"},
    ),
    # These hashes are the ones that TensorFlow Datasets checks for the same files.
    "fashion_mnist": _Remote(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
        _idx_arrays,
    ),
    "mnist_static": _Remote(
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        {
            "binarized_mnist_train.amat": (
                "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
            ),
            "binarized_mnist_valid.amat": (
                "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
            ),
            "binarized_mnist_test.amat": (
                "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
            ),
        },
        _amat_arrays,
    ),
}
