"""The values of ``pyro.param`` statements: the keys they are held by, and what is known of each."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# The running means that TraceGraph_ELBO keeps as it runs: written to, and never trained.
AVERAGES = "__baseline_avg_downstream_cost_"
# Begins the keys of tensors that densities depend on, and no statement names.
FOUND = "found-"


@dataclass(frozen=True)
class Value:
    """What is known of a value besides its tensor, which is unconstrained.

    Arguments:
        name: Of the statement that has asked for it; None: none has.
        constraint: Of that statement; None: none has told it.
        loaded: Whether a load has given it before the program first ran.
        saved: The constraint that its file tells, until a statement does; None: it tells none.
        found: Whether it has no name: a tensor behind a density, that no statement asks for.
        type: Of a loaded value, the one that it takes when the first run ends; None: it stays.
    """

    name: str | None = None
    constraint: Any = None
    loaded: bool = False
    saved: Any = None
    found: bool = False
    type: torch.dtype | None = None


def key_of(name: str) -> str:
    """Return a parameter's name as ``nn.ParameterDict`` can hold it: no dots, none of its own."""
    key = name.replace("-", "--").replace(".", "-")
    return f"{key}_" if hasattr(nn.ParameterDict(), key) else key


def name_of(key: str) -> str:
    """Return the name that a key stands for: of a loaded value no statement has told it yet."""
    name = key.replace("--", "\0").replace("-", ".").replace("\0", "-")
    bare = name.removesuffix("_")
    return bare if key_of(bare) == key else name


def listed(names: Collection[str]) -> str:
    """Return the first of many names, for a message, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(repr, list(names)[:4])) + more
