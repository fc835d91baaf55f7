"""Checkpoints of a run: everything that the next step depends on, in tensors and JSON."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.errors import CheckpointError
from pyro_vae.layouts import laid_out_by, order_of
from pyro_vae.program.parameters.late_values import Kept
from pyro_vae.program.parameters.saved_constraints import constraints_of
from pyro_vae.program.parameters.values import AVERAGES, key_of
from pyro_vae.storage.bundle import (
    bundle_path,
    check_state,
    mentions,
    read_bundle,
    serialise,
    write_bundle,
)
from pyro_vae.storage.differences import check_settings, renewed_options
from pyro_vae.storage.history import History
from pyro_vae.storage.moved_state import MovedState, check_moved
from pyro_vae.storage.optimizer_state import (
    fit_state,
    parameter_names,
    take_state,
    without_dropped,
)
from pyro_vae.storage.random_state import (
    check_random_state,
    loader_states,
    set_random_state,
    take_random_state,
)

NAME = "checkpoint"
_AVERAGES = f"values.{AVERAGES}"
_KEPT = "kept"  # values that the first batch does not ask for
# Names of parameters that an optimizer holds, and the program no longer, with the names of those
# that it has in their place: their own, or that of a layer that is tied to this one.
_DROPPED = "dropped"
_SINCE_BEST = "since_best"  # parts that have come after the best epoch
_BY_OTHERS = (
    ", or, of networks and tensors that other data have made, let a new program run on the data "
    "that the run's had met before it goes on: pv.elbo(program, rows) of each kind of them"
)
OLDER = "checkpoint-before"  # the one before it, should the newer be damaged


@dataclass(frozen=True)
class Progress:
    """How far a run has come: what of a checkpoint is no tensor."""

    epoch: int
    steps: int
    best_epoch: int
    best_elbo: float
    settings: dict[str, Any]
    position: int = 0  # batches of the running epoch that are done
    seen: float = 0.0  # rows of these, in this process
    rows: tuple[float, ...] = ()  # of these, under the mean loss of each update

    def as_json(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        best = self.best_elbo if math.isfinite(self.best_elbo) else None
        return {**vars(self), "best_elbo": best}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "Progress":
        """Check what a file holds, entry by entry.

        Raises:
            CheckpointError: An entry is missing or of another kind.
        """
        best, settings = found.get("best_elbo"), found.get("settings")
        sane = (
            all(_is_count(found.get(name)) for name in ("epoch", "steps", "best_epoch"))
            and (best is None or _is_number(best))
            and isinstance(settings, dict)
            and _is_count(found.get("position", 0))
            and isinstance(found.get("rows", []), list)
            and all(map(_is_number, (found.get("seen", 0.0), *found.get("rows", []))))
        )
        if not sane:
            raise CheckpointError(f"{where}: its record of the run is malformed")
        return cls(
            epoch=found["epoch"],
            steps=found["steps"],
            best_epoch=found["best_epoch"],
            best_elbo=-math.inf if best is None else float(best),
            settings=found["settings"],
            position=found.get("position", 0),
            seen=float(found.get("seen", 0.0)),
            rows=tuple(found.get("rows", ())),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps, in tensors of its own: training on does not change it."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @classmethod
    def take(
        cls,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        best: dict[str, Tensor] | None,
        progress: Progress,
        history: History,
        device: torch.device,
        generators: Sequence[Tensor] = (),
        losses: Mapping[int, Tensor] | None = None,
        moved: MovedState | None = None,
        replaced: Mapping[int, str] | None = None,
        first: Mapping[int, str] | None = None,
    ) -> "Checkpoint":
        """Copy weights, optimizer states and random states (the device's and the loader's too).

        Of a loader's generators the states are those at the beginning of the epoch, from where its
        batches are read anew. ``losses`` are sums over the running epoch, by update. ``replaced``
        are the names of parameters that the program had, by their ids (``names_of_replaced``), and
        ``first`` those of all as they came to the run: two layers may have been tied since.

        The history is kept as tensors: JSON would take 26 times its bytes to read.

        Raises:
            CheckpointError: An optimizer has a state that a file cannot hold.
        """
        random = take_random_state(device) | loader_states(generators)
        tensors = {f"rng.{name}": state for name, state in random.items()}
        for index, loss in (losses or {}).items():
            tensors[f"losses.{index}"] = loss.clone()
        for name, module in modules.items():
            for key, value in module.state_dict().items():
                if not isinstance(value, Tensor):
                    raise CheckpointError(
                        f"checkpoint: {key!r} of the {name} is a {type(value).__name__}, expected "
                        "a tensor: let get_extra_state return one, or keep it in a buffer"
                    )
                tensors[f"{name}.{key}"] = value.clone()
        for key, value in (best or {}).items():
            tensors[f"best.{key}"] = value
        columns = history.arrays()
        for name, column in columns.items():
            tensors[f"history.{name}"] = torch.from_numpy(column).double()
        names, states = {**(replaced or {}), **parameter_names(modules, first or {})}, []
        for index, optimizer in enumerate(optimizers):
            values, state = take_state(optimizer, names, f"optimizer{index}")
            tensors |= values
            states.append(state)
        meta = {**progress.as_json(), "columns": list(columns), "optimizers": states}
        if replaced:
            there = _places(modules["program"])
            meta[_DROPPED] = {name: names[id(there[name])] for name in replaced.values()}
        since = sorted(_parts(modules["program"].state_dict()) - (best or {}).keys())
        if best and since:
            meta[_SINCE_BEST] = since
        own: Any = modules["program"].own
        own.follow_values()  # a callback may have changed them
        meta["constraints"] = own.constraints.names()
        if own.late.unasked:
            groups = (group for optimizer in optimizers for group in optimizer.param_groups)
            held = {id(parameter) for group in groups for parameter in group["params"]}
            meta[_KEPT] = {
                key: {
                    "name": own.known[key].name,
                    "trained": id(own.values[key]) in held,
                    "late": key not in own.late.early,
                    "order": order_of(own.values[key]),
                }
                for key in own.late.unasked
            }
        if moved is not None:
            arrays, meta["plain"] = moved.take()
            tensors |= {f"plain.{name}": array for name, array in arrays.items()}
        return cls(tensors, meta)

    def check(self, folder: Path) -> None:
        """Try to make the file, and write nothing.

        Raises:
            CheckpointError: It cannot be written, whatever the disk.
        """
        serialise(self.tensors, self.meta, str(bundle_path(folder, NAME)), allow_nonfinite=True)

    def write(self, folder: Path) -> None:
        """Write it into a run folder, atomically; the one before it stays as the older one."""
        write_bundle(folder, NAME, self.tensors, self.meta, allow_nonfinite=True, previous=OLDER)


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint to resume from."""
    return any(bundle_path(folder, name).exists() for name in (NAME, OLDER))


