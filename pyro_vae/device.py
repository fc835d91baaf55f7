"""Where to train: ``"auto"`` is a CUDA device where there is one, the CPU otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_vae.errors import DeviceError


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device for a name.

    Raises:
        DeviceError: Unknown, or not on this machine; says what is.
    """
    if isinstance(device, str) and device == "auto":  # an array would compare its elements
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeviceError(f"device: got {device!r}, expected one of {_available()}") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = found.type == "cuda" and (found.index or 0) >= count
    if absent or found.type not in ("cpu", "cuda", "meta"):
        raise DeviceError(f"device: got {device!r}, this machine has {_available()}")
    return found


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generators of the CPU and of one device inside a block, and put both back."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        # Not torch.manual_seed: it would seed the other devices too, which are not put back.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _available() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
