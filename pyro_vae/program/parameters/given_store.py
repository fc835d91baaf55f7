"""The store of ``params=``: what stock SVI has trained, taken over where statements ask for it."""

from collections.abc import Mapping
from typing import Any

from pyro.params.param_store import ParamStoreDict
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.program.parameters.values import listed

Entries = dict[str, tuple[Tensor, Any]]  # unconstrained values and constraints, by name


class GivenStore:
    """What a store holds that no statement has asked for yet.

    Arguments:
        entries: What ``read_store`` returns.
    """

    def __init__(self, entries: Entries | None) -> None:
        self.entries = dict(entries or {})
        # What a load has given its value since: that of the store is older.
        self.outdated: set[Tensor] = set()

    def note_loaded(self, tensor: Tensor) -> None:
        """Note that the value of a tensor comes from a load, and not from here."""
        if self.entries:
            self.outdated.add(tensor)

    def take_over(self, asked: Mapping[str, Tensor], *, fresh: bool) -> list[str]:
        """Copy what statements have asked for, but for what has been loaded since.

        Arguments:
            asked: Tensors by the names of statements.
            fresh: Whether this is the first run.

        Returns:
            The names of those that have been loaded since.

        Raises:
            ProgramError: The store is that of another program.
        """
        targets = {name: asked[name] for name in self.entries.keys() & asked.keys()}
        if self.entries and fresh and not targets:
            raise ProgramError(
                f"params: none of the store's names ({listed(self.entries)}) is asked for by model "
                f"or guide ({listed(asked) or 'they have no pyro.param or pyro.module'}); give the "
                "store that they were trained with"
            )
        for name, target in targets.items():
            value, _ = self.entries[name]
            if value.shape != target.shape:
                raise ProgramError(
                    f"params: {name!r} has shape {tuple(value.shape)} in the store, expected "
                    f"{tuple(target.shape)}"
                )
        loaded = [name for name, target in targets.items() if target in self.outdated]
        for name, target in targets.items():
            value, _ = self.entries.pop(name)
            if name not in loaded:
                target.data.copy_(value)
        return loaded


def read_store(store: Any) -> Entries:
    """Return the unconstrained values and the constraints of a parameter store, copied.

    Raises:
        ConfigError: It is none, or it is empty.
    """
    if not isinstance(store, ParamStoreDict) or not len(store):
        kind = "an empty store" if isinstance(store, ParamStoreDict) else type(store).__name__
        raise ConfigError(f"params: got {kind}, expected pyro.get_param_store() with parameters")
    state = store.get_state()
    return {
        name: (value.detach().clone(), state["constraints"].get(name, constraints.real))
        for name, value in state["params"].items()
    }