def written(folder: Path) -> tuple[int, int] | None:
    """Return when the checkpoint was written, and its size; None where there is none."""
    with suppress(OSError):
        found = bundle_path(folder, NAME).stat()
        return found.st_mtime_ns, found.st_size
    return None


@contextmanager
def kept_given(program: Any, folder: Path | None) -> Iterator[None]:
    """Give a program the values that a run to go on with keeps for other data.

    Before the optimizer is made, which takes those that the run had as it began; all others join
    it later, as they did there. Where the run does not go on, they are taken away again.

    Arguments:
        program: It has read its data.
        folder: The run folder, if there is one.
    """
    late = program.own.late
    if folder is not None and has_checkpoint(folder):
        late.lend(_read_kept(folder), program.device)
    try:
        yield
    except BaseException:
        late.take_back()
        raise


def _read_kept(folder: Path) -> dict[str, Kept]:
    """Return the kept values of a run by key; none where nothing can be read."""
    for name in (NAME, OLDER):
        with suppress(CheckpointError):
            if mentions(folder, name, _KEPT):
                tensors, meta = read_bundle(folder, name, allow_nonfinite=True)
                return _kept(meta, _part(tensors, "program.values."))
    return {}


def _kept(meta: Mapping[str, Any], values: Mapping[str, Tensor]) -> dict[str, Kept]:
    """Return the kept values of a file, but for those that no writer of ours has written."""
    found, own, kept = meta.get(_KEPT), dir(nn.ParameterDict), {}
    constraints = constraints_of(meta.get("constraints"))
    for key, told in found.items() if isinstance(found, dict) else ():
        value, plain = values.get(key), "." not in key and key not in own
        if plain and value is not None and value.is_floating_point() and isinstance(told, dict):
            name = told.get("name")
            name = name if isinstance(name, str) and key_of(name) == key else None
            constraint = None if name is None else constraints.get(key)
            trained, late = bool(told.get("trained")), bool(told.get("late"))
            value = laid_out_by(told.get("order"), value)
            kept[key] = Kept(value, name, constraint, trained, late)
    return kept


