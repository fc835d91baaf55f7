"""Parameters of processes that train together: they take the same steps, and so stay equal."""

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_vae.errors import ConfigError
from pyro_vae.training.shared_buffers import Processes


def require_equal_parameters(modules: Mapping[str, nn.Module], processes: Processes) -> None:
    """Require parameters to be equal after an epoch; what parts by rounding is made equal.

    Processors of other kinds round otherwise. More than that, the root of the precision, comes of
    something that writes to a parameter besides the steps. They are compared by their sums.

    Arguments:
        modules: All that is trained, by name.
        processes: Those that train together.

    Raises:
        ConfigError: They differ; in all processes.
    """
    named = {
        f"{prefix}.{name}".removeprefix("program.parts."): _numbers(parameter)
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    sums = torch.stack([numbers.sum(dtype=torch.float64) for numbers in named.values()]).tolist()
    own = {name: value.hex() for name, value in zip(named, sums, strict=True)}
    texts = processes.gather(json.dumps(own).encode())
    if len(set(texts)) == 1:
        return
    told = [json.loads(text) for text in texts]
    # One that has come in some processes alone is told of where gradients are compared.
    shared = (name for name in told[0] if all(name in each for each in told))
    other = [name for name in shared if len({each[name] for each in told}) > 1]
    apart = [name for name in other if not _made_equal(named[name], processes)]
    if apart:
        others = f" (and {len(apart) - 1} others)" if len(apart) > 1 else ""
        raise ConfigError(
            f"the {processes.size} processes disagree: parameter {apart[0]!r}{others} is another "
            "in each after an epoch of the same steps; something writes to it by the rows or the "
            "noise of one process (a layer that its first batch sets, a codebook that is moved "
            "under no_grad, an optimizer that draws, a callback of one process alone); set it "
            "before pv.fit, by a call in training mode, or register a buffer in its place, whose "
            "steps are averaged"
        )


def _numbers(parameter: Tensor) -> Tensor:
    found = parameter.detach()
    return torch.view_as_real(found) if found.is_complex() else found


def _made_equal(numbers: Tensor, processes: Processes) -> bool:
    """Give all processes the mean, unless that is another number in some of them."""
    mean = processes.sum(numbers.double()) / processes.size
    kind = numbers.dtype
    rounding = math.sqrt(torch.finfo(kind).eps) if kind.is_floating_point else 0.0
    off = (numbers - mean).abs().max() > rounding * mean.abs().max()
    if processes.any(bool(off)):
        return False
    numbers.copy_(mean)
    return True
