"""Reading a saved program back."""

import os
import shlex
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae import models
from pyro_vae.arguments import typed
from pyro_vae.callers import of_user
from pyro_vae.device import resolve_device
from pyro_vae.errors import CheckpointError
from pyro_vae.program.batches.row_hashes import is_hash
from pyro_vae.program.parameters.value_types import is_wider, tell_of_rounding
from pyro_vae.program.program import Program
from pyro_vae.storage.budget import Budget
from pyro_vae.storage.bundle import bundle_path, check_state, read_bundle
from pyro_vae.storage.checkpoint import has_checkpoint
from pyro_vae.storage.hub import ADDRESS, fetched
from pyro_vae.storage.paths import local_path
from pyro_vae.storage.plain_state import tell_of_plain_state
from pyro_vae.storage.remote import RemoteFolder, is_address
from pyro_vae.storage.save import NAME
from pyro_vae.threads import one_thread

_INTO_A_NEW_ONE = (
    ", or load it into a new program, before that reads any rows: what other data have made waits "
    "there for them"
)


@typed
@one_thread("load")
def load(
    folder: str | os.PathLike[str], *, into: Any = None, device: str | torch.device = "cpu"
) -> Any:
    """Load a program that ``pv.save`` or ``pv.fit(out=...)`` wrote; loading never runs code.

    A file from a stranger cannot ask for more than it holds: what is built from its configuration
    is bounded by the number of its values.

    Arguments:
        folder: Where it was saved; or ``"hf://owner/name"`` (``@tag`` behind it), a repository of
            the Hugging Face Hub (extra ``hub``); or another address that fsspec opens
            (``"s3://bucket/run"``, extra ``remote``).
        into: Your own program, built as it was when it was saved: its weights are replaced, by
            name. A class or a variable that has another name since is known by its tensors, and a
            warning says so. Floats take the types that the program has, with a warning where that
            rounds them: ``pv.Program.of(into).to(torch.float64)`` before keeps all digits. The
            file tells constraints that take no argument: a ``pyro.param`` statement with another
            one, under which the numbers stand for other values, is warned of. A program of
            ``pv.models`` is rebuilt from its configuration without it.
        device: Where a rebuilt program goes: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

    Returns:
        The program, in eval mode.

    Raises:
        CheckpointError: Missing, damaged or foreign files, or weights that do not fit ``into``,
            which is unchanged then.
        ConfigError: An address that cannot be opened.
        OSError: The store of an address does not answer.
    """
    if isinstance(folder, str) and folder.startswith(ADDRESS):
        return _load(fetched(folder), into, device)
    if is_address(folder):
        with tempfile.TemporaryDirectory(prefix="pyro_vae-") as copy:
            file = bundle_path(copy, NAME)
            RemoteFolder("folder", os.fspath(folder)).read(Path(copy), only=[file.name])
            if not file.exists():
                raise CheckpointError(f"{os.fspath(folder)}: holds no saved program")
            return _load(Path(copy), into, device)
    return _load(local_path("folder", folder), into, device)


def _load(folder: Path, into: Any, device: str | torch.device) -> Any:
    where = str(bundle_path(folder, NAME))
    if has_checkpoint(folder) and not bundle_path(folder, NAME).exists():
        raise CheckpointError(
            f"{where}: no such file, but a checkpoint beside it: the run has not come to its end, "
            f"which writes the program; go on by {_way_on(folder)}"
        )
    if into is None:
        home = resolve_device(device)
        tensors, meta = read_bundle(folder, NAME, home)
        program = _rebuild(meta, tensors, where)
        program.to(home)
        floats = [value.dtype for value in tensors.values() if value.is_floating_point()]
        if floats:
            program.to(floats[0])
    else:
        program = into
        tensors, meta = read_bundle(folder, NAME, Program.of(into).device)
    _fill(Program.of(program), tensors, meta, where)
    return program


def _way_on(folder: Path) -> str:
    """Return what goes on with a run: the command line has the settings of its own runs alone."""
    settings = folder / "train.json"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    if not text or '"undivided"' in text:  # which commands note of a run of Python
        return "pv.fit(..., resume=True)"
    return f"pyro-vae train --resume true --out {shlex.quote(str(folder))}"


