"""Named splits, and how each file is divided into them. N data, D pixels, C x H x W an image."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted, typed
from pyro_vae.data.readers import Arrays, read_npz
from pyro_vae.errors import DataError
from pyro_vae.extras import extra

EVERY = 20  # one of so many data of a user's own file validates, another one tests


def by_turns(count: int) -> dict[str, np.ndarray]:
    """Return which of N data train, which validate (each 20th), which test (the 10th after it)."""
    turn = np.arange(count) % EVERY
    splits = {"valid": turn == EVERY - 1, "test": turn == EVERY // 2 - 1}
    return {**splits, "train": ~(splits["valid"] | splits["test"])}


class ByTurns:
    """Rows of a user's own file in splits: every 20th validates, and the tenth after it tests."""

    whole: Any

    @property
    def all(self) -> Any:
        """All rows of the file."""
        return self.whole

    @property
    def train(self) -> Any:
        """The rows to train on."""
        return self._part("train")

    @property
    def valid(self) -> Any:
        """Every 20th row."""
        return self._part("valid")

    @property
    def test(self) -> Any:
        """The tenth row after each of these."""
        return self._part("test")

    def _part(self, split: str) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test data, one flattened image per row.

    Arguments:
        name: the data set.
        train: float32, shape `(N, D)`: in {0, 1}, or grey levels in [0, 1] (binarization ``None``,
            and the training split of ``"dynamic"``).
        valid: as ``train``; binary whenever the data are binarised.
        test: as ``valid``.
        shape: of one image, `(C, H, W)`.
        labels: int64 classes, shape `(N)`, by split; empty where the source has none.
        binarization: ``"static"``, ``"dynamic"``, ``"threshold"`` or ``None``. State it with every
            figure in nats: figures of different binarizations cannot be compared.
        transform: what ``pv.fit(..., transform=)`` applies to each training batch; ``None`` unless
            dynamic.
        seed: of the fixed Bernoulli draws.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    shape: tuple[int, int, int]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    binarization: str | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    @typed
    def images(self, x: Tensor) -> Tensor:
        """Reshape rows to images: `(*, D)` to `(*, C, H, W)`.

        Raises:
            DataError: Rows of another size.
        """
        if x.shape[-1:] != (math.prod(self.shape),):
            raise DataError(
                f"{self.name}: rows have {math.prod(self.shape)} pixels, got shape "
                f"{tuple(x.shape)}; pass flattened images"
            )
        return x.reshape(*x.shape[:-1], *self.shape)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{s}={len(getattr(self, s))}" for s in ("train", "valid", "test"))
        return f"Splits({self.name!r}, {sizes}, {self.shape}, binarization={self.binarization!r})"


_Source = tuple[dict[str, Tensor], dict[str, Tensor], tuple[int, int, int]]


def digits() -> _Source:
    """Return images, labels and image shape of scikit-learn's digits."""
    with extra("data", "digits"):
        from sklearn.datasets import load_digits  # slow to import, and only this needs it

    bunch = load_digits()
    x = torch.as_tensor(bunch.data, dtype=torch.float32) / 16
    y = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = _fixed_permutation(len(x))
    parts = dict(zip(("train", "valid", "test"), order.split((1297, 250, 250)), strict=True))
    return {k: x[i] for k, i in parts.items()}, {k: y[i] for k, i in parts.items()}, (1, 8, 8)


def train_and_test(path: Path) -> _Source:
    """Return a file of training and test images, the end of the training images as validation."""
    image, label = (np.uint8, (28, 28)), (np.integer, ())
    arrays = read_npz(path, {"x_train": image, "y_train": label, "x_test": image, "y_test": label})
    for split in ("train", "test"):
        _check_lengths(path, arrays, split)
    held_out = len(arrays["x_train"]) // 12  # 5,000 of 60,000
    if held_out < 1:
        raise DataError(f"{path}: {len(arrays['x_train'])} training rows, expected at least 12")
    x, y = _unit(arrays["x_train"]), _classes(arrays["y_train"])
    grey = {"train": x[:-held_out], "valid": x[-held_out:], "test": _unit(arrays["x_test"])}
    labels = {"train": y[:-held_out], "valid": y[-held_out:], "test": _classes(arrays["y_test"])}
    return grey, labels, (1, 28, 28)


def mnist_static(path: Path) -> _Source:
    """Return the published binary file, its test images shuffled."""
    splits = ("train", "valid", "test")
    arrays = read_npz(
        path,
        {f"x_{split}": (np.uint8, (28, 28)) for split in splits},
        optional={f"y_{split}": (np.integer, ()) for split in splits},
    )
    for split in splits:
        _check_lengths(path, arrays, split)
        if arrays[f"x_{split}"].max() > 1:
            raise DataError(f"{path}: x_{split} has values above 1, expected 0 and 1 only")
    binary = {s: torch.from_numpy(arrays[f"x_{s}"]).flatten(1).float() for s in splits}
    labels = {s: _classes(arrays[f"y_{s}"]) for s in splits if f"y_{s}" in arrays}
    # The published test set is sorted by digit: its first batch would be all zeros.
    order = _fixed_permutation(len(binary["test"]))
    for part in (binary, labels):
        if "test" in part:
            part["test"] = part["test"][order]
    return binary, labels, (1, 28, 28)


def _check_lengths(path: Path, arrays: Arrays, split: str) -> None:
    x, y = arrays[f"x_{split}"], arrays.get(f"y_{split}")
    if y is not None and len(x) != len(y):
        raise DataError(f"{path}: {counted(len(x), 'row')} in x_{split}, but {len(y)} in y_{split}")


def _unit(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).flatten(1).float().div_(255)


def _classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _fixed_permutation(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))