def read_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    settings: dict[str, Any],
    device: torch.device,
    *,
    renew: bool = False,
    generators: Sequence[torch.Generator] = (),
    moved: MovedState | None = None,
) -> tuple[dict[str, Tensor], Progress, History, list[str], dict[int, Tensor]]:
    """Put a checkpoint's weights, optimizer states and random states back.

    Arguments:
        folder: The run folder.
        modules, optimizers: What is filled; optimizer states go by the names of parameters.
        settings: What must be equal for the run to be the same.
        device: Whose random state is put back.
        renew: Let the settings of a step (learning rate, clipping, ...) differ.
        generators: Those of a loader.
        moved: Of the program, which is given the plain values of the run.

    Returns:
        The best weights so far, how far the run has come, its history, the settings that differ,
        and the sums of losses over the running epoch, by update.

    Raises:
        CheckpointError: Missing, damaged, or of another program; nothing is changed then.
        ConfigError: Another run's settings; nothing is changed then.
    """
    tensors, meta, where = _read_newest(folder)
    progress = Progress.from_json(meta, where)
    history = _history(_part(tensors, "history."), meta.get("columns"), progress.epoch, where)
    states = {name: _part(tensors, f"{name}.") for name in modules}
    spare = _add_spare(states, modules)
    # Pyro's TraceGraph_ELBO makes them as it runs: this program has not made its own yet.
    averages = {k: v for k, v in states["program"].items() if k.startswith(_AVERAGES)}
    here = {**averages, **modules["program"].state_dict()}
    others = here.keys() ^ states["program"].keys()
    late = _parts(others)
    check_state(here, states["program"], where, _BY_OTHERS if late else "")
    changes = check_settings(settings, progress.settings, where, renew)
    for name, module in modules.items():
        check_state({**module.state_dict(), **_late(name, averages)}, states[name], where)
    best = _part(tensors, "best.")
    if best:
        made = {key: value for key, value in best.items() if key.startswith(_AVERAGES)}
        kept = _kept(meta, _part(tensors, "program.values."))
        came = meta.get(_SINCE_BEST)
        since = {key for key in came if isinstance(key, str)} if isinstance(came, list) else set()
        later = {*spare, *(f"values.{key}" for key in kept), *_parts(since)} - best.keys()
        known = {k: v for k, v in modules["program"].state_dict().items() if k not in later}
        check_state({**known, **made}, best, where)
    losses = _losses(_part(tensors, "losses."), progress, where)
    check_moved(meta.get("plain"), where)
    random = _part(tensors, "rng.")
    check_random_state(random, where)
    renewed = renewed_options(settings, progress.settings) if renew else frozenset()
    fitted = _fit_optimizers(modules, optimizers, tensors, meta, where, renewed)
    take_averages(modules["program"], averages)
    for name, module in modules.items():
        module.load_state_dict(states[name])
    for optimizer, state in zip(optimizers, fitted, strict=True):
        optimizer.load_state_dict(state)
    _tie(modules["program"], _dropped(meta, modules["program"]))
    own: Any = modules["program"].own
    own.late.keep_lent()
    own.constraints.note(meta.get("constraints"))
    set_random_state(random, device, generators)
    if moved is not None:
        moved.put_back(_part(tensors, "plain."), meta.get("plain"), where)
    return best, progress, history, changes, losses


def _dropped(meta: Mapping[str, Any], program: nn.Module) -> dict[str, str]:
    """Return the names of parameters that the run has dropped, with those in their place."""
    found, here = meta.get(_DROPPED), _places(program)
    pairs = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in pairs if k in here and isinstance(v, str) and v in here}


def _tie(program: nn.Module, dropped: Mapping[str, str]) -> None:
    """Let layers share the parameters that they shared in the run: its functions may tie once."""
    places = _places(program)
    for name, other in dropped.items():
        part, _, last = name.removeprefix("program.").rpartition(".")
        if places[name].shape == places[other].shape:
            program.get_submodule(part)._parameters[last] = places[other]