def _fill(
    program: Program, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str
) -> None:
    """Copy tensors into a program, once all of them are known to fit."""
    late = meta.get("late", [])
    names = [name for name in late if isinstance(name, str)] if isinstance(late, list) else []
    for key in tensors:
        _require_value_name(key, where)
    compiled = _of_compiled(program, tensors)
    tensors = {compiled.get(key, key): value for key, value in tensors.items()}
    names = [compiled.get(name, name) for name in names]
    renamed = _renamed_parts(program, tensors, names)
    tensors = {_renamed(key, renamed): value for key, value in tensors.items()}
    loads = program.own.loads
    awaited = loads.awaited(tensors, [_renamed(name, renamed) for name in names])
    waiting = loads.waiting
    here = {key: v for key, v in program.state_dict().items() if key not in waiting}
    lacks = not program.own.fresh and not here.keys() - tensors.keys()
    check_state({**here, **awaited}, tensors, where, _INTO_A_NEW_ONE if lacks else "")
    for old, new in renamed.items():
        warnings.warn(
            f"load: {where} has no {new!r}; the weights of its {old!r}, which has the same "
            "tensors, are taken for it",
            UserWarning,
            stacklevel=of_user(),
        )
    narrow = {key: v.dtype for key, v in here.items() if is_wider(tensors[key].dtype, v.dtype)}
    if narrow:
        tell_of_rounding(narrow)
    loads.expect(awaited)
    loads.expected.update({key: tensors[key] for key in loads.expected})
    rest = {key: value for key, value in tensors.items() if key not in loads.expected}
    nn.Module.load_state_dict(program, rest)  # what is expected is known
    program.own.constraints.note(meta.get("constraints"))
    rows = meta.get("rows")
    program.rows.told = rows if type(rows) is int and rows > 0 else None
    trained = meta.get("trained_rows")
    program.rows.trained = trained if is_hash(trained) else None
    tell_of_plain_state(program, meta.get("plain_state"), where)
    program.eval()


def _of_compiled(program: Program, saved: Collection[str]) -> dict[str, str]:
    """Return today's names of tensors that a compiled network has, or had where it was saved.

    ``torch.compile`` puts a part ``_orig_mod`` into them.
    """
    here: dict[str, list[str]] = {}
    for key in program.state_dict():
        here.setdefault(_uncompiled(key), []).append(key)
    found = {key: here.get(_uncompiled(key), [key]) for key in saved}
    return {key: now[0] for key, now in found.items() if len(now) == 1 and now[0] not in saved}


def _uncompiled(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def _renamed_parts(
    program: Program, tensors: Mapping[str, Tensor], late: list[str]
) -> dict[str, str]:
    """Return today's names of parts that a file has under others, where one alone can be meant."""
    here, saved = _by_part(program.own.part_tensors()), _by_part(tensors)
    here |= {name: {} for name in program.own.parts if name not in here}
    lost = [name for name in saved if name not in here]
    free = [name for name in here if name not in saved]

    def fits(old: str, new: str) -> bool:
        there, now = saved[old], here[new]
        alike = all(
            key in there and (is_lazy(value) or there[key].shape == value.shape)
            for key, value in now.items()
        )
        return alike and all(f"parts.{old}.{key}" in late for key in there.keys() - now.keys())

    found = {old: [new for new in free if fits(old, new)] for old in lost}
    taken = [new for each in found.values() for new in each]
    return {old: each[0] for old, each in found.items() if len(each) == 1 == taken.count(each[0])}


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of parts by the part's name, and by their own in it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        room, _, rest = key.partition(".")
        if room == "parts":
            part, _, name = rest.partition(".")
            found.setdefault(part, {})[name] = value
    return found


def _renamed(key: str, parts: Mapping[str, str]) -> str:
    room, _, rest = key.partition(".")
    part, _, name = rest.partition(".")
    return f"parts.{parts[part]}.{name}" if room == "parts" and part in parts else key


def _require_value_name(key: str, where: str) -> None:
    """Refuse a ``pyro.param`` value under a name that means something to its container."""
    name = key.removeprefix("values.")
    if name != key and hasattr(nn.ParameterDict(), name):
        raise CheckpointError(
            f"{where}: {key!r} cannot name a value; the file was not written here"
        )


def _rebuild(meta: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Any:
    name, config = meta.get("program"), meta.get("config")
    # Only a public class of this package is ever looked up: a file cannot name anything else.
    if not isinstance(name, str) or name not in models.__all__ or not isinstance(config, dict):
        raise CheckpointError(
            f"{where}: holds {name!r}, which is not rebuilt from its configuration; build it as it "
            "was and pass it: pv.load(folder, into=program)"
        )
    budget = Budget(tensors.values(), where)
    try:
        budget.check_numbers(config)
        with torch.random.fork_rng([]), budget:  # weights are drawn, and replaced at once
            return getattr(models, name)(**config)
    except CheckpointError:
        raise
    except Exception as error:  # whatever arguments of a stranger provoke
        raise CheckpointError(f"{where}: configuration of {name} does not fit: {error}") from error
