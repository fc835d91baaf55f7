"""Finding out, while model and guide run on a new batch, which parameters they use."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyro
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from torch import Tensor, equal, nn

from pyro_vae.callers import of_user
from pyro_vae.errors import ProgramError
from pyro_vae.program.parameters.modules import rest_new
from pyro_vae.program.parameters.parameters import Parameters
from pyro_vae.program.parameters.values import key_of, listed
from pyro_vae.program.parameters.watch import Watch


class Discovery:
    """What the functions turn out to use, to be held by the program's parameters.

    A search of what the functions refer to cannot find everything: a network may lie in a cache, or
    be made by the first call. What runs is found by running.
    """

    def __init__(self, own: Parameters) -> None:
        self._own = own
        self._watch = Watch()
        self._depended: set[int] = set()  # tensors that the densities depend on
        self.used: set[str] = set()  # keys of values, once the block has ended
        self._before = {id(parameter) for parameter in own.parameters()}

    @staticmethod
    @contextmanager
    def during(own: Parameters) -> Iterator["Discovery"]:
        """Find out what is used inside this block; an error in it leaves nothing behind."""
        discovery = Discovery(own)
        store = dict(pyro.get_param_store().named_parameters())
        values, put_back = set(own.values), own.remembered()
        known = {name for name, _ in own.parts.named_modules()}
        own.watch = discovery._watch
        discovery._know_parts()
        try:
            yield discovery
            rest_new(own.parts, own.parts_at_first if own.fresh else known)
            discovery._finish(values, store)
        except BaseException:
            put_back()
            raise
        finally:
            own.watch = None

    def hold_used(self, leaves: Callable[[], list[Tensor]]) -> None:
        """Hold the modules that were called, and the tensors that the densities depend on.

        Arguments:
            leaves: Runs the functions once more and returns the leaf tensors of their densities.

        Raises:
            ProgramError: Weights are made anew by each call, so that nothing can train them.
        """
        self._hold_modules()
        found = leaves()
        self._depended = {id(leaf) for leaf in found}
        strangers = self._strangers(found)
        if not strangers:
            return
        again = {id(leaf) for leaf in self._strangers(leaves())}
        anew = bool(again - {id(leaf) for leaf in strangers})  # each call brings its own
        for leaf in strangers:
            if not anew or id(leaf) in again:
                self._own.hold_found(leaf)  # in the order of the graph, as when saved
            elif isinstance(leaf, nn.Parameter):
                raise ProgramError(
                    f"a parameter of shape {tuple(leaf.shape)} is made anew by each call of model "
                    "or guide, so nothing can train it; make its network once, outside of them, or "
                    "use pyro.param"
                )

    def _know_parts(self) -> None:
        self._watch.known |= {id(module) for module in self._own.parts.modules()}

    def _strangers(self, leaves: list[Tensor]) -> list[Tensor]:
        known = {id(parameter) for parameter in self._own.parameters()}
        return [leaf for leaf in dict.fromkeys(leaves) if id(leaf) not in known]

    def _hold_modules(self) -> None:
        """Hold the modules that were called or registered and that no part holds."""
        own, watch = self._own, self._watch
        announced = {
            name: value
            for name, value in watch.announced().items()
            if _MODULE_NAMESPACE_DIVIDER in name and isinstance(value, nn.Parameter)
        }
        if watch.called or self._strangers(list(announced.values())):
            own.add_reached(own.search())  # a cache is filled by now
            self._know_parts()
        for module in watch.called:
            if id(module) not in watch.known and any(True for _ in module.state_dict()):
                own.add_part(_name_of(module, announced), module)
                self._know_parts()
        watch.called.clear()
        strangers = {id(value) for value in self._strangers(list(announced.values()))}
        for name, value in announced.items():
            if id(value) in strangers:
                own.hold(key_of(name), value)

    def _finish(self, values: set[str], store: Mapping[str, Tensor]) -> None:
        """Settle values of other origin, once everything is found."""
        own, announced = self._own, self._watch.announced()
        used = {key_of(name) for name in announced}
        used |= {key for key, value in own.values.items() if id(value) in self._depended}
        used &= set(own.values)
        own.loads.fill(values, used)
        self.used = used
        for key in own.outdated - used:
            own.drop(key)
        own.outdated = set()
        targets = {name: own.values.get(key_of(name), it) for name, it in announced.items()}
        loaded = own.store.take_over(targets, fresh=own.fresh)
        if own.fresh:
            _warn_of_others({k: v for k, v in announced.items() if k not in loaded}, store)
        own.note_read(self._watch.hidden, self._watch.stated)
        if own.made and not own.fresh:  # by batches before this one, too
            own.hold_made(own.search())
        now = {id(parameter) for parameter in own.parameters()}
        # A look before the first run may have made what a part has held since.
        own.version += now != self._before or any(id(each) in now for each in own.made)
        own.made.clear()
        own.fresh = False


def _warn_of_others(announced: Mapping[str, Tensor], store: Mapping[str, Tensor]) -> None:
    """Warn of values in Pyro's own store that the functions would read under stock SVI."""
    others = [
        name
        for name, value in announced.items()
        if name in store and store[name] is not value and not _same(store[name], value)
    ]
    if others:
        warnings.warn(
            f"Pyro's parameter store holds other values of {listed(others)} than this program, "
            "which has parameters of its own; take the store's over by pv.Program(model, guide, "
            "params=pyro.get_param_store()), or empty it by pyro.clear_param_store()",
            UserWarning,
            stacklevel=of_user(),
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and equal(one.detach().cpu(), other.detach().cpu())


def _name_of(module: nn.Module, announced: Mapping[str, Tensor]) -> str:
    """Return the name that ``pyro.module`` gives to a module, else that of its class."""
    own = {id(parameter) for parameter in module.parameters()}
    names = {
        name.partition(_MODULE_NAMESPACE_DIVIDER)[0]
        for name, value in announced.items()
        if id(value) in own
    }
    return names.pop() if len(names) == 1 else type(module).__name__
