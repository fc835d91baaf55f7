"""What the samplers of a loader deal, read without using them up."""

import itertools
import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.errors import ConfigError
from pyro_vae.program.parameters.modules import generators_kept
from pyro_vae.training.draws import SharedDraws, kept
from pyro_vae.training.parallel import World


class Samplers:
    """The samplers of one loader, in one of the processes that train together.

    Arguments:
        loader: A loader over a data set, or over batches to come.
        world: The processes.

    Raises:
        ConfigError: A ``DistributedSampler`` deals to other processes.
    """

    def __init__(self, loader: DataLoader, world: World) -> None:
        self.loader = loader
        self.by_rows = _row_sampler(loader)
        self.dealt = isinstance(self.by_rows, DistributedSampler) and world.size > 1
        if self.dealt:
            _require_share(self.by_rows, world)
        self.stream = isinstance(loader.dataset, IterableDataset)

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators that the loader or its sampler draws from, which a checkpoint holds."""
        own = (self.loader.generator, getattr(self.by_rows, "generator", None))
        return [each for each in dict.fromkeys(own) if isinstance(each, torch.Generator)]

    def items(self) -> int | None:
        """Return how many items an epoch has, where that is known: those that a sampler deals."""
        batches = self.own_batches()
        if batches is not None:
            with kept(self.generators), torch.random.fork_rng([]), generators_kept():
                return sum(map(len, batches))
        by_sampler = self.loader.batch_size is not None and not (self.dealt or self.stream)
        for source in (self.loader.sampler, self.loader.dataset)[0 if by_sampler else 1 :]:
            with suppress(TypeError):
                return len(source)  # type: ignore[arg-type]
        return None

    def own_batches(self) -> Any:
        """Return a user's sampler of batches, where it can be read without using it up."""
        own: Any = self.loader.batch_sampler if self.loader.batch_size is None else None
        known = own is None or self.stream or self.dealt
        return None if known or iter(own) is own else own

    def places(self) -> Tensor | None:
        """Return what this process's sampler deals, where it can be read without using it up.

        Draws with replacement are no parts of the data.
        """
        loader, places = self.loader, self.own_batches()
        if places is not None:
            places = itertools.chain.from_iterable(places)
        elif loader.batch_size is not None or loader.batch_sampler is None:
            own: Any = loader.sampler
            with suppress(TypeError):
                places = None if iter(own) is own else itertools.islice(own, len(own))
        if places is None or getattr(self.by_rows, "replacement", False):
            return None
        draws = SharedDraws(0)  # as in an epoch: parts of an order that all share
        with kept(self.generators), draws.continued(), suppress(TypeError):
            return torch.from_numpy(np.fromiter(map(operator.index, places), np.int64))
        return None


def _row_sampler(loader: DataLoader) -> Any:
    """Return what picks the rows of a loader, behind a sampler of batches too."""
    by_batches = loader.batch_sampler if loader.batch_size is None else None
    return getattr(by_batches, "sampler", loader.sampler)


def _require_share(sampler: DistributedSampler, world: World) -> None:
    """Refuse a sampler that deals to another number of processes, or to another of them.

    Raises:
        ConfigError: Some rows would be left out, or come twice.
    """
    if (sampler.rank, sampler.num_replicas) != (world.rank, world.size):
        raise ConfigError(
            f"data: got a DistributedSampler for process {sampler.rank} of {sampler.num_replicas} "
            f"in process {world.rank} of {world.size}; leave num_replicas and rank out"
        )