def _places(program: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a program by all their names: several, where layers share one."""
    return dict(program.named_parameters(prefix="program", remove_duplicate=False))


def _add_spare(states: dict[str, dict[str, Tensor]], modules: dict[str, nn.Module]) -> set[str]:
    """Let values stay as they are that other data have asked for in this process alone.

    Arguments:
        states: Of a file, by module; these values and their averages are added.
        modules: What is filled.

    Returns:
        The names of such values.
    """
    own: Any = modules["program"].own
    spare = {f"values.{key}" for key in own.late.unasked} - states["program"].keys()
    for name, module in modules.items():
        now = module.state_dict()
        states[name] |= {k: now[k] for k in now if k.replace("/", ".") in spare}
    return spare


def _parts(keys: Iterable[str]) -> set[str]:
    """Return the names among tensors of networks, and of tensors that have none of their own."""
    return {key for key in keys if key.startswith(("parts.", "values.found-"))}


def _losses(found: Mapping[str, Tensor], progress: Progress, where: str) -> dict[int, Tensor]:
    """Return the sums of losses of a running epoch, by update.

    Raises:
        CheckpointError: They are none.
    """
    known = {str(index): index for index in range(len(progress.rows))}
    if set(found) - set(known) or any(loss.dim() for loss in found.values()):
        raise CheckpointError(f"{where}: its record of the running epoch is malformed")
    return {known[name]: loss for name, loss in found.items()}


def _history(columns: Mapping[str, Tensor], names: Any, epochs: int, where: str) -> History:
    """Return a run's history from its columns, of one length: a row for each epoch at most.

    Arguments:
        columns: By name; a file holds them in an order of its own.
        names: In the order of the run.
        epochs: Of the run, so far.
        where: The file, for messages.

    Raises:
        CheckpointError: They are others.
    """
    rows = {len(column) if column.dim() == 1 else -1 for column in columns.values()}
    doubles = all(column.dtype == torch.float64 for column in columns.values())
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or len(names) != len(columns) or set(names) != set(columns):
        raise CheckpointError(
            f"{where}: its record of the run has other columns than it names (an older version's "
            "has none); start the run anew, or resume with the version that began it"
        )
    if not doubles or len(rows) > 1 or not all(0 <= count <= epochs for count in rows):
        raise CheckpointError(f"{where}: its record of the run is malformed")
    return History.of_columns({name: columns[name].cpu().numpy() for name in names})


def take_averages(program: Any, averages: Mapping[str, Tensor]) -> None:
    """Give a program the running baselines of ``TraceGraph_ELBO`` that a file holds."""
    for key, value in averages.items():
        program.own.take_average(key.removeprefix("values."), value)


def _late(module: str, averages: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return averages if module == "program" else {}


def _fit_optimizers(
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    where: str,
    renewed: frozenset[str],
) -> list[dict[str, Any]]:
    saved, dropped = meta.get("optimizers"), _dropped(meta, modules["program"])
    if not isinstance(saved, list) or len(saved) != len(optimizers):
        count = len(saved) if isinstance(saved, list) else "no"
        raise CheckpointError(
            f"{where}: holds {counted(count, 'optimizer')}, this run has {len(optimizers)}; "
            "resume with the objective and the optimizer that started the run"
        )
    try:
        held = {name for state in saved for group in state["groups"] for name in group["params"]}
        names = parameter_names(modules, held.difference(dropped))
        gone = {*dropped}.difference(names.values())  # where the program ties its layers already
        fitted = []
        for index, (optimizer, state) in enumerate(zip(optimizers, saved, strict=True)):
            known, moments = without_dropped(state, _part(tensors, f"optimizer{index}/"), gone)
            fitted.append(fit_state(optimizer, known, moments, names, where, renewed))
        return fitted
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        # Entries of other kinds than were written: no writer of ours, whatever the hash says.
        raise CheckpointError(f"{where}: its optimizer state is malformed ({error!r})") from None


def _read_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read the newer checkpoint, or the older one, with a warning, where that is damaged."""
    try:
        found = read_bundle(folder, NAME, allow_nonfinite=True)
        return *found, str(bundle_path(folder, NAME))
    except CheckpointError as error:
        if not bundle_path(folder, OLDER).exists():
            raise
        try:
            found = read_bundle(folder, OLDER, allow_nonfinite=True)
        except CheckpointError:
            raise error from None
        warnings.warn(
            f"resume: {error}. The checkpoint before it is used: epoch {found[1].get('epoch')}",
            UserWarning,
            stacklevel=of_user(),
        )
        return *found, str(bundle_path(folder, OLDER))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
