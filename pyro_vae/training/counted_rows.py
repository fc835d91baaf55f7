"""N, and how the processes that train together deal its rows: each once an epoch."""

from contextlib import suppress
from typing import Any, Literal, Protocol

import torch

from pyro_vae.arguments import counted
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batches.batch import Batch, named_leaves, num_rows
from pyro_vae.training.draws import SharedDraws
from pyro_vae.training.parallel import World
from pyro_vae.training.samplers import Samplers
from pyro_vae.training.shared_buffers import digest

_COMPARED = 16  # rows by which data sets are told apart
_MANY = 2**22  # places in a data set that are counted at once

Size = int | Literal["count", "any"]
ANY: Literal["any"] = "any"  # N, where nobody asks for it


class Feed(Protocol):
    """What rows are counted by, where the samplers do not tell."""

    def first(self) -> Batch:
        """Return a copy of one batch."""

    def spread(self, rows: int) -> Batch:
        """Return rows spread over the data set."""

    def count(self) -> int:
        """Read all rows once, and return how many all processes have."""


class CountedRows:
    """The rows of an epoch of all processes.

    Arguments:
        feed: Reads the data.
        samplers: Deal them in this process.
        world: The processes.
        sharded: Whether each process reads rows of its own.
        told: N as the user tells it; ``"count"`` has the rows of a stream counted.
        own: Items of an epoch in this process, where that is known.

    Raises:
        ConfigError: N is told, and the data have other rows.
        DataError: Rows are dealt twice; or N is not known.
    """

    def __init__(
        self,
        feed: Feed,
        samplers: Samplers,
        world: World,
        sharded: bool,
        told: Size | None,
        own: int | None,
    ) -> None:
        self._feed = feed
        self.samplers = samplers
        self.loader = samplers.loader
        self.world = world
        self.sharded = sharded
        self._filled = 0  # rows that the samplers of all processes deal a second time
        self._apart = False  # whether each process has a data set of its own
        self._checked = False
        self.total = self._total(told, own)
        self._require_apart()

    def _total(self, told: Size | None, own: int | None) -> int:
        """Return N, from the sampler, the data set or the user.

        Where a loader of one process alone makes batches of other rows than its items, all count.
        """
        if own is not None and self.world.any(not self._deals_rows(own)):
            return int(told) if isinstance(told, int) else self._feed.count()
        if own is not None and told == ANY:
            self._apart = self._has_own_set()
            return own
        if own is not None:
            return agreed(told, self._of_all(own, told))
        # A length is of batches: that an epoch ends is what it tells.
        ends = hasattr(getattr(self.loader.dataset, "source", None), "__len__")
        if told == "count" or (told is None and ends):
            return self._feed.count()
        if told is None:
            raise DataError(
                "got a stream, expected one that tells its length (__len__, its batches), since N "
                'is needed for the N/B scale; pass size=N, or size="count" to have its rows '
                "counted before training"
            )
        return int(told if told != ANY else 0)

    def _deals_rows(self, items: int) -> bool:
        """Return whether an item of the data set is a row, and no batch that somebody made."""
        by_rows = self.loader.batch_size is None and self.loader.batch_sampler is not None
        if by_rows or self.samplers.dealt or self.samplers.stream:
            return True
        return num_rows(self._feed.first()) == min(self.loader.batch_size or 1, items)

    def _of_all(self, own: int, told: Size | None) -> int:
        """Return the rows of an epoch, where the samplers of all processes deal each its own.

        Samplers that fill their parts up to one length, as a DistributedSampler does, deal fewer
        rows twice than there are processes. Where N is told, and is what all deal together,
        each process may have a data set of its own.

        Raises:
            DataError: They are more than there are: processes deal the same ones.
        """
        if self.samplers.stream or not self.sharded:
            return own
        dealt = round(self.world.sum(torch.tensor(float(own)).double()).item())
        there = len(self.loader.dataset)  # type: ignore[arg-type]
        self._filled = max(0, dealt - there)
        # Said to be so: it cannot be seen. In any process: another may have all rows.
        self._apart = self.world.any(dealt == told and dealt > there)
        if self._apart:
            self._filled = 0
        elif self._filled >= self.world.size:
            raise DataError(
                f"data: the samplers of {self.world.size} processes deal {dealt} rows in other "
                f"orders, and the data set has {there}; give all of them the whole data set, in "
                "one order (pv.fit deals the rows out) or with a DistributedSampler; where each "
                f"process has a data set of its own, say so by size={dealt}"
            )
        return dealt - self._filled

    def _has_own_set(self) -> bool:
        """Return whether each process has a data set of its own, by rows of the same numbers.

        They are read twice: of rows that come otherwise each time nothing is known. One set in
        other orders is taken for several too: where rows are judged the mean is the same.
        """
        if self.samplers.stream or not self.sharded or self.loader.batch_sampler is None:
            return False
        found = ""
        with suppress(Exception):  # of a user's data set: the loader may go about it otherwise
            first, again = (self._digests_of_some() for _ in range(2))
            found = first if first == again else ""
        told = self.world.gather(found.encode())
        return b"" not in told and len(set(told)) == len(told)

    def _digests_of_some(self) -> str:
        draws = SharedDraws(0)
        with draws.continued():
            return " ".join(digest(leaf) for _, leaf in named_leaves(self._feed.spread(_COMPARED)))

    def _require_apart(self) -> None:
        """Refuse samplers that deal one place of the data set to several processes.

        Of a stream this cannot be told: its rows have no numbers, and equal ones may be two data.

        Raises:
            DataError: They do; in all processes.
        """
        if self.samplers.stream or self._apart or not self.sharded:
            return
        dealt, there = self.samplers.places(), len(self.loader.dataset)  # type: ignore[arg-type]
        told = self.world.gather(str(there if dealt is not None else "unread").encode())
        if dealt is None or len(set(told)) > 1:
            return
        left_out, doubled, first = 0, 0, ""
        for start in range(0, there, _MANY):
            own = torch.zeros(min(_MANY, there - start))
            own[dealt[(dealt >= start) & (dealt < start + _MANY)] - start] = 1
            found = self.world.sum(own)
            left_out += int((found == 0).sum())
            places = (found > 1).nonzero().flatten().tolist()
            doubled += len(places)
            if places and not first:
                first = f"{int(found[places[0]])} processes deal row {start + places[0]}"
        if first and (left_out or doubled > self._filled):
            raise DataError(
                f"data: the samplers of {first} (and {doubled - 1} others so); let their parts not "
                "overlap, or give all processes the whole data set in one order (pv.fit deals the "
                "rows out)"
            )

    def require_all(self, seen: float) -> None:
        """Refuse, once, a stream that had other rows than N in its first epoch.

        Arguments:
            seen: Rows of that epoch, in this process.

        Raises:
            DataError: Fewer or more; in all processes.
        """
        known = self._checked or not (self.samplers.stream or self.sharded)
        self._checked = True
        if known:
            return
        found = round(self.world.sum(torch.tensor(seen).double()).item())
        dropped = (self.loader.batch_size or 1) * self.world.size if self.loader.drop_last else 1
        if not self.total - dropped < found <= self.total + self._filled:
            raise DataError(
                f"data: an epoch had {counted(found, 'row')} over {self.world.size} processes, and "
                f"N is {self.total}; let every row come once an epoch, and size= be their number"
            )


def agreed(told: Size | None, own: int) -> int:
    """Return N as the data tell it.

    Raises:
        ConfigError: The user tells another.
    """
    if told not in (None, "count", ANY, own):
        raise ConfigError(
            f"size: got {told}, and the data have {counted(own, 'row')}; leave size out"
        )
    return own


def of_one_kind(kind: str, size: Size | None) -> dict[str, Any]:
    """Return what processes must have in common before they read data: it decides what follows."""
    return {"valid": kind} if size == ANY else {"data": kind, "size": size}
